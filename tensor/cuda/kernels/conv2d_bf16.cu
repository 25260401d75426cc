// 2-D convolution and its gradients on tensor cores, as products that read the image in place: see `conv2d.cu` for the
// sums and how pixels are parted, and `gemm_bf16.cuh` for how a tile is made. All of memory is f32.
//
// y and dx: rows are planes of the output, columns its points of all samples, k is (plane of the source, tap). dW: rows
// are planes of dy, columns (plane of x, tap), k is (sample of a shard, pixel of dy); each shard has a sum of its own.
// What lies in the padding counts as 0, as on the processor: an infinite weight times it is NaN.
//
// Grid: x: tiles; y: parts of the input; or y and z together count shards.
#include "conv2d.cuh"
#include "gemm_bf16.cuh"

using namespace bf16;
using conv2d::Part;
using conv2d::Planes;

static __device__ __forceinline__ float& of(float4& four, u32 i) {
    return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
}

// Columns of B: the windows of points of all samples, four points a thread, by links (plane, tap).
template <class T>
struct Windows : Share<T::COLUMNS, T::THREADS, ACROSS_K> {
    typedef Share<T::COLUMNS, T::THREADS, ACROSS_K> Here;
    using Here::PIECES;
    using Here::ROWS_APART;
    using Here::number;
    using Here::row;

    const Part& part;
    // Of the next step.
    u32 link;
    const float* from[4];
    int y[4], x[4];

    __device__ __forceinline__ Windows(const float* source, const Part& part, u32 samples, u32 first)
        : part(part), link(row) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 n = first + number + i, sample = n / part.points(), point = n % part.points();
            y[i] = part.window_y + (int)(point / part.points_x * part.window_every);
            x[i] = part.window_x + (int)(point % part.points_x * part.window_every);
            // Far above the image: such a column reads nothing.
            if (sample >= samples) y[i] = -(1 << 30), sample = 0;
            from[i] = source + (u64)sample * part.planes * part.h * part.w;
        }
    }

    __device__ __forceinline__ void read(float4 (&to)[PIECES], u32 k_left) {
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            u32 at = link + i * ROWS_APART, plane = part.taps.of(at), tap = at - plane * part.taps.by;
            u32 tap_y = part.row.of(tap), tap_x = tap - tap_y * part.row.by;
            bool is_link = row + i * ROWS_APART < k_left;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                u32 here_y = (u32)(y[j] + (int)tap_y), here_x = (u32)(x[j] + (int)tap_x);
                bool is_there = is_link && here_y < part.h && here_x < part.w;
                of(to[i], j) = is_there ? from[j][(plane * part.h + here_y) * part.w + here_x] : 0.0f;
            }
        }
        link += STEP;
    }
};

// Writes planes of the output. A bias is of each plane; a null pointer is none.
template <class T>
__device__ __forceinline__ void write(
    Product<T>& product, float* y, const float* bias, const Part& part, const Planes& to, const Place& place) {
    u32 points = part.points(), count = to.samples * points;
    // Points of a whole plane lie side by side, and two of them in one plane.
    bool is_aligned = part.every == 1 && to.size % 2 == 0 && (u64)y % 8 == 0;
    product.neighbours([&](float sum, float next, u32 row, u32 column) {
        u32 plane = place.row + row, n = place.column + column;
        if (plane >= to.count || n >= count) return;
        if (bias) {
            sum += bias[plane];
            next += bias[plane];
        }
        auto at = [&](u32 n) -> float* {
            u32 sample = n / points, point = n % points;
            u32 at_y = part.y + point / part.points_x * part.every, at_x = part.x + point % part.points_x * part.every;
            return y + ((u64)sample * to.count + plane) * to.size + at_y * to.width + at_x;
        };
        if (is_aligned) {
            *reinterpret_cast<float2*>(at(n)) = make_float2(one(sum), one(next));
        } else {
            *at(n) = one(sum);
            if (n + 1 < count) *at(n + 1) = one(next);
        }
    });
}

