// db[o] = Σ over samples of the sum of dy's plane (sample, o), in ascending order: a plane's sum by sixteen lanes
// (`rows.cuh`), then one chain over a shard's samples (`columns.cuh`). Of several shards each has a leaf of its own.
#include "columns.cuh"
#include "rows.cuh"

// One number a plane. Grid: half a warp a plane, by turns.
KERNEL(conv2d_planes, float* __restrict__ sums, const float* __restrict__ dy, u64 planes, u64 size) {
    for (rows::Turn turn(planes, size); turn.goes_on(); turn.next()) {
        const float* plane = dy + turn.begin();
        float sum = rows::sum(turn.count, [&](u64 i) { return plane[i]; });
        if (turn.writes()) sums[turn.row] = sum;
    }
}

// db: (shard, channel), of planes' sums (sample, channel). `samples` are those of a shard.
BOUNDED_KERNEL(columns::THREADS, conv2d_grad_bias, float* db, const float* __restrict__ sums, u64 samples,
               u64 channels) {
    columns::Block block(samples, channels);
    float* const to[1] = {db + block.shard * channels};
    columns::add<1>(block, to, [&](u64 row, u64 col, float (&found)[1]) { found[0] = sums[row * channels + col]; });
}
