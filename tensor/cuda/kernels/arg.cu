// The index along an axis of the first largest or smallest number, or of the first NaN. x: (outer, n, inner); y:
// (outer, inner), floats, which hold every index below 2^24.
//
// Which is chosen does not depend on the order in which numbers are compared: of two the better one, of equal ones (-0
// and +0 are) the first, of a NaN and a number the NaN. So threads take numbers of a line by turns, and join by halves.
//
// Where inner is 1, a block takes lines by turns. Else it has 32 columns, an (outer, inner) each, with 16 warps.
#include "device.cuh"

static const u32 NONE = 0xffffffffu;

struct Best {
    float value;
    u32 index;
};

struct Larger {
    static __device__ __forceinline__ bool wins(float a, float b) { return b > a; }
};
struct Smaller {
    static __device__ __forceinline__ bool wins(float a, float b) { return b < a; }
};

template <class F>
__device__ __forceinline__ Best better(Best a, Best b) {
    if (b.index == NONE) return a;
    if (a.index == NONE) return b;
    bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    if (a_nan != b_nan) return a_nan ? a : b;
    if (!a_nan && F::wins(a.value, b.value)) return b;
    if (!a_nan && F::wins(b.value, a.value)) return a;
    return a.index < b.index ? a : b;
}

// Of numbers first, first + step, … of a line, `inner` apart.
template <class F>
__device__ __forceinline__ Best best_of(const float* x, u32 first, u32 n, u32 step, u64 inner) {
    Best best = {0.0f, NONE};
#pragma unroll 4
    for (u32 i = first; i < n; i += step) best = better<F>(best, {x[i * inner], i});
    return best;
}

template <class F>
__device__ __forceinline__ Best best_of_warp(Best best) {
#pragma unroll
    for (u32 half = 16; half > 0; half /= 2) {
        float value = __shfl_xor_sync(WHOLE_WARP, best.value, (int)half);
        u32 index = __shfl_xor_sync(WHOLE_WARP, best.index, (int)half);
        best = better<F>(best, {value, index});
    }
    return best;
}

template <class F>
__device__ __forceinline__ void arg_lines(float* y, const float* x, u64 lines, u32 n, Best* of_warp) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (u64 line = blockIdx.x; line < lines; line += gridDim.x) {
        Best best = best_of_warp<F>(best_of<F>(x + line * n, threadIdx.x, n, blockDim.x, 1));
        if (lane == 0) of_warp[warp] = best;
        __syncthreads();
        if (warp == 0) {
            Best none = {0.0f, NONE};
            best = best_of_warp<F>(lane < warps ? of_warp[lane] : none);
            if (lane == 0) y[line] = (float)best.index;
        }
        __syncthreads();
    }
}

template <class F>
__device__ __forceinline__ void arg_columns(float* y, const float* x, u64 columns, u32 n, u64 inner,
                                            Best (*of_warp)[32]) {
    const u64 column = (u64)blockIdx.x * 32 + threadIdx.x, line = divide(column, inner);
    const bool is_column = column < columns;
    Best best = {0.0f, NONE};
    if (is_column) best = best_of<F>(x + line * n * inner + (column - line * inner), threadIdx.y, n, blockDim.y, inner);
    of_warp[threadIdx.y][threadIdx.x] = best;
    for (u32 half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) {
            best = better<F>(best, of_warp[threadIdx.y + half][threadIdx.x]);
            of_warp[threadIdx.y][threadIdx.x] = best;
        }
    }
    if (threadIdx.y == 0 && is_column) y[column] = (float)best.index;
}

#define ARG(name, F)                                                                                  \
    BOUNDED_KERNEL(1024, name##_lines, float* y, const float* x, u64 lines, u32 n) {                   \
        __shared__ Best of_warp[32];                                                                  \
        arg_lines<F>(y, x, lines, n, of_warp);                                                        \
    }                                                                                                 \
    BOUNDED_KERNEL(512, name##_columns, float* y, const float* x, u64 columns, u32 n, u64 inner) {     \
        __shared__ Best of_warp[16][32];                                                              \
        arg_columns<F>(y, x, columns, n, inner, of_warp);                                             \
    }
ARG(largest, Larger)
ARG(smallest, Smaller)
