// y = x * rstd * scale over the last axis, with rstd = 1 / sqrt(mean(x²) + eps) of each row, and its gradient.
// x, y, dx, dy: (row, column); scale: (column). Rows and sums are as in `layer_norm.cu`.
#include "columns.cuh"
#include "rows.cuh"

KERNEL(rms_norm, float* __restrict__ y, float* rstd, const float* __restrict__ x, const float* __restrict__ scale,
       u64 rows, u64 cols, float eps) {
    float count = (float)cols;
    for (rows::Turn turn(rows, cols); turn.goes_on(); turn.next()) {
        const float* of_x = x + turn.begin();
        float* of_y = y + turn.begin();
        float squares = rows::sum(turn.count, [&](u64 i) { return of_x[i] * of_x[i]; });
        float r = 1.0f / __fsqrt_rn(squares / count + eps);
        if (turn.writes()) rstd[turn.row] = r;
        rows::each(turn.count, [&](u64 i) { of_y[i] = of_x[i] * r * scale[i]; });
    }
}

// dx = rstd * (dy * scale - x * rstd * mean(dy * scale * x * rstd)).
KERNEL(rms_norm_slopes, float* __restrict__ dx, const float* __restrict__ x, const float* __restrict__ scale,
       const float* __restrict__ rstd, const float* __restrict__ dy, u64 rows, u64 cols) {
    float count = (float)cols;
    for (rows::Turn turn(rows, cols); turn.goes_on(); turn.next()) {
        const float* of_x = x + turn.begin();
        const float* of_dy = dy + turn.begin();
        float* of_dx = dx + turn.begin();
        float r = turn.is_there() ? rstd[turn.row] : 0.0f;
        float across = rows::sum(turn.count, [&](u64 i) { return of_dy[i] * scale[i] * (of_x[i] * r); }) / count;
        rows::each(turn.count, [&](u64 i) { of_dx[i] = r * (of_dy[i] * scale[i] - of_x[i] * r * across); });
    }
}

// dscale: (shard, column). `rows` are those of a shard.
BOUNDED_KERNEL(columns::THREADS, rms_norm_columns, float* dscale, const float* __restrict__ x,
               const float* __restrict__ rstd, const float* __restrict__ dy, u64 rows, u64 cols) {
    columns::Block block(rows, cols);
    float* const to[1] = {dscale + block.shard * cols};
    columns::add<1>(block, to, [&](u64 row, u64 col, float (&found)[1]) {
        found[0] = dy[row * cols + col] * (x[row * cols + col] * rstd[row]);
    });
}
