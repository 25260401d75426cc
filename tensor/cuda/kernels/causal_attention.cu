// Causal attention: y = softmax(Q Kᵀ / sqrt(width)) V over the tokens not after the row's, and log2 of each row's sum
// of exponentials. qkv: (sample, token, 3 * channel), y: (sample, token, channel), sums: (sample, head, token);
// channels are (head, dimension).
//
// A block has 64 queries of a head (grid: head of a sample, tile of queries, piece of dimensions of y where heads are
// wider than 128). Scores are never stored, so that any number of tokens will do: a first pass over the keys finds
// each row's largest score, a second makes the scores again, their exponentials, the sum of these and their product
// with V. Half as much arithmetic on top is the price.
//
// The order of sums is that of `tensor/src/ops/causal_attention.rs`: a score is one chain over the dimensions; the
// exponentials of a row are added by sixteen lanes; an element of y is one chain over ascending keys, up to the end
// of the row's group of sixteen queries (where weights are 0, which still may turn a sum of -0 into 0), or only up to
// the row's own token if a value of the group is not finite.
#include "attention.cuh"

namespace attention {

struct Forward {
    float* y;
    float* sums;
    const float* qkv;
    Sizes s;
};

// Whether all values of the tokens first to first + 16 are finite. To all lanes of half a warp.
__device__ __forceinline__ bool are_finite(const Rows& v, u32 first) {
    bool is_spoiled = false;
    for (u32 token = first; token < first + GROUP && token < v.tokens; token++) {
        for (u32 d = rows::lane(); d < v.width; d += rows::LANES) is_spoiled |= v.row(token)[d] * 0.0f != 0.0f;
    }
    u32 half = __ballot_sync(WHOLE_WARP, is_spoiled) >> (threadIdx.x % 32 & rows::LANES);
    return (half & 0xffffu) == 0;
}

// Which keys of the last tile the rows' chains have.
__device__ __forceinline__ Span last_span(const Rows& v, u32 first) {
    u32 group = first_row() / GROUP * GROUP;
    bool is_whole = are_finite(v, first + group);
    u32 there = v.tokens - first < SIDE ? v.tokens - first : SIDE;
    u32 end = group + GROUP < there ? group + GROUP : there;
    Span span;
#pragma unroll
    for (u32 r = 0; r < 4; r++) {
        span.from[r] = 0;
        span.to[r] = is_whole ? end : first_row() + r + 1;
    }
    return span;
}

template <u32 PIECES>
__device__ __forceinline__ void forward(const Forward& given, float* shared) {
    const Sizes& s = given.s;
    Rows q = part(s, given.qkv, 0), k = part(s, given.qkv, 1), v = part(s, given.qkv, 2);
    Operand a(shared), b(shared + TILE);
    float* weights = shared + 2 * TILE;
    // The longest first: the last block is what others wait for.
    u32 first = (gridDim.y - 1 - blockIdx.y) * SIDE, row = first + first_row();
    float scores[4][4], top[4], total[4];
#pragma unroll
    for (u32 r = 0; r < 4; r++) top[r] = -infinity();
    for (u32 key = 0; key <= first; key += SIDE) {
        products(scores, a, q, first, b, k, key);
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                bool is_seen = key + first_column() + c * rows::LANES <= row + r;
                top[r] = is_seen ? rows::larger(top[r], scores[r][c]) : top[r];
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < 4; r++) top[r] = rows::fold_largest(top[r]), total[r] = 0.0f;
    Span span = last_span(v, first);
    Out<PIECES> out;
    for (u32 key = 0; key <= first; key += SIDE) {
        products(scores, a, q, first, b, k, key);
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                u32 column = first_column() + c * rows::LANES;
                float x = key + column <= row + r ? scores[r][c] : -infinity();
                scores[r][c] = math::exp2((x - top[r]) * s.scale2);
                total[r] += scores[r][c];
            }
        }
        put(weights, scores);
        key < first ? out.add(weights, b, v, key) : out.add(weights, b, v, key, span);
    }
    float share[4];
#pragma unroll
    for (u32 r = 0; r < 4; r++) {
        total[r] = rows::fold(total[r]);
        share[r] = 1.0f / total[r];
        bool writes = row + r < s.tokens && first_column() == 0 && blockIdx.z == 0;
        if (writes) given.sums[(u64)blockIdx.x * s.tokens + row + r] = top[r] * s.scale2 + math::ln(total[r]) * LOG2_E;
    }
    out.each(s.width, [&](u32 r, u32 dim, float sum) {
        if (row + r < s.tokens) given.y[output_begin(s, row + r) + dim] = sum * share[r];
    });
}

}  // namespace attention

#define FORWARD(name, pieces)                                                                                \
    BOUNDED_KERNEL(attention::THREADS, name, float* y, float* sums, const float* qkv, u32 tokens, u32 heads, \
                   u32 width, float scale, float scale2) {                                                   \
        DYNAMIC_SHARED(float, shared);                                                                       \
        attention::forward<pieces>({y, sums, qkv, {tokens, heads, width, scale, scale2}}, shared);           \
    }

// By the dimensions of y that a block has.
FORWARD(causal_attention_64, 1)
FORWARD(causal_attention_128, 2)
