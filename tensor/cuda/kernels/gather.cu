// Single numbers by index along an axis, and the sums of what comes back to each. x: (outer, n, inner); at, y: (outer,
// use, inner). y[o, u, i] = x[o, at[o, u, i], i].
//
// A gradient: dx[o, r, i] = the sum of dy[o, u, i] over the uses u, ascending, whose index is r: a chain from +0.
// Where there are enough columns (o, i), or few uses in each, a thread goes through a column's uses and adds to dx,
// which begins as zeros. Else the uses are sorted by the place in dx that they go to (`sort.cu`), equal ones in their
// order, and the thread of the first one for a place adds them all. An index outside of the axis reads nothing and
// gives NaN; its gradient goes nowhere.
#include "device.cuh"

struct Axis {
    u64 n, uses, inner;
};

// The place in x of element i of y; whether there is one.
struct Place {
    u64 at;
    bool is_in;
};
__device__ __forceinline__ Place place_of(const int* at, u64 i, const Axis& axis) {
    const u64 outer = divide(i, axis.uses * axis.inner), column = i - divide(i, axis.inner) * axis.inner;
    const int row = at[i];
    const bool is_in = row >= 0 && row < (long long)axis.n;
    return {(outer * axis.n + (is_in ? row : 0)) * axis.inner + column, is_in};
}

KERNEL(gather, float* y, const float* x, const int* at, u64 count, u64 n, u64 uses, u64 inner) {
    for (u64 i = first_number(); i < count; i += number_stride()) {
        Place place = place_of(at, i, {n, uses, inner});
        y[i] = place.is_in ? x[place.at] : one_nan();
    }
}

// A thread a column.
KERNEL(gather_grad_columns, float* dx, const float* dy, const int* at, u64 columns, u64 n, u64 uses, u64 inner) {
    for (u64 column = first_number(); column < columns; column += number_stride()) {
        const u64 outer = divide(column, inner), i = column - outer * inner;
        const float* from = dy + outer * uses * inner + i;
        const int* of = at + outer * uses * inner + i;
        float* to = dx + outer * n * inner + i;
        for (u64 use = 0; use < uses; use++) {
            const int row = of[use * inner];
            if (row >= 0 && row < (long long)n) to[row * inner] += from[use * inner];
        }
    }
}

// Keys for sorting: places in dx, which are fewer than `end`.
KERNEL(gather_keys, u32* keys, const int* at, u64 count, u64 n, u64 uses, u64 inner, u32 end) {
    for (u64 i = first_number(); i < count; i += number_stride()) {
        Place place = place_of(at, i, {n, uses, inner});
        keys[i] = place.is_in ? (u32)place.at : end;
    }
}

// sorted: keys, then places in dy.
KERNEL(gather_grad_sorted, float* dx, const float* dy, const u32* sorted, u32 count, u32 end) {
    const u32* places = sorted + count;
    for (u64 i = first_number(); i < count; i += number_stride()) {
        const u32 key = sorted[i];
        if (key >= end || (i > 0 && sorted[i - 1] == key)) continue;
        float sum = 0.0f;
        for (u64 use = i; use < count && sorted[use] == key; use++) sum += dy[places[use]];
        dx[key] = sum;
    }
}
