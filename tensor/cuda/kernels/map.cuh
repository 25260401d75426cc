// Loops over numbers that do not know each other: y[i] = f(a[i]) or f(a[i], b[i]), for i in 0..count.
//
// Where every operand lies at a multiple of 16 bytes, a thread takes four neighbours with one read and one write; what is
// left of the last four, or all of them where the operands do not lie so, goes one by one.
#pragma once
#include "device.cuh"

__device__ __forceinline__ bool is_aligned(const void* at) { return ((u64)at & 15u) == 0; }

template <class F>
__device__ __forceinline__ void map(float* y, const float* a, u64 count, F f) {
    u64 quads = is_aligned(y) && is_aligned(a) ? count / 4 : 0;
    for (u64 i = first_number(); i < quads; i += number_stride()) {
        float4 x = reinterpret_cast<const float4*>(a)[i];
        reinterpret_cast<float4*>(y)[i] = make_float4(f(x.x), f(x.y), f(x.z), f(x.w));
    }
    for (u64 i = 4 * quads + first_number(); i < count; i += number_stride()) y[i] = f(a[i]);
}

template <class F>
__device__ __forceinline__ void map2(float* y, const float* a, const float* b, u64 count, F f) {
    u64 quads = is_aligned(y) && is_aligned(a) && is_aligned(b) ? count / 4 : 0;
    for (u64 i = first_number(); i < quads; i += number_stride()) {
        float4 p = reinterpret_cast<const float4*>(a)[i];
        float4 q = reinterpret_cast<const float4*>(b)[i];
        reinterpret_cast<float4*>(y)[i] = make_float4(f(p.x, q.x), f(p.y, q.y), f(p.z, q.z), f(p.w, q.w));
    }
    for (u64 i = 4 * quads + first_number(); i < count; i += number_stride()) y[i] = f(a[i], b[i]);
}
