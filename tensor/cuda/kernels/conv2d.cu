// 2-D convolution and its input's gradient, as products that read the image in place: rows are planes of the output,
// columns its pixels of all samples, and each element one chain over (plane of the source, taps), see `gemm.cuh`.
//
// y[s, o, p] = Σ W[o, c, ky, kx] x[s, c, p stride + k - pad] (+ bias[o], added to the finished chain), over ascending
// c, ky, kx.
// dx[s, c, p] = Σ W[o, c, ky, kx] dy[s, o, (p + pad - k) / stride], over ascending o and the taps that meet the pixel,
// later taps first. Pixels that meet the same taps are a part of their own, of stride² such; of stride 1 it is one part,
// and the forward pass's kernel makes it.
//
// Grid: a block a tile along x; y and z together count the parts.
#include "conv2d.cuh"

namespace conv2d {

template <class T>
__device__ __forceinline__ void correlate(
    float* y, const float* source, const float* weight, const float* bias, const Part& part, const Planes& to,
    float* shared) {
    u32 down = (to.count + T::ROWS - 1) / T::ROWS, across = (to.samples * part.points() + T::COLUMNS - 1) / T::COLUMNS;
    // Parts may have fewer points than the largest.
    if (blockIdx.x >= down * across) return;
    gemm::Cut cut(blockIdx.x, down, across);
    float sum[T::HIGH][T::WIDE];
    gemm::AlongLinks<T, T::ROWS, gemm::NO_LINK_OF_A> left(weight, cut.row * T::ROWS, to.count, part.links());
    Windows<T> right(source, part, to.samples, cut.column * T::COLUMNS);
    gemm::chain<T>(sum, left, right, part.links(), shared);
    finish<T>(sum, y, bias, part, to, gemm::Cut(again(blockIdx.x), down, across));
}

__device__ __forceinline__ u32 phases_across(const Sizes& of) { return of.stride < of.w ? of.stride : of.w; }

// The part of the input that a phase is; `packed` has `step` floats a phase.
template <class T>
__device__ __forceinline__ void backward(
    float* dx, const float* dy, const float* packed, u64 step, const Sizes& of, float* shared) {
    u32 phase = blockIdx.z * gridDim.y + blockIdx.y;
    u32 y = phase / phases_across(of), x = phase % phases_across(of);
    if (y >= of.stride || y >= of.h) return;
    Phase down(y, of.h, of.kh, of), across(x, of.w, of.kw, of);
    Part part = {of.outer, of.oh, of.ow, down.taps, across.taps, down.points, across.points,
                 down.row + 1 - (int)down.taps, across.row + 1 - (int)across.taps, 1, y, x, of.stride,
                 divisor(down.taps * across.taps), divisor(across.taps)};
    Planes to = {of.inner, of.h * of.w, of.w, of.samples};
    correlate<T>(dx, dy, packed + phase * step, nullptr, part, to, shared);
}

}  // namespace conv2d

// The weights that a phase's chains take: (phase, in, (out, tap)), the later taps first.
KERNEL(conv2d_pack, float* __restrict__ packed, const float* __restrict__ weight, u64 step, u64 count,
       const __grid_constant__ conv2d::Sizes of) {
    for (u64 i = first_number(); i < count; i += number_stride()) {
        u32 phase = (u32)(i / step), rest = (u32)(i % step);
        u32 y = phase / conv2d::phases_across(of), x = phase % conv2d::phases_across(of);
        conv2d::Phase down(y, of.h, of.kh, of), across(x, of.w, of.kw, of);
        u32 taps = down.taps * across.taps, links = of.outer * taps;
        if (rest >= of.inner * links) continue;
        u32 channel = rest / links, link = rest % links, out = link / taps, tap = link % taps;
        u32 ky = down.rest + (down.taps - 1 - tap / across.taps) * of.stride;
        u32 kx = across.rest + (across.taps - 1 - tap % across.taps) * of.stride;
        packed[i] = weight[(((u64)out * of.inner + channel) * of.kh + ky) * of.kw + kx];
    }
}

#define CORRELATE(name, T)                                                                                  \
    RESIDENT_KERNEL(gemm::T::THREADS, gemm::T::BLOCKS, name, float* y, const float* source, const float* weight, \
                    const float* bias, const __grid_constant__ conv2d::Part part,                           \
                    const __grid_constant__ conv2d::Planes to) {                                            \
        __shared__ float4 shared[gemm::T::FLOATS / 4];                                                      \
        conv2d::correlate<gemm::T>(y, source, weight, bias, part, to, &shared[0].x);                        \
    }

#define PHASES(name, T)                                                                                     \
    RESIDENT_KERNEL(gemm::T::THREADS, gemm::T::BLOCKS, name, float* dx, const float* dy, const float* packed, \
                    u64 step, const __grid_constant__ conv2d::Sizes of) {                                   \
        __shared__ float4 shared[gemm::T::FLOATS / 4];                                                      \
        conv2d::backward<gemm::T>(dx, dy, packed, step, of, &shared[0].x);                                  \
    }

CORRELATE(correlate_large, Large)
CORRELATE(correlate_medium, Medium)
CORRELATE(correlate_small, Small)
PHASES(phases_large, Large)
PHASES(phases_medium, Medium)
PHASES(phases_small, Small)
