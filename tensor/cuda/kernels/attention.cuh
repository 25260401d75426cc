// Tiles of causal attention, for its forward pass and its gradient: 64 rows (queries, or keys) against 64 columns
// (keys, or queries) of one head, by a block of 256 threads.
//
// Thread (i, j) of 16 by 16 has rows 4 i to 4 i + 3 and columns j, j + 16, j + 32, j + 48. So a row lies with the
// sixteen lanes of half a warp, each of which has the columns that the lane of `rows.cuh` has: sums along a row go on
// from tile to tile in the order of the processor. Two products make all of the work, and each element of both is one
// chain of fused multiply-adds in one thread: `dots` over the dimensions of a head, `Out::add` over the columns of a
// tile.
//
// A head may be wider than a tile: operands come in pieces of 64 dimensions, and `dots` goes on with its chains.
#pragma once
#include "math.cuh"
#include "rows.cuh"

namespace attention {

static const u32 THREADS = 256;
static const u32 SIDE = 64;
static const u32 DIMS = 64;
// Rows of shared memory begin four banks apart, so that eight threads read sixteen bytes of eight rows at once.
static const u32 STRIDE = DIMS + 4;
static const u32 TILE = SIDE * STRIDE;
// Queries of a tile of the processor's. Its products go to the end of such a tile for each of its rows.
static const u32 GROUP = 16;

static const float LOG2_E = 1.44269504088896340736f;

// Of all heads alike. (token, 3 * channel) or (token, channel) of a sample lie one behind the other.
struct Sizes {
    u32 tokens, heads, width;
    float scale, scale2;
};

// A head's rows of `width` numbers, one a token, `stride` apart.
struct Rows {
    const float* data;
    u32 stride, tokens, width;

    __device__ __forceinline__ const float* row(u32 token) const { return data + (u64)token * stride; }
};

// Where a row of the block's head begins, in qkv (q is 0, k 1, v 2) and in y.
__device__ __forceinline__ u64 part_begin(const Sizes& s, u32 which, u32 token) {
    u32 sample = blockIdx.x / s.heads, head = blockIdx.x % s.heads;
    return ((((u64)sample * s.tokens + token) * 3 + which) * s.heads + head) * s.width;
}

__device__ __forceinline__ u64 output_begin(const Sizes& s, u32 token) {
    u32 sample = blockIdx.x / s.heads, head = blockIdx.x % s.heads;
    return (((u64)sample * s.tokens + token) * s.heads + head) * s.width;
}

__device__ __forceinline__ Rows part(const Sizes& s, const float* qkv, u32 which) {
    return {qkv + part_begin(s, which, 0), 3 * s.heads * s.width, s.tokens, s.width};
}

__device__ __forceinline__ Rows output(const Sizes& s, const float* y) {
    return {y + output_begin(s, 0), s.heads * s.width, s.tokens, s.width};
}

__device__ __forceinline__ u32 first_row() { return threadIdx.x / rows::LANES * 4; }
__device__ __forceinline__ u32 first_column() { return threadIdx.x % rows::LANES; }

__device__ __forceinline__ float4 four(const float* at) { return *reinterpret_cast<const float4*>(at); }

// A tile of a head's rows in shared memory, (row, dimension), and which it is.
struct Operand {
    float* shared;
    const float* data;
    u32 token, dim;

    __device__ __forceinline__ explicit Operand(float* shared) : shared(shared), data(0), token(0), dim(0) {}

    // Makes it the tile from a token and a dimension on, with zeros where there is none. All threads call it alike.
    __device__ __forceinline__ void hold(const Rows& rows, u32 at_token, u32 at_dim) {
        if (data == rows.data && token == at_token && dim == at_dim) return;
        data = rows.data, token = at_token, dim = at_dim;
        // Some threads may still read what lay here.
        __syncthreads();
        u32 column = threadIdx.x % (DIMS / 4) * 4, here = dim + column;
        bool is_whole = (reinterpret_cast<u64>(data) % 16 | rows.stride % 4) == 0 && here + 4 <= rows.width;
#pragma unroll 4
        for (u32 row = threadIdx.x / (DIMS / 4); row < SIDE; row += THREADS / (DIMS / 4)) {
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (token + row < rows.tokens) {
                const float* from = rows.row(token + row) + here;
                if (is_whole) {
                    x = four(from);
                } else {
                    if (here < rows.width) x.x = from[0];
                    if (here + 1 < rows.width) x.y = from[1];
                    if (here + 2 < rows.width) x.z = from[2];
                    if (here + 3 < rows.width) x.w = from[3];
                }
            }
            *reinterpret_cast<float4*>(shared + row * STRIDE + column) = x;
        }
        __syncthreads();
    }
};

// sums[r][c] goes on with its chain over `depth` dimensions of row r of `a` and column c, a row of `b`. Numbers
// behind the last dimension are not added: a sum of -0 would become 0.
__device__ __forceinline__ void dots(float (&sums)[4][4], const float* a, const float* b, u32 depth) {
    a += first_row() * STRIDE;
    b += first_column() * STRIDE;
    u32 d = 0;
#pragma unroll 1
    for (; d + 4 <= depth; d += 4) {
        float4 x[4], y[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) x[i] = four(a + i * STRIDE + d);
#pragma unroll
        for (u32 i = 0; i < 4; i++) y[i] = four(b + i * rows::LANES * STRIDE + d);
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                float sum = fmaf(x[r].x, y[c].x, sums[r][c]);
                sum = fmaf(x[r].y, y[c].y, sum);
                sum = fmaf(x[r].z, y[c].z, sum);
                sums[r][c] = fmaf(x[r].w, y[c].w, sum);
            }
        }
    }
    for (; d < depth; d++) {
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                sums[r][c] = fmaf(a[r * STRIDE + d], b[c * rows::LANES * STRIDE + d], sums[r][c]);
            }
        }
    }
}

