// C = A B (+ bias) on tensor cores: A, B, bias and C are f32 in memory, operands are rounded to bf16, sums are f32.
//
// a: (batch, leaf, m, k) or, stored transposed, (batch, leaf, k, m); b: (batch, leaf, k, n) or (batch, leaf, n, k);
// bias: (n); c: (batch, m, n). Functions are named by the tile and by how A and B are stored: n as they are multiplied,
// t transposed. Several leaves (of `tn` alone) are shards, whose products are added along the tree.
//
// A block makes one tile of one c. It goes over k in steps of 32: while its warps multiply one step out of shared
// memory, the next is on its way from memory to registers, where it is rounded before it goes to the other half of
// shared memory. Rows of shared memory are those of memory, in either order, so that reads and writes are whole lines;
// it is `ldmatrix` that transposes. Pieces of 16 bytes lie swizzled: no eight rows of a matrix share a bank.
//
// Order of sums: an element begins at +0 and takes 16 products of ascending k with each instruction, zeros behind the
// last; so its bits hang on its own row, column and k alone, on no tile, no count of rows and no other leaf. Bias comes
// last. A leaf's tile climbs the tree in the thread that made it; left siblings wait in `room` (batch, level, m, n).
//
// Grid: x: tiles, column by column in bands of 16 tiles of rows, so that blocks which run together share operands in
// the second-level cache; y: batch, by turns.
#include "bf16.cuh"

using bf16::u16;

// Along k in a step.
static const u32 STEP = 32;
// Tiles of rows in a band.
static const u32 BAND = 16;

// How an operand's numbers follow one another in memory.
enum Order { ALONG_K, ACROSS_K };

struct Sizes {
    u32 m, n, k, batches;
};

// A tile of an operand, LINES rows of A or columns of B and STEP along k: a thread's share of it, piece by piece.
template <u32 LINES, u32 THREADS, Order ORDER>
struct Tile {
    // Of four numbers that are neighbours in memory.
    static const u32 PIECES = LINES * STEP / 4 / THREADS;
    static const u32 IN_A_ROW = ORDER == ALONG_K ? STEP / 4 : LINES / 4;
    static const u32 ROWS_APART = THREADS / IN_A_ROW;
    static const u32 NUMBERS = LINES * STEP;

    // The first piece, of the step that is read next.
    const float* from;
    u64 row_length;
    // Where that piece lies in the tile, by rows of memory.
    u32 row, number;
    // From the tile's first on.
    u32 lines_left;
    bool is_aligned;

    __device__ __forceinline__ Tile(const float* operand, u32 lines, u32 k, u32 first_line)
        : row_length(ORDER == ALONG_K ? k : lines), row(threadIdx.x / IN_A_ROW), number(threadIdx.x % IN_A_ROW * 4),
          lines_left(lines - first_line) {
        from = operand + (ORDER == ALONG_K ? first_line * row_length : first_line) + row * row_length + number;
        is_aligned = row_length % 4 == 0 && (u64)operand % 16 == 0;
    }

    // The next step, where `k_left` numbers are left along k. Zeros stand for what is not there.
    __device__ __forceinline__ void read(float4 (&to)[PIECES], u32 k_left) {
        int rows = (int)(ORDER == ALONG_K ? lines_left : k_left) - (int)row;
        int numbers = (int)(ORDER == ALONG_K ? k_left : lines_left) - (int)number;
        const float* piece = from;
#pragma unroll
        for (int i = 0; i < (int)PIECES; i++, piece += ROWS_APART * row_length) {
            bool is_row = rows > i * (int)ROWS_APART;
            to[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (is_aligned) {
                if (is_row && numbers > 0) to[i] = *reinterpret_cast<const float4*>(piece);
            } else if (is_row) {
                if (numbers > 0) to[i].x = piece[0];
                if (numbers > 1) to[i].y = piece[1];
                if (numbers > 2) to[i].z = piece[2];
                if (numbers > 3) to[i].w = piece[3];
            }
        }
        from += ORDER == ALONG_K ? STEP : STEP * row_length;
    }

    static __device__ __forceinline__ u32 place(u32 row, u32 eight) {
        return bf16::swizzled<ORDER == ALONG_K ? STEP : LINES>(row, eight);
    }

    __device__ __forceinline__ void write(u16* shared, const float4 (&numbers)[PIECES]) const {
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            uint2 pairs = make_uint2(bf16::pair(numbers[i].x, numbers[i].y), bf16::pair(numbers[i].z, numbers[i].w));
            u32 at = place(row + i * ROWS_APART, number / 8) + number % 8;
            *reinterpret_cast<uint2*>(shared + at) = pairs;
        }
    }

