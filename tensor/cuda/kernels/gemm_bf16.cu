// C = A B (+ bias) on tensor cores, see `gemm_bf16.cuh`: A, B, bias and C are f32 in memory.
//
// a: (batch, m, k) or, stored transposed, (batch, k, m); b: (batch, k, n) or (batch, n, k); bias: (n), added to
// finished sums; c: (batch, m, n). Functions are named by the tile and by how A and B are stored: n as they are
// multiplied, t transposed.
//
// Grid: x: tiles; y and z together count the batch.
#include "gemm_bf16.cuh"

using namespace bf16;

template <class T, Order A_ORDER, Order B_ORDER>
__device__ __forceinline__ void multiply(float* c, const float* a, const float* b, const float* bias, Sizes s) {
    Place place = Place::of<T>(blockIdx.x, s.m, s.n);
    Product<T> product;
    u32 batch = block_of_batch();
    if (batch >= s.batches) return;
    Matrix<T::ROWS, T::THREADS, A_ORDER> of_a(a + (u64)batch * s.k * s.m, s.m, s.k, place.row);
    Matrix<T::COLUMNS, T::THREADS, B_ORDER> of_b(b + (u64)batch * s.k * s.n, s.n, s.k, place.column);
    bf16::multiply(product, of_a, of_b, s.k);
    write(product, c + (u64)batch * s.m * s.n, bias, place, s);
}

#define GEMM(name, T, A_ORDER, B_ORDER)                                                                              \
    BOUNDED_KERNEL(T::THREADS, name, float* c, const float* a, const float* b, const float* bias, u32 m, u32 n, u32 k, \
                   u32 batches) {                                                                                    \
        multiply<T, A_ORDER, B_ORDER>(c, a, b, bias, Sizes{m, n, k, batches});                                       \
    }

GEMM(large_nn, Large, ALONG_K, ACROSS_K)
GEMM(large_nt, Large, ALONG_K, ALONG_K)
GEMM(large_tn, Large, ACROSS_K, ACROSS_K)
GEMM(large_tt, Large, ACROSS_K, ALONG_K)
GEMM(small_nn, Small, ALONG_K, ACROSS_K)
GEMM(small_nt, Small, ALONG_K, ALONG_K)
GEMM(small_tn, Small, ACROSS_K, ACROSS_K)
GEMM(small_tt, Small, ACROSS_K, ALONG_K)
