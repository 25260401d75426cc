// Causal attention on tensor cores, and its gradient, without a matrix of scores in memory (Dao, Fu, Ermon, Rudra, Ré:
// FlashAttention, 2022). Operands of products are rounded to bf16; scores, softmax and sums are f32.
//
// qkv: (sample, token, 3·channel), a row holding q, k, v, each cut into heads of `width`. For a head of a sample, by
// token:
//   S = Q Kᵀ, P = softmax(S / √width) over the tokens not after the row's, y = P V
//   sums = log2 of each row's sum of 2^(scale2 · S), (sample, head, token)
//   dP = dy Vᵀ, dS = P (dP - rowsum(y dy)) / √width, dQ = dS K, dK = dSᵀ Q, dV = Pᵀ dy
//
// First operands are rounded and put head by head, (head, part, token, D), where D is 32, 64 or 128 with zeros behind
// the width: each is read many times. `forward` and `queries` (dQ) are blocks of 128 queries that pass over tiles of
// keys; `keys` (dK and dV) blocks of 128 keys that pass over tiles of queries; so no sum has two writers and nothing is
// atomic. A warp has 16 rows: their scores are registers that become operands of the second product where they are.
//
// Order of sums: every chain over tokens goes up, 16 with each instruction; a row hangs on its own head alone, on no
// other sample. The running maximum is a whole number, so that corrections are exact and P is rounded the same in any
// tile.
//
// Grid: x: blocks of a head, those with most to do first; y and z together count the heads of all samples.
#include "bf16.cuh"
#include "math.cuh"

using bf16::u16;

static const u32 THREADS = 256;
// Rows of a block, 16 a warp.
static const u32 ROWS = 128;
static const float LOG2_E = 1.44269504088896340736f;

struct Sizes {
    u32 samples, tokens, heads, width;

    __device__ __forceinline__ u32 all_heads() const { return samples * heads; }
    // First number of a token's row in (sample, token, parts · channel), of one part and a head of a sample.
    __device__ __forceinline__ u64 at(u32 head, u32 token, u32 part, u32 parts) const {
        u64 row = (u64)(head / heads) * tokens + token;
        return ((row * parts + part) * heads + head % heads) * width;
    }
};

__device__ __forceinline__ bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

// to (head, part, token, length) = x (sample, token, parts · channel), rounded, zeros behind the width.
// Grid: x: eights of one part of a head, y: heads and parts by turns.
//
// Values that are not finite become 0 where `found` is given, (head, blockIdx.x), which tells whether a block met any:
// a weight of 0 must not make a NaN of what its token may not see. `spoil` brings them back.
KERNEL(round_heads, u16* to, u32* found, const float* x, u32 samples, u32 tokens, u32 heads, u32 width, u32 parts,
       u32 length) {
    Sizes s = {samples, tokens, heads, width};
    __shared__ u32 is_found;
    bool is_aligned = width % 4 == 0 && (u64)x % 16 == 0;
    for (u32 of = blockIdx.y; of < s.all_heads() * parts; of += gridDim.y) {
        u32 head = of / parts, part = of % parts, eights = length / 8;
        bool spares = found && part == 2;
        if (threadIdx.x == 0) is_found = 0;
        __syncthreads();
        for (u64 i = first_number(); i < (u64)tokens * eights; i += number_stride()) {
            u32 token = i / eights, first = i % eights * 8;
            const float* from = x + s.at(head, token, part, parts) + first;
            float eight[8];
            bf16::read_eight(eight, from, first < width ? width - first : 0, is_aligned);
#pragma unroll
            for (u32 j = 0; j < 8; j++)
                if (spares && !is_finite(eight[j])) {
                    eight[j] = 0.0f;
                    is_found = 1;
                }
            *reinterpret_cast<uint4*>(to + (u64)of * tokens * length + i * 8) = bf16::rounded(eight);
        }
        __syncthreads();
        if (spares && threadIdx.x == 0) found[(u64)head * gridDim.x + blockIdx.x] = is_found;
        __syncthreads();
    }
}

