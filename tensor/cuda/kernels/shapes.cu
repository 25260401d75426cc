// Elements in other places: y[place] = x[place] along a walk (`walk.cuh`), of which y is operand 0 and x operand 1. It is what
// broadcasting, permuting, slicing and concatenating do (`tensor/src/ops/view.rs`). Nothing is computed, so there is no order.
#include "walk.cuh"

// Grid: a thread a chunk of four neighbours, more by turns.
KERNEL(place, float* y, const float* x, const __grid_constant__ Walk<2> walk) {
    for (u32 number = (u32)first_number(); number < walk.box.count; number += (u32)number_stride()) {
        Chunk chunk = walk::chunk(walk, number);
        walk::store(walk, chunk, 0, y, walk::load(walk, chunk, 1, x));
    }
}

static const u32 TILE = 32;
static const u32 THREADS = 256;

// Axis 0 of the box counts tiles along the rows of y, axis 1 along those of x.
struct Tiles {
    Box<2> box;
    // How long the rows of y are, and those of x.
    u32 columns, rows;
    // From one row to the next.
    int y_stride, x_stride;
};

// Where y is contiguous along another axis than x: through tiles in shared memory, so that neighbouring threads read
// neighbours and write neighbours. Grid: a block a tile; its threads are eight rows of 32.
BOUNDED_KERNEL(THREADS, transpose, float* y, const float* x, const __grid_constant__ Tiles tiles) {
    // One more than a row, so that a column lies in as many banks.
    __shared__ float tile[TILE][TILE + 1];
    Index index = walk::index(tiles.box, blockIdx.x);
    u32 columns = tiles.columns - TILE * index.along[0], rows = tiles.rows - TILE * index.along[1];
    u32 along = threadIdx.x % TILE, first = threadIdx.x / TILE;
    x += walk::place(tiles.box, index, 1) + (int)along;
    y += walk::place(tiles.box, index, 0) + (int)along;
#pragma unroll
    for (u32 i = 0; i < TILE; i += THREADS / TILE) {
        u32 column = first + i;
        if (column < columns && along < rows) tile[column][along] = x[(int)column * tiles.x_stride];
    }
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < TILE; i += THREADS / TILE) {
        u32 row = first + i;
        if (row < rows && along < columns) y[(int)row * tiles.y_stride] = tile[along][row];
    }
}
