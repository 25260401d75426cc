// Rotary positions: pair i of a head's channels, (i, i + pairs), is turned by the angle of its token. x, y: (row,
// queries' heads, keys' heads, values), where row % tokens is the token; turns: (token, cosines then sines).
//
// Grid: blocks take rows by turns; pairs along x, heads along y, so that a thread reads its turn once for all of its
// heads. No number depends on another but its partner.
#include "device.cuh"

KERNEL(rotary, float* y, const float* x, const float* turns, u64 rows, u64 tokens, u32 pairs, u32 turned) {
    const u32 width = 2 * pairs, values = turned * pairs;
    const u64 channels = (u64)turned * width + values;
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const float* turn = turns + (row - divide(row, tokens) * tokens) * width;
        const float* from = x + row * channels;
        float* to = y + row * channels;
        for (u32 i = threadIdx.x; i < pairs; i += blockDim.x) {
            float cosine = turn[i], sine = turn[pairs + i];
            for (u32 head = threadIdx.y; head < turned; head += blockDim.y) {
                u32 first = head * width + i, second = first + pairs;
                float x0 = from[first], x1 = from[second];
                to[first] = x0 * cosine - x1 * sine;
                to[second] = x1 * cosine + x0 * sine;
            }
        }
        const u32 thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
        for (u32 i = thread; i < values; i += threads) to[turned * width + i] = from[turned * width + i];
    }
}