// Adds to y what its token sees of values that are not finite. `found`: (head, blocks), from `round_heads`.
// Grid: x: heads by turns; a thread has a column.
KERNEL(spoil, float* y, const u32* found, const float* qkv, u32 samples, u32 tokens, u32 heads, u32 width, u32 blocks) {
    Sizes s = {samples, tokens, heads, width};
    for (u32 head = blockIdx.x; head < s.all_heads(); head += gridDim.x) {
        u32 is_found = 0;
        for (u32 i = 0; i < blocks; i++) is_found |= found[(u64)head * blocks + i];
        if (!is_found || threadIdx.x >= width) continue;
        float seen = 0.0f;
        for (u32 token = 0; token < tokens; token++) {
            float value = qkv[s.at(head, token, 2, 3) + threadIdx.x];
            if (!is_finite(value)) seen += value;
            float* at = y + s.at(head, token, 0, 1) + threadIdx.x;
            if (seen != 0.0f) *at = seen == seen ? *at + seen : one_nan();
        }
    }
}

// Starts copies of rows `first` to `first + COUNT` to shared memory; zeros stand for rows behind the end.
template <u32 D, u32 COUNT>
__device__ __forceinline__ void copy_rows(u16* to, const u16* from, u32 first, u32 end) {
    from += (u64)first * D;
#pragma unroll
    for (u32 i = threadIdx.x; i < COUNT * D / 8; i += THREADS) {
        u32 row = i / (D / 8), eight = i % (D / 8);
        bool is_there = first + row < end;
        bf16::copy_later(to + bf16::swizzled<D>(row, eight), from + i * 8, is_there);
    }
}

template <u32 COUNT>
__device__ __forceinline__ void clear(float (&sums)[COUNT][4]) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
}

// scores (16, 8·WIDE) = A Bᵀ of 16 rows of a, from `row` on, and the rows of b, all D long.
template <u32 D, u32 WIDE>
__device__ __forceinline__ void compare(float (&scores)[WIDE][4], const u16* a, u32 row, const u16* b) {
    bf16::Quarter at;
    clear(scores);
    // Unrolled as a whole it takes so many registers for addresses that some are spilled.
#pragma unroll 2
    for (u32 k = 0; k < D; k += 16) {
        u32 of_a[4];
        bf16::load_matrices(of_a, a + bf16::swizzled<D>(row + at.low + at.row, (k + at.high) / 8));
#pragma unroll
        for (u32 j = 0; j < WIDE; j += 2) {
            u32 of_b[4];
            bf16::load_matrices(of_b, b + bf16::swizzled<D>(j * 8 + at.high + at.row, (k + at.low) / 8));
            bf16::mma(scores[j], of_a, of_b[0], of_b[1]);
            bf16::mma(scores[j + 1], of_a, of_b[2], of_b[3]);
        }
    }
}

// sums (16, D) += weights (16, 8·WIDE) by the rows of b.
template <u32 D, u32 WIDE>
__device__ __forceinline__ void mix(float (&sums)[D / 8][4], const float (&weights)[WIDE][4], const u16* b) {
    bf16::Quarter at;
#pragma unroll
    for (u32 i = 0; i < WIDE; i += 2) {
        const float(&first)[4] = weights[i], (&second)[4] = weights[i + 1];
        const u32 of_a[4] = {bf16::pair(first[0], first[1]), bf16::pair(first[2], first[3]),
                             bf16::pair(second[0], second[1]), bf16::pair(second[2], second[3])};
#pragma unroll
        for (u32 j = 0; j < D / 8; j += 2) {
            u32 of_b[4];
            bf16::load_transposed(of_b, b + bf16::swizzled<D>(i * 8 + at.low + at.row, j + at.high / 8));
            bf16::mma(sums[j], of_a, of_b[0], of_b[1]);
            bf16::mma(sums[j + 1], of_a, of_b[2], of_b[3]);
        }
    }
}

