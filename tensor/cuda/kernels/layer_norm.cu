// y = (x - mean) * rstd * scale + shift over the last axis, with mean and rstd = 1 / sqrt(var + eps) of each row, and
// its gradient. x, y, dx, dy: (row, column); scale, shift: (column).
//
// Half a warp has a row and reads it three times, from the cache but for the first; sums over a row are those of
// `rows.cuh`. dscale and dshift are sums over a shard's rows (`columns.cuh`), leaves of which a launch of
// `sum_leaves` makes the tree's sum.
#include "columns.cuh"
#include "rows.cuh"

KERNEL(layer_norm, float* __restrict__ y, float* mean, float* rstd, const float* __restrict__ x,
       const float* __restrict__ scale, const float* __restrict__ shift, u64 rows, u64 cols, float eps) {
    float count = (float)cols;
    for (rows::Turn turn(rows, cols); turn.goes_on(); turn.next()) {
        const float* of_x = x + turn.begin();
        float* of_y = y + turn.begin();
        float m = rows::sum(turn.count, [&](u64 i) { return of_x[i]; }) / count;
        float var = rows::sum(turn.count, [&](u64 i) { return (of_x[i] - m) * (of_x[i] - m); }) / count;
        float r = 1.0f / __fsqrt_rn(var + eps);
        if (turn.writes()) {
            mean[turn.row] = m;
            rstd[turn.row] = r;
        }
        rows::each(turn.count, [&](u64 i) { of_y[i] = (of_x[i] - m) * r * scale[i] + shift[i]; });
    }
}

// dx = rstd * (dy * scale - mean(dy * scale) - x̂ * mean(dy * scale * x̂)), x̂ = (x - mean) * rstd.
KERNEL(layer_norm_slopes, float* __restrict__ dx, const float* __restrict__ x, const float* __restrict__ scale,
       const float* __restrict__ mean, const float* __restrict__ rstd, const float* __restrict__ dy, u64 rows,
       u64 cols) {
    float count = (float)cols;
    for (rows::Turn turn(rows, cols); turn.goes_on(); turn.next()) {
        const float* of_x = x + turn.begin();
        const float* of_dy = dy + turn.begin();
        float* of_dx = dx + turn.begin();
        float m = turn.is_there() ? mean[turn.row] : 0.0f, r = turn.is_there() ? rstd[turn.row] : 0.0f;
        float along = 0.0f, across = 0.0f;
#pragma unroll 8
        for (u64 i = rows::lane(); i < turn.count; i += rows::LANES) {
            float slope = of_dy[i] * scale[i];
            along += slope;
            across += slope * ((of_x[i] - m) * r);
        }
        along = rows::fold(along) / count;
        across = rows::fold(across) / count;
        rows::each(turn.count, [&](u64 i) {
            of_dx[i] = r * (of_dy[i] * scale[i] - along - (of_x[i] - m) * r * across);
        });
    }
}

// dscale, dshift: (shard, column). `rows` are those of a shard.
BOUNDED_KERNEL(columns::THREADS, layer_norm_columns, float* dscale, float* dshift, const float* __restrict__ x,
               const float* __restrict__ mean, const float* __restrict__ rstd, const float* __restrict__ dy, u64 rows,
               u64 cols) {
    columns::Block block(rows, cols);
    float* const to[2] = {dscale + block.shard * cols, dshift + block.shard * cols};
    columns::add<2>(block, to, [&](u64 row, u64 col, float (&found)[2]) {
        float slope = dy[row * cols + col];
        found[0] = slope * ((x[row * cols + col] - mean[row]) * rstd[row]);
        found[1] = slope;
    });
}