// sums = the products of 64 rows of `of_a` and 64 of `of_b`, over all dimensions.
__device__ __forceinline__ void products(float (&sums)[4][4], Operand& a, const Rows& of_a, u32 a_token, Operand& b,
                                         const Rows& of_b, u32 b_token) {
#pragma unroll
    for (u32 r = 0; r < 4; r++) {
#pragma unroll
        for (u32 c = 0; c < 4; c++) sums[r][c] = 0.0f;
    }
    for (u32 dim = 0; dim < of_a.width; dim += DIMS) {
        a.hold(of_a, a_token, dim);
        b.hold(of_b, b_token, dim);
        dots(sums, a.shared, b.shared, of_a.width - dim < DIMS ? of_a.width - dim : DIMS);
    }
}

// A tile of weights for `Out`, into shared memory. Half a warp writes its own rows and reads them alone.
__device__ __forceinline__ void put(float* to, const float (&weights)[4][4]) {
    __syncwarp();
#pragma unroll
    for (u32 r = 0; r < 4; r++) {
#pragma unroll
        for (u32 c = 0; c < 4; c++) to[(first_row() + r) * STRIDE + first_column() + c * rows::LANES] = weights[r][c];
    }
    __syncwarp();
}

// Which columns of a tile a row's chain has.
struct Span {
    u32 from[4], to[4];

    __device__ __forceinline__ bool has(u32 r, u32 column) const { return column >= from[r] && column < to[r]; }
};

// What a thread makes of its four rows: four neighbours in each of the block's pieces of 64 dimensions.
template <u32 PIECES>
struct Out {
    float sums[PIECES][4][4];

    __device__ __forceinline__ Out() {
#pragma unroll
        for (u32 piece = 0; piece < PIECES; piece++) {
#pragma unroll
            for (u32 r = 0; r < 4; r++) {
#pragma unroll
                for (u32 n = 0; n < 4; n++) sums[piece][r][n] = 0.0f;
            }
        }
    }

    // The first dimension of a piece.
    __device__ __forceinline__ static u32 dim(u32 piece) { return (blockIdx.z * PIECES + piece) * DIMS; }

    // Goes on with chains over the columns of a tile, all or those of a span: weights (row, column) times the 64 rows
    // of `of_b` from a token on. `put` wrote the weights.
    __device__ __forceinline__ void add(const float* weights, Operand& b, const Rows& of_b, u32 token) {
#pragma unroll
        for (u32 piece = 0; piece < PIECES; piece++) {
            b.hold(of_b, token, dim(piece));
            const float* of_rows = weights + first_row() * STRIDE;
            const float* x = b.shared + first_column() * 4;
#pragma unroll 1
            for (u32 k = 0; k < SIDE; k += 4) {
                float4 w[4];
#pragma unroll
                for (u32 r = 0; r < 4; r++) w[r] = four(of_rows + r * STRIDE + k);
                link(piece, w[0].x, w[1].x, w[2].x, w[3].x, x + k * STRIDE);
                link(piece, w[0].y, w[1].y, w[2].y, w[3].y, x + (k + 1) * STRIDE);
                link(piece, w[0].z, w[1].z, w[2].z, w[3].z, x + (k + 2) * STRIDE);
                link(piece, w[0].w, w[1].w, w[2].w, w[3].w, x + (k + 3) * STRIDE);
            }
        }
    }

    __device__ __forceinline__ void add(const float* weights, Operand& b, const Rows& of_b, u32 token,
                                        const Span& span) {
#pragma unroll
        for (u32 piece = 0; piece < PIECES; piece++) {
            b.hold(of_b, token, dim(piece));
            const float* of_rows = weights + first_row() * STRIDE;
            const float* x = b.shared + first_column() * 4;
#pragma unroll 1
            for (u32 k = 0; k < SIDE; k++) {
                float4 at = four(x + k * STRIDE);
#pragma unroll
                for (u32 r = 0; r < 4; r++) {
                    if (span.has(r, k)) link(sums[piece][r], of_rows[r * STRIDE + k], at);
                }
            }
        }
    }

    // Calls write(row of the tile, dimension, sum) for what the head has.
    template <class Write>
    __device__ __forceinline__ void each(u32 width, Write write) const {
#pragma unroll
        for (u32 piece = 0; piece < PIECES; piece++) {
            u32 first = dim(piece) + first_column() * 4;
#pragma unroll
            for (u32 r = 0; r < 4; r++) {
#pragma unroll
                for (u32 n = 0; n < 4; n++) {
                    if (first + n < width) write(r, first + n, sums[piece][r][n]);
                }
            }
        }
    }

private:
    // A column's link of a row's chains.
    __device__ __forceinline__ static void link(float (&to)[4], float weight, const float4& x) {
        to[0] = fmaf(weight, x.x, to[0]);
        to[1] = fmaf(weight, x.y, to[1]);
        to[2] = fmaf(weight, x.z, to[2]);
        to[3] = fmaf(weight, x.w, to[3]);
    }

    // Of all rows.
    __device__ __forceinline__ void link(u32 piece, float w0, float w1, float w2, float w3, const float* x) {
        float4 at = four(x);
        link(sums[piece][0], w0, at);
        link(sums[piece][1], w1, at);
        link(sums[piece][2], w2, at);
        link(sums[piece][3], w3, at);
    }
};

}  // namespace attention
