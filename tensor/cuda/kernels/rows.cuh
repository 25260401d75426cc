// Rows by sixteen lanes, in the order of sums of `tensor/src/real.rs`: number i of a row belongs to lane i mod 16, a
// lane adds its numbers in ascending order, and the lanes are folded by halves, 8, 4, 2, 1.
//
// Half a warp has a row, so a lane is a thread and reads its neighbours' neighbours: 64 bytes of a row at once. A row's
// bits depend on nothing but the row. Blocks have any multiple of 32 threads; there may be fewer blocks than rows.
#pragma once
#include "device.cuh"

namespace rows {

static const u32 LANES = 16;

__device__ __forceinline__ u32 lane() { return threadIdx.x % LANES; }

// The lanes' sum, to all of them. Which of two is added to which does not matter to a sum.
__device__ __forceinline__ float fold(float sum) {
#pragma unroll
    for (u32 half = LANES / 2; half > 0; half /= 2) sum += __shfl_xor_sync(WHOLE_WARP, sum, half);
    return sum;
}

// The larger; the first of equals (zeros of two signs), and the first if one is a NaN.
__device__ __forceinline__ float larger(float a, float b) { return b > a ? b : a; }

// The lanes' largest, to all of them: the lower lane is always the first.
__device__ __forceinline__ float fold_largest(float top) {
#pragma unroll
    for (u32 half = LANES / 2; half > 0; half /= 2) {
        float other = __shfl_xor_sync(WHOLE_WARP, top, half);
        top = lane() & half ? larger(other, top) : larger(top, other);
    }
    return top;
}

// The least of the lanes' indices, to all of them.
__device__ __forceinline__ u64 fold_first(u64 first) {
#pragma unroll
    for (u32 half = LANES / 2; half > 0; half /= 2) {
        u64 other = __shfl_xor_sync(WHOLE_WARP, first, half);
        first = other < first ? other : first;
    }
    return first;
}

// The sum of term(i) over a row's indices. Its loads do not wait for the sum, so many are under way at once.
template <class Term>
__device__ __forceinline__ float sum(u64 count, Term term) {
    float sum = 0.0f;
#pragma unroll 8
    for (u64 i = lane(); i < count; i += LANES) sum += term(i);
    return fold(sum);
}

// The largest x[i], or minus infinity; a NaN is passed over.
__device__ __forceinline__ float largest(u64 count, const float* x) {
    float top = -infinity();
#pragma unroll 8
    for (u64 i = lane(); i < count; i += LANES) top = larger(top, x[i]);
    return fold_largest(top);
}

// Calls each(i) for a row's indices, which are independent.
template <class Each>
__device__ __forceinline__ void each(u64 count, Each each) {
#pragma unroll 4
    for (u64 i = lane(); i < count; i += LANES) each(i);
}

// The rows of a half-warp, one after the other. Both halves of a warp take as many turns, since they shuffle together:
// `is_there` says whether a turn has a row, and `count` is 0 if not.
struct Turn {
    u64 rows, cols, row, count;

    __device__ __forceinline__ Turn(u64 rows, u64 cols) : rows(rows), cols(cols) { take((u64)blockIdx.x * of_block()); }

    __device__ __forceinline__ static u32 of_block() { return blockDim.x / LANES; }

    __device__ __forceinline__ void take(u64 first) {
        row = first + threadIdx.x / LANES;
        count = row < rows ? cols : 0;
    }

    // The warp's first row is there.
    __device__ __forceinline__ bool goes_on() const { return row - threadIdx.x / LANES % 2 < rows; }
    __device__ __forceinline__ void next() { take(row - threadIdx.x / LANES + (u64)gridDim.x * of_block()); }

    __device__ __forceinline__ bool is_there() const { return row < rows; }
    // One lane writes what a row has once.
    __device__ __forceinline__ bool writes() const { return is_there() && lane() == 0; }
    // Where the row begins; where a row does, if there is none.
    __device__ __forceinline__ u64 begin() const { return is_there() ? row * cols : 0; }
};

}  // namespace rows
