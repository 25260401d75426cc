// The norm of the corrected gradient, and the first number of the reduced vector that is not finite.
//
// norm = √ Σ (g · correction)², the product rounded to f32, its square exact in f64: so a fused sum has the bits of one
// that is not, for half of the work in f64. The order of sums is the processor's (`elastic_tensor::optim`): chunks of the
// vector on a fixed grid; in a chunk sixteen running sums, of every sixteenth number each, folded by halves; chunks one
// after the other. So `chunk_squares` has a block a chunk and a thread a running sum, and `find` adds the chunks in one
// thread. Zeros behind a chunk's end change no sum, which is never -0.
//
// Squares of f32 and their sums are finite in f64 as long as every number is, so a chunk's sum tells whether all of its
// numbers are finite. Running statistics lie behind the gradients and get chunks of their own, for that alone.
#include "optim.cuh"

static const u32 THREADS = 256;
static const u32 LANES = 16;
// Numbers that wait in shared memory while the lanes add them: 256 for each. The next ones are read meanwhile, sixteen
// a thread, so that a lane's chain of sums and not the memory's latency is what a chunk takes (17 µs at 8 cycles a sum).
static const u32 TILE = 4096;
static const u32 EACH = TILE / THREADS;

__device__ __forceinline__ bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }
__device__ __forceinline__ bool is_finite(double x) { return x - x == 0.0; }

// A thread's numbers of a tile that begins at `x` with `count` numbers to its chunk's end; zeros beyond.
__device__ __forceinline__ void read_tile(float* to, const float* x, u32 count, float correction) {
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
        u32 i = k * THREADS + threadIdx.x;
        to[k] = i < count ? x[i] * correction : 0.0f;
    }
}

// Grid: `grad_chunks` and then the statistics' chunks, `chunk` numbers each (a multiple of TILE), the last of both less.
BOUNDED_KERNEL(THREADS, chunk_squares, double* sums, const float* reduced, const StepScalars* step, u64 params, u64 floats,
               u32 grad_chunks, u32 chunk) {
    __shared__ float tile[TILE];
    bool is_grad = blockIdx.x < grad_chunks;
    u64 start = is_grad ? (u64)blockIdx.x * chunk : params + (u64)(blockIdx.x - grad_chunks) * chunk;
    u64 left = (is_grad ? params : floats) - start;
    u32 count = !step->counts ? 0 : left < chunk ? (u32)left : chunk;
    float correction = step->correction;
    double sum = 0.0;
    float next[EACH];
    read_tile(next, reduced + start, count, correction);
    for (u32 done = 0; done < count; done += TILE) {
        __syncthreads();
#pragma unroll
        for (u32 k = 0; k < EACH; k++) tile[k * THREADS + threadIdx.x] = next[k];
        __syncthreads();
        u32 after = done + TILE;
        read_tile(next, reduced + start + after, after < count ? count - after : 0, correction);
        if (threadIdx.x < LANES) {
#pragma unroll 16
            for (u32 i = threadIdx.x; i < TILE; i += LANES) {
                double x = tile[i];
                sum = fma(x, x, sum);
            }
        }
    }
    if (threadIdx.x >= 32) return;
    for (u32 half = LANES / 2; half > 0; half /= 2) sum += __shfl_down_sync(WHOLE_WARP, sum, half);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The smallest that a thread of the block has. `room` has a place for each thread.
__device__ __forceinline__ u64 smallest(u64* room, u64 own) {
    room[threadIdx.x] = own;
    __syncthreads();
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half && room[threadIdx.x + half] < room[threadIdx.x]) room[threadIdx.x] = room[threadIdx.x + half];
        __syncthreads();
    }
    return room[0];
}

// One block. `sums` has those of all chunks, the statistics' too.
BOUNDED_KERNEL(THREADS, find, Found* found, const double* sums, const float* reduced, const StepScalars* step, u64 params,
               u64 floats, u32 grad_chunks, u32 chunks, u32 chunk) {
    const u64 NOWHERE = ~0ull;
    __shared__ double tile[4 * THREADS];
    __shared__ u64 room[THREADS];
    double total = 0.0;
    u64 bad = NOWHERE;
    for (u32 start = 0; start < chunks; start += 4 * THREADS) {
        __syncthreads();
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            u32 i = start + k * THREADS + threadIdx.x;
            double sum = i < chunks ? sums[i] : 0.0;
            if (!is_finite(sum) && bad == NOWHERE) bad = i;
            tile[k * THREADS + threadIdx.x] = i < grad_chunks ? sum : 0.0;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
#pragma unroll 16
            for (u32 i = 0; i < 4 * THREADS; i++) total += tile[i];
        }
    }
    bad = smallest(room, bad);
    u64 first = NOWHERE;
    if (bad != NOWHERE) {
        __syncthreads();
        bool is_grad = bad < grad_chunks;
        u64 start = is_grad ? bad * chunk : params + (bad - grad_chunks) * chunk;
        u64 end = is_grad ? params : floats;
        if (end - start > chunk) end = start + chunk;
        for (u64 i = start + threadIdx.x; i < end && first == NOWHERE; i += THREADS)
            if (!is_finite(reduced[i] * step->correction)) first = i;
        first = smallest(room, first);
    }
    if (threadIdx.x > 0) return;
    double norm = __dsqrt_rn(total);
    double clip = step->clip_norm / (norm + 1e-6);
    found->grad_norm = norm;
    found->first_bad = first;
    found->is_bad = bad != NOWHERE;
    found->clip = (float)(clip < 1.0 ? clip : 1.0);
}
