// dW (out, (in, kh, kw)) = Σ dy[s, o, p] x[s, c, p stride + k - pad], each element one chain over the samples of a
// shard in ascending order, and the output pixels of each in theirs; see `gemm.cuh`. Of several shards each has a chain
// of its own; they are added along the tree while a block walks from the first to the last, or stand side by side as
// leaves.
//
// Tiles of 128 by 128 would need more registers than two blocks have.
//
// Grid: of leaves a block a tile along x, y and z together count the shards; of walks blocks take tiles by turns.
#include "conv2d.cuh"

namespace conv2d {

// A thread's part of a slab whose links are pixels: eight lanes have neighbouring links, a sector of the cache where
// the stride is 1, and four lines go to banks of their own.
template <class T, u32 WIDTH>
struct Lanes {
    static constexpr u32 LINES = WIDTH * 8 / T::THREADS, STEPS = T::LINKS / 8, APART = T::THREADS / 8;
    static_assert(LINES * APART == WIDTH, "a thread has as many lines of each link");

    static __device__ __forceinline__ u32 line() { return threadIdx.x / 8; }
    static __device__ __forceinline__ u32 link() { return threadIdx.x % 8; }

    static __device__ __forceinline__ void put(float* slab, const float (&held)[STEPS * LINES]) {
        u32 thread = again(threadIdx.x);
        slab += thread % 8 * (WIDTH + 4) + thread / 8;
#pragma unroll
        for (u32 s = 0; s < STEPS; s++)
#pragma unroll
            for (u32 l = 0; l < LINES; l++) slab[s * 8 * (WIDTH + 4) + l * APART] = held[s * LINES + l];
    }
};

// Rows of A: output channels of dy, whose links are (sample, pixel).
template <class T>
struct Gradients : Lanes<T, T::ROWS> {
    using L = Lanes<T, T::ROWS>;
    const float* from;
    const Sizes& of;
    u32 at, inside;
    float held[L::STEPS * L::LINES];

    __device__ __forceinline__ Gradients(const float* dy, const Sizes& of, u32 first)
        : of(of), at(L::link()) {
        u32 line = first + L::line();
        inside = line < of.outer ? (of.outer - line + L::APART - 1) / L::APART : 0;
        from = dy + (u64)line * of.pixels.by;
    }

    __device__ __forceinline__ void fetch(u32 left) {
#pragma unroll
        for (u32 s = 0; s < L::STEPS; s++) {
            u32 link = at + 8 * s, sample = of.pixels.of(link);
            const float* pixel = from + (u64)sample * of.outer * of.pixels.by + (link - sample * of.pixels.by);
            u32 here = L::link() + 8 * s < left ? inside : 0;
#pragma unroll
            for (u32 l = 0; l < L::LINES; l++) {
                u64 line = (u64)(l * L::APART) * of.pixels.by;
                held[s * L::LINES + l] = l < here ? pixel[line] : of_bits(gemm::NO_LINK_OF_A);
            }
        }
        at += T::LINKS;
    }

    __device__ __forceinline__ void put(float* slab) const { L::put(slab, held); }
};

// Columns of B: taps of all channels of x.
template <class T>
struct Taps : Lanes<T, T::COLUMNS> {
    using L = Lanes<T, T::COLUMNS>;
    const float* from;
    const Sizes& of;
    u32 at;
    // Of each line: its channel's plane, and its tap.
    u32 plane[L::LINES], tap_y[L::LINES], tap_x[L::LINES];
    float held[L::STEPS * L::LINES];

    __device__ __forceinline__ Taps(const float* x, const Sizes& of, u32 first)
        : from(x), of(of), at(L::link()) {
#pragma unroll
        for (u32 l = 0; l < L::LINES; l++) {
            u32 line = first + L::line() + l * L::APART, taps = of.kh * of.kw, tap = line % taps;
            // Far below the image: such a line reads nothing.
            tap_y[l] = line < of.inner * taps ? tap / of.kw : 1u << 30;
            tap_x[l] = tap % of.kw;
            plane[l] = line / taps * of.h;
        }
    }

