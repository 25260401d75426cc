// One float or four of them: what tables' rows are read by.
#pragma once
#include "device.cuh"

template <class V>
__device__ __forceinline__ V all_of(float x);
template <>
__device__ __forceinline__ float all_of<float>(float x) { return x; }
template <>
__device__ __forceinline__ float4 all_of<float4>(float x) { return make_float4(x, x, x, x); }

__device__ __forceinline__ float plus(float a, float b) { return a + b; }
__device__ __forceinline__ float4 plus(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ __forceinline__ float tree_plus(float a, float b) { return tree_add(a, b); }
__device__ __forceinline__ float4 tree_plus(float4 a, float4 b) {
    return make_float4(tree_add(a.x, b.x), tree_add(a.y, b.y), tree_add(a.z, b.z), tree_add(a.w, b.w));
}

// Whether rows of so many floats may be read four at a time.
__device__ __forceinline__ bool are_in_fours(const void* a, const void* b, u64 columns) {
    return (((u64)a | (u64)b) & 15) == 0 && columns % 4 == 0;
}
