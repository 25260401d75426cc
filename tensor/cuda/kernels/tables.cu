// Rows of tables by index, and the sums of what comes back to each row.
//
// A gradient: y[outer, row] = the sum of the rows x[outer, use] whose index is `row`, over ascending uses: a chain
// from +0 for each shard, and the shards' sums along the tree. Uses come sorted by their index (`sort.cu`), so that
// those of a row are a run in ascending order, and those of a row in a shard too. A run of up to 32 is added by the
// warps that write the row, each some columns of it. A longer one would hold up the rest: it is found first, and its
// sum is made by blocks that read ahead (`chain.cuh`). It goes over a multiple of 32 in the sorted order, and the
// first of these is the number under which its sum lies. No float is added by an atomic; the one on a counter only
// says where in a list a run stands, which nothing depends on.
#include "chain.cuh"
#include "tables.cuh"

// The uses in the order of sorting, and the long runs among them.
struct Uses {
    u32 count;
    // Uses of a shard.
    u32 leaf;
    // Of the tree over shards.
    u32 levels;
    u32* keys;
    u32* places;
    // The first of each row, and one behind the last row's.
    u32* starts;
    // How many runs are long, then their numbers; by number, where they begin and end.
    u32* list;
    u32* firsts;
    u32* ends;
};
static const u32 RUN = 32;
__device__ __forceinline__ u32 numbers_of(u32 count) { return (count - 1) / RUN + 1; }

// As they lie in the room, one behind the other.
__device__ __forceinline__ Uses uses_in(u32* room, u32 count, u32 rows, u32 leaf, u32 levels) {
    u32* starts = room + 2 * (u64)count;
    u32* list = starts + rows + 1;
    u32* firsts = list + 1 + numbers_of(count);
    return {count, leaf, levels, room, room + count, starts, list, firsts, firsts + numbers_of(count)};
}

// The first of xs[low..high], which ascend, that is not less than a value.
__device__ __forceinline__ u32 lower_bound(const u32* xs, u32 low, u32 high, u32 value) {
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        if (xs[middle] < value) low = middle + 1;
        else high = middle;
    }
    return low;
}

// y (line, column) = the rows of x (outer, row, column) that `at` (use) names; a line is an (outer, use). An index
// outside of the table reads nothing and gives NaN, which the loss does not hide. Grid: blocks of (columns, lines);
// lines by turns.
template <class V>
__device__ __forceinline__ void take_rows_of(V* y, const V* x, const int* at, u64 lines, u64 uses, u64 rows,
                                             u64 columns) {
    for (u64 line = (u64)blockIdx.x * blockDim.y + threadIdx.y; line < lines; line += (u64)gridDim.x * blockDim.y) {
        u64 outer = lines == uses ? 0 : divide(line, uses);
        int row = at[line - outer * uses];
        bool is_row = row >= 0 && row < (long long)rows;
        const V* from = x + (outer * rows + (is_row ? row : 0)) * columns;
        for (u64 i = threadIdx.x; i < columns; i += blockDim.x)
            y[line * columns + i] = is_row ? from[i] : all_of<V>(one_nan());
    }
}
KERNEL(take_rows, float* y, const float* x, const int* at, u64 lines, u64 uses, u64 rows, u64 columns) {
    if (are_in_fours(x, y, columns))
        take_rows_of((float4*)y, (const float4*)x, at, lines, uses, rows, columns / 4);
    else
        take_rows_of(y, x, at, lines, uses, rows, columns);
}

// Where each row's uses begin; and no run is long yet.
KERNEL(row_starts, u32* room, u32 count, u32 rows) {
    Uses uses = uses_in(room, count, rows, 0, 0);
    if (first_number() == 0) uses.list[0] = 0;
    for (u64 row = first_number(); row <= rows; row += number_stride())
        uses.starts[row] = lower_bound(uses.keys, 0, count, (u32)row);
}

// Lists the long runs. A thread looks at one multiple of 32.
KERNEL(long_runs, u32* room, u32 count, u32 rows, u32 leaf) {
    Uses uses = uses_in(room, count, rows, leaf, 0);
    for (u64 number = first_number(); number < numbers_of(count); number += number_stride()) {
        u32 at = (u32)number * RUN, key = uses.keys[at];
        if (key >= rows) continue;
        u32 low = uses.places[at] / leaf * leaf;
        // Of the multiples in a run the first stands for it.
        if (at > 0 && uses.keys[at - RUN] == key && uses.places[at - RUN] >= low) continue;
        u32 first = lower_bound(uses.places, uses.starts[key], at, low);
        u32 end = lower_bound(uses.places, at, uses.starts[key + 1], low + leaf);
        if (end - first <= RUN) continue;
        uses.firsts[number] = first;
        uses.ends[number] = end;
        uses.list[1 + atomicAdd(uses.list, 1u)] = (u32)number;
    }
}