    // Four matrices of 8 lines and 8 k; the one of which this lane names `row` begins at `line` and `k`.
    static __device__ __forceinline__ void load(u32 (&to)[4], const u16* shared, u32 line, u32 k, u32 row) {
        if (ORDER == ALONG_K) bf16::load_matrices(to, shared + place(line + row, k / 8));
        else bf16::load_transposed(to, shared + place(k + row, line / 8));
    }
};

// The sums of a tile of C, in a warp HIGH by WIDE products of 16 by 8.
template <u32 BM, u32 BN, u32 WARPS_M, u32 WARPS_N, Order A_ORDER, Order B_ORDER>
struct Product {
    static const u32 THREADS = WARPS_M * WARPS_N * 32;
    static const u32 HIGH = BM / WARPS_M / 16, WIDE = BN / WARPS_N / 8;
    typedef Tile<BM, THREADS, A_ORDER> A;
    typedef Tile<BN, THREADS, B_ORDER> B;

    float sums[HIGH][WIDE][4];
    // The warp's first row and column in the tile.
    u32 first_row, first_column;

    __device__ __forceinline__ Product() {
        u32 warp = threadIdx.x / 32;
        first_row = warp / WARPS_N * (BM / WARPS_M);
        first_column = warp % WARPS_N * (BN / WARPS_N);
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 i = 0; i < HIGH; i++)
#pragma unroll
            for (u32 j = 0; j < WIDE; j++) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0.0f;
    }

    // Adds the products of a step of which `k_left` numbers are not zeros behind the end.
    __device__ __forceinline__ void step(const u16* a, const u16* b, u32 k_left) {
        bf16::Quarter at;
#pragma unroll
        for (u32 k = 0; k < STEP; k += 16) {
            if (k >= k_left) return;
            u32 of_a[HIGH][4], of_b[WIDE / 2][4];
#pragma unroll
            for (u32 i = 0; i < HIGH; i++) A::load(of_a[i], a, first_row + i * 16 + at.low, k + at.high, at.row);
#pragma unroll
            for (u32 j = 0; j < WIDE / 2; j++) B::load(of_b[j], b, first_column + j * 16 + at.high, k + at.low, at.row);
#pragma unroll
            for (u32 i = 0; i < HIGH; i++)
#pragma unroll
                for (u32 j = 0; j < WIDE; j++)
                    bf16::mma(sums[i][j], of_a[i], of_b[j / 2][j % 2 * 2], of_b[j / 2][j % 2 * 2 + 1]);
        }
    }

    // Calls `each(sum, next, row, column)` of two neighbours, by rows and columns of the tile.
    template <class Each>
    __device__ __forceinline__ void neighbours(Each each) {
        u32 row = first_row + threadIdx.x % 32 / 4, column = first_column + threadIdx.x % 4 * 2;
#pragma unroll
        for (u32 i = 0; i < HIGH; i++)
#pragma unroll
            for (u32 half = 0; half < 2; half++)
#pragma unroll
                for (u32 j = 0; j < WIDE; j++) {
                    float* pair = &sums[i][j][half * 2];
                    each(pair[0], pair[1], row + i * 16 + half * 8, column + j * 8);
                }
    }
};

// A tile's place in C.
struct Place {
    u32 row, column;

    template <u32 BM, u32 BN>
    static __device__ __forceinline__ Place of(u32 tile, const Sizes& sizes) {
        u32 high = (sizes.m + BM - 1) / BM, wide = (sizes.n + BN - 1) / BN;
        u32 band = tile / (BAND * wide) * BAND;
        u32 in_band = tile % (BAND * wide), rows = high - band < BAND ? high - band : BAND;
        return {(band + in_band % rows) * BM, in_band / rows * BN};
    }
};