template <class T>
__device__ __forceinline__ void correlate(float* y, const float* source, const float* weight, const float* bias,
                                          const Part& part, const Planes& to) {
    u32 count = to.samples * part.points();
    u32 down = (to.count + T::ROWS - 1) / T::ROWS, across = (count + T::COLUMNS - 1) / T::COLUMNS;
    // Parts may have fewer points than the largest.
    if (blockIdx.x >= down * across) return;
    Place place = Place::of<T>(blockIdx.x, to.count, count);
    Product<T> product;
    Matrix<T::ROWS, T::THREADS, ALONG_K> left(weight, to.count, part.links(), place.row);
    Windows<T> right(source, part, to.samples, place.column);
    bf16::multiply(product, left, right, part.links());
    write(product, y, bias, part, to, place);
}

// The input's gradient, of a part of the input for each block along y; `packed` has `step` floats a part.
template <class T>
__device__ __forceinline__ void backward(
    float* dx, const float* dy, const float* packed, u64 step, const conv2d::Sizes& s) {
    u32 phases_across = s.stride < s.w ? s.stride : s.w, phase = blockIdx.y;
    u32 y = phase / phases_across, x = phase % phases_across;
    conv2d::Phase down(y, s.h, s.kh, s), across(x, s.w, s.kw, s);
    Part part = {s.outer, s.oh, s.ow, down.taps, across.taps, down.points, across.points,
                 down.row + 1 - (int)down.taps, across.row + 1 - (int)across.taps, 1, y, x, s.stride,
                 conv2d::divisor(down.taps * across.taps), conv2d::divisor(across.taps)};
    Planes to = {s.inner, s.h * s.w, s.w, s.samples};
    correlate<T>(dx, dy, packed + phase * step, nullptr, part, to);
}

// Rows of A: planes of dy, along the pixels of all samples of a shard, four a thread.
template <class T>
struct Outputs : Share<T::ROWS, T::THREADS, ALONG_K> {
    typedef Share<T::ROWS, T::THREADS, ALONG_K> Here;
    using Here::PIECES;
    using Here::ROWS_APART;
    using Here::number;
    using Here::row;

    const conv2d::Sizes& s;
    const float* dy;
    // Of the next step; the first piece's plane.
    u32 pixel, plane;
    bool is_aligned;

    __device__ __forceinline__ Outputs(const float* dy, const conv2d::Sizes& s, u32 first)
        : s(s), dy(dy), pixel(number), plane(first + row), is_aligned(s.pixels.by % 4 == 0 && (u64)dy % 16 == 0) {}

    __device__ __forceinline__ u64 place(u32 pixel) const {
        u32 sample = s.pixels.of(pixel);
        return (u64)sample * s.outer * s.pixels.by + (pixel - sample * s.pixels.by);
    }

    __device__ __forceinline__ void read(float4 (&to)[PIECES], u32 k_left) {
        u64 at[4] = {place(pixel)};
        if (!is_aligned)
#pragma unroll
            for (u32 j = 1; j < 4; j++) at[j] = place(pixel + j);
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            u32 here = plane + i * ROWS_APART;
            const float* from = dy + (u64)here * s.pixels.by;
            to[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (here >= s.outer) continue;
            if (is_aligned) {
                if (number < k_left) to[i] = *reinterpret_cast<const float4*>(from + at[0]);
            } else {
#pragma unroll
                for (u32 j = 0; j < 4; j++)
                    if (number + j < k_left) of(to[i], j) = from[at[j]];
            }
        }
        pixel += STEP;
    }
};

// Columns of B: taps of planes of x, along the same pixels.
template <class T>
struct Taps : Share<T::COLUMNS, T::THREADS, ALONG_K> {
    typedef Share<T::COLUMNS, T::THREADS, ALONG_K> Here;
    using Here::PIECES;
    using Here::ROWS_APART;
    using Here::number;
    using Here::row;

