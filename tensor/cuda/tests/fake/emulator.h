// Runs CUDA kernels on the processor, for tests. Included before every kernel's source by the emulating compiler
// (`libnvrtc.c`), which makes a library of it; the driver of the tests (`libcuda.c`) loads that and calls `emulator_run`.
//
// A block's threads are fibers of one thread of the system, blocks run one after the other. A fiber runs until it comes
// to a barrier. Warps run by turns, a warp's lanes up to the same `__shfl_sync` or `__syncwarp`; that some lanes of a warp are
// at one kind of barrier and others at another is a fault of the kernel, and ends the process with a line that says so.
// EMULATOR_ORDER=reverse runs warps, lanes and blocks backwards: a kernel that needs a barrier which it does not
// have gives other bits. Shared memory begins as NaN. Products and sums round apart (-ffp-contract=off).
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <deque>
#include <tuple>
#include <utility>
#include <vector>

namespace emulator {

struct Triple { unsigned x, y, z; };

enum State { READY, AT_WARP, AT_BLOCK, DONE };

struct Fiber {
    void* stack_pointer;
    Triple thread;
    unsigned number;
    State state;
    unsigned shuffles;  // how many barriers of the warp it has passed
    char* stack;
};

enum { THREADS_MAX = 1024, WARP = 32, STACK_BYTES = 128 << 10, SLOT_BYTES = 256 };

struct Warp { alignas(16) unsigned char slots[2][WARP][SLOT_BYTES]; };

inline thread_local Fiber* now;
inline thread_local Fiber* fibers;
inline thread_local Warp* warps;
inline thread_local void* home;
inline thread_local Triple block_index, block_size, grid_size;
inline thread_local char* dynamic_shared;
inline thread_local void (*body)(void*);
inline thread_local void* body_arguments;

// Keeps what a call must keep on the stack it leaves, and takes it from the one it enters.
extern "C" void emulator_switch(void** from, void* to);
__asm__(
    ".pushsection .text\n"
    ".weak emulator_switch\n"
    ".hidden emulator_switch\n"
    "emulator_switch:\n"
    "  pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
    "  ret\n"
    ".popsection\n");

inline void wait(State at) {
    now->state = at;
    emulator_switch(&now->stack_pointer, home);
}

struct Copy { void* to; const void* from; unsigned bytes; bool is_there; };
// Copies to shared memory that a thread has started, in groups; the last one is open. They happen when they are waited
// for and no sooner, so that a kernel which does not wait reads what was there before.
inline thread_local std::deque<std::vector<Copy>> copies[THREADS_MAX];

inline void copy_later(void* to, const void* from, unsigned bytes, bool is_there) {
    auto& groups = copies[now->number];
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back({to, from, bytes, is_there});
}
inline void end_copies() {
    auto& groups = copies[now->number];
    if (groups.empty()) groups.emplace_back();
    groups.emplace_back();
}
inline void fault(const char* what);
inline void wait_for_copies(unsigned but) {
    auto& groups = copies[now->number];
    for (; groups.size() > but + 1; groups.pop_front())
        for (const Copy& copy : groups.front()) {
            if ((uintptr_t)copy.to % copy.bytes || (copy.is_there && (uintptr_t)copy.from % copy.bytes))
                fault("a copy at an odd address");
            if (copy.is_there) memcpy(copy.to, copy.from, copy.bytes);
            else memset(copy.to, 0, copy.bytes);
        }
}
inline void no_copies_are_left() {
    for (const auto& group : copies[now->number])
        if (!group.empty()) fault("a thread ended without waiting for its copies");
    copies[now->number].clear();
}

inline void fiber_main() {
    body(body_arguments);
    no_copies_are_left();
    now->state = DONE;
    emulator_switch(&now->stack_pointer, home);
    abort();
}

inline void prepare(Fiber& fiber) {
    // The stack that `emulator_switch` leaves by: six registers, then the address to return to, aligned as after a call.
    void** top = reinterpret_cast<void**>(fiber.stack + STACK_BYTES);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top;
    fiber.state = READY;
    fiber.shuffles = 0;
}

inline void fault(const char* what) {
    fprintf(stderr, "emulator: %s in block %u %u %u of a kernel\n", what, block_index.x, block_index.y, block_index.z);
    abort();
}

inline bool is_reverse() {
    static const bool reverse = [] {
        const char* order = getenv("EMULATOR_ORDER");
        return order && !strcmp(order, "reverse");
    }();
    return reverse;
}

inline void resume(Fiber& fiber) {
    now = &fiber;
    emulator_switch(&home, fiber.stack_pointer);
}

// Runs a warp until all of its lanes wait for the block or are done.
inline void run_warp(unsigned first, unsigned end) {
    for (;;) {
        unsigned at_warp = 0, at_block = 0, done = 0;
        for (unsigned i = first; i < end; i++) {
            Fiber& fiber = fibers[is_reverse() ? end - 1 - (i - first) : i];
            if (fiber.state == READY || fiber.state == AT_WARP) resume(fiber);
        }
        for (unsigned i = first; i < end; i++) {
            at_warp += fibers[i].state == AT_WARP;
            at_block += fibers[i].state == AT_BLOCK;
            done += fibers[i].state == DONE;
        }
        if (!at_warp) {
            if (at_block && done) fault("some lanes of a warp ended, and others wait for the block,");
            return;
        }
        if (at_block || done) fault("lanes of a warp are not at the same barrier");
        for (unsigned i = first + 1; i < end; i++)
            if (fibers[i].shuffles != fibers[first].shuffles) fault("lanes of a warp are at different shuffles");
    }
}

inline void run_block() {
    unsigned threads = block_size.x * block_size.y * block_size.z;
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].number = i;
        fibers[i].thread = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
        prepare(fibers[i]);
    }
    unsigned warp_count = (threads + WARP - 1) / WARP;
    for (;;) {
        for (unsigned i = 0; i < warp_count; i++) {
            unsigned warp = is_reverse() ? warp_count - 1 - i : i;
            unsigned end = (warp + 1) * WARP < threads ? (warp + 1) * WARP : threads;
            run_warp(warp * WARP, end);
        }
        unsigned done = 0;
        for (unsigned i = 0; i < threads; i++) done += fibers[i].state == DONE;
        if (done == threads) return;
        for (unsigned i = 0; i < threads; i++)
            if (fibers[i].state == AT_BLOCK) fibers[i].state = READY;
    }
}