    __device__ __forceinline__ void fetch(u32 left) {
#pragma unroll
        for (u32 s = 0; s < L::STEPS; s++) {
            u32 link = at + 8 * s, sample = of.pixels.of(link), pixel = link - sample * of.pixels.by;
            u32 y = of.row.of(pixel), x = pixel - y * of.row.by;
            const float* of_sample = from + (u64)sample * (of.inner * of.h * of.w);
            bool is_link = L::link() + 8 * s < left;
#pragma unroll
            for (u32 l = 0; l < L::LINES; l++) {
                u32 here_y = y * of.stride + tap_y[l] - of.pad, here_x = x * of.stride + tap_x[l] - of.pad;
                bool is_there = is_link && here_y < of.h && here_x < of.w;
                held[s * L::LINES + l] = is_there ? of_sample[(plane[l] + here_y) * of.w + here_x] : 0.0f;
            }
        }
        at += T::LINKS;
    }

    __device__ __forceinline__ void put(float* slab) const { L::put(slab, held); }
};

// The chains of a tile for one shard.
template <class T>
__device__ __forceinline__ void leaf(
    float (&sum)[T::HIGH][T::WIDE], const float* x, const float* dy, const Sizes& of, u32 shard, gemm::Cut cut,
    float* shared) {
    u32 samples = of.samples / of.shards, pixels = of.pixels.by;
    u64 first = (u64)shard * samples;
    Gradients<T> left(dy + first * of.outer * pixels, of, cut.row * T::ROWS);
    Taps<T> right(x + first * of.inner * of.h * of.w, of, cut.column * T::COLUMNS);
    gemm::chain<T>(sum, left, right, samples * pixels, shared);
}

struct Tiles {
    u32 m, n, down, across;

    template <class T>
    static __device__ __forceinline__ Tiles all(const Sizes& of) {
        u32 m = of.outer, n = of.inner * of.kh * of.kw;
        return {m, n, (m + T::ROWS - 1) / T::ROWS, (n + T::COLUMNS - 1) / T::COLUMNS};
    }
};

template <class T>
__device__ __forceinline__ void leaves(float* dw, const float* x, const float* dy, const Sizes& of, float* shared) {
    u32 shard = blockIdx.z * gridDim.y + blockIdx.y;
    if (shard >= of.shards) return;
    Tiles tiles = Tiles::all<T>(of);
    float sum[T::HIGH][T::WIDE];
    leaf<T>(sum, x, dy, of, shard, gemm::Cut(blockIdx.x, tiles.down, tiles.across), shared);
    dw += (u64)shard * tiles.m * tiles.n;
    gemm::finish<T>(sum, dw, nullptr, tiles.m, tiles.n, gemm::Cut(again(blockIdx.x), tiles.down, tiles.across));
}

// `room` has `step` floats a block.
template <class T>
__device__ __forceinline__ void walk(
    float* dw, const float* x, const float* dy, float* room, u64 step, const Sizes& of, float* shared) {
    Tiles tiles = Tiles::all<T>(of);
    for (u32 number = blockIdx.x; number < tiles.down * tiles.across; number += gridDim.x) {
        float sum[T::HIGH][T::WIDE];
        for (u32 shard = 0; shard < of.shards; shard++) {
            leaf<T>(sum, x, dy, of, shard, gemm::Cut(again(number), tiles.down, tiles.across), shared);
            gemm::climb<T>(sum, room + again(blockIdx.x) * step, shard, of.shards);
        }
        gemm::finish<T>(sum, dw, nullptr, tiles.m, tiles.n, gemm::Cut(again(number), tiles.down, tiles.across));
    }
}

}  // namespace conv2d

#define LEAVES(name, T)                                                                                  \
    RESIDENT_KERNEL(gemm::T::THREADS, gemm::T::BLOCKS, name, float* dw, const float* x, const float* dy, \
                    const __grid_constant__ conv2d::Sizes of) {                                          \
        __shared__ float4 shared[gemm::T::FLOATS / 4];                                                   \
        conv2d::leaves<gemm::T>(dw, x, dy, of, &shared[0].x);                                            \
    }

#define WALK(name, T)                                                                                    \
    RESIDENT_KERNEL(gemm::T::THREADS, gemm::T::BLOCKS, name, float* dw, const float* x, const float* dy, \
                    float* room, u64 step, const __grid_constant__ conv2d::Sizes of) {                   \
        __shared__ float4 shared[gemm::T::FLOATS / 4];                                                   \
        conv2d::walk<gemm::T>(dw, x, dy, room, step, of, &shared[0].x);                                  \
    }

LEAVES(conv2d_grad_weight_medium, Medium)
LEAVES(conv2d_grad_weight_small, Small)
WALK(conv2d_grad_weight_sum_medium, Medium)
WALK(conv2d_grad_weight_sum_small, Small)