    const conv2d::Sizes& s;
    const float* x;
    u32 pixel;
    // Of each piece: where its plane begins, and its tap from the window's first pixel. A column that is not there lies
    // far above the image.
    u32 plane[PIECES];
    int tap_y[PIECES], tap_x[PIECES];

    __device__ __forceinline__ Taps(const float* x, const conv2d::Sizes& s, u32 first) : s(s), x(x), pixel(number) {
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            u32 column = first + row + i * ROWS_APART, tap = column % (s.kh * s.kw), of_x = column / (s.kh * s.kw);
            plane[i] = of_x * s.h * s.w;
            tap_y[i] = of_x < s.inner ? (int)(tap / s.kw) - (int)s.pad : -(1 << 30);
            tap_x[i] = (int)(tap % s.kw) - (int)s.pad;
        }
    }

    __device__ __forceinline__ void read(float4 (&to)[PIECES], u32 k_left) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 at = pixel + j, sample = s.pixels.of(at), point = at - sample * s.pixels.by;
            u32 line = s.row.of(point), window_y = line * s.stride, window_x = (point - line * s.row.by) * s.stride;
            const float* from = x + (u64)sample * s.inner * s.h * s.w;
#pragma unroll
            for (u32 i = 0; i < PIECES; i++) {
                u32 here_y = (u32)((int)window_y + tap_y[i]), here_x = (u32)((int)window_x + tap_x[i]);
                bool is_there = number + j < k_left && here_y < s.h && here_x < s.w;
                of(to[i], j) = is_there ? from[plane[i] + here_y * s.w + here_x] : 0.0f;
            }
        }
        pixel += STEP;
    }
};

// leaves (shard, out, in · tap), of `shards` shards.
template <class T>
__device__ __forceinline__ void grad_weight(float* leaves, const float* x, const float* dy, const conv2d::Sizes& s,
                                            u32 shards) {
    u32 columns = s.inner * s.kh * s.kw, samples = s.samples / s.shards;
    Place place = Place::of<T>(blockIdx.x, s.outer, columns);
    Product<T> product;
    u32 shard = block_of_batch();
    if (shard >= shards) return;
    u64 first = (u64)shard * samples;
    Outputs<T> left(dy + first * s.outer * s.pixels.by, s, place.row);
    Taps<T> right(x + first * s.inner * s.h * s.w, s, place.column);
    bf16::multiply(product, left, right, samples * s.pixels.by);
    float* leaf = leaves + (u64)shard * s.outer * columns;
    product.neighbours([&](float sum, float next, u32 row, u32 column) {
        if (row >= s.outer - place.row || column >= columns - place.column) return;
        float* at = leaf + (u64)(place.row + row) * columns + place.column + column;
        at[0] = one(sum);
        if (column + 1 < columns - place.column) at[1] = one(next);
    });
}

#define CONVOLUTIONS(size, T)                                                                                         \
    BOUNDED_KERNEL(T::THREADS, correlate_##size, float* y, const float* source, const float* weight,                  \
                   const float* bias, const __grid_constant__ Part part, const __grid_constant__ Planes to) {         \
        correlate<T>(y, source, weight, bias, part, to);                                                              \
    }                                                                                                                 \
    RESIDENT_KERNEL(T::THREADS, 384 / T::THREADS, phases_##size, float* dx, const float* dy, const float* packed,     \
                    u64 step, const __grid_constant__ conv2d::Sizes s) {                                              \
        backward<T>(dx, dy, packed, step, s);                                                                         \
    }                                                                                                                 \
    BOUNDED_KERNEL(T::THREADS, grad_weight_##size, float* leaves, const float* x, const float* dy,                    \
                   const __grid_constant__ conv2d::Sizes s, u32 shards) {                                             \
        grad_weight<T>(leaves, x, dy, s, shards);                                                                     \
    }

CONVOLUTIONS(large, Large)
CONVOLUTIONS(medium, Small)
