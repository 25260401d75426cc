// Softmax of each row over the last axis, its logarithm, and the gradients of both. x, y, dx, dy: (row, column).
//   y = exp(x - top) / Σ exp(x - top),          dx = y (dy - Σ y dy)
//   y = x - (top + log Σ exp(x - top)),         dx = dy - exp(y) Σ dy       for the logarithm
// Half a warp has a row; sums are those of `rows.cuh`. An exponential is made again where it is needed, which costs
// less than to keep it.
#include "math.cuh"
#include "rows.cuh"

KERNEL(softmax, float* __restrict__ y, const float* __restrict__ x, u64 rows, u64 cols) {
    for (rows::Turn turn(rows, cols); turn.goes_on(); turn.next()) {
        const float* of_x = x + turn.begin();
        float* of_y = y + turn.begin();
        float top = rows::largest(turn.count, of_x);
        float total = rows::sum(turn.count, [&](u64 i) { return math::exp(of_x[i] - top); });
        rows::each(turn.count, [&](u64 i) { of_y[i] = math::exp(of_x[i] - top) / total; });
    }
}

KERNEL(log_softmax, float* __restrict__ y, const float* __restrict__ x, u64 rows, u64 cols) {
    for (rows::Turn turn(rows, cols); turn.goes_on(); turn.next()) {
        const float* of_x = x + turn.begin();
        float* of_y = y + turn.begin();
        float top = rows::largest(turn.count, of_x);
        float total = top + math::ln(rows::sum(turn.count, [&](u64 i) { return math::exp(of_x[i] - top); }));
        rows::each(turn.count, [&](u64 i) { of_y[i] = of_x[i] - total; });
    }
}

KERNEL(softmax_grad, float* __restrict__ dx, const float* __restrict__ y, const float* __restrict__ dy, u64 rows,
       u64 cols) {
    for (rows::Turn turn(rows, cols); turn.goes_on(); turn.next()) {
        const float* of_y = y + turn.begin();
        const float* of_dy = dy + turn.begin();
        float* of_dx = dx + turn.begin();
        float along = rows::sum(turn.count, [&](u64 i) { return of_y[i] * of_dy[i]; });
        rows::each(turn.count, [&](u64 i) { of_dx[i] = of_y[i] * (of_dy[i] - along); });
    }
}

KERNEL(log_softmax_grad, float* __restrict__ dx, const float* __restrict__ y, const float* __restrict__ dy, u64 rows,
       u64 cols) {
    for (rows::Turn turn(rows, cols); turn.goes_on(); turn.next()) {
        const float* of_y = y + turn.begin();
        const float* of_dy = dy + turn.begin();
        float* of_dx = dx + turn.begin();
        float total = rows::sum(turn.count, [&](u64 i) { return of_dy[i]; });
        rows::each(turn.count, [&](u64 i) { of_dx[i] = of_dy[i] - math::exp(of_y[i]) * total; });
    }
}
