// Sums, largest and smallest along neighbouring axes. x: (outer, n, inner).
//
// Each result is made of its own line of n numbers as the processor does it: in ascending order they go into sixteen
// running results by turns, which are joined by halves; every 4,096 numbers such a result is closed, and a second
// launch joins those in the same way. A running result is a thread's, so the order of sums is fixed whatever the grid.
//
// Where inner is 1, a warp has two lines (or blocks of 4,096 of them), 16 lanes each, which read side by side. Else
// lines are columns, an (outer, inner) each: a block has 32 of them with a warp for each running result, or a thread
// has one.
#include "device.cuh"

static const u32 LANES = 16;

struct Sum {
    static __device__ __forceinline__ float none() { return 0.0f; }
    static __device__ __forceinline__ float join(float a, float b) { return a + b; }
};
struct Largest {
    static __device__ __forceinline__ float none() { return -infinity(); }
    static __device__ __forceinline__ float join(float a, float b) { return b > a || b != b ? b : a; }
};
struct Smallest {
    static __device__ __forceinline__ float none() { return infinity(); }
    static __device__ __forceinline__ float join(float a, float b) { return b < a || b != b ? b : a; }
};

// The first of a line's numbers that a block of it takes, and one behind its last.
struct Piece {
    u64 first, end;
};
__device__ __forceinline__ Piece piece_of(u64 block, u64 tall, u64 n) {
    u64 first = block * tall, end = first + tall;
    return {first, end < n ? end : n};
}

// y (line, block) = what the blocks of x (line, n) come to, `tall` numbers each.
template <class F>
__device__ __forceinline__ void reduce_lines_with(float* y, const float* x, u64 lines, u64 n, u64 blocks, u64 tall) {
    const u32 lane = threadIdx.x % LANES;
    const u64 items = lines * blocks, stride = number_stride() / LANES;
    // Both halves of a warp go round as often, since they join together.
    for (u64 both = first_number() / 32 * 2; both < items; both += stride) {
        const u64 item = both + threadIdx.x % 32 / LANES, line = divide(item, blocks);
        float running = F::none();
        if (item < items) {
            const Piece piece = piece_of(item - line * blocks, tall, n);
            const float* from = x + line * n;
#pragma unroll 8
            for (u64 i = piece.first + lane; i < piece.end; i += LANES) running = F::join(running, from[i]);
        }
#pragma unroll
        for (u32 half = LANES / 2; half > 0; half /= 2)
            running = F::join(running, __shfl_down_sync(WHOLE_WARP, running, half));
        if (lane == 0 && item < items) y[item] = running;
    }
}

// y (block, outer, inner) = what the blocks of x (outer, n, inner) come to. Grid: 32 columns, an (outer, inner) each,
// along x; blocks of lines by turns along y.
template <class F>
__device__ __forceinline__ void reduce_columns_with(float* y, const float* x, u64 columns, u64 n, u64 inner,
                                                    u64 blocks, u64 tall, float (*running)[32]) {
    const u64 column = (u64)blockIdx.x * 32 + threadIdx.x;
    const bool is_column = column < columns;
    const u64 line = divide(column, inner);
    const float* from = x + line * n * inner + (column - line * inner);
    for (u64 block = blockIdx.y; block < blocks; block += gridDim.y) {
        const Piece piece = piece_of(block, tall, n);
        float own = F::none();
        if (is_column) {
#pragma unroll 8
            for (u64 i = piece.first + threadIdx.y; i < piece.end; i += LANES) own = F::join(own, from[i * inner]);
        }
        running[threadIdx.y][threadIdx.x] = own;
        for (u32 half = LANES / 2; half > 0; half /= 2) {
            __syncthreads();
            if (threadIdx.y < half) {
                own = F::join(own, running[threadIdx.y + half][threadIdx.x]);
                running[threadIdx.y][threadIdx.x] = own;
            }
        }
        if (threadIdx.y == 0 && is_column) y[block * columns + column] = own;
        __syncthreads();
    }
}

// The same where there are many columns, or few numbers in each: a thread has all running results of its column.
template <class F>
__device__ __forceinline__ void reduce_short_with(float* y, const float* x, u64 columns, u64 n, u64 inner) {
    for (u64 column = first_number(); column < columns; column += number_stride()) {
        const u64 line = divide(column, inner);
        const float* from = x + line * n * inner + (column - line * inner);
        float running[LANES];
#pragma unroll
        for (u32 lane = 0; lane < LANES; lane++) running[lane] = F::none();
        for (u64 first = 0; first < n; first += LANES) {
#pragma unroll
            for (u32 lane = 0; lane < LANES; lane++)
                if (first + lane < n) running[lane] = F::join(running[lane], from[(first + lane) * inner]);
        }
#pragma unroll
        for (u32 half = LANES / 2; half > 0; half /= 2) {
#pragma unroll
            for (u32 lane = 0; lane < half; lane++) running[lane] = F::join(running[lane], running[lane + half]);
        }
        y[column] = running[0];
    }
}

#define REDUCTION(name, F)                                                                                   \
    KERNEL(name##_lines, float* y, const float* x, u64 lines, u64 n, u64 blocks, u64 tall) {                 \
        reduce_lines_with<F>(y, x, lines, n, blocks, tall);                                                  \
    }                                                                                                        \
    BOUNDED_KERNEL(512, name##_columns, float* y, const float* x, u64 columns, u64 n, u64 inner, u64 blocks, \
                   u64 tall) {                                                                               \
        __shared__ float running[LANES][32];                                                                 \
        reduce_columns_with<F>(y, x, columns, n, inner, blocks, tall, running);                              \
    }                                                                                                        \
    KERNEL(name##_short, float* y, const float* x, u64 columns, u64 n, u64 inner) {                          \
        reduce_short_with<F>(y, x, columns, n, inner);                                                       \
    }
REDUCTION(sum, Sum)
REDUCTION(largest, Largest)
REDUCTION(smallest, Smallest)

// Sums become means.
KERNEL(share, float* y, u64 count, float by) {
    for (u64 i = first_number(); i < count; i += number_stride()) y[i] = y[i] / by;
}
