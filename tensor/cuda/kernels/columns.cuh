// Sums over rows, a column at a time: to[n][column] = Σ_row term n of (row, column), one chain over ascending rows
// from +0.
//
// The chain is the processor's and cannot be cut, so what is wide is the rest: a block has eight columns (a sector of
// 32 bytes of each row) of one shard's rows, all of its threads make terms, 128 rows at a time, and one thread a
// column and sum adds them from shared memory.
#pragma once
#include "device.cuh"

namespace columns {

static const u32 THREADS = 256;
static const u32 WIDTH = 8;
static const u32 DEPTH = 128;

// The rows and columns of a block: blocks run over the columns, then over the shards.
struct Block {
    u64 first_row, rows, first_col, cols;
    u64 shard;

    // `rows` are those of a shard.
    __device__ __forceinline__ Block(u64 rows, u64 cols) : rows(rows), cols(cols) {
        u32 of_shard = (u32)((cols + WIDTH - 1) / WIDTH);
        shard = blockIdx.x / of_shard;
        first_row = shard * rows;
        first_col = (u64)(blockIdx.x % of_shard) * WIDTH;
    }
};

// terms(row, column, found) writes N terms. `to` are those of the block's shard.
template <u32 N, class Terms>
__device__ __forceinline__ void add(const Block& block, float* const (&to)[N], Terms terms) {
    __shared__ float tile[DEPTH][N][WIDTH];
    u32 thread = threadIdx.x, column = thread % WIDTH;
    bool has_column = block.first_col + column < block.cols;
    float sum = 0.0f;
    for (u64 first = 0; first < block.rows; first += DEPTH) {
        u32 here = block.rows - first < DEPTH ? (u32)(block.rows - first) : DEPTH;
#pragma unroll
        for (u32 step = 0; step < DEPTH; step += THREADS / WIDTH) {
            u32 row = step + thread / WIDTH;
            if (row >= here || !has_column) continue;
            float found[N];
            terms(block.first_row + first + row, block.first_col + column, found);
#pragma unroll
            for (u32 n = 0; n < N; n++) tile[row][n][column] = found[n];
        }
        __syncthreads();
        if (thread < N * WIDTH) {
#pragma unroll 16
            for (u32 row = 0; row < here; row++) sum += tile[row][thread / WIDTH][column];
        }
        __syncthreads();
    }
    if (thread < N * WIDTH && has_column) to[thread / WIDTH][block.first_col + column] = sum;
}

}  // namespace columns
