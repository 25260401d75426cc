// C = A B (+ bias) on tensor cores, of operands that were rounded to bf16 before: what `gemm_bf16.cu` makes, bit for
// bit, for products so large that reading f32 would take longer than their arithmetic. `round_rows` costs a pass over
// the operands, and halves what every tile reads.
//
// a: (batch, m, k) or (batch, k, m), b: (batch, k, n) or (batch, n, k), rows padded to `a_row` and `b_row` numbers,
// which eight divides; c: (batch, m, n). Functions are named as those of `gemm_bf16.cu`.
//
// Operands go from memory to shared memory by themselves (cp.async), three steps ahead of the products. A warp makes
// 64 by 64: it reads 128 lines of operands for as many products as it can hold sums, for shared memory is what a tile
// waits for.
//
// Grid: x: tiles; y and z together count the batch.
#include "gemm_bf16.cuh"

using namespace bf16;

// to (row, padded) = from (row, length) rounded, zeros behind the length.
KERNEL(round_rows, u16* to, const float* from, u64 rows, u32 length, u32 padded) {
    u32 eights = padded / 8;
    bool is_aligned = length % 4 == 0 && (u64)from % 16 == 0;
    for (u64 i = first_number(); i < rows * eights; i += number_stride()) {
        u64 row = i / eights;
        u32 first = (u32)(i - row * eights) * 8;
        const float* at = from + row * length + first;
        float x[8];
        read_eight(x, at, length - first, is_aligned);
        *reinterpret_cast<uint4*>(to + i * 8) = rounded(x);
    }
}

// Tiles whose warps make 64 by 64.
struct Wide {
    static const u32 ROWS = 128, COLUMNS = 256, WARPS_DOWN = 2, WARPS_ACROSS = 4, THREADS = 256;
};
struct Square {
    static const u32 ROWS = 128, COLUMNS = 128, WARPS_DOWN = 2, WARPS_ACROSS = 2, THREADS = 128;
};

// A thread's share of a tile of a rounded operand, eight numbers a piece.
template <u32 LINES, u32 THREADS, Order ORDER>
struct Rounded {
    static const u32 IN_A_ROW = (ORDER == ALONG_K ? STEP : LINES) / 8;
    static const u32 PIECES = LINES * STEP / 8 / THREADS;
    static const u32 ROWS_APART = THREADS / IN_A_ROW;
    static const u32 NUMBERS = LINES * STEP;

    // The first piece of the next step.
    const u16* from;
    u64 row_length;
    u32 row, eight;
    u32 lines_left;

    __device__ __forceinline__ Rounded(const u16* operand, u32 lines, u32 row_length, u32 first_line)
        : row_length(row_length), row(threadIdx.x / IN_A_ROW), eight(threadIdx.x % IN_A_ROW),
          lines_left(lines - first_line) {
        u64 rows = row + (ORDER == ALONG_K ? first_line : 0);
        from = operand + rows * row_length + (ORDER == ALONG_K ? 0 : first_line) + eight * 8;
    }

    // Starts the copies of the next step, where `k_left` numbers are left along k.
    __device__ __forceinline__ void copy(u16* shared, u32 k_left) {
        int rows = (int)(ORDER == ALONG_K ? lines_left : k_left) - (int)row;
        bool is_there = eight * 8 < (ORDER == ALONG_K ? k_left : lines_left);
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            u32 place = swizzled<ORDER == ALONG_K ? STEP : LINES>(row + i * ROWS_APART, eight);
            copy_later(shared + place, from + i * ROWS_APART * row_length, is_there && (int)(i * ROWS_APART) < rows);
        }
        from += ORDER == ALONG_K ? STEP : STEP * row_length;
    }

    static __device__ __forceinline__ void load(u32 (&to)[4], const u16* shared, u32 line, u32 k, u32 row) {
        Share<LINES, THREADS, ORDER>::load(to, shared, line, k, row);
    }
};

static const u32 STAGES = 4;

template <class T, Order A_ORDER, Order B_ORDER>
__device__ __forceinline__ void multiply(
    float* c, const u16* a, const u16* b, const float* bias, const Sizes& s, u32 a_row, u32 b_row) {
    typedef Rounded<T::ROWS, T::THREADS, A_ORDER> A;
    typedef Rounded<T::COLUMNS, T::THREADS, B_ORDER> B;
    const u32 STAGE = A::NUMBERS + B::NUMBERS;
    DYNAMIC_SHARED(u16, shared);
    Place place = Place::of<T>(blockIdx.x, s.m, s.n);
    Product<T> product;
    u32 batch = block_of_batch();
    if (batch >= s.batches) return;
    A of_a(a + (u64)batch * (A_ORDER == ALONG_K ? s.m : s.k) * a_row, s.m, a_row, place.row);
    B of_b(b + (u64)batch * (B_ORDER == ALONG_K ? s.n : s.k) * b_row, s.n, b_row, place.column);
    // What copies have not been started for.
    u32 later = s.k;
    auto copy = [&](u32 stage) {
        if (later) {
            of_a.copy(shared + stage * STAGE, later);
            of_b.copy(shared + stage * STAGE + A::NUMBERS, later);
            later = later > STEP ? later - STEP : 0;
        }
        end_copies();
    };
    product.clear();
    for (u32 stage = 0; stage + 1 < STAGES; stage++) copy(stage);
    u32 stage = 0;
    for (u32 left = s.k; left > 0;) {
        wait_for_copies<STAGES - 2>();
        // Of all threads; and all are done with the stage that is filled next.
        __syncthreads();
        copy((stage + STAGES - 1) % STAGES);
        const u16* here = shared + stage * STAGE;
        product.template step<A, B>(here, here + A::NUMBERS, left);
        stage = (stage + 1) % STAGES;
        left = left > STEP ? left - STEP : 0;
    }
    write(product, c + (u64)batch * s.m * s.n, bias, place, s);
}

#define ROUNDED(name, T, A_ORDER, B_ORDER)                                                                            \
    RESIDENT_KERNEL(T::THREADS, 256 / T::THREADS, name, float* c, const u16* a, const u16* b, const float* bias,      \
                    u32 m, u32 n, u32 k, u32 batches, u32 a_row, u32 b_row) {                                         \
        multiply<T, A_ORDER, B_ORDER>(c, a, b, bias, Sizes{m, n, k, batches}, a_row, b_row);                          \
    }

ROUNDED(wide_nn, Wide, ALONG_K, ACROSS_K)
ROUNDED(wide_nt, Wide, ALONG_K, ALONG_K)
ROUNDED(wide_tn, Wide, ACROSS_K, ACROSS_K)
ROUNDED(wide_tt, Wide, ACROSS_K, ALONG_K)
ROUNDED(square_nn, Square, ALONG_K, ACROSS_K)
ROUNDED(square_nt, Square, ALONG_K, ALONG_K)
ROUNDED(square_tn, Square, ACROSS_K, ACROSS_K)
ROUNDED(square_tt, Square, ACROSS_K, ALONG_K)
