// y = the sum of parts along the tree, as `elastic_spec::tree::fold` with `Layout::add` has it. A part is a subtree's
// sum: (floats) numbers, and behind them, in a round's last chunk, the tail of three words (`elastic_spec::layout::Tail`).
//
// Parts come from left to right, none inside another. Behind each, `closes` says how often what came last and the newest
// that waits become their sum, the older on the left. That is the tree's order, whatever parts it is made of, and each number goes
// through it by itself, in one thread: no bit depends on the grid. One part alone is copied, whatever its bits.
//
// Grid: any number of blocks; threads take numbers by turns, by fours where all addresses allow it. What waits lies in
// shared memory: (depth, thread) slots of 16 bytes. y may be one of the parts.
#include "device.cuh"

// As `PARTS_MAX` in `fold.rs`: parts and closes are below the 4 KiB that every driver takes as parameters.
static const u32 PARTS_MAX = 128;

struct Parts {
    u64 at[PARTS_MAX];
    unsigned char closes[PARTS_MAX];
};

struct Fours {
    typedef float4 T;
    static __device__ __forceinline__ T load(u64 at) { return *reinterpret_cast<const float4*>(at); }
    static __device__ __forceinline__ void store(u64 at, T value) { *reinterpret_cast<float4*>(at) = value; }
    static __device__ __forceinline__ T add(T a, T b) {
        return make_float4(tree_add(a.x, b.x), tree_add(a.y, b.y), tree_add(a.z, b.z), tree_add(a.w, b.w));
    }
};

struct Ones {
    typedef float T;
    static __device__ __forceinline__ T load(u64 at) { return *reinterpret_cast<const float*>(at); }
    static __device__ __forceinline__ void store(u64 at, T value) { *reinterpret_cast<float*>(at) = value; }
    static __device__ __forceinline__ T add(T a, T b) { return tree_add(a, b); }
};

// A word of the tail, which an odd number of floats leaves at a multiple of four bytes only. Counts wrap.
struct Count {
    typedef u64 T;
    static __device__ __forceinline__ T load(u64 at) {
        const u32* halves = reinterpret_cast<const u32*>(at);
        return halves[0] | (u64)halves[1] << 32;
    }
    static __device__ __forceinline__ void store(u64 at, T value) {
        u32* halves = reinterpret_cast<u32*>(at);
        halves[0] = (u32)value;
        halves[1] = (u32)(value >> 32);
    }
    static __device__ __forceinline__ T add(T a, T b) { return a + b; }
};

// The sum of losses, in f64, with one NaN as `tree_add` has one.
struct Loss : Count {
    union Bits { u64 bits; double value; };
    static __device__ __forceinline__ T add(T a, T b) {
        Bits left, right, sum;
        left.bits = a;
        right.bits = b;
        sum.value = left.value + right.value;
        return sum.value == sum.value ? sum.bits : 0x7ff8000000000000ull;
    }
};

// What lies `byte` bytes behind the beginning of each part.
template <class Kind>
__device__ __forceinline__ void fold(u64 y, const Parts& parts, u32 count, u64 byte, uint4* waiting) {
    typename Kind::T sum = Kind::load(parts.at[0] + byte);
    uint4* top = waiting + threadIdx.x;
    for (u32 part = 1; part < count; part++) {
        *reinterpret_cast<typename Kind::T*>(top) = sum;
        top += blockDim.x;
        sum = Kind::load(parts.at[part] + byte);
        for (u32 closes = parts.closes[part]; closes > 0; closes--) {
            top -= blockDim.x;
            sum = Kind::add(*reinterpret_cast<typename Kind::T*>(top), sum);
        }
    }
    Kind::store(y + byte, sum);
}

__device__ __forceinline__ void fold_tail(u64 y, const Parts& parts, u32 count, u64 floats, u32 words, uint4* waiting) {
    for (u64 word = first_number(); word < words; word += number_stride()) {
        u64 byte = 4 * floats + 8 * word;
        if (word == 0) fold<Loss>(y, parts, count, byte, waiting);
        else fold<Count>(y, parts, count, byte, waiting);
    }
}

// All addresses are multiples of 16. `words` of the tail are 3 or 0.
KERNEL(fold_fours, u64 y, Parts parts, u32 count, u64 floats, u32 words) {
    DYNAMIC_SHARED(uint4, waiting);
    u64 fours = floats / 4;
    for (u64 i = first_number(); i < fours; i += number_stride()) fold<Fours>(y, parts, count, 16 * i, waiting);
    for (u64 i = 4 * fours + first_number(); i < floats; i += number_stride()) fold<Ones>(y, parts, count, 4 * i, waiting);
    fold_tail(y, parts, count, floats, words, waiting);
}

KERNEL(fold_ones, u64 y, Parts parts, u32 count, u64 floats, u32 words) {
    DYNAMIC_SHARED(uint4, waiting);
    for (u64 i = first_number(); i < floats; i += number_stride()) fold<Ones>(y, parts, count, 4 * i, waiting);
    fold_tail(y, parts, count, floats, words, waiting);
}
