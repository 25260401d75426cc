// Softmax cross-entropy of each row against its target, with label smoothing s, and its gradient.
//
// logits: (row, class); targets, loss, partition, correct: (row).
//   partition = log Σ_c exp(logits[c]), loss = (1 - s) (partition - logits[target]) + s (partition - mean(logits)),
//   correct = 1 where the target is the first largest logit.
//   dlogits = (exp(logits - partition) - (1 - s) [c = target] - s / classes) dloss
// A row whose target is IGNORE has loss 0 and no gradient. Half a warp has a row and reads it twice; sums are those of
// `rows.cuh`. The gradient's classes are independent: blocks along y cut long rows into pieces.
#include "math.cuh"
#include "rows.cuh"

// `elastic_spec::batch::IGNORE`.
static const int IGNORE = -1;
static const u64 NOWHERE = ~0ull;

KERNEL(cross_entropy, float* loss, float* partition, float* correct, const float* __restrict__ logits,
       const int* __restrict__ targets, const Call* call, u64 rows, u64 classes) {
    float smoothing = call->label_smoothing;
    for (rows::Turn turn(rows, classes); turn.goes_on(); turn.next()) {
        const float* x = logits + turn.begin();
        float top = rows::largest(turn.count, x);
        float exps = 0.0f, plain = 0.0f;
        u64 first = NOWHERE;
#pragma unroll 8
        for (u64 i = rows::lane(); i < turn.count; i += rows::LANES) {
            float logit = x[i];
            exps += math::exp(logit - top);
            plain += logit;
            first = logit == top && i < first ? i : first;
        }
        exps = rows::fold(exps);
        plain = rows::fold(plain);
        first = rows::fold_first(first);
        if (!turn.writes()) continue;
        float sum = top + math::ln(exps);
        partition[turn.row] = sum;
        int target = targets[turn.row];
        float cost = 0.0f, is_correct = 0.0f;
        if (target != IGNORE) {
            // The loader promised a class; what else it is must not be read, and shows as a NaN.
            bool is_class = target >= 0 && (u64)target < classes;
            cost = is_class ? sum - x[target] : one_nan();
            if (smoothing > 0.0f) cost = (1.0f - smoothing) * cost + smoothing * (sum - plain / (float)classes);
            is_correct = is_class && first == (u64)target ? 1.0f : 0.0f;
        }
        loss[turn.row] = cost;
        correct[turn.row] = is_correct;
    }
}

// Classes of a row that half a warp takes at once.
static const u64 PIECE = 1024;

KERNEL(cross_entropy_grad, float* __restrict__ dlogits, const float* __restrict__ logits,
       const int* __restrict__ targets, const float* __restrict__ partition, const float* __restrict__ dloss,
       const Call* call, u64 rows, u64 classes) {
    float smoothing = call->label_smoothing;
    float everywhere = smoothing / (float)classes;
    u64 row = (u64)blockIdx.x * (blockDim.x / rows::LANES) + threadIdx.x / rows::LANES;
    if (row >= rows) return;
    const float* x = logits + row * classes;
    float* dx = dlogits + row * classes;
    int target = targets[row];
    float sum = partition[row], slope = dloss[row];
    for (u64 first = blockIdx.y * PIECE; first < classes; first += gridDim.y * PIECE) {
        u64 end = classes - first < PIECE ? classes : first + PIECE;
        if (target == IGNORE) {
            for (u64 i = first + rows::lane(); i < end; i += rows::LANES) dx[i] = 0.0f;
            continue;
        }
#pragma unroll 4
        for (u64 i = first + rows::lane(); i < end; i += rows::LANES) {
            float share = (math::exp(x[i] - sum) - everywhere) * slope;
            dx[i] = i == (u64)target ? share - (1.0f - smoothing) * slope : share;
        }
    }
}