// Where a lane's numbers of a warp's 16 rows lie: rows `row` and `row + 8`, columns `column` and its neighbour of each
// eight.
struct Lane {
    u32 first, row, column;

    __device__ __forceinline__ Lane()
        : first(threadIdx.x / 32 * 16), row(first + threadIdx.x % 32 / 4), column(threadIdx.x % 4 * 2) {}
};

// Writes a warp's rows to (sample, token, parts · channel), each times its own share.
template <u32 D>
__device__ __forceinline__ void write(float* to, const float (&sums)[D / 8][4], const float (&share)[2], u32 token,
                                      u32 head, u32 part, u32 parts, const Sizes& s) {
    Lane lane;
    bool is_aligned = s.width % 2 == 0 && (u64)to % 8 == 0;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 row = token + lane.row + half * 8;
        if (row >= s.tokens) continue;
        float* at = to + s.at(head, row, part, parts);
#pragma unroll
        for (u32 j = 0; j < D / 8; j++) {
            u32 column = j * 8 + lane.column;
            float x = sums[j][half * 2] * share[half], next = sums[j][half * 2 + 1] * share[half];
            if (is_aligned) {
                if (column < s.width) *reinterpret_cast<float2*>(at + column) = make_float2(x, next);
            } else {
                if (column < s.width) at[column] = x;
                if (column + 1 < s.width) at[column + 1] = next;
            }
        }
    }
}

// 2^n of a whole n that is not positive; 0 under -126.
__device__ __forceinline__ float whole_power(float n) { return of_bits((u32)((int)fmaxf(n, -127.0f) + 127) << 23); }

// The softmax of a warp's rows so far: a sum of powers and what all were divided by, 2^top.
struct Softmax {
    float top[2], total[2];

    __device__ __forceinline__ Softmax() {
        // Not -infinity: scores may be.
        top[0] = top[1] = -1e30f;
        total[0] = total[1] = 0.0f;
    }

    // scores of keys `key` on become weights; what was mixed so far is put right.
    template <u32 D, u32 WIDE>
    __device__ __forceinline__ void add(float (&scores)[WIDE][4], float (&out)[D / 8][4], u32 query, u32 key,
                                        float scale2) {
        Lane lane;
        // Of most tiles every query sees every key.
        bool is_cut = key + 8 * WIDE > query + lane.first;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float largest = -infinity();
#pragma unroll
            for (u32 i = 0; i < WIDE * 2; i++) {
                float& score = scores[i / 2][half * 2 + i % 2];
                if (is_cut && key + i / 2 * 8 + lane.column + i % 2 > query + lane.row + half * 8) score = -infinity();
                largest = fmaxf(largest, score);
            }
            largest = fmaxf(largest, __shfl_xor_sync(WHOLE_WARP, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(WHOLE_WARP, largest, 2));
            float higher = fmaxf(top[half], ceilf(largest * scale2));
            float change = whole_power(top[half] - higher);
            top[half] = higher;
            total[half] *= change;
#pragma unroll
            for (u32 j = 0; j < D / 8; j++) {
                out[j][half * 2] *= change;
                out[j][half * 2 + 1] *= change;
            }
#pragma unroll
            for (u32 i = 0; i < WIDE * 2; i++) {
                float& score = scores[i / 2][half * 2 + i % 2];
                score = bf16::power_of_two(fmaf(score, scale2, -higher));
                total[half] += score;
            }
        }
    }

    __device__ __forceinline__ void end() {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            total[half] += __shfl_xor_sync(WHOLE_WARP, total[half], 1);
            total[half] += __shfl_xor_sync(WHOLE_WARP, total[half], 2);
        }
    }
};

// Keys of a tile of `forward`.
static const u32 SEEN = 64;