inline void make_room(unsigned threads) {
    if (!fibers) {
        fibers = static_cast<Fiber*>(calloc(THREADS_MAX, sizeof(Fiber)));
        warps = static_cast<Warp*>(aligned_alloc(64, THREADS_MAX / WARP * sizeof(Warp)));
    }
    for (unsigned i = 0; i < threads && !(fibers[i].stack && i + 1 == threads); i++) {
        if (fibers[i].stack) continue;
        void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) fault("no memory for a thread's stack");
        fibers[i].stack = static_cast<char*>(stack);
    }
}

struct Shape { unsigned grid[3], block[3], shared_bytes; };

inline void run_grid(const Shape& shape, void (*what)(void*), void* arguments) {
    unsigned threads = shape.block[0] * shape.block[1] * shape.block[2];
    make_room(threads);
    unsigned room = shape.shared_bytes ? shape.shared_bytes : 16;
    dynamic_shared = static_cast<char*>(aligned_alloc(128, (room + 127) / 128 * 128));
    grid_size = {shape.grid[0], shape.grid[1], shape.grid[2]};
    block_size = {shape.block[0], shape.block[1], shape.block[2]};
    body = what;
    body_arguments = arguments;
    uint64_t blocks = (uint64_t)grid_size.x * grid_size.y * grid_size.z;
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t block = is_reverse() ? blocks - 1 - i : i;
        block_index = {(unsigned)(block % grid_size.x), (unsigned)(block / grid_size.x % grid_size.y),
                       (unsigned)(block / grid_size.x / grid_size.y)};
        memset(dynamic_shared, 0xff, room);
        run_block();
    }
    free(dynamic_shared);
}

// Kernels by name, with the sizes of their parameters.
struct Kernel {
    const char* name;
    unsigned (*sizes)(unsigned*);
    void (*run)(const Shape&, void** arguments);
    Kernel* next;
};
inline Kernel* kernels;

