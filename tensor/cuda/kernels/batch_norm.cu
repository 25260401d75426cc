// Batch norm over a shard: y = (x - mean) / sqrt(var + eps) * scale + shift, per channel, with a ReLU and a pool of
// squares of two behind it where the plan has put them together; and with running statistics, for evaluation.
//
// x: (sample, channel, plane). Three launches: `batch_norm_valid` counts the targets of each sample, since only samples
// with one count for mean and variance; `batch_norm_statistics` has a block a channel, which reads its planes twice;
// `batch_norm_apply` (or `_pool`) is element by element. The order of sums is said in `batch_norm.cuh`.
#include "batch_norm.cuh"

namespace batch_norm {

// What a shard gives to the pooled running statistics, by the number of its targets that count.
struct Pooling {
    float weight, bessel;

    __device__ __forceinline__ Pooling(u64 targets, float count, u32 plane, float scale) {
        weight = (float)(double)targets * scale;
        float whole = (float)((double)plane / (double)scale);
        bessel = count > 1.0f ? 1.0f + count / (whole * (count - 1.0f)) : 1.0f;
    }
};

}  // namespace batch_norm

using namespace batch_norm;

// counts (sample) = targets that count; a block has a sample with `each` targets.
KERNEL(batch_norm_valid, u32* counts, const int* targets, u64 each) {
    const int* own = targets + blockIdx.x * each;
    u64 count = 0;
    for (u64 i = threadIdx.x; i < each; i += blockDim.x) count += own[i] != IGNORE;
    count = block_sum(count);
    if (threadIdx.x == 0) counts[blockIdx.x] = (u32)count;
}

// All (channel).
BOUNDED_KERNEL(batch_norm::THREADS, batch_norm_statistics, float* mean, float* rstd, float* moment1, float* moment2,
               const float* x, const float* running, const u32* counts, const Call* call, u32 samples, u32 channels,
               u32 plane, float eps) {
    Planes planes = {samples, channels, plane};
    u32 channel = blockIdx.x;
    float count = (float)(double)(valid_samples(counts, samples) * plane);
    if (count > 0.0f) {
        float sum[1];
        add_planes<1>(samples, sum, [&](u32 sample, float (&lanes)[1]) {
            const float* own = x + planes.begin(sample, channel);
            if (counts[sample] == 0) return;
#pragma unroll 8
            for (u32 i = rows::lane(); i < plane; i += rows::LANES) lanes[0] += own[i];
        });
        float m = sum[0] / count;
        add_planes<1>(samples, sum, [&](u32 sample, float (&lanes)[1]) {
            const float* own = x + planes.begin(sample, channel);
            if (counts[sample] == 0) return;
#pragma unroll 8
            for (u32 i = rows::lane(); i < plane; i += rows::LANES) lanes[0] += (own[i] - m) * (own[i] - m);
        });
        float var = sum[0] / count, off = m - running[channel];
        u64 targets = 0;
        for (u32 sample = threadIdx.x; sample < samples; sample += blockDim.x) targets += counts[sample];
        Pooling pooling(block_sum(targets), count, plane, call->scale);
        if (threadIdx.x > 0) return;
        mean[channel] = m;
        rstd[channel] = 1.0f / __fsqrt_rn(var + eps);
        moment1[channel] = pooling.weight * off;
        moment2[channel] = pooling.weight * (var * pooling.bessel + off * off);
    } else if (threadIdx.x == 0) {
        // Of padding alone there are no statistics: the output is the shift.
        mean[channel] = running[channel];
        rstd[channel] = moment1[channel] = moment2[channel] = 0.0f;
    }
}

KERNEL(batch_norm_apply, float* __restrict__ y, const float* __restrict__ x, const float* mean, const float* rstd,
       const float* scale, const float* shift, u32 samples, u32 channels, u32 plane, u32 relu) {
    Planes planes = {samples, channels, plane};
    Affines affines = {mean, rstd, scale, shift, relu};
    each_element(planes, plane, [&](u32 sample, u32 channel, u32 i) {
        u64 at = planes.begin(sample, channel) + i;
        y[at] = affines[channel].of(x[at]);
    });
}

KERNEL(batch_norm_pool, float* __restrict__ y, const float* __restrict__ x, const float* mean, const float* rstd,
       const float* scale, const float* shift, u32 samples, u32 channels, u32 plane, u32 relu, u32 width,
       u32 out_height, u32 out_width) {
    Planes planes = {samples, channels, plane}, out = {samples, channels, out_height * out_width};
    Affines affines = {mean, rstd, scale, shift, relu};
    each_element(planes, out.plane, [&](u32 sample, u32 channel, u32 i) {
        u32 line = i / out_width, column = i % out_width;
        const float* square = x + planes.begin(sample, channel) + 2 * line * width + 2 * column;
        y[out.begin(sample, channel) + i] = Winner(square, width, affines[channel]).value;
    });
}

// With the running mean and variance.
KERNEL(batch_norm_eval, float* __restrict__ y, const float* __restrict__ x, const float* scale, const float* shift,
       const float* mean, const float* var, u32 samples, u32 channels, u32 plane, float eps) {
    Planes planes = {samples, channels, plane};
    each_element(planes, plane, [&](u32 sample, u32 channel, u32 i) {
        u64 at = planes.begin(sample, channel) + i;
        Affine affine = {mean[channel], 1.0f / __fsqrt_rn(var[channel] + eps), scale[channel], shift[channel], 0};
        y[at] = affine.of(x[at]);
    });
}