template <u32 D>
__device__ __forceinline__ void forward(float* y, float* sums, const u16* heads, Sizes s, float scale2) {
    DYNAMIC_SHARED(u16, shared);
    u16 *q = shared, *keys = q + ROWS * D, *values = keys + 2 * SEEN * D;
    Lane lane;
    u32 query = (gridDim.x - 1 - blockIdx.x) * ROWS;
    u32 end = query + ROWS < s.tokens ? query + ROWS : s.tokens;
    u32 head = bf16::block_of_batch();
    if (head >= s.all_heads()) return;
    const u16* of_q = heads + (u64)head * 3 * s.tokens * D;
    const u16 *of_k = of_q + (u64)s.tokens * D, *of_v = of_k + (u64)s.tokens * D;
    copy_rows<D, ROWS>(q, of_q, query, end);
    copy_rows<D, SEEN>(keys, of_k, 0, end);
    copy_rows<D, SEEN>(values, of_v, 0, end);
    bf16::end_copies();
    float out[D / 8][4];
    clear(out);
    Softmax softmax;
    for (u32 key = 0, turn = 0; key < end; key += SEEN, turn ^= 1) {
        if (key + SEEN < end) {
            copy_rows<D, SEEN>(keys + (turn ^ 1) * SEEN * D, of_k, key + SEEN, end);
            copy_rows<D, SEEN>(values + (turn ^ 1) * SEEN * D, of_v, key + SEEN, end);
        }
        bf16::end_copies();
        bf16::wait_for_copies<1>();
        __syncthreads();
        if (key < query + lane.first + 16) {
            float scores[SEEN / 8][4];
            compare<D>(scores, q, lane.first, keys + turn * SEEN * D);
            softmax.add<D>(scores, out, query, key, scale2);
            mix<D>(out, scores, values + turn * SEEN * D);
        }
        __syncthreads();
    }
    softmax.end();
    float share[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float total = softmax.total[half];
        share[half] = 1.0f / total;
        u32 token = query + lane.row + half * 8;
        if (lane.column == 0 && token < s.tokens)
            sums[(u64)head * s.tokens + token] = softmax.top[half] + math::ln(total) * LOG2_E;
    }
    write<D>(y, out, share, query, head, 0, 1, s);
}