// The instruction's NaN has bits of its own.
__device__ __forceinline__ float number(float x) { return x == x ? x : one_nan(); }

template <class P>
__device__ __forceinline__ void write(P& product, float* c, const float* bias, const Place& place, const Sizes& sizes) {
    bool is_aligned = sizes.n % 2 == 0 && (u64)c % 8 == 0;
    product.neighbours([&](float sum, float next, u32 row, u32 column) {
        u32 left = sizes.n - place.column;
        if (row >= sizes.m - place.row || column >= left) return;
        float* at = c + (u64)(place.row + row) * sizes.n + place.column + column;
        bool is_pair = column + 1 < left;
        if (bias) {
            sum += bias[place.column + column];
            if (is_pair) next += bias[place.column + column + 1];
        }
        if (is_aligned) {
            *reinterpret_cast<float2*>(at) = make_float2(number(sum), number(next));
        } else {
            at[0] = number(sum);
            if (is_pair) at[1] = number(next);
        }
    });
}

template <u32 BM, u32 BN, u32 WARPS_M, u32 WARPS_N, Order A_ORDER, Order B_ORDER>
__device__ __forceinline__ void multiply(float* c, const float* a, const float* b, const float* bias, Sizes s) {
    typedef Product<BM, BN, WARPS_M, WARPS_N, A_ORDER, B_ORDER> P;
    __shared__ __align__(16) u16 shared_a[2][P::A::NUMBERS];
    __shared__ __align__(16) u16 shared_b[2][P::B::NUMBERS];
    Place place = Place::of<BM, BN>(blockIdx.x, s);
    P product;
    for (u32 batch = blockIdx.y; batch < s.batches; batch += gridDim.y) {
        typename P::A of_a(a + (u64)batch * s.k * s.m, s.m, s.k, place.row);
        typename P::B of_b(b + (u64)batch * s.k * s.n, s.n, s.k, place.column);
        float4 next_a[P::A::PIECES], next_b[P::B::PIECES];
        product.clear();
        of_a.read(next_a, s.k);
        of_b.read(next_b, s.k);
        of_a.write(shared_a[0], next_a);
        of_b.write(shared_b[0], next_b);
        __syncthreads();
        u32 turn = 0;
        for (u32 k_left = s.k; k_left > 0; turn ^= 1) {
            u32 k_next = k_left > STEP ? k_left - STEP : 0;
            if (k_next) {
                of_a.read(next_a, k_next);
                of_b.read(next_b, k_next);
            }
            product.step(shared_a[turn], shared_b[turn], k_left);
            if (k_next) {
                of_a.write(shared_a[turn ^ 1], next_a);
                of_b.write(shared_b[turn ^ 1], next_b);
            }
            k_left = k_next;
            __syncthreads();
        }
        write(product, c + (u64)batch * s.m * s.n, bias, place, s);
    }
}

#define GEMM(name, BM, BN, WARPS_M, WARPS_N, A_ORDER, B_ORDER)                                                      \
    BOUNDED_KERNEL(WARPS_M * WARPS_N * 32, name, float* c, const float* a, const float* b, const float* bias, u32 m, \
                   u32 n, u32 k, u32 batches) {                                                                      \
        multiply<BM, BN, WARPS_M, WARPS_N, A_ORDER, B_ORDER>(c, a, b, bias, Sizes{m, n, k, batches});                \
    }

GEMM(large_nn, 128, 128, 2, 4, ALONG_K, ACROSS_K)
GEMM(large_nt, 128, 128, 2, 4, ALONG_K, ALONG_K)
GEMM(large_tn, 128, 128, 2, 4, ACROSS_K, ACROSS_K)
GEMM(large_tt, 128, 128, 2, 4, ACROSS_K, ALONG_K)
GEMM(small_nn, 64, 64, 2, 2, ALONG_K, ACROSS_K)
GEMM(small_nt, 64, 64, 2, 2, ALONG_K, ALONG_K)
GEMM(small_tn, 64, 64, 2, 2, ACROSS_K, ACROSS_K)
GEMM(small_tt, 64, 64, 2, 2, ACROSS_K, ALONG_K)
