// Places in the order of their keys, equal keys in the order of their places: which rows of a gradient belong to which
// row of a table.
//
// A key is a u32 below or at `end`; what is larger, or negative, counts as `end`. Eight bits a pass, from the lowest:
// a pass counts digits in blocks of 2,048 keys, adds the counts up (digit by digit, a digit's blocks in their order),
// and moves each key behind those with a smaller digit and those before it with the same. A warp takes 32 keys at a
// time, and ranks them by ballots. Atomics only count; no order depends on theirs.
#include "device.cuh"

static const u32 DIGITS = 256;
static const u32 WARPS = 8;
static const u32 GROUPS = 8;
static const u32 KEYS = WARPS * GROUPS * 32;

__device__ __forceinline__ u32 key_at(const u32* keys, u32 i, u32 end) { return keys[i] < end ? keys[i] : end; }

// counts: (digit, block).
BOUNDED_KERNEL(256, sort_count, u32* counts, const u32* keys, u32 count, u32 end, u32 shift) {
    __shared__ u32 of_digit[DIGITS];
    of_digit[threadIdx.x] = 0;
    __syncthreads();
    for (u32 k = 0; k < KEYS; k += WARPS * 32) {
        u32 i = blockIdx.x * KEYS + k + threadIdx.x;
        if (i < count) atomicAdd(&of_digit[key_at(keys, i, end) >> shift & (DIGITS - 1)], 1u);
    }
    __syncthreads();
    counts[threadIdx.x * gridDim.x + blockIdx.x] = of_digit[threadIdx.x];
}

// Of the values before and with a lane's own, in its warp.
__device__ __forceinline__ u32 sum_up_to(u32 value, u32 lane) {
    for (u32 by = 1; by < 32; by *= 2) {
        u32 before = __shfl_sync(WHOLE_WARP, value, (int)((lane - by) & 31u));
        if (lane >= by) value += before;
    }
    return value;
}

// Each number becomes the sum of those before it. One block.
BOUNDED_KERNEL(1024, sort_scan, u32* counts, u64 count) {
    static const u32 OWN = 8;
    __shared__ u32 of_warp[32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 before = 0;
    for (u64 start = 0; start < count; start += 1024 * OWN) {
        const u64 first = start + threadIdx.x * OWN;
        u32 own[OWN], total = 0;
        for (u32 k = 0; k < OWN; k++) {
            own[k] = first + k < count ? counts[first + k] : 0;
            total += own[k];
        }
        u32 up_to = sum_up_to(total, lane);
        if (lane == 31) of_warp[warp] = up_to;
        __syncthreads();
        u32 warps_up_to = sum_up_to(of_warp[lane], lane);
        u32 before_warp = __shfl_sync(WHOLE_WARP, warps_up_to, (int)((warp - 1) & 31u));
        u32 next = before + (warp > 0 ? before_warp : 0) + up_to - total;
        for (u32 k = 0; k < OWN; k++) {
            if (first + k < count) counts[first + k] = next;
            next += own[k];
        }
        before += __shfl_sync(WHOLE_WARP, warps_up_to, 31);
        __syncthreads();
    }
}

// The lanes of a warp that have a key with this digit.
__device__ __forceinline__ u32 lanes_with(u32 digit, bool is_key) {
    u32 same = __ballot_sync(WHOLE_WARP, is_key);
    for (u32 bit = 1; bit < DIGITS; bit *= 2) {
        u32 with = __ballot_sync(WHOLE_WARP, digit & bit);
        same &= digit & bit ? with : ~with;
    }
    return same;
}

// counts: where each block's keys of each digit go. In the first pass a key's place is its index.
BOUNDED_KERNEL(256, sort_move, u32* to_keys, u32* to_places, const u32* keys, const u32* places, const u32* counts,
               u32 count, u32 end, u32 shift, u32 is_first) {
    __shared__ u32 next[WARPS][DIGITS];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 first = blockIdx.x * KEYS + warp * GROUPS * 32 + lane;
    for (u32 i = 0; i < WARPS; i++) next[i][threadIdx.x] = 0;
    __syncthreads();
    u32 key[GROUPS], place[GROUPS];
#pragma unroll
    for (u32 k = 0; k < GROUPS; k++) {
        u32 i = first + 32 * k;
        key[k] = i < count ? key_at(keys, i, end) : 0;
        place[k] = i < count && !is_first ? places[i] : i;
        if (i < count) atomicAdd(&next[warp][key[k] >> shift & (DIGITS - 1)], 1u);
    }
    __syncthreads();
    u32 to = counts[threadIdx.x * gridDim.x + blockIdx.x];
    for (u32 i = 0; i < WARPS; i++) {
        u32 keys_of_warp = next[i][threadIdx.x];
        next[i][threadIdx.x] = to;
        to += keys_of_warp;
    }
    __syncthreads();
#pragma unroll
    for (u32 k = 0; k < GROUPS; k++) {
        bool is_key = first + 32 * k < count;
        u32 digit = key[k] >> shift & (DIGITS - 1), same = lanes_with(digit, is_key);
        u32 before = __popc(same & ((1u << lane) - 1));
        u32 at = next[warp][digit] + before;
        if (is_key) {
            to_keys[at] = key[k];
            to_places[at] = place[k];
        }
        __syncwarp();
        if (is_key && before == 0) next[warp][digit] += __popc(same);
        __syncwarp();
    }
}
