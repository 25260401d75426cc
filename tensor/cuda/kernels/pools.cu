// The largest and the mean of each window, and their gradients. x: (plane, height, width), y: (plane, out_height,
// out_width); windows of kernel by kernel, `stride` apart, no padding.
//
// Grid: a thread takes numbers of its output by turns, so that no sum is shared. A window is gone through in row-major
// order, and a gradient adds the windows that an element lies in in their row-major order, from +0.
#include "device.cuh"

struct Windows {
    u32 height, width, out_height, out_width, kernel, stride;
};

// Where the window of output i begins in x.
__device__ __forceinline__ u64 window_of(const Windows& w, u64 i) {
    const u64 out = (u64)w.out_height * w.out_width, plane = divide(i, out);
    const u64 rest = i - plane * out, row = divide(rest, w.out_width), column = rest - row * w.out_width;
    return (plane * w.height + row * w.stride) * w.width + column * w.stride;
}

// An element of x and the windows that it lies in: rows and columns of windows, from the first to before the end.
struct Element {
    u64 plane;
    u32 row, column;
    u32 first_row, end_row, first_column, end_column;
};

__device__ __forceinline__ u32 first_over(u32 at, const Windows& w) {
    return at < w.kernel ? 0 : (at - w.kernel) / w.stride + 1;
}
__device__ __forceinline__ u32 end_over(u32 at, u32 out, const Windows& w) {
    u32 end = at / w.stride + 1;
    return end < out ? end : out;
}
__device__ __forceinline__ Element element(const Windows& w, u64 i) {
    const u64 image = (u64)w.height * w.width, plane = divide(i, image);
    const u64 rest = i - plane * image;
    const u32 row = (u32)divide(rest, w.width), column = (u32)(rest - (u64)row * w.width);
    return {plane, row, column, first_over(row, w), end_over(row, w.out_height, w), first_over(column, w),
            end_over(column, w.out_width, w)};
}

struct Winner {
    float value;
    // From the window's first element.
    u32 at;
};

// The first of the largest in row-major order; a NaN wins always, and the last of several.
__device__ __forceinline__ Winner winner(const Windows& w, const float* x) {
    Winner best = {x[0], 0};
    for (u32 row = 0; row < w.kernel; row++) {
        for (u32 column = 0; column < w.kernel; column++) {
            u32 at = row * w.width + column;
            float value = x[at];
            if (value > best.value || value != value) best = {value, at};
        }
    }
    return best;
}

KERNEL(max_pool, float* y, const float* x, u64 count, Windows w) {
    for (u64 i = first_number(); i < count; i += number_stride()) y[i] = winner(w, x + window_of(w, i)).value;
}

// Where windows do not overlap: an element looks through the only one that it may lie in.
KERNEL(max_pool_grad_apart, float* dx, const float* x, const float* dy, u64 count, Windows w) {
    for (u64 i = first_number(); i < count; i += number_stride()) {
        Element e = element(w, i);
        float sum = 0.0f;
        if (e.first_row < e.end_row && e.first_column < e.end_column) {
            u64 row = e.plane * w.height + e.first_row * w.stride, first = row * w.width + e.first_column * w.stride;
            if (first + winner(w, x + first).at == i)
                sum += dy[(e.plane * w.out_height + e.first_row) * w.out_width + e.first_column];
        }
        dx[i] = sum;
    }
}

// Where they do: each window's winner first.
KERNEL(max_pool_winners, u32* winners, const float* x, u64 count, Windows w) {
    for (u64 i = first_number(); i < count; i += number_stride()) winners[i] = winner(w, x + window_of(w, i)).at;
}
KERNEL(max_pool_grad, float* dx, const u32* winners, const float* dy, u64 count, Windows w) {
    for (u64 i = first_number(); i < count; i += number_stride()) {
        Element e = element(w, i);
        float sum = 0.0f;
        for (u32 row = e.first_row; row < e.end_row; row++) {
            u64 out = (e.plane * w.out_height + row) * w.out_width;
            u32 above = (e.row - row * w.stride) * w.width;
            for (u32 column = e.first_column; column < e.end_column; column++)
                if (winners[out + column] == above + (e.column - column * w.stride)) sum += dy[out + column];
        }
        dx[i] = sum;
    }
}

KERNEL(avg_pool, float* y, const float* x, u64 count, Windows w, float share) {
    for (u64 i = first_number(); i < count; i += number_stride()) {
        const float* from = x + window_of(w, i);
        float sum = 0.0f;
        for (u32 row = 0; row < w.kernel; row++)
            for (u32 column = 0; column < w.kernel; column++) sum += from[(u64)row * w.width + column];
        y[i] = sum * share;
    }
}
KERNEL(avg_pool_grad, float* dx, const float* dy, u64 count, Windows w, float share) {
    for (u64 i = first_number(); i < count; i += number_stride()) {
        Element e = element(w, i);
        float sum = 0.0f;
        for (u32 row = e.first_row; row < e.end_row; row++) {
            u64 out = (e.plane * w.out_height + row) * w.out_width;
            for (u32 column = e.first_column; column < e.end_column; column++) sum += dy[out + column] * share;
        }
        dx[i] = sum;
    }
}
