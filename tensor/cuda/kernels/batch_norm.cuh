// What batch norm and its gradient share: planes, sums over a channel, and the valid samples.
//
// x: (sample, channel, plane). A sum over a channel is made plane by plane, each by sixteen lanes that start at zero
// and that are added to the channel's sixteen in the order of samples, then folded (`tensor/src/ops/batch_norm.rs`).
// Half a warp makes the lanes of a plane, a block those of its channel's planes, and one thread a lane adds them.
#pragma once
#include "rows.cuh"

namespace batch_norm {

static const u32 THREADS = 1024;
static const u32 AT_ONCE = THREADS / rows::LANES;
// `elastic_spec::batch::IGNORE`.
static const int IGNORE = -1;
// Elements of a plane that half a warp takes at once.
static const u32 PIECE = 1024;

struct Planes {
    u32 samples, channels, plane;

    __device__ __forceinline__ u64 begin(u32 sample, u32 channel) const {
        return ((u64)sample * channels + channel) * plane;
    }
};

// What a channel's elements become: y = (x - mean) * rstd * scale + shift.
struct Affine {
    float mean, rstd, scale, shift;
    u32 relu;

    __device__ __forceinline__ float of(float x) const {
        float y = (x - mean) * rstd * scale + shift;
        return relu && y <= 0.0f ? 0.0f : y;
    }

    // dy where the ReLU let y pass.
    __device__ __forceinline__ float passed(float x, float dy) const {
        float y = (x - mean) * rstd * scale + shift;
        return relu && y <= 0.0f ? 0.0f : dy;
    }
};

// Of all channels.
struct Affines {
    const float *mean, *rstd, *scale, *shift;
    u32 relu;

    __device__ __forceinline__ Affine operator[](u32 channel) const {
        return {mean[channel], rstd[channel], scale[channel], shift[channel], relu};
    }
};

// The largest of a square of two by two numbers and which it is, in row-major order: the first of equals, and a NaN
// always.
struct Winner {
    float value;
    u32 number;

    // `x` is the square's first element, in lines of `width`.
    __device__ __forceinline__ Winner(const float* x, u32 width, const Affine& affine)
        : value(affine.of(x[0])), number(0) {
        challenge(affine.of(x[1]), 1);
        challenge(affine.of(x[width]), 2);
        challenge(affine.of(x[width + 1]), 3);
    }

    __device__ __forceinline__ void challenge(float x, u32 its_number) {
        bool wins = x > value || x != x;
        value = wins ? x : value;
        number = wins ? its_number : number;
    }
};

// A pool of squares: the width of a plane, and the size of a plane of outputs.
struct Pool {
    u32 width, out_height, out_width;
};

// The sum of a block's integers, to all threads. At most 1024 threads, a multiple of 32.
__device__ __forceinline__ u64 block_sum(u64 value) {
    __shared__ u64 of_warps[32];
    for (u32 half = 16; half > 0; half /= 2) value += __shfl_xor_sync(WHOLE_WARP, value, half);
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    u64 sum = 0;
    for (u32 warp = 0; warp < blockDim.x / 32; warp++) sum += of_warps[warp];
    return sum;
}

// How many samples have a target that counts. `counts` has the targets that do, of each sample.
__device__ __forceinline__ u64 valid_samples(const u32* counts, u32 samples) {
    u64 valid = 0;
    for (u32 sample = threadIdx.x; sample < samples; sample += blockDim.x) valid += counts[sample] > 0;
    return block_sum(valid);
}

// N sums over a channel, to all threads: plane(sample, lanes) adds a lane's terms of a plane. At most two.
template <u32 N, class Plane>
__device__ __forceinline__ void add_planes(u32 samples, float (&sums)[N], Plane plane) {
    __shared__ float parts[AT_ONCE][N][rows::LANES];
    __shared__ float found[N];
    u32 thread = threadIdx.x, at_once = blockDim.x / rows::LANES;
    float total = 0.0f;
    for (u32 first = 0; first < samples; first += at_once) {
        u32 here = samples - first < at_once ? samples - first : at_once;
        float lanes[N];
#pragma unroll
        for (u32 n = 0; n < N; n++) lanes[n] = 0.0f;
        if (thread / rows::LANES < here) plane(first + thread / rows::LANES, lanes);
#pragma unroll
        for (u32 n = 0; n < N; n++) parts[thread / rows::LANES][n][rows::lane()] = lanes[n];
        __syncthreads();
        if (thread < N * rows::LANES) {
#pragma unroll 8
            for (u32 i = 0; i < here; i++) total += parts[i][thread / rows::LANES][rows::lane()];
        }
        __syncthreads();
    }
    if (thread < 32) {
        total = rows::fold(total);
        if (thread < N * rows::LANES && rows::lane() == 0) found[thread / rows::LANES] = total;
    }
    __syncthreads();
#pragma unroll
    for (u32 n = 0; n < N; n++) sums[n] = found[n];
    __syncthreads();
}

// Calls each(sample, channel, i) for the elements of all planes of a length: half a warp has a plane, and blocks
// along y cut long ones into pieces.
template <class Each>
__device__ __forceinline__ void each_element(const Planes& planes, u32 length, Each each) {
    u64 number = (u64)blockIdx.x * (blockDim.x / rows::LANES) + threadIdx.x / rows::LANES;
    if (number >= (u64)planes.samples * planes.channels) return;
    u32 sample = (u32)(number / planes.channels), channel = (u32)(number % planes.channels);
    for (u64 first = (u64)blockIdx.y * PIECE; first < length; first += (u64)gridDim.y * PIECE) {
        u32 end = length - first < PIECE ? length : (u32)first + PIECE;
#pragma unroll 4
        for (u32 i = (u32)first + rows::lane(); i < end; i += rows::LANES) each(sample, channel, i);
    }
}

}  // namespace batch_norm