// What the gradient reads besides q, k and v: dy rounded, (head, token, D), and along = rowsum(y dy), (head, token).
// Grid: x: tokens, y: heads, both by turns; a warp has a token.
KERNEL(prepare_gradient, u16* to, float* along, const float* y, const float* dy, u32 samples, u32 tokens, u32 heads,
       u32 width, u32 length) {
    Sizes s = {samples, tokens, heads, width};
    u32 lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (u32 head = blockIdx.y; head < s.all_heads(); head += gridDim.y)
        for (u32 token = blockIdx.x * warps + threadIdx.x / 32; token < tokens; token += gridDim.x * warps) {
            u64 from = s.at(head, token, 0, 1), row = (u64)head * tokens + token;
            float sum = 0.0f;
            for (u32 column = lane * 2; column < length; column += 64) {
                float first = column < width ? dy[from + column] : 0.0f;
                float second = column + 1 < width ? dy[from + column + 1] : 0.0f;
                *reinterpret_cast<u32*>(to + row * length + column) = bf16::pair(first, second);
                if (column < width) sum += y[from + column] * first;
                if (column + 1 < width) sum += y[from + column + 1] * second;
            }
            for (u32 apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(WHOLE_WARP, sum, apart);
            if (lane == 0) along[row] = sum;
        }
}

// What both passes of the gradient are given.
struct Gradient {
    float* dqkv;
    // Rounded: q, k, v by heads, and dy.
    const u16 *heads, *dy;
    const float *sums, *along;
    float scale, scale2;
};

// dQ. WIDE: eights of keys in a tile.
template <u32 D, u32 WIDE>
__device__ __forceinline__ void queries(Gradient g, Sizes s) {
    const u32 TILE = WIDE * 8;
    DYNAMIC_SHARED(u16, shared);
    u16 *q = shared, *dy = q + ROWS * D, *keys = dy + ROWS * D, *values = keys + 2 * TILE * D;
    Lane lane;
    u32 query = (gridDim.x - 1 - blockIdx.x) * ROWS;
    u32 end = query + ROWS < s.tokens ? query + ROWS : s.tokens;
    u32 head = bf16::block_of_batch();
    if (head >= s.all_heads()) return;
    const u16* of_q = g.heads + (u64)head * 3 * s.tokens * D;
    const u16 *of_k = of_q + (u64)s.tokens * D, *of_v = of_k + (u64)s.tokens * D;
    copy_rows<D, ROWS>(q, of_q, query, end);
    copy_rows<D, ROWS>(dy, g.dy + (u64)head * s.tokens * D, query, end);
    copy_rows<D, TILE>(keys, of_k, 0, end);
    copy_rows<D, TILE>(values, of_v, 0, end);
    bf16::end_copies();
    float sum[2], along[2], dq[D / 8][4];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 token = query + lane.row + half * 8;
        sum[half] = token < s.tokens ? g.sums[(u64)head * s.tokens + token] : 0.0f;
        along[half] = token < s.tokens ? g.along[(u64)head * s.tokens + token] : 0.0f;
    }
    clear(dq);
    for (u32 key = 0, turn = 0; key < end; key += TILE, turn ^= 1) {
        if (key + TILE < end) {
            copy_rows<D, TILE>(keys + (turn ^ 1) * TILE * D, of_k, key + TILE, end);
            copy_rows<D, TILE>(values + (turn ^ 1) * TILE * D, of_v, key + TILE, end);
        }
        bf16::end_copies();
        bf16::wait_for_copies<1>();
        __syncthreads();
        if (key < query + lane.first + 16) {
            float p[WIDE][4], slopes[WIDE][4];
            compare<D>(p, q, lane.first, keys + turn * TILE * D);
            compare<D>(slopes, dy, lane.first, values + turn * TILE * D);
#pragma unroll
            for (u32 i = 0; i < WIDE * 4; i++) {
                u32 half = i / 2 % 2;
                float x = bf16::power_of_two(fmaf(p[i / 4][i % 4], g.scale2, -sum[half]));
                float slope = x * (slopes[i / 4][i % 4] - along[half]) * g.scale;
                bool is_hidden = key + i / 4 * 8 + lane.column + i % 2 > query + lane.row + half * 8;
                slopes[i / 4][i % 4] = is_hidden ? 0.0f : slope;
            }
            mix<D>(dq, slopes, keys + turn * TILE * D);
        }
        __syncthreads();
    }
    const float one[2] = {1.0f, 1.0f};
    write<D>(g.dqkv, dq, one, query, head, 0, 3, s);
}

