// Walks over a box of elements whose places in several operands are strides along axes: what broadcasting, permuting and
// slicing have in common. `src/lower/walk.rs` makes them.
//
// The unit is a chunk: four neighbours along the inner axis, or what is left of them. Every number of a walk is under 2^31,
// so places are sums of 32 bits; larger boxes come as several walks.
#pragma once
#include "map.cuh"

static const u32 AXES_MAX = 8;

// The quotient of a number n under 2^31 by `len` is (mulhi(n, factor) + n) >> shift.
struct Axis {
    u32 len;
    u32 factor;
    u32 shift;
};

// So many pieces, by their indices along axes, the innermost first; and what a step along each is in each operand.
template <u32 OPERANDS>
struct Box {
    u32 axes;
    u32 count;
    Axis axis[AXES_MAX];
    int strides[OPERANDS][AXES_MAX];
};

// A box whose pieces are chunks, which axis 0 counts.
template <u32 OPERANDS>
struct Walk {
    Box<OPERANDS> box;
    // Elements along the inner axis.
    u32 len;
    // Bit n: the rows of operand n are contiguous, and as long a multiple of four apart.
    u32 by_fours;
    // Along the inner axis, from one element to the next.
    int steps[OPERANDS];
};

struct Index {
    u32 along[AXES_MAX];
};

struct Chunk {
    Index index;
    // How many elements it has.
    u32 len;
};

// Four values, for as many elements.
struct Quad {
    float x[4];
};

namespace walk {

template <u32 N>
__device__ __forceinline__ Index index(const Box<N>& box, u32 number) {
    Index index;
#pragma unroll
    for (u32 axis = 0; axis < AXES_MAX; axis++) {
        index.along[axis] = number;
        if (axis + 1 < box.axes) {
            Axis by = box.axis[axis];
            u32 quotient = (__umulhi(number, by.factor) + number) >> by.shift;
            index.along[axis] = number - quotient * by.len;
            number = quotient;
        }
    }
    return index;
}

// Of a piece's first element in an operand.
template <u32 N>
__device__ __forceinline__ int place(const Box<N>& box, const Index& index, u32 operand) {
    int at = 0;
#pragma unroll
    for (u32 axis = 0; axis < AXES_MAX; axis++) {
        if (axis < box.axes) at += (int)index.along[axis] * box.strides[operand][axis];
    }
    return at;
}

template <u32 N>
__device__ __forceinline__ Chunk chunk(const Walk<N>& walk, u32 number) {
    Chunk chunk = {index(walk.box, number), 0};
    u32 left = walk.len - 4 * chunk.index.along[0];
    chunk.len = left < 4 ? left : 4;
    return chunk;
}

// Zeros stand behind a short chunk.
template <u32 N>
__device__ __forceinline__ Quad load(const Walk<N>& walk, const Chunk& chunk, u32 operand, const float* x) {
    int step = walk.steps[operand];
    x += place(walk.box, chunk.index, operand);
    if (step == 0) {
        float all = *x;
        return {{all, all, all, all}};
    }
    if ((walk.by_fours >> operand & 1u) != 0 && chunk.len == 4 && is_aligned(x)) {
        float4 four = *reinterpret_cast<const float4*>(x);
        return {{four.x, four.y, four.z, four.w}};
    }
    Quad quad;
#pragma unroll
    for (int i = 0; i < 4; i++) quad.x[i] = (u32)i < chunk.len ? x[i * step] : 0.0f;
    return quad;
}

template <u32 N>
__device__ __forceinline__ void store(const Walk<N>& walk, const Chunk& chunk, u32 operand, float* y, const Quad& quad) {
    int step = walk.steps[operand];
    y += place(walk.box, chunk.index, operand);
    if ((walk.by_fours >> operand & 1u) != 0 && chunk.len == 4 && is_aligned(y)) {
        *reinterpret_cast<float4*>(y) = make_float4(quad.x[0], quad.x[1], quad.x[2], quad.x[3]);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if ((u32)i < chunk.len) y[i * step] = quad.x[i];
    }
}

}  // namespace walk