// sums (outer, number, column) of the long runs. Grid: along x 32 columns and an outer each, along y runs by turns.
BOUNDED_KERNEL(256, add_long_runs, float* sums, const float* x, u32* room, u32 count, u32 rows, u32 leaf, u64 columns) {
    __shared__ float tiles[2 * TILE];
    Uses uses = uses_in(room, count, rows, leaf, 0);
    u32 across = (u32)((columns + 31) / 32), numbers = numbers_of(count);
    u64 outer = blockIdx.x / across, first = (u64)(blockIdx.x % across) * 32;
    Columns of = {x + outer * count * columns, columns, first, 32};
    for (u32 i = blockIdx.y; i < uses.list[0]; i += gridDim.y) {
        u32 number = uses.list[1 + i];
        const u32 begin = uses.firsts[number];
        const u32* places = uses.places + begin;
        float sum = chain(of, uses.ends[number] - begin, [&](u64 row) { return (u64)places[row]; }, tiles);
        if (threadIdx.x < 32 && first + threadIdx.x < columns)
            sums[(outer * numbers + number) * columns + first + threadIdx.x] = sum;
        __syncthreads();
    }
}

// A warp's lanes hold the places of `count` rows; each lane adds its column of them in order.
template <class V>
__device__ __forceinline__ V add_run(const V* x, bool is_column, u32 place_of_lane, u32 count, u64 columns) {
    static const u32 AHEAD = 4;
    V sum = all_of<V>(0.0f);
    for (u32 first = 0; first < count; first += AHEAD) {
        V next[AHEAD];
#pragma unroll
        for (u32 k = 0; k < AHEAD; k++) {
            u32 place = __shfl_sync(WHOLE_WARP, place_of_lane, (int)((first + k) & 31u));
            if (is_column && first + k < count) next[k] = x[place * columns];
        }
#pragma unroll
        for (u32 k = 0; k < AHEAD; k++)
            if (is_column && first + k < count) sum = plus(sum, next[k]);
    }
    return sum;
}

// y (outer, row, column) from x (outer, use, column) and the sums of long runs. A warp takes a row's piece of 32
// columns (of four floats each, if it can) by turns.
template <class V>
__device__ __forceinline__ void add_rows_of(V* y, const V* x, const V* sums, const Uses& uses, u64 lines, u64 rows,
                                            u64 columns) {
    const u32 lane = threadIdx.x % 32;
    const u64 pieces = (columns + 31) / 32, numbers = numbers_of(uses.count);
    for (u64 item = first_number() / 32; item < lines * pieces; item += number_stride() / 32) {
        const u64 line = divide(item, pieces), column = (item - line * pieces) * 32 + lane;
        const u64 outer = divide(line, rows), row = line - outer * rows;
        const bool is_column = column < columns;
        const V* from = x + outer * uses.count * columns + column;
        // Left siblings wait, one a level, those whose bits are set. A shard without uses has the sum +0, which
        // changes nothing when it is added: chains from +0 never come to -0.
        V left[20], sum = all_of<V>(0.0f);
        u32 waiting = 0, at = uses.starts[row], end = uses.starts[row + 1];
        while (at < end) {
            u32 place = at + lane < end ? uses.places[at + lane] : 0xffffffffu;
            u32 shard = __shfl_sync(WHOLE_WARP, place, 0) / uses.leaf, behind = (shard + 1) * uses.leaf;
            u32 count = __popc(__ballot_sync(WHOLE_WARP, place < behind)), next = at + count;
            if (count == RUN && next < end && uses.places[next] < behind) {
                u32 number = (at + RUN - 1) / RUN;
                if (is_column) sum = sums[(outer * numbers + number) * columns + column];
                next = uses.ends[number];
            } else {
                sum = add_run(from, is_column, place, count, columns);
            }
            at = next;
            if (uses.levels == 0) break;
            // Up to the level at which the next shard with uses is on the other side.
            u32 closed = at < end ? 31 - __clz(shard ^ uses.places[at] / uses.leaf) : uses.levels;
            for (u32 level = 0; level < closed; level++)
                if (waiting >> level & 1) sum = tree_plus(left[level], sum);
            waiting &= ~((1u << closed) - 1);
            if (at < end) {
                left[closed] = sum;
                waiting |= 1u << closed;
            }
        }
        if (uses.levels) sum = tree_plus(sum, all_of<V>(0.0f));
        if (is_column) y[line * columns + column] = sum;
    }
}
KERNEL(add_rows, float* y, const float* x, const float* sums, u32* room, u32 count, u32 rows, u32 leaf, u32 levels,
       u64 lines, u64 columns) {
    Uses uses = uses_in(room, count, rows, leaf, levels);
    if (are_in_fours(x, y, columns))
        add_rows_of((float4*)y, (const float4*)x, (const float4*)sums, uses, lines, rows, columns / 4);
    else
        add_rows_of(y, x, sums, uses, lines, rows, columns);
}

// The same for rows of one shard that are narrower than a warp, and many: a thread an element of y.
KERNEL(add_narrow_rows, float* y, const float* x, const float* sums, u32* room, u32 count, u32 rows, u64 elements,
       u64 columns) {
    const Uses uses = uses_in(room, count, rows, count, 0);
    for (u64 i = first_number(); i < elements; i += number_stride()) {
        const u64 line = divide(i, columns), column = i - line * columns, outer = divide(line, rows);
        const u32 row = (u32)(line - outer * rows), at = uses.starts[row], end = uses.starts[row + 1];
        float sum = 0.0f;
        if (end - at > RUN) {
            sum = sums[(outer * numbers_of(count) + (at + RUN - 1) / RUN) * columns + column];
        } else {
            const float* from = x + outer * count * columns + column;
#pragma unroll 4
            for (u32 use = at; use < end; use++) sum += from[uses.places[use] * columns];
        }
        y[i] = sum;
    }
}