// dK and dV. Scores are transposed, (key, query). WIDE: eights of queries in a tile.
template <u32 D, u32 WIDE>
__device__ __forceinline__ void keys(Gradient g, Sizes s) {
    const u32 TILE = WIDE * 8;
    DYNAMIC_SHARED(u16, shared);
    u16 *k = shared, *v = k + ROWS * D, *q = v + ROWS * D, *dy = q + 2 * TILE * D;
    // (turn, query): the rows' sums and what lies along them.
    float* sums = reinterpret_cast<float*>(dy + 2 * TILE * D);
    float* along = sums + 2 * TILE;
    Lane lane;
    u32 key = blockIdx.x * ROWS;
    u32 head = bf16::block_of_batch();
    if (head >= s.all_heads()) return;
    const u16* of_q = g.heads + (u64)head * 3 * s.tokens * D;
    const u16 *of_k = of_q + (u64)s.tokens * D, *of_v = of_k + (u64)s.tokens * D;
    auto copy_tile = [&](u32 query, u32 turn) {
        copy_rows<D, TILE>(q + turn * TILE * D, of_q, query, s.tokens);
        copy_rows<D, TILE>(dy + turn * TILE * D, g.dy + (u64)head * s.tokens * D, query, s.tokens);
        if (threadIdx.x < TILE) {
            bool is_there = query + threadIdx.x < s.tokens;
            u64 at = (u64)head * s.tokens + (is_there ? query + threadIdx.x : 0);
            bf16::copy_four_later(sums + turn * TILE + threadIdx.x, g.sums + at, is_there);
            bf16::copy_four_later(along + turn * TILE + threadIdx.x, g.along + at, is_there);
        }
    };
    copy_rows<D, ROWS>(k, of_k, key, s.tokens);
    copy_rows<D, ROWS>(v, of_v, key, s.tokens);
    copy_tile(key, 0);
    bf16::end_copies();
    float dk[D / 8][4], dv[D / 8][4];
    clear(dk);
    clear(dv);
    for (u32 query = key, turn = 0; query < s.tokens; query += TILE, turn ^= 1) {
        if (query + TILE < s.tokens) copy_tile(query + TILE, turn ^ 1);
        bf16::end_copies();
        bf16::wait_for_copies<1>();
        __syncthreads();
        if (key + lane.first < query + TILE) {
            float p[WIDE][4], slopes[WIDE][4];
            compare<D>(p, k, lane.first, q + turn * TILE * D);
#pragma unroll
            for (u32 i = 0; i < WIDE * 4; i++) {
                u32 column = i / 4 * 8 + lane.column + i % 2;
                float x = bf16::power_of_two(fmaf(p[i / 4][i % 4], g.scale2, -sums[turn * TILE + column]));
                p[i / 4][i % 4] = key + lane.row + i / 2 % 2 * 8 > query + column ? 0.0f : x;
            }
            mix<D>(dv, p, dy + turn * TILE * D);
            compare<D>(slopes, v, lane.first, dy + turn * TILE * D);
#pragma unroll
            for (u32 i = 0; i < WIDE * 4; i++) {
                u32 column = i / 4 * 8 + lane.column + i % 2;
                float slope = p[i / 4][i % 4] * (slopes[i / 4][i % 4] - along[turn * TILE + column]) * g.scale;
                slopes[i / 4][i % 4] = key + lane.row + i / 2 % 2 * 8 > query + column ? 0.0f : slope;
            }
            mix<D>(dk, slopes, q + turn * TILE * D);
        }
        __syncthreads();
    }
    const float one[2] = {1.0f, 1.0f};
    write<D>(g.dqkv, dk, one, key, head, 1, 3, s);
    write<D>(g.dqkv, dv, one, key, head, 2, 3, s);
}

// How many blocks share a multiprocessor: softmax waits for products, and others' products fill the gap.
#define FORWARD(D, BLOCKS)                                                                                            \
    RESIDENT_KERNEL(256, BLOCKS, forward_##D, float* y, float* sums, const u16* heads_of, u32 samples, u32 tokens,     \
                   u32 heads, u32 width, float scale2) {                                                              \
        forward<D>(y, sums, heads_of, Sizes{samples, tokens, heads, width}, scale2);                                  \
    }
#define GRADIENT(name, pass, D, WIDE, BLOCKS)                                                                         \
    RESIDENT_KERNEL(256, BLOCKS, name, float* dqkv, const u16* heads_of, const u16* dy, const float* sums,             \
                   const float* along, u32 samples, u32 tokens, u32 heads, u32 width, float scale, float scale2) {    \
        pass<D, WIDE>(Gradient{dqkv, heads_of, dy, sums, along, scale, scale2}, Sizes{samples, tokens, heads, width}); \
    }

FORWARD(32, 2)
FORWARD(64, 2)
FORWARD(128, 1)
GRADIENT(queries_32, queries, 32, 8, 2)
GRADIENT(queries_64, queries, 64, 8, 2)
GRADIENT(queries_128, queries, 128, 4, 1)
GRADIENT(keys_32, keys, 32, 8, 1)
GRADIENT(keys_64, keys, 64, 8, 1)
GRADIENT(keys_128, keys, 128, 4, 1)
