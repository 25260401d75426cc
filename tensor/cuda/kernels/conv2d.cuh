// What the kernels of 2-D convolutions share: sizes, and how a link's number becomes a place in an image.
//
// x: (sample, in, h, w), W: (out, in, kh, kw), y: (sample, out, oh, ow), as in `tensor/src/ops/conv2d.rs`. A tap that
// meets padding is a link like others, of +0: a weight that is infinite or NaN times it is NaN, on the processor too.
#pragma once
#include "gemm.cuh"

namespace conv2d {

// n / by for n below 2^31 by a product: 2^l is the least that is not below `by`, shift is 31 + l, and magic / 2^shift
// is more than 1 / by by less than 2^-31 / by.
struct Divisor {
    u32 by, magic, shift;

    __device__ __forceinline__ u32 of(u32 n) const { return (u32)((u64)n * magic >> shift); }
};

__device__ __forceinline__ Divisor divisor(u32 by) {
    Divisor made = {by, 0, 31};
    while (1u << (made.shift - 31) < by) made.shift++;
    made.magic = (u32)(((u64)1 << made.shift) / (by > 0 ? by : 1)) + 1;
    return made;
}

struct Sizes {
    u32 samples, inner, h, w;
    u32 outer, kh, kw;
    u32 oh, ow;
    u32 stride, pad;
    u32 shards;
    // By the pixels of an output plane, and by those of its rows.
    Divisor pixels, row;
};

// Points that see the same taps of a source, each a window of it, and where they lie in a plane of the output.
struct Part {
    // Of a sample of the source.
    u32 planes, h, w;
    u32 taps_y, taps_x;
    u32 points_y, points_x;
    // The first point's window, and from one to the next.
    int window_y, window_x;
    u32 window_every;
    // The first point, and from one to the next.
    u32 y, x, every;
    // By the taps, and by those of a row.
    Divisor taps, row;

    __device__ __forceinline__ u32 points() const { return points_y * points_x; }
    __device__ __forceinline__ u32 links() const { return planes * taps_y * taps_x; }
};

// What a part's points are written to.
struct Planes {
    // Of a sample, and elements of each; columns of it.
    u32 count, size, width;
    u32 samples;
};

// The pixels of the input, a stride apart, that the same taps of the kernel meet. Pixel y meets tap k where y + pad = o
// stride + k: k = rest + t stride, and o = (y + pad) / stride - t, so later taps meet earlier rows of dy. A chain takes
// the later ones first.
struct Phase {
    u32 rest, taps, points;
    int row;

    __device__ __forceinline__ Phase(u32 first, u32 size, u32 kernel, const Sizes& of) {
        rest = (first + of.pad) % of.stride;
        row = (int)((first + of.pad) / of.stride);
        taps = kernel > rest ? (kernel - rest + of.stride - 1) / of.stride : 0;
        points = size > first ? (size - first + of.stride - 1) / of.stride : 0;
    }
};

// Columns of B: the windows of points of all samples, whose links are (plane, tap).
template <class T>
struct Windows {
    static constexpr u32 WIDTH = T::COLUMNS, APART = T::THREADS / WIDTH, COUNT = T::LINKS / APART;
    const Part& part;
    const float* from;
    u32 at;
    int y, x;
    float held[COUNT];

    __device__ __forceinline__ Windows(const float* source, const Part& part, u32 samples, u32 first)
        : part(part), at(threadIdx.x / WIDTH) {
        u32 n = first + threadIdx.x % WIDTH;
        u32 sample = n / part.points(), point = n % part.points();
        y = part.window_y + (int)(point / part.points_x * part.window_every);
        x = part.window_x + (int)(point % part.points_x * part.window_every);
        // Far above the image: such a column reads nothing.
        if (sample >= samples) y = -(1 << 30), sample = 0;
        from = source + (u64)sample * part.planes * part.h * part.w;
    }

    __device__ __forceinline__ void fetch(u32 left) {
        u32 thread = again(threadIdx.x);
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            u32 link = at + i * APART;
            u32 plane = part.taps.of(link), tap = link - plane * part.taps.by;
            u32 tap_y = part.row.of(tap), tap_x = tap - tap_y * part.row.by;
            u32 here_y = (u32)(y + (int)tap_y), here_x = (u32)(x + (int)tap_x);
            bool is_there = thread / WIDTH + i * APART < left && here_y < part.h && here_x < part.w;
            held[i] = is_there ? from[(plane * part.h + here_y) * part.w + here_x] : 0.0f;
        }
        at += T::LINKS;
    }

    __device__ __forceinline__ void put(float* slab) const {
        u32 thread = again(threadIdx.x);
        slab += thread / WIDTH * (WIDTH + 4) + thread % WIDTH;
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) slab[i * APART * (WIDTH + 4)] = held[i];
    }
};

// Writes a tile whose rows are planes of the output and whose columns are points. A bias is of each plane; a null
// pointer is none.
template <class T>
__device__ __forceinline__ void finish(
    float (&sum)[T::HIGH][T::WIDE], float* y, const float* bias, const Part& part, const Planes& of, gemm::Cut cut) {
    constexpr u32 TOGETHER = T::WIDE < 4 ? T::WIDE : 4;
    gemm::Place<T> place(again(threadIdx.x));
    u32 points = part.points(), n = of.samples * points;
    // Points of a whole plane lie side by side, and four of them in one plane.
    bool is_aligned = part.every == 1 && gemm::is_vector(y, of.size);
#pragma unroll
    for (u32 j = 0; j < T::WIDE; j += TOGETHER) {
        u32 first = cut.column * T::COLUMNS + place.column(j);
        u64 to[TOGETHER];
#pragma unroll
        for (u32 i = 0; i < TOGETHER; i++) {
            u32 sample = (first + i) / points, point = (first + i) % points;
            u32 at_y = part.y + point / part.points_x * part.every, at_x = part.x + point % part.points_x * part.every;
            to[i] = (u64)sample * of.count * of.size + at_y * of.width + at_x;
        }
#pragma unroll
        for (u32 r = 0; r < T::HIGH; r++) {
            u32 plane = cut.row * T::ROWS + place.row(r);
            if (plane >= of.count) continue;
            float* of_plane = y + (u64)plane * of.size;
            float four[4];
#pragma unroll
            for (u32 i = 0; i < TOGETHER; i++) four[i] = bias ? sum[r][j + i] + bias[plane] : sum[r][j + i];
            if (TOGETHER == 4 && is_aligned && first < n) {
                *reinterpret_cast<float4*>(of_plane + to[0]) = make_float4(four[0], four[1], four[2], four[3]);
                continue;
            }
#pragma unroll
            for (u32 i = 0; i < TOGETHER; i++)
                if (first + i < n) of_plane[to[i]] = four[i];
        }
    }
}

}  // namespace conv2d
