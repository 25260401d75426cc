// What products on tensor cores share: a block makes a tile of C = A B from operands that are f32 in memory.
//
// It goes over k in steps of 32: while its warps multiply one step out of shared memory, the next is on its way from
// memory to registers, where it is rounded before it goes to the other half of shared memory. Rows of shared memory are
// those of memory, in either order, so that reads and writes are whole lines; it is `ldmatrix` that transposes. Pieces
// of 16 bytes lie swizzled: no eight rows of a matrix share a bank.
//
// Order of sums: an element begins at +0 and takes 16 products of ascending k with each instruction, zeros behind the
// last; so its bits hang on its own row, column and k alone, on no tile and no count of rows.
#pragma once
#include "bf16.cuh"

namespace bf16 {

// Along k in a step.
static const u32 STEP = 32;
// Tiles of rows that are made one below the other before the next column of them, so that blocks which run together
// share operands in the second-level cache.
static const u32 BAND = 16;

struct Sizes {
    u32 m, n, k, batches;
};

// How an operand's numbers follow one another in memory, and so in shared memory.
enum Order { ALONG_K, ACROSS_K };

// A thread's share of a tile of an operand, LINES rows of A or columns of B and STEP along k: pieces of four numbers
// that are neighbours in a row.
template <u32 LINES, u32 THREADS, Order ORDER>
struct Share {
    static const u32 PIECES = LINES * STEP / 4 / THREADS;
    static const u32 IN_A_ROW = ORDER == ALONG_K ? STEP / 4 : LINES / 4;
    static const u32 ROWS_APART = THREADS / IN_A_ROW;
    static const u32 NUMBERS = LINES * STEP;

    // Where the first piece lies in the tile; the next is ROWS_APART rows below.
    u32 row, number;

    __device__ __forceinline__ Share() : row(threadIdx.x / IN_A_ROW), number(threadIdx.x % IN_A_ROW * 4) {}

    static __device__ __forceinline__ u32 place(u32 row, u32 eight) {
        return swizzled<ORDER == ALONG_K ? STEP : LINES>(row, eight);
    }

    __device__ __forceinline__ void write(u16* shared, const float4 (&numbers)[PIECES]) const {
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            uint2 pairs = make_uint2(pair(numbers[i].x, numbers[i].y), pair(numbers[i].z, numbers[i].w));
            u32 at = place(row + i * ROWS_APART, number / 8) + number % 8;
            *reinterpret_cast<uint2*>(shared + at) = pairs;
        }
    }

    // Four matrices of 8 lines and 8 k; the one of which this lane names `row` begins at `line` and `k`.
    static __device__ __forceinline__ void load(u32 (&to)[4], const u16* shared, u32 line, u32 k, u32 row) {
        if (ORDER == ALONG_K) load_matrices(to, shared + place(line + row, k / 8));
        else load_transposed(to, shared + place(k + row, line / 8));
    }
};

// An operand that is a matrix in memory, (line, k) or (k, line).
template <u32 LINES, u32 COUNT, Order ORDER>
struct Matrix : Share<LINES, COUNT, ORDER> {
    typedef Share<LINES, COUNT, ORDER> Here;
    using Here::PIECES;
    using Here::ROWS_APART;
    using Here::number;
    using Here::row;

    // The first piece, of the step that is read next.
    const float* from;
    u64 row_length;
    // From the tile's first on.
    u32 lines_left;
    bool is_aligned;

    __device__ __forceinline__ Matrix(const float* operand, u32 lines, u32 k, u32 first_line)
        : row_length(ORDER == ALONG_K ? k : lines), lines_left(lines - first_line) {
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
};

// Tiles, and how many warps they are cut into.
struct Large {
    static const u32 ROWS = 128, COLUMNS = 128, WARPS_DOWN = 2, WARPS_ACROSS = 4, THREADS = 256;
};
struct Small {
    static const u32 ROWS = 64, COLUMNS = 64, WARPS_DOWN = 2, WARPS_ACROSS = 2, THREADS = 128;
};

// The sums of a tile of C, of a warp HIGH by WIDE products of 16 by 8.
template <class T>
struct Product {
    static const u32 HIGH = T::ROWS / T::WARPS_DOWN / 16, WIDE = T::COLUMNS / T::WARPS_ACROSS / 8;

    float sums[HIGH][WIDE][4];
    // The warp's first row and column in the tile.
    u32 first_row, first_column;

    __device__ __forceinline__ Product() {
        u32 warp = threadIdx.x / 32;
        first_row = warp / T::WARPS_ACROSS * (HIGH * 16);
        first_column = warp % T::WARPS_ACROSS * (WIDE * 8);
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 i = 0; i < HIGH; i++)
#pragma unroll
            for (u32 j = 0; j < WIDE; j++) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0.0f;
    }

    // Adds the products of a step of which `k_left` numbers are not zeros behind the end.
    template <class A, class B>
    __device__ __forceinline__ void step(const u16* a, const u16* b, u32 k_left) {
        Quarter at;
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
                    mma(sums[i][j], of_a[i], of_b[j / 2][j % 2 * 2], of_b[j / 2][j % 2 * 2 + 1]);
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

    // Of tile number `tile` of an m by n matrix.
    template <class T>
    static __device__ __forceinline__ Place of(u32 tile, u32 m, u32 n) {
        u32 high = (m + T::ROWS - 1) / T::ROWS, wide = (n + T::COLUMNS - 1) / T::COLUMNS;
        u32 band = tile / (BAND * wide) * BAND;
        u32 in_band = tile % (BAND * wide), rows = high - band < BAND ? high - band : BAND;
        return {(band + in_band % rows) * T::ROWS, in_band / rows * T::COLUMNS};
    }
};

// Makes a tile: both operands are read from their first k on.
template <class T, class A, class B>
__device__ __forceinline__ void multiply(Product<T>& product, A& a, B& b, u32 k) {
    __shared__ __align__(16) u16 of_a[2][A::NUMBERS];
    __shared__ __align__(16) u16 of_b[2][B::NUMBERS];
    float4 next_a[A::PIECES], next_b[B::PIECES];
    product.clear();
    a.read(next_a, k);
    b.read(next_b, k);
    a.write(of_a[0], next_a);
    b.write(of_b[0], next_b);
    __syncthreads();
    u32 turn = 0;
    for (u32 left = k; left > 0; turn ^= 1) {
        u32 next = left > STEP ? left - STEP : 0;
        if (next) {
            a.read(next_a, next);
            b.read(next_b, next);
        }
        product.template step<A, B>(of_a[turn], of_b[turn], left);
        if (next) {
            a.write(of_a[turn ^ 1], next_a);
            b.write(of_b[turn ^ 1], next_b);
        }
        left = next;
        __syncthreads();
    }
}

// The instruction's NaN has bits of its own.
__device__ __forceinline__ float one(float x) { return x == x ? x : one_nan(); }

// Writes a tile of C (m, n). A null pointer is no bias.
template <class T>
__device__ __forceinline__ void write(
    Product<T>& product, float* c, const float* bias, const Place& place, const Sizes& sizes) {
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
            *reinterpret_cast<float2*>(at) = make_float2(one(sum), one(next));
        } else {
            at[0] = one(sum);
            if (is_pair) at[1] = one(next);
        }
    });
}

}  // namespace bf16
