// The gradient of causal attention. With P of the forward pass, made again from log2 of its rows' sums, dP = dy Vᵀ and
// dS = P (dP - rowsum(y dy)) / sqrt(width): dQ = dS K, dK = dSᵀ Q, dV = Pᵀ dy.
//
// Three kernels: the rows' sums of y dy; dQ, a block for 64 queries, over ascending keys; dK and dV, a block for 64
// keys, over ascending queries, in which rows are keys and columns queries. Both of the latter make P and dS for
// themselves, which is cheaper than to keep them. Grids are as in `causal_attention.cu`, and so are chains: those of
// dQ have all keys up to the end of their row's group of sixteen queries, those of dK and dV all queries from the
// beginning of their key's group. A key that its query does not see has a score of minus infinity there, as on the
// processor.
#include "attention.cuh"

namespace attention {

struct Backward {
    float* dqkv;
    const float* qkv;
    const float* sums;
    const float* dy;
    // Sums of y dy, (sample, token, head).
    const float* along;
    Sizes s;

    __device__ __forceinline__ float sum_of(u32 token) const {
        return token < s.tokens ? sums[(u64)blockIdx.x * s.tokens + token] : 0.0f;
    }

    __device__ __forceinline__ float along_of(u32 token) const {
        u32 sample = blockIdx.x / s.heads, head = blockIdx.x % s.heads;
        return token < s.tokens ? along[((u64)sample * s.tokens + token) * s.heads + head] : 0.0f;
    }
};

template <u32 PIECES>
__device__ __forceinline__ void to_queries(const Backward& given, float* shared) {
    const Sizes& s = given.s;
    Rows q = part(s, given.qkv, 0), k = part(s, given.qkv, 1), v = part(s, given.qkv, 2), dy = output(s, given.dy);
    Operand a(shared), b(shared + TILE);
    float* slopes = shared + 2 * TILE;
    u32 first = (gridDim.y - 1 - blockIdx.y) * SIDE, row = first + first_row();
    u32 there = s.tokens - first < SIDE ? s.tokens - first : SIDE;
    u32 group_end = first_row() / GROUP * GROUP + GROUP;
    float sum[4], along[4];
    Span span;
#pragma unroll
    for (u32 r = 0; r < 4; r++) {
        sum[r] = given.sum_of(row + r), along[r] = given.along_of(row + r);
        span.from[r] = 0, span.to[r] = group_end < there ? group_end : there;
    }
    Out<PIECES> dq;
    for (u32 key = 0; key <= first; key += SIDE) {
        float scores[4][4], dp[4][4];
        products(scores, a, q, first, b, k, key);
        products(dp, a, dy, first, b, v, key);
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                u32 column = first_column() + c * rows::LANES;
                float x = key + column <= row + r ? scores[r][c] : -infinity();
                float p = math::exp2(x * s.scale2 - sum[r]);
                dp[r][c] = p * (dp[r][c] - along[r]) * s.scale;
            }
        }
        put(slopes, dp);
        key < first ? dq.add(slopes, b, k, key) : dq.add(slopes, b, k, key, span);
    }
    dq.each(s.width, [&](u32 r, u32 dim, float sum) {
        if (row + r < s.tokens) given.dqkv[part_begin(s, 0, row + r) + dim] = sum;
    });
}

__device__ __forceinline__ void to_keys(const Backward& given, float* shared) {
    const Sizes& s = given.s;
    Rows q = part(s, given.qkv, 0), k = part(s, given.qkv, 1), v = part(s, given.qkv, 2), dy = output(s, given.dy);
    Operand a(shared), b(shared + TILE);
    float* weights = shared + 2 * TILE;
    // The first keys are seen by the most queries.
    u32 first = blockIdx.y * SIDE, row = first + first_row();
    Out<1> dk, dv;
    for (u32 query = first; query < s.tokens; query += SIDE) {
        float p[4][4], ds[4][4];
        products(p, a, k, first, b, q, query);
        products(ds, a, v, first, b, dy, query);
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            u32 token = query + first_column() + c * rows::LANES;
            float sum = given.sum_of(token), along = given.along_of(token);
#pragma unroll
            for (u32 r = 0; r < 4; r++) {
                float x = row + r <= token ? p[r][c] : -infinity();
                p[r][c] = math::exp2(x * s.scale2 - sum);
                ds[r][c] = p[r][c] * (ds[r][c] - along) * s.scale;
            }
        }
        u32 there = s.tokens - query < SIDE ? s.tokens - query : SIDE;
        Span span;
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
            span.from[r] = query == first ? first_row() / GROUP * GROUP : 0;
            span.to[r] = there;
        }
        bool is_whole = query > first && there == SIDE;
        put(weights, p);
        is_whole ? dv.add(weights, b, dy, query) : dv.add(weights, b, dy, query, span);
        put(weights, ds);
        is_whole ? dk.add(weights, b, q, query) : dk.add(weights, b, q, query, span);
    }
    dk.each(s.width, [&](u32 r, u32 dim, float sum) {
        if (row + r < s.tokens) given.dqkv[part_begin(s, 1, row + r) + dim] = sum;
    });
    dv.each(s.width, [&](u32 r, u32 dim, float sum) {
        if (row + r < s.tokens) given.dqkv[part_begin(s, 2, row + r) + dim] = sum;
    });
}

}  // namespace attention

// along (sample, token, head) = Σ y dy over the dimensions: half a warp has a row.
KERNEL(causal_attention_along, float* along, const float* __restrict__ y, const float* __restrict__ dy, u64 rows,
       u64 width) {
    for (rows::Turn turn(rows, width); turn.goes_on(); turn.next()) {
        const float* of_y = y + turn.begin();
        const float* of_dy = dy + turn.begin();
        float sum = rows::sum(turn.count, [&](u64 i) { return of_y[i] * of_dy[i]; });
        if (turn.writes()) along[turn.row] = sum;
    }
}

#define BACKWARD(name, what)                                                                                         \
    BOUNDED_KERNEL(attention::THREADS, name, float* dqkv, const float* qkv, const float* sums, const float* dy,      \
                   const float* along, u32 tokens, u32 heads, u32 width, float scale, float scale2) {                \
        DYNAMIC_SHARED(float, shared);                                                                               \
        attention::what({dqkv, qkv, sums, dy, along, {tokens, heads, width, scale, scale2}}, shared);                \
    }

// By the dimensions that a block has. Of dK and dV together 128 would leave no registers for a second block.
BACKWARD(causal_attention_grad_q_64, to_queries<1>)
BACKWARD(causal_attention_grad_q_128, to_queries<2>)
BACKWARD(causal_attention_grad_kv_64, to_keys)
