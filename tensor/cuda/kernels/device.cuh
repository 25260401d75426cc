// What every kernel is written with. The same sources are compiled by NVRTC for a GPU and by a C++ compiler for the tests'
// driver, which runs them on the processor (`tests/fake/emulator.h`): so nothing here is CUDA's own beyond this file.
//
//   KERNEL(name, parameters…) { … }        a kernel; BOUNDED_KERNEL(threads, name, …) with a block of at most so many threads;
//                                          RESIDENT_KERNEL(threads, blocks, name, …) with so few registers, too, that as many
//                                          blocks run on one multiprocessor
//   DYNAMIC_SHARED(type, name)             the shared memory that the launch asks for, in a kernel's body
//   const __grid_constant__ T name         a struct by value that is read in place, whatever index is taken into it
//   threadIdx, blockIdx, blockDim, gridDim, __shared__, __device__, __syncthreads, __syncwarp, __shfl_sync,
//   __shfl_xor_sync, __shfl_down_sync, __ballot_sync, __popc, __clz, atomicAdd of u32, fmaf as in CUDA
//
// Rules of exactness: no atomics on floats; a product and a sum round apart unless `fmaf` says otherwise (--fmad=false);
// division and square root round exactly; own exp, exp2, ln and tanh, which are those of `tensor/src/math.rs`.
#pragma once

#ifdef __CUDACC_RTC__
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
#define BOUNDED_KERNEL(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)
#define RESIDENT_KERNEL(threads, blocks, name, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)
#define DYNAMIC_SHARED(type, name)                        \
    extern __shared__ __align__(16) unsigned char all_shared_[]; \
    type* name = reinterpret_cast<type*>(all_shared_)
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

static const u32 WHOLE_WARP = 0xffffffffu;

__device__ __forceinline__ u32 bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float of_bits(u32 bits) { return __uint_as_float(bits); }

// The same number, of which the compiler does not know that it is: what is computed from it is computed again, and takes no
// register meanwhile.
__device__ __forceinline__ u32 again(u32 x) {
#ifdef __CUDACC_RTC__
    asm volatile("" : "+r"(x));
#endif
    return x;
}

// The one NaN: quiet, positive, without a payload. The GPU's own has other bits.
__device__ __forceinline__ float one_nan() { return of_bits(0x7fc00000u); }
__device__ __forceinline__ float infinity() { return of_bits(0x7f800000u); }

// The tree's addition: every NaN is the one NaN.
__device__ __forceinline__ float tree_add(float left, float right) {
    float sum = left + right;
    return sum == sum ? sum : one_nan();
}

// The first number of a thread, and from one of its numbers to the next, where threads take numbers by turns.
__device__ __forceinline__ u64 first_number() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ u64 number_stride() { return (u64)gridDim.x * blockDim.x; }

// a / b. Most quotients are of numbers that 32 bits hold, where it takes a third of the time.
__device__ __forceinline__ u64 divide(u64 a, u64 b) {
    if ((a | b) >> 32 == 0) return (u32)a / (u32)b;
    return a / b;
}

// What changes from call to call besides the tensors: see `call.rs`.
struct Call {
    u64 seed;
    u64 step;
    // The gradient of each valid loss.
    float scale;
    float label_smoothing;
};
