// The gradient of batch norm: with n valid elements of a channel and x̂ = (x - mean) * rstd,
//   dshift = Σ dy, dscale = Σ dy x̂, dx = scale * rstd * (dy - dshift / n - x̂ * dscale / n),
// where dy is what the ReLU lets pass and, behind a pool, what a square's winner gets. The last two terms of dx are
// those of valid samples only.
//
// x, dx: (sample, channel, plane). Two launches behind `batch_norm_valid`: a block a channel for the sums, in the
// order of `batch_norm.cuh`, then element by element. The pool's gradient is never written: each element finds its
// square's winner.
#include "batch_norm.cuh"

namespace batch_norm {

// dy of a plane.
struct Plain {
    __device__ __forceinline__ u32 length(u32 plane) const { return plane; }

    __device__ __forceinline__ float at(const float*, const float* dy, const Affine&, u32 i) const { return dy[i]; }
};

// dy of a plane whose squares were pooled.
struct Pooled {
    Pool pool;

    __device__ __forceinline__ u32 length(u32) const { return pool.out_height * pool.out_width; }

    __device__ __forceinline__ float at(const float* x, const float* dy, const Affine& affine, u32 i) const {
        u32 line = i / pool.width, column = i % pool.width;
        // What lies outside the squares.
        if (line / 2 >= pool.out_height || column / 2 >= pool.out_width) return 0.0f;
        Winner winner(x + line / 2 * 2 * pool.width + column / 2 * 2, pool.width, affine);
        bool is_winner = winner.number == line % 2 * 2 + column % 2;
        return is_winner ? 0.0f + dy[line / 2 * pool.out_width + column / 2] : 0.0f;
    }
};

struct Given {
    const float* x;
    const float* dy;
    Affines affines;
    const u32* counts;
    Planes planes;
};

// `share` (1) is what an element takes of a channel's sums.
template <class Slopes>
__device__ __forceinline__ void sums(float* dscale, float* dshift, float* share, const Given& given, Slopes slopes) {
    const Planes& planes = given.planes;
    Planes of_dy = {planes.samples, planes.channels, slopes.length(planes.plane)};
    u32 channel = blockIdx.x;
    Affine affine = given.affines[channel];
    float found[2];
    add_planes<2>(planes.samples, found, [&](u32 sample, float (&lanes)[2]) {
        const float* x = given.x + planes.begin(sample, channel);
        const float* dy = given.dy + of_dy.begin(sample, channel);
#pragma unroll 4
        for (u32 i = rows::lane(); i < planes.plane; i += rows::LANES) {
            float slope = affine.passed(x[i], slopes.at(x, dy, affine, i));
            lanes[0] += slope;
            lanes[1] += slope * ((x[i] - affine.mean) * affine.rstd);
        }
    });
    u64 count = valid_samples(given.counts, planes.samples) * planes.plane;
    if (threadIdx.x > 0) return;
    dshift[channel] = found[0];
    dscale[channel] = found[1];
    if (channel == 0) *share = count > 0 ? 1.0f / (float)(double)count : 0.0f;
}

template <class Slopes>
__device__ __forceinline__ void to_inputs(float* __restrict__ dx, const float* dscale, const float* dshift,
                                          const float* share, const Given& given, Slopes slopes) {
    const Planes& planes = given.planes;
    Planes of_dy = {planes.samples, planes.channels, slopes.length(planes.plane)};
    each_element(planes, planes.plane, [&](u32 sample, u32 channel, u32 i) {
        Affine affine = given.affines[channel];
        const float* x = given.x + planes.begin(sample, channel);
        const float* dy = given.dy + of_dy.begin(sample, channel);
        float own = given.counts[sample] > 0 ? *share : 0.0f;
        float along = dshift[channel] * own, across = dscale[channel] * own;
        float slope = affine.passed(x[i], slopes.at(x, dy, affine, i));
        float factor = affine.scale * affine.rstd;
        dx[planes.begin(sample, channel) + i] =
            factor * (slope - along - (x[i] - affine.mean) * affine.rstd * across);
    });
}

}  // namespace batch_norm

using namespace batch_norm;

// What both kernels are given.
#define GIVEN                                                                                           \
    const float *__restrict__ x, const float *__restrict__ dy, const float *mean, const float *rstd,    \
        const float *scale, const float *shift, const u32 *counts, u32 samples, u32 channels, u32 plane, \
        u32 relu
#define ALL {x, dy, {mean, rstd, scale, shift, relu}, counts, {samples, channels, plane}}

BOUNDED_KERNEL(batch_norm::THREADS, batch_norm_grad_sums, float* dscale, float* dshift, float* share, GIVEN) {
    sums(dscale, dshift, share, ALL, Plain());
}

BOUNDED_KERNEL(batch_norm::THREADS, batch_norm_grad_pool_sums, float* dscale, float* dshift, float* share, GIVEN,
               u32 width, u32 out_height, u32 out_width) {
    sums(dscale, dshift, share, ALL, Pooled{{width, out_height, out_width}});
}

KERNEL(batch_norm_grad, float* __restrict__ dx, const float* dscale, const float* dshift, const float* share, GIVEN) {
    to_inputs(dx, dscale, dshift, share, ALL, Plain());
}

KERNEL(batch_norm_grad_pool, float* __restrict__ dx, const float* dscale, const float* dshift, const float* share,
       GIVEN, u32 width, u32 out_height, u32 out_width) {
    to_inputs(dx, dscale, dshift, share, ALL, Pooled{{width, out_height, out_width}});
}
