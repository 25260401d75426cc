// What leaves are made of, and their sums. A thread takes numbers by turns; no number depends on another.
#include "device.cuh"

// The gradient that a leaf starts from.
KERNEL(seed, float* y, const Call* call, u64 count) {
    for (u64 i = first_number(); i < count; i += number_stride()) y[i] = call->scale;
}

// y (count) = the sum of x (shards, count) along the tree over the shards, a power of two. Left siblings wait in
// registers, one a level; 2^20 shards have 20.
KERNEL(sum_leaves, float* y, const float* x, u64 count, u32 shards) {
    for (u64 i = first_number(); i < count; i += number_stride()) {
        float left[20];
        float sum = 0.0f;
        for (u32 shard = 0; shard < shards; shard++) {
            sum = x[shard * count + i];
            // As many levels close as the shard's number ends in ones.
            u32 level = 0;
            for (; shard >> level & 1u; level++) sum = tree_add(left[level], sum);
            left[level] = sum;
        }
        y[i] = sum;
    }
}

// Takes a finished leaf up the tree: `closed` levels close, and their left siblings lie in `room` (level, count); what
// comes out waits there too if a right sibling is still to come.
KERNEL(climb, float* y, float* room, u64 count, u32 closed, u32 keeps) {
    for (u64 i = first_number(); i < count; i += number_stride()) {
        float sum = y[i];
        for (u32 level = 0; level < closed; level++) sum = tree_add(room[level * count + i], sum);
        y[i] = sum;
        if (keeps) room[closed * count + i] = sum;
    }
}
