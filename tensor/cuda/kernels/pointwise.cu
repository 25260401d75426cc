// Functions of one or two numbers, element by element, with the bits of `tensor/src/ops/{add,mul,scale,relu,gelu}.rs`.
//
// Axes: none, `count` numbers. Grid: a thread for every four numbers, more by turns (`map.cuh`). No number depends on another,
// so there is no order. Functions with broadcasting are `each.cu`.
#include "map.cuh"
#include "math.cuh"

KERNEL(copy, float* y, const float* x, u64 count) {
    map(y, x, count, [](float x) { return x; });
}

KERNEL(add, float* y, const float* a, const float* b, u64 count) {
    map2(y, a, b, count, [](float a, float b) { return a + b; });
}

KERNEL(mul, float* y, const float* a, const float* b, u64 count) {
    map2(y, a, b, count, [](float a, float b) { return a * b; });
}

KERNEL(scale, float* y, const float* x, u64 count, float factor) {
    map(y, x, count, [factor](float x) { return factor * x; });
}

// A NaN passes.
KERNEL(relu, float* y, const float* x, u64 count) {
    map(y, x, count, [](float x) { return x <= 0.0f ? 0.0f : x; });
}

// dx = dy where y > 0, else 0.
KERNEL(relu_grad, float* dx, const float* y, const float* dy, u64 count) {
    map2(dx, y, dy, count, [](float y, float dy) { return y <= 0.0f ? 0.0f : dy; });
}

// The tanh form of GELU as x σ(2u), u = SLOPE (x + CUBIC x³). Constants are products of doubles, rounded once.
constexpr double SLOPE = 0.7978845608028654;
constexpr double CUBIC = 0.044715;
constexpr double LOG2_E = 1.44269504088896340736;
constexpr double LINEAR = -2.0 * SLOPE * LOG2_E;

// 1 + exp(-2u).
__device__ __forceinline__ float below(float x) {
    return 1.0f + math::exp2(x * ((float)LINEAR + (float)(LINEAR * CUBIC) * (x * x)));
}

KERNEL(gelu, float* y, const float* x, u64 count) {
    map(y, x, count, [](float x) { return x / below(x); });
}

// dx = dy (σ + x σ (1 - σ) 2 SLOPE (1 + 3 CUBIC x²)).
KERNEL(gelu_grad, float* dx, const float* x, const float* dy, u64 count) {
    map2(dx, x, dy, count, [](float x, float dy) {
        float share = 1.0f / below(x);
        float slope = x * ((float)(2.0 * SLOPE) + (float)(6.0 * SLOPE * CUBIC) * (x * x));
        return dy * (share + slope * (share * (1.0f - share)));
    });
}
