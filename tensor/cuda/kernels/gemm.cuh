// The core of every product in f32: C (m, n) = A (m, k) B (k, n), each element one chain sum = fmaf(a, b, sum) over
// ascending k from +0. A block's threads hold a tile of C in registers from the first link to the last, so the order of
// sums is that of the source however C is cut; k is never split.
//
// Slabs of a few links of both operands go through shared memory, which has two of each: while one is multiplied, the
// next is on its way into registers. A slab is (link, line): lines are rows of A or columns of B. Who reads an operand
// is a type of its own, with `fetch(links left)` and `put(slab)`.
//
// Behind the last link a slab holds -0 for A and +0 for B: fmaf(-0, +0, sum) is sum for every sum, -0, infinities and
// NaN included, so loops need no rest. Lines beyond the matrix are multiplied and not stored.
#pragma once
#include "device.cuh"

namespace gemm {

// How C is cut: a block has ROWS by COLUMNS elements, a thread HIGH by WIDE of them, a slab LINKS links.
template <u32 rows, u32 columns, u32 links, u32 high, u32 wide, u32 blocks>
struct Tile {
    static constexpr u32 ROWS = rows, COLUMNS = columns, LINKS = links, HIGH = high, WIDE = wide;
    static constexpr u32 BLOCKS = blocks;
    static constexpr u32 THREADS = rows / high * (columns / wide);
    // Of lines that are 4 floats further apart than they are long, no two lanes meet in a bank.
    static constexpr u32 A_SLAB = links * (rows + 4), B_SLAB = links * (columns + 4);
    static constexpr u32 FLOATS = 2 * (A_SLAB + B_SLAB);
    // A warp is 4 threads high and 8 wide.
    static constexpr u32 WARPS_ACROSS = columns / wide / 8;
    static_assert(THREADS % 32 == 0 && columns / wide % 8 == 0 && links % 8 == 0, "whole warps and whole steps");
};

// What each takes on an H100, and so which is for what, says `lower/gemm.rs`.
typedef Tile<128, 128, 8, 8, 8, 2> Large;
typedef Tile<64, 64, 16, 8, 4, 4> Medium;
typedef Tile<16, 16, 64, 2, 2, 8> Small;

static constexpr u32 NO_LINK_OF_A = 0x80000000u, NO_LINK_OF_B = 0;

__device__ __forceinline__ bool is_vector(const float* at, u64 stride) {
    return ((u64)at & 15) == 0 && stride % 4 == 0;
}

// An operand of WIDTH lines whose links lie side by side: A as (m, k), B as (n, k).
template <class T, u32 WIDTH, u32 NO_LINK>
struct AlongLinks {
    // Two lanes read neighbouring groups of four links, a sector of the cache; 16 lines go to banks of their own.
    static constexpr u32 GROUPS = WIDTH * T::LINKS / 4 / T::THREADS, APART = 4 * T::THREADS / WIDTH;
    static_assert(GROUPS == 1 || T::THREADS % (2 * WIDTH) == 0, "a thread has one line");
    const float* at;
    u32 line, link;
    bool is_inside, is_aligned;
    float held[4 * GROUPS];

    // WIDTH of the matrix's lines, from `first` on.
    __device__ __forceinline__ AlongLinks(const float* from, u32 first, u32 lines, u32 k) {
        line = threadIdx.x / 2 % WIDTH;
        link = 4 * (threadIdx.x % 2 + threadIdx.x / (2 * WIDTH) * 2);
        is_inside = first + line < lines;
        is_aligned = is_vector(from, k);
        at = from + (u64)(first + line) * k + link;
    }

    __device__ __forceinline__ void fetch(u32 left) {
        // A line beyond the matrix has no links.
        left = is_inside && left > link ? left - link : 0;
#pragma unroll
        for (u32 g = 0; g < GROUPS; g++) {
            float* to = held + 4 * g;
            if (is_aligned && g * APART + 4 <= left) {
                float4 four = *reinterpret_cast<const float4*>(at + g * APART);
                to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
            } else {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    to[i] = of_bits(NO_LINK);
                    if (g * APART + i < left) to[i] = at[g * APART + i];
                }
            }
        }
        at += T::LINKS;
    }

    __device__ __forceinline__ void put(float* slab) const {
        slab += link * (WIDTH + 4) + line;
#pragma unroll
        for (u32 g = 0; g < GROUPS; g++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) slab[(g * APART + i) * (WIDTH + 4)] = held[4 * g + i];
    }
};

