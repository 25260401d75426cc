// Sums of rows, a chain of additions for each column: what gradients of biases and of often used rows of tables are.
//
// A chain cannot be cut, so there are few of them, and one thread alone would wait for memory at each link. A block
// reads for its chains with all of its threads: a tile of rows is on its way into registers while the tile before, in
// shared memory, is added by the first `wide` threads, one a column.
#pragma once
#include "device.cuh"

static const u32 CHAIN_THREADS = 256;
// Floats of a tile. Two lie in shared memory by turns.
static const u32 TILE = 4096;
static const u32 TILE_LOADS = TILE / CHAIN_THREADS;

// Neighbouring columns of a matrix, from `first` on: `wide` of them, a power of two up to 32, of which some may lie
// behind the matrix.
struct Columns {
    const float* x;
    u64 columns;
    u64 first;
    u32 wide;
};

// From +0 on, adds rows number place(0), place(1), … up to `count` of them. For threads below `wide`: their column's
// sum. The whole block calls it; before it calls again there is a barrier.
template <class Place>
__device__ __forceinline__ float chain(const Columns& of, u64 count, Place place, float* tiles) {
    const u32 thread = threadIdx.x, wide = of.wide;
    const u32 column = thread & (wide - 1), above = thread / wide, step = CHAIN_THREADS / wide, tall = TILE / wide;
    const bool is_column = of.first + column < of.columns;
    const float* x = of.x + of.first + column;
    float next[TILE_LOADS];
    auto load = [&](u64 start) {
#pragma unroll
        for (u32 k = 0; k < TILE_LOADS; k++) {
            u64 row = start + k * step + above;
            next[k] = is_column && row < count ? x[place(row) * of.columns] : 0.0f;
        }
    };
    load(0);
    float sum = 0.0f;
    float* tile = tiles;
    for (u64 start = 0; start < count; start += tall) {
#pragma unroll
        for (u32 k = 0; k < TILE_LOADS; k++) tile[k * CHAIN_THREADS + thread] = next[k];
        // Behind it the other tile is free too: who adds it has come here after that.
        __syncthreads();
        if (start + tall < count) load(start + tall);
        if (thread < wide) {
            u32 rows = count - start < tall ? (u32)(count - start) : tall;
#pragma unroll 16
            for (u32 row = 0; row < rows; row++) sum += tile[row * wide + thread];
        }
        tile = tile == tiles ? tiles + TILE : tiles;
    }
    return sum;
}
