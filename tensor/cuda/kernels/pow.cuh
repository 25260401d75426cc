// x to a fixed power in f64, of an x that is an f32, rounded to f32: the bits of `Real::pow` of `tensor/src/real.rs`.
//
// Whole powers up to 64 go by squaring. For the others the processor takes the `libm` crate's `pow`, which is FreeBSD's
// (e_pow.c, Sun Microsystems, 1993 to 2004): log2 |x| and its product with the power as sums of two doubles, and 2 to that.
// Here are the same operations on doubles in the same order, none contracted. What an f32 cannot show is left out: an x that
// is a subnormal double, and results that are one.
#pragma once
#include "device.cuh"

// What a power is, which the host knows.
enum PowerKind : u32 {
    // Whole, and at most 64 in size.
    BY_SQUARING,
    FRACTION,
    ODD,
    EVEN,
};

namespace powers {

__device__ __forceinline__ u64 bits_of(double x) { return (u64)__double_as_longlong(x); }
__device__ __forceinline__ double of_bits(u64 bits) { return __longlong_as_double((long long)bits); }
__device__ __forceinline__ double infinity() { return of_bits(0x7ff0000000000000ull); }
__device__ __forceinline__ double size_of(double x) { return of_bits(bits_of(x) & 0x7fffffffffffffffull); }
// Without the lower half of its bits: products of two such numbers are nearly exact.
__device__ __forceinline__ double top(double x) { return of_bits(bits_of(x) & 0xffffffff00000000ull); }

// A number as the sum of two, the first of which has few bits.
struct Two {
    double high, low;
};

// log2 of an x that is not near to 0 or infinity: x is 2^n m with m next to `base`, which is 1 or 3/2, and
// log m = log base + 2 atanh s with s = (m - base) / (m + base).
__device__ __forceinline__ Two log2(double x) {
    const double CP = 9.61796693925975554329e-01;      // 2 / (3 ln 2), whole and in two
    const double CP_HIGH = 9.61796700954437255859e-01;
    const double CP_LOW = -7.02846165095275826516e-09;
    int n = (int)(bits_of(x) >> 52) - 1023;
    u32 fraction = (u32)(bits_of(x) >> 32) & 0xfffffu;
    // From √(3/2) on 3/2 is nearer, from √3 on 2 is, as 1 with the next n.
    bool is_middle = fraction > 0x3988eu && fraction < 0xbb67au, is_last = fraction >= 0xbb67au;
    n += is_last ? 1 : 0;
    double m = of_bits((bits_of(x) & 0xfffffffffffffull) | (is_last ? 0x3feull : 0x3ffull) << 52);
    double base = is_middle ? 1.5 : 1.0;
    double base_high = is_middle ? 5.84962487220764160156e-01 : 0.0;  // log2 of the base
    double base_low = is_middle ? 1.35003920212974897128e-08 : 0.0;

    double difference = m - base, sum = m + base, inverse = 1.0 / sum;
    double s = difference * inverse, s_high = top(s), sum_high = top(sum);
    double sum_low = m - (sum_high - base);
    double s_low = inverse * ((difference - s_high * sum_high) - s_high * sum_low);

    double z = s * s;
    double p = 2.06975017800338417784e-01;
    p = 2.30660745775561754067e-01 + z * p;
    p = 2.72728123808534006489e-01 + z * p;
    p = 3.33333329818377432918e-01 + z * p;
    p = 4.28571428578550184252e-01 + z * p;
    p = 5.99999999999994648725e-01 + z * p;
    double rest = z * z * p;
    rest += s_low * (s_high + s);
    double square = s_high * s_high;
    double t_high = top(3.0 + square + rest), t_low = rest - ((t_high - 3.0) - square);
    double u = s_high * t_high, v = s_low * t_high + t_low * s;
    double high = top(u + v), low = v - (high - u);
    double z_high = CP_HIGH * high, z_low = CP_LOW * high + low * CP + base_low;
    double first = top(((z_high + z_low) + base_high) + (double)n);
    return {first, z_low - (((first - (double)n) - base_high) - z_high)};
}

// log2 of an x within 2^-20 of 1, by the series of log(1 + t).
__device__ __forceinline__ Two log2_near_one(double x) {
    const double INVERSE = 1.44269504088896338700e+00;  // 1 / ln 2, whole and in two
    const double INVERSE_HIGH = 1.44269502162933349609e+00;
    const double INVERSE_LOW = 1.92596299112661746887e-08;
    double t = x - 1.0;
    double w = (t * t) * (0.5 - t * (0.3333333333333333333333 - t * 0.25));
    double u = INVERSE_HIGH * t, v = t * INVERSE_LOW - w * INVERSE;
    double high = top(u + v);
    return {high, v - (high - u)};
}

// 2^(high + low), of which the sum is under 1000 in size.
__device__ __forceinline__ double exp2(double high, double low) {
    const double LN2 = 6.93147180559945286227e-01;  // ln 2, whole and in two
    const double LN2_HIGH = 6.93147182464599609375e-01;
    const double LN2_LOW = -1.90465429995776804525e-09;
    double sum = low + high, size = size_of(top(sum));
    double whole = size > 0.5 ? floor(size + 0.5) : 0.0;
    whole = size > 0.5 && sum < 0.0 ? -whole : whole;
    high -= whole;
    double t = top(low + high);
    double u = t * LN2_HIGH, v = (low - (t - high)) * LN2 + t * LN2_LOW;
    double z = u + v, w = v - (z - u);
    t = z * z;
    double p = 4.13813679705723846039e-08;
    p = -1.65339022054652515390e-06 + t * p;
    p = 6.61375632143793436117e-05 + t * p;
    p = -2.77777777770155933842e-03 + t * p;
    p = 1.66666666666666019037e-01 + t * p;
    double d = z - t * p;
    double r = (z * d) / (d - 2.0) - (w + z * w);
    z = 1.0 - (r - z);
    return of_bits(bits_of(z) + ((u64)(long long)(int)whole << 52));
}

// Of a positive x that is neither 1 nor infinite, to a finite power. What f32 takes for 0 or infinity is that.
__device__ __forceinline__ double of_positive(double x, double power) {
    Two log = {0.0, 0.0};
    if (size_of(top(power)) > 2147483648.0) {
        u32 high = (u32)(bits_of(x) >> 32);
        if (high < 0x3fefffffu) return power < 0.0 ? infinity() : 0.0;
        if (high > 0x3ff00000u) return power > 0.0 ? infinity() : 0.0;
        log = log2_near_one(x);
    } else {
        log = log2(x);
    }
    double power_high = top(power);
    double low = (power - power_high) * log.high + power * log.low;
    double high = power_high * log.high;
    if (low + high > 500.0) return infinity();
    if (low + high < -500.0) return 0.0;
    return exp2(high, low);
}

__device__ __forceinline__ double general(double x, double power, u32 kind) {
    if (x == 1.0) return 1.0;
    if (x != x || power != power) return x + power;
    double size = size_of(x);
    if (size_of(power) == infinity()) {
        if (size == 1.0) return 1.0;
        return (size > 1.0) == (power > 0.0) ? infinity() : 0.0;
    }
    bool is_negative = bits_of(x) >> 63 != 0;
    if (power == 0.5 && !is_negative) return __dsqrt_rn(x);
    double y = size;
    if (size == 0.0 || size == infinity() || size == 1.0) {
        y = power < 0.0 ? 1.0 / size : size;
        if (size != 1.0 && kind == FRACTION) return y;
    } else if (!is_negative || kind != FRACTION) {
        y = of_positive(size, power);
    }
    if (!is_negative) return y;
    if (kind == FRACTION) return (double)one_nan();
    return kind == ODD ? -y : y;
}

__device__ __forceinline__ double by_squaring(double x, int power) {
    double y = 1.0;
    for (u32 rest = (u32)(power < 0 ? -power : power); rest > 0; rest /= 2) {
        if (rest % 2 == 1) y *= x;
        x *= x;
    }
    return power < 0 ? 1.0 / y : y;
}

__device__ __forceinline__ float fixed(float x, double power, u32 kind) {
    double wide = (double)x;
    return (float)(kind == BY_SQUARING ? by_squaring(wide, (int)power) : general(wide, power, kind));
}

}  // namespace powers