// An operand of WIDTH lines that lie side by side: A as (k, m), B as (k, n).
template <class T, u32 WIDTH, u32 NO_LINK>
struct AcrossLinks {
    static constexpr u32 GROUPS = WIDTH * T::LINKS / 4 / T::THREADS, APART = 4 * T::THREADS / WIDTH;
    const float* at;
    u32 line, link, inside, stride;
    bool is_aligned;
    float held[4 * GROUPS];

    __device__ __forceinline__ AcrossLinks(const float* from, u32 first, u32 lines, u32) : stride(lines) {
        line = threadIdx.x % (WIDTH / 4) * 4;
        link = threadIdx.x / (WIDTH / 4);
        inside = first + line < lines ? lines - first - line : 0;
        is_aligned = is_vector(from, stride);
        at = from + (u64)link * stride + first + line;
    }

    __device__ __forceinline__ void fetch(u32 left) {
#pragma unroll
        for (u32 g = 0; g < GROUPS; g++) {
            const float* row = at + (u64)(g * APART) * stride;
            float* to = held + 4 * g;
            u32 here = link + g * APART < left ? inside : 0;
            if (is_aligned && here >= 4) {
                float4 four = *reinterpret_cast<const float4*>(row);
                to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
            } else {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    to[i] = of_bits(NO_LINK);
                    if (i < here) to[i] = row[i];
                }
            }
        }
        at += (u64)T::LINKS * stride;
    }

    __device__ __forceinline__ void put(float* slab) const {
        slab += link * (WIDTH + 4) + line;
#pragma unroll
        for (u32 g = 0; g < GROUPS; g++) {
            float4 four = make_float4(held[4 * g], held[4 * g + 1], held[4 * g + 2], held[4 * g + 3]);
            *reinterpret_cast<float4*>(slab + g * APART * (WIDTH + 4)) = four;
        }
    }
};

// Where a thread's elements lie in the tile. Along an axis they are fours (or pairs), a whole row of threads apart.
template <class T>
struct Place {
    u32 x, y;

    explicit __device__ __forceinline__ Place(u32 thread) {
        u32 warp = thread / 32, lane = thread % 32;
        x = warp % T::WARPS_ACROSS * 8 + lane % 8;
        y = warp / T::WARPS_ACROSS * 4 + lane / 8;
    }

    template <u32 COUNT, u32 WIDTH>
    static __device__ __forceinline__ u32 along(u32 thread, u32 number) {
        constexpr u32 TOGETHER = COUNT < 4 ? COUNT : 4;
        return number / TOGETHER * (WIDTH / (COUNT / TOGETHER)) + thread * TOGETHER + number % TOGETHER;
    }

    __device__ __forceinline__ u32 row(u32 number) const { return along<T::HIGH, T::ROWS>(y, number); }
    __device__ __forceinline__ u32 column(u32 number) const { return along<T::WIDE, T::COLUMNS>(x, number); }

    // The thread's elements of a line that `along` gives the first of.
    template <u32 COUNT, u32 WIDTH>
    static __device__ __forceinline__ void read(float (&to)[COUNT], const float* first) {
        if (COUNT < 4) {
            float2 two = *reinterpret_cast<const float2*>(first);
            to[0] = two.x, to[1] = two.y;
        } else {
#pragma unroll
            for (u32 i = 0; i + 4 <= COUNT; i += 4) {
                float4 four = *reinterpret_cast<const float4*>(first + along<COUNT, WIDTH>(0, i));
                to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
            }
        }
    }
};

// Eight links; a and b point to the thread's first elements of the first.
template <class T>
__device__ __forceinline__ void add_links(float (&sum)[T::HIGH][T::WIDE], const float* a, const float* b) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        float x[T::HIGH], y[T::WIDE];
        Place<T>::template read<T::HIGH, T::ROWS>(x, a + i * (T::ROWS + 4));
        Place<T>::template read<T::WIDE, T::COLUMNS>(y, b + i * (T::COLUMNS + 4));
#pragma unroll
        for (u32 r = 0; r < T::HIGH; r++)
#pragma unroll
            for (u32 c = 0; c < T::WIDE; c++) sum[r][c] = fmaf(x[r], y[c], sum[r][c]);
    }
}