template <class... A>
struct Caller {
    template <void (*f)(A...)>
    static void run(const Shape& shape, void** arguments) {
        run_grid(shape, [](void* given) { call<f>(static_cast<void**>(given), std::index_sequence_for<A...>()); }, arguments);
    }
    template <void (*f)(A...), size_t... i>
    static void call(void** arguments, std::index_sequence<i...>) {
        f(*static_cast<std::remove_cv_t<A>*>(arguments[i])...);
    }
    static unsigned sizes(unsigned* to) {
        unsigned all[] = {0, (unsigned)sizeof(A)...};
        for (size_t i = 0; i < sizeof...(A); i++) to[i] = all[i + 1];
        return sizeof...(A);
    }
};

struct Registered {
    Kernel kernel;
    template <class... A>
    Registered(const char* name, void (*)(A...), void (*run)(const Shape&, void**))
        : kernel{name, &Caller<A...>::sizes, run, kernels} {
        kernels = &kernel;
    }
};
template <auto f>
struct Runs;
template <class... A, void (*f)(A...)>
struct Runs<f> {
    static void run(const Shape& shape, void** arguments) { Caller<A...>::template run<f>(shape, arguments); }
};

// A value to every lane of the warp; what lane `from` gave. Two sets of slots take turns, so that a lane which is
// ahead by one does not overwrite what another still reads.
template <class T, class Pick>
inline T exchange(T value, Pick pick) {
    static_assert(sizeof(T) <= SLOT_BYTES, "a slot holds it");
    Fiber* self = now;
    Warp& warp = warps[self->number / WARP];
    unsigned turn = self->shuffles++ % 2, lane = self->number % WARP;
    memcpy(warp.slots[turn][lane], &value, sizeof(T));
    wait(AT_WARP);
    unsigned threads = block_size.x * block_size.y * block_size.z;
    unsigned lanes = threads - self->number / WARP * WARP < WARP ? threads - self->number / WARP * WARP : WARP;
    return pick(warp, turn, lane, lanes);
}

template <class T>
inline T slot(const Warp& warp, unsigned turn, unsigned lane) {
    T value;
    memcpy(&value, warp.slots[turn][lane], sizeof(T));
    return value;
}

inline void whole(unsigned mask) {
    if (mask != 0xffffffffu) fault("a barrier of a part of a warp, which is not emulated,");
}

// To nearest even, as `cvt.rn.bf16x2.f32`: denormal numbers stay, a NaN becomes 0x7fff.
inline unsigned bf16_of(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
inline double of_bf16(unsigned bits) {
    bits <<= 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// mma.m16n8k16 of bf16 with f32 sums, of fragments as `bf16.cuh` says. The model: products are exact, the sum of the
// sixteen and of what was there is rounded to f32 once. A GPU's cores keep fewer bits of the sum while they add; which
// ones NVIDIA does not say. So this shows that the right numbers meet, and not the bits that a GPU gives.
inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    struct Fragment { unsigned a[4], b[2]; } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    exchange(mine, [&](Warp& warp, unsigned turn, unsigned lane, unsigned lanes) {
        if (lanes != WARP) fault("a product of tensor cores in a warp that is not whole");
        double rows[2][16], columns[2][16];
        for (unsigned t = 0; t < 4; t++) {
            Fragment of_a = slot<Fragment>(warp, turn, lane / 4 * 4 + t);
            for (unsigned i = 0; i < 4; i++)
                for (unsigned odd = 0; odd < 2; odd++)
                    rows[i % 2][i / 2 * 8 + 2 * t + odd] = of_bf16(of_a.a[i] >> 16 * odd & 0xffffu);
            for (unsigned column = 0; column < 2; column++) {
                Fragment of_b = slot<Fragment>(warp, turn, (lane % 4 * 2 + column) * 4 + t);
                for (unsigned i = 0; i < 2; i++)
                    for (unsigned odd = 0; odd < 2; odd++)
                        columns[column][i * 8 + 2 * t + odd] = of_bf16(of_b.b[i] >> 16 * odd & 0xffffu);
            }
        }
        for (unsigned i = 0; i < 4; i++) {
            double sum = c[i];
            for (unsigned k = 0; k < 16; k++) sum += rows[i / 2][k] * columns[i % 2][k];
            c[i] = (float)sum;
        }
        return mine;
    });
}

// ldmatrix.x4, or with .trans.
inline void load_matrices(unsigned (&to)[4], const unsigned short* row, int transposed) {
    if ((uintptr_t)row % 16) fault("a row of a matrix at an odd address");
    exchange(row, [&](Warp& warp, unsigned turn, unsigned lane, unsigned lanes) {
        if (lanes != WARP) fault("matrices loaded by a warp that is not whole");
        unsigned group = lane / 4, first = lane % 4 * 2;
        for (unsigned i = 0; i < 4; i++) {
            auto at = [&](unsigned line, unsigned number) -> unsigned {
                return slot<const unsigned short*>(warp, turn, i * 8 + line)[number];
            };
            to[i] = transposed ? at(first, group) | at(first + 1, group) << 16
                               : at(group, first) | at(group, first + 1) << 16;
        }
        return row;
    });
}

}  // namespace emulator

