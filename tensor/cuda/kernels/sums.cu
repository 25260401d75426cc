// Sums over leading axes: gradients of biases. y (shard, column) = the sum of the shard's rows of x (shard, row,
// column), each column a chain from +0 over ascending rows.
//
// Grid: a block for `wide` columns of a shard, tile after tile of rows (`chain.cuh`). The chain is the order of
// sums; how wide a block is follows from how many blocks there would be and changes no bit.
#include "chain.cuh"

BOUNDED_KERNEL(256, sum_leading, float* y, const float* x, u64 rows, u64 columns, u32 wide) {
    __shared__ float tiles[2 * TILE];
    u32 across = (u32)((columns + wide - 1) / wide);
    u64 shard = blockIdx.x / across, first = (u64)(blockIdx.x % across) * wide;
    Columns of = {x + shard * rows * columns, columns, first, wide};
    float sum = chain(of, rows, [](u64 row) { return row; }, tiles);
    if (threadIdx.x < wide && first + threadIdx.x < columns) y[shard * columns + first + threadIdx.x] = sum;
}