// The chains of a tile over k links, from +0.
template <class T, class A, class B>
__device__ __forceinline__ void chain(
    float (&sum)[T::HIGH][T::WIDE], A& a, B& b, u32 k, float* shared) {
#pragma unroll
    for (u32 r = 0; r < T::HIGH; r++)
#pragma unroll
        for (u32 c = 0; c < T::WIDE; c++) sum[r][c] = 0.0f;
    if (k == 0) return;
    a.fetch(k);
    b.fetch(k);
    // The slabs may still be read for the chains before.
    __syncthreads();
    a.put(shared);
    b.put(shared + T::A_SLAB);
    __syncthreads();
    Place<T> place(threadIdx.x);
    const float* x = shared + place.row(0);
    const float* y = shared + T::A_SLAB + place.column(0);
    for (u32 left = k, slab = 0;; left -= T::LINKS) {
        bool is_last = left <= T::LINKS;
        if (!is_last) {
            a.fetch(left - T::LINKS);
            b.fetch(left - T::LINKS);
        }
        add_links<T>(sum, x + slab, y + slab);
#pragma unroll 1
        for (u32 i = 8; i < T::LINKS && i < left; i += 8)
            add_links<T>(sum, x + slab + i * (T::ROWS + 4), y + slab + i * (T::COLUMNS + 4));
        if (is_last) return;
        // Nobody reads the other slabs: all have passed the barrier behind their last links.
        slab = T::FLOATS / 2 - slab;
        a.put(shared + slab);
        b.put(shared + slab + T::A_SLAB);
        __syncthreads();
    }
}

// Adds the left siblings of a shard's tile to it, one a level that closes, and leaves the sum where its own right
// sibling finds it. The room is a block's own: (level, four elements, thread).
template <class T>
__device__ __forceinline__ void climb(float (&sum)[T::HIGH][T::WIDE], float* room, u32 shard, u32 shards) {
    constexpr u32 FOURS = T::HIGH * T::WIDE / 4;
    float4* left = reinterpret_cast<float4*>(room) + again(threadIdx.x);
    for (; shard & 1u; shard >>= 1, shards >>= 1, left += FOURS * T::THREADS) {
#pragma unroll
        for (u32 i = 0; i < FOURS; i++) {
            float4 four = left[i * T::THREADS];
            float from[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                float& right = sum[(4 * i + j) / T::WIDE][(4 * i + j) % T::WIDE];
                right = tree_add(from[j], right);
            }
        }
    }
    if (shards == 1) return;
#pragma unroll
    for (u32 i = 0; i < FOURS; i++) {
        float to[4];
#pragma unroll
        for (u32 j = 0; j < 4; j++) to[j] = sum[(4 * i + j) / T::WIDE][(4 * i + j) % T::WIDE];
        left[i * T::THREADS] = make_float4(to[0], to[1], to[2], to[3]);
    }
}

// Of C's tiles number `number`: eight rows of tiles go together, so that blocks that run at one time share what they
// read.
struct Cut {
    u32 row, column;

    __device__ __forceinline__ Cut(u32 number, u32 down, u32 across) {
        u32 group = number / (8 * across) * 8, rest = number % (8 * across);
        u32 high = down - group < 8 ? down - group : 8;
        row = group + rest % high;
        column = rest / high;
    }
};

// Four numbers, or those of them that lie inside.
__device__ __forceinline__ void store(float* to, const float (&from)[4], u32 inside, bool is_aligned) {
    if (is_aligned && inside >= 4) {
        *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (i < inside) to[i] = from[i];
    }
}

// Writes a tile of C, whose rows lie one behind the other. A bias is of each column; a null pointer is none.
template <class T>
__device__ __forceinline__ void finish(
    float (&sum)[T::HIGH][T::WIDE], float* c, const float* bias, u32 m, u32 n, Cut cut) {
    Place<T> place(again(threadIdx.x));
    constexpr u32 TOGETHER = T::WIDE < 4 ? T::WIDE : 4;
    u32 row = cut.row * T::ROWS, column = cut.column * T::COLUMNS;
    bool is_aligned = is_vector(c, n);
#pragma unroll
    for (u32 j = 0; j < T::WIDE; j += TOGETHER) {
        u32 x = column + place.column(j);
        u32 inside = x < n ? n - x : 0;
        inside = inside < TOGETHER ? inside : TOGETHER;
        float added[4];
#pragma unroll
        for (u32 i = 0; i < TOGETHER; i++) added[i] = bias && i < inside ? bias[x + i] : 0.0f;
#pragma unroll
        for (u32 r = 0; r < T::HIGH; r++) {
            u32 y = row + place.row(r);
            if (y >= m) continue;
            float four[4];
#pragma unroll
            for (u32 i = 0; i < TOGETHER; i++) four[i] = bias ? sum[r][j + i] + added[i] : sum[r][j + i];
            store(c + (u64)y * n + x, four, inside, is_aligned);
        }
    }
}

}  // namespace gemm
