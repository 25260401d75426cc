// bf16, and the instructions of tensor cores, each as a function: on a GPU one line of PTX (sm_80 and later), in the
// tests' emulator a stated model of it (`tests/fake/emulator.h`). Neither cuda_bf16.h nor mma.h is needed.
//
// Operands lie in shared memory as bf16 in matrices of 8 rows of 8 numbers (16 bytes a row), and in registers as
// fragments, which are pairs of neighbours, the first in the lower half. With g = lane / 4 and t = lane % 4 a lane
// holds of
//   A (16 rows, 16 k): a[0] row g, k 2t and 2t+1; a[1] row g+8; a[2] row g, k 2t+8; a[3] row g+8, k 2t+8
//   B (16 k, 8 columns): b0 column g, k 2t and 2t+1; b1 k 2t+8
//   C (16 rows, 8 columns): c[0], c[1] row g, columns 2t and 2t+1; c[2], c[3] row g+8
#pragma once
#include "device.cuh"

namespace bf16 {

typedef unsigned short u16;

#ifdef __CUDACC_RTC__

// Two numbers rounded to bf16, to nearest even. A NaN becomes 0x7fff.
__device__ __forceinline__ u32 pair(float first, float second) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

// C += A B. Products are exact; how the core adds them is its own affair, but a function of the element's own row of
// A, column of B and sum alone.
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

// Four matrices, the rows of the i-th at the addresses that lanes 8i to 8i+7 give: a lane gets of each the numbers
// 2t and 2t+1 of row g.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], const u16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

// The same of the matrices transposed: number g of rows 2t and 2t+1.
__device__ __forceinline__ void load_transposed(u32 (&to)[4], const u16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

// Starts a copy of 16 bytes to shared memory; without `is_there`, of zeros, and nothing is read.
__device__ __forceinline__ void copy_later(void* to, const void* from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(is_there ? 16 : 0) : "memory");
}
// The same of 4 bytes.
__device__ __forceinline__ void copy_four_later(void* to, const void* from, bool is_there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(is_there ? 4 : 0) : "memory");
}
// Ends a group of copies.
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for this thread's copies but those of the last `but` groups. Others see them after a barrier.
template <u32 but>
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_group %0;" :: "n"(but) : "memory"); }

// 2^x within 2^-22 of it; 0 from -infinity.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else

__device__ __forceinline__ u32 pair(float first, float second) {
    return emulator::bf16_of(first) | emulator::bf16_of(second) << 16;
}
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { emulator::mma(c, a, b0, b1); }
__device__ __forceinline__ void load_matrices(u32 (&to)[4], const u16* row) { emulator::load_matrices(to, row, 0); }
__device__ __forceinline__ void load_transposed(u32 (&to)[4], const u16* row) { emulator::load_matrices(to, row, 1); }
__device__ __forceinline__ void copy_later(void* to, const void* from, bool is_there) {
    emulator::copy_later(to, from, 16, is_there);
}
__device__ __forceinline__ void copy_four_later(void* to, const void* from, bool is_there) {
    emulator::copy_later(to, from, 4, is_there);
}
__device__ __forceinline__ void end_copies() { emulator::end_copies(); }
template <u32 but>
__device__ __forceinline__ void wait_for_copies() { emulator::wait_for_copies(but); }
__device__ __forceinline__ float power_of_two(float x) { return exp2f(x); }

#endif

// Eight numbers of a row of which `left` are left, zeros behind the last. Of an aligned row four divides the length,
// and 16 bytes its place.
__device__ __forceinline__ void read_eight(float (&x)[8], const float* at, u32 left, bool is_aligned) {
    if (is_aligned) {
        const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float4 low = left > 0 ? *reinterpret_cast<const float4*>(at) : none;
        float4 high = left > 4 ? *reinterpret_cast<const float4*>(at + 4) : none;
        x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
        x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = i < left ? at[i] : 0.0f;
    }
}

__device__ __forceinline__ uint4 rounded(const float (&x)[8]) {
    return make_uint4(pair(x[0], x[1]), pair(x[2], x[3]), pair(x[4], x[5]), pair(x[6], x[7]));
}

// Which of a batch a block has. A loop over them would keep what they share in registers, which products need.
__device__ __forceinline__ u32 block_of_batch() { return blockIdx.z * gridDim.y + blockIdx.y; }

// Where eight numbers of a row lie in a matrix of rows of LENGTH numbers, so that neither eight rows at one place nor
// one row's neighbours share a bank.
template <u32 LENGTH>
__device__ __forceinline__ u32 swizzled(u32 row, u32 eight) {
    static_assert(LENGTH == 32 || LENGTH % 64 == 0, "rows of half a line, or of whole ones");
    return row * LENGTH + (eight ^ (LENGTH == 32 ? row >> 1 & 3u : row & 7u)) * 8;
}

// How far from a product's first row (of A) or column (of B), and from its first k, the matrix lies whose rows this
// lane names to `load_matrices`.
struct Quarter {
    u32 low, high, row;

    __device__ __forceinline__ Quarter()
        : low(threadIdx.x / 8 % 2 * 8), high(threadIdx.x / 16 % 2 * 8), row(threadIdx.x % 8) {}
};

}  // namespace bf16