#define EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __constant__ static const
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__
// One thread of the system runs all of a block, and blocks one after the other.
#define __shared__ static thread_local

#define threadIdx (emulator::now->thread)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

#define KERNEL(name, ...)                                                                              \
    static void name(__VA_ARGS__);                                                                     \
    static emulator::Registered registered_##name(#name, &name, &emulator::Runs<&name>::run);          \
    static void name(__VA_ARGS__)
#define BOUNDED_KERNEL(threads, name, ...) KERNEL(name, __VA_ARGS__)
#define RESIDENT_KERNEL(threads, blocks, name, ...) KERNEL(name, __VA_ARGS__)
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::dynamic_shared)

static inline void __syncthreads() { emulator::wait(emulator::AT_BLOCK); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulator::whole(mask);
    emulator::exchange(0, [](emulator::Warp&, unsigned, unsigned, unsigned) { return 0; });
}
template <class T>
static inline T __shfl_sync(unsigned mask, T value, int from) {
    emulator::whole(mask);
    return emulator::exchange(value, [&](emulator::Warp& warp, unsigned turn, unsigned, unsigned) {
        return emulator::slot<T>(warp, turn, (unsigned)from % 32);
    });
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int with) {
    emulator::whole(mask);
    return emulator::exchange(value, [&](emulator::Warp& warp, unsigned turn, unsigned lane, unsigned) {
        return emulator::slot<T>(warp, turn, lane ^ (unsigned)with);
    });
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by) {
    emulator::whole(mask);
    return emulator::exchange(value, [&](emulator::Warp& warp, unsigned turn, unsigned lane, unsigned lanes) {
        return emulator::slot<T>(warp, turn, lane + by < lanes ? lane + by : lane);
    });
}
static inline unsigned __ballot_sync(unsigned mask, int is) {
    emulator::whole(mask);
    return emulator::exchange(is, [](emulator::Warp& warp, unsigned turn, unsigned, unsigned lanes) {
        unsigned bits = 0;
        for (unsigned i = 0; i < lanes; i++) bits |= (emulator::slot<int>(warp, turn, i) != 0 ? 1u : 0u) << i;
        return bits;
    });
}

static inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
static inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline long long __double_as_longlong(double x) { long long bits; memcpy(&bits, &x, 8); return bits; }
static inline double __longlong_as_double(long long bits) { double x; memcpy(&x, &bits, 8); return x; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
// One thread runs at a time.
static inline unsigned atomicAdd(unsigned* at, unsigned by) { unsigned was = *at; *at = was + by; return was; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dsqrt_rn(double x) { return sqrt(x); }
template <class T>
static inline T __ldg(const T* at) { return *at; }
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// What the driver of the tests asks for.
extern "C" __attribute__((visibility("default"))) const void* emulator_find(const char* name) {
    for (emulator::Kernel* kernel = emulator::kernels; kernel; kernel = kernel->next)
        if (!strcmp(kernel->name, name)) return kernel;
    return nullptr;
}
// How many parameters, and the bytes of each.
extern "C" __attribute__((visibility("default"))) unsigned emulator_sizes(const void* kernel, unsigned* sizes) {
    return static_cast<const emulator::Kernel*>(kernel)->sizes(sizes);
}
// `shape`: grid, block, bytes of shared memory.
extern "C" __attribute__((visibility("default"))) void emulator_run(const void* kernel, const unsigned* shape, void** arguments) {
    emulator::Shape asked;
    memcpy(&asked, shape, sizeof asked);
    static_cast<const emulator::Kernel*>(kernel)->run(asked, arguments);
}
