// exp, exp2, ln and tanh with the bits of `tensor/src/math.rs`: the same operations in the same order, none contracted.
#pragma once
#include "device.cuh"

namespace math {

// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
static const float ROUND = 12582912.0f;

// A NaN stays one.
__device__ __forceinline__ float clamp(float x, float low, float high) {
    x = x > high ? high : x;
    return x < low ? low : x;
}

// 2^n for an n from -127 (which gives 0) to 128 (infinity) that ROUND was added to.
__device__ __forceinline__ float power(float shifted) { return of_bits((bits_of(shifted) << 23) + (127u << 23)); }

__device__ __forceinline__ float exp(float x) {
    x = clamp(x, -88.0f, 88.7f);
    float shifted = x * 1.44269504088896340736f + ROUND;
    float n = shifted - ROUND;
    float r = x - n * 0.6933594f - n * -2.1219444e-4f;
    float p = 1.9875691e-4f;
    p = p * r + 1.3981999e-3f;
    p = p * r + 8.333452e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666666e-1f;
    p = p * r + 0.5f;
    return (p * (r * r) + r + 1.0f) * power(shifted);
}

__device__ __forceinline__ float exp2(float x) {
    x = clamp(x, -127.0f, 128.0f);
    float shifted = x + ROUND;
    float r = x - (shifted - ROUND);
    float p = 1.5453163e-4f;
    p = p * r + 1.3390863e-3f;
    p = p * r + 9.618083e-3f;
    p = p * r + 5.550357e-2f;
    p = p * r + 2.402265e-1f;
    p = p * r + 6.931472e-1f;
    return (p * r + 1.0f) * power(shifted);
}

__device__ __forceinline__ float ln(float x) {
    // Bits of the root of 1/2: the mantissa is taken from there up to the root of 2.
    const u32 HALF_ROOT = 0x3f3504f3u;
    bool is_subnormal = x < of_bits(0x00800000u);
    u32 bits = bits_of(is_subnormal ? x * 8388608.0f : x) - HALF_ROOT;
    float exponent = (float)((int)bits >> 23) - (is_subnormal ? 23.0f : 0.0f);
    float r = of_bits((bits & 0x007fffffu) + HALF_ROOT) - 1.0f;
    float p = 7.0376836e-2f;
    p = p * r + -1.151461e-1f;
    p = p * r + 1.1676999e-1f;
    p = p * r + -1.2420141e-1f;
    p = p * r + 1.4249323e-1f;
    p = p * r + -1.6668058e-1f;
    p = p * r + 2.0000715e-1f;
    p = p * r + -2.4999994e-1f;
    p = p * r + 3.333333e-1f;
    float z = r * r;
    float y = p * r * z + exponent * -2.1219444e-4f - 0.5f * z + r + exponent * 0.6933594f;
    y = x < infinity() ? y : x;
    y = x == 0.0f ? -infinity() : y;
    return x < 0.0f ? one_nan() : y;
}

__device__ __forceinline__ float tanh(float x) {
    float size = of_bits(bits_of(x) & 0x7fffffffu);
    float z = x * x;
    float p = -5.7049887e-3f;
    p = p * z + 2.063909e-2f;
    p = p * z + -5.3739716e-2f;
    p = p * z + 1.3331479e-1f;
    p = p * z + -3.333328e-1f;
    float near = p * z * size + size;
    float far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
    float y = size < 0.625f ? near : far;
    return of_bits(bits_of(y) | (bits_of(x) & 0x80000000u));
}

}  // namespace math
