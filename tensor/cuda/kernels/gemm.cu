// Matrix products in f32: C (m, n) = A B (+ bias), of `batch` pairs of matrices, or of one pair summed over shards.
//
// Each element is one chain of fmaf over ascending k, see `gemm.cuh`; a bias is added to the finished chain. Of several
// shards each has a chain of its own, and they are added along the tree while a block walks from the first shard to the
// last.
//
// Grid: a block a tile along x, y and z together count the batch; of `sum_…`, which walk over shards, blocks take tiles
// by turns. The first letter of a name says how A lies: n as (m, k), t as (k, m); the
// second B: n as (k, n), t as (n, k).
#include "gemm.cuh"

namespace gemm {

struct Product {
    u32 m, n, k;
    // So many pairs of matrices, or shards.
    u32 batch;
    // Tiles of C.
    u32 down, across;
    // From one to the next.
    u64 a_step, b_step, c_step;
    // Floats of a block's room: a tile a level of the tree.
    u64 room_step;
};

template <class T, class A, class B>
__device__ __forceinline__ void product(
    float* c, const float* a, const float* b, const float* bias, const Product& of, float* shared) {
    // Of a large batch y and z together count the pairs.
    u32 item = blockIdx.z * gridDim.y + blockIdx.y;
    if (item >= of.batch) return;
    float sum[T::HIGH][T::WIDE];
    Cut cut(blockIdx.x, of.down, of.across);
    A left(a + item * of.a_step, cut.row * T::ROWS, of.m, of.k);
    B right(b + item * of.b_step, cut.column * T::COLUMNS, of.n, of.k);
    chain<T>(sum, left, right, of.k, shared);
    finish<T>(sum, c + item * of.c_step, bias, of.m, of.n, Cut(again(blockIdx.x), of.down, of.across));
}

// The sum over shards, each with k links: one chain a shard, added along the tree.
template <class T, class A, class B>
__device__ __forceinline__ void summed(
    float* c, const float* a, const float* b, float* room, const Product& of, float* shared) {
    for (u32 number = blockIdx.x; number < of.down * of.across; number += gridDim.x) {
        float sum[T::HIGH][T::WIDE];
        for (u32 shard = 0; shard < of.batch; shard++) {
            Cut cut(again(number), of.down, of.across);
            A left(a + shard * of.a_step, cut.row * T::ROWS, of.m, of.k);
            B right(b + shard * of.b_step, cut.column * T::COLUMNS, of.n, of.k);
            chain<T>(sum, left, right, of.k, shared);
            climb<T>(sum, room + again(blockIdx.x) * of.room_step, shard, of.batch);
        }
        finish<T>(sum, c, nullptr, of.m, of.n, Cut(again(number), of.down, of.across));
    }
}

template <class T>
using RowsOfA = AlongLinks<T, T::ROWS, NO_LINK_OF_A>;
template <class T>
using ColumnsOfA = AcrossLinks<T, T::ROWS, NO_LINK_OF_A>;
template <class T>
using RowsOfB = AcrossLinks<T, T::COLUMNS, NO_LINK_OF_B>;
template <class T>
using ColumnsOfB = AlongLinks<T, T::COLUMNS, NO_LINK_OF_B>;

}  // namespace gemm

#define PRODUCT(name, T, A, B)                                                                                  \
    RESIDENT_KERNEL(gemm::T::THREADS, gemm::T::BLOCKS, name, float* c, const float* a, const float* b,          \
                    const float* bias, gemm::Product of) {                                                      \
        __shared__ float4 shared[gemm::T::FLOATS / 4];                                                          \
        gemm::product<gemm::T, gemm::A<gemm::T>, gemm::B<gemm::T>>(c, a, b, bias, of, &shared[0].x);            \
    }

#define SUMMED(name, T)                                                                                         \
    RESIDENT_KERNEL(gemm::T::THREADS, gemm::T::BLOCKS, name, float* c, const float* a, const float* b,          \
                    float* room, gemm::Product of) {                                                            \
        __shared__ float4 shared[gemm::T::FLOATS / 4];                                                          \
        gemm::summed<gemm::T, gemm::ColumnsOfA<gemm::T>, gemm::RowsOfB<gemm::T>>(c, a, b, room, of, &shared[0].x); \
    }

PRODUCT(nn_large, Large, RowsOfA, RowsOfB)
PRODUCT(nt_large, Large, RowsOfA, ColumnsOfB)
PRODUCT(tn_large, Large, ColumnsOfA, RowsOfB)
PRODUCT(tt_large, Large, ColumnsOfA, ColumnsOfB)
PRODUCT(nn_medium, Medium, RowsOfA, RowsOfB)
PRODUCT(nt_medium, Medium, RowsOfA, ColumnsOfB)
PRODUCT(tn_medium, Medium, ColumnsOfA, RowsOfB)
PRODUCT(tt_medium, Medium, ColumnsOfA, ColumnsOfB)
PRODUCT(nn_small, Small, RowsOfA, RowsOfB)
PRODUCT(nt_small, Small, RowsOfA, ColumnsOfB)
PRODUCT(tn_small, Small, ColumnsOfA, RowsOfB)
PRODUCT(tt_small, Small, ColumnsOfA, ColumnsOfB)

SUMMED(sum_large, Large)
SUMMED(sum_medium, Medium)
SUMMED(sum_small, Small)
