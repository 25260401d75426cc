// y = f(a), f(a, b) or f(a, b, c) with broadcasting, and several such functions as one loop, with the bits of
// `tensor/src/ops/{pointwise,fused}.rs`.
//
// The functions are a program of steps, given by value, that every thread runs on a chunk of four neighbours: what a step
// makes stays in registers for the next one, and in shared memory for those that come later, so that nothing between
// inputs and outputs meets memory. All threads are at the same step, so choosing the function does not part a warp, and
// four elements share the choice. Axes: those of the walk (`walk.cuh`), y the first operand, the inputs behind it.
// Grid: a thread a chunk, more by turns. No element depends on another, so there is no order.
#include "math.cuh"
#include "pow.cuh"
#include "walk.cuh"

// By the numbers that `src/lower/each.rs` gives them.
enum Function : u32 {
    SAME, NEG, ABS, EXP, LN, SQRT, TANH, SIGMOID, SILU, RELU, NOT, SCALE, SHIFT, POW, CLAMP, ROUND_BF16, ROUND_F16,
    ADD, SUB, MUL, DIV, MAX, MIN, EQ, NE, LT, LE, GT, GE, WHERE,
    ABS_GRAD, SILU_GRAD, POW_GRAD, CLAMP_GRAD, SQRT_GRAD, TANH_GRAD, SIGMOID_GRAD, RELU_GRAD, ZERO,
};

static const u32 STEPS_MAX = 16;
static const u32 INPUTS_MAX = 8;
static const u32 OUTPUTS_MAX = 3;
static const u32 THREADS = 128;

struct Step {
    u32 function;
    // Where its operands come from, a byte each: see `Source`.
    u32 from;
    // The output that it is, if it is under OUTPUTS_MAX, and in the byte above the slot that keeps it, if there is one.
    u32 to;
    u32 power_kind;
    float p, q;
    double power;
};

// Inputs have their numbers, slots of shared memory SLOT and more.
enum Source : u32 {
    SLOT = 16,
    // What the step before made.
    LAST = 254,
    NOTHING = 255,
};

struct Program {
    u32 count;
    Step steps[STEPS_MAX];
};

struct Tensors {
    float* y[OUTPUTS_MAX];
    const float* x[INPUTS_MAX];
};

__device__ __forceinline__ float truth(bool is) { return is ? 1.0f : 0.0f; }

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + math::exp(-x)); }

// To the nearest bf16, ties to even; what is too large becomes infinite.
__device__ __forceinline__ float rounded_to_bf16(float x) {
    u32 bits = bits_of(x);
    u32 upper = x != x ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return of_bits(upper << 16);
}

// To the nearest f16: under 2^-14 its last place is 2^-24, which adding 1/2 leaves in the mantissa.
__device__ __forceinline__ float rounded_to_f16(float x) {
    u32 sign = bits_of(x) & 0x80000000u, size = bits_of(x) & 0x7fffffffu;
    if (x != x) return x;
    if (size >= 0x477ff000u) return of_bits(sign | 0x7f800000u);
    if (size < 0x38800000u) {
        u32 places = bits_of(of_bits(size) + 0.5f) - bits_of(0.5f);
        return of_bits(sign | bits_of((float)places * (1.0f / 16777216.0f)));
    }
    return of_bits(sign | ((size + 0xfffu + (size >> 13 & 1u)) & ~0x1fffu));
}

template <class F>
__device__ __forceinline__ Quad mapped(const Quad& a, F f) {
    return {{f(a.x[0]), f(a.x[1]), f(a.x[2]), f(a.x[3])}};
}

template <class F>
__device__ __forceinline__ Quad mapped(const Quad& a, const Quad& b, F f) {
    return {{f(a.x[0], b.x[0]), f(a.x[1], b.x[1]), f(a.x[2], b.x[2]), f(a.x[3], b.x[3])}};
}

// Comparisons are written as the processor's: a NaN makes each of them false.
__device__ __forceinline__ Quad of_one(const Step& step, const Quad& a) {
    float p = step.p, q = step.q;
    switch (step.function) {
        case NEG: return mapped(a, [](float x) { return -x; });
        case ABS: return mapped(a, [](float x) { return x < 0.0f ? -x : x + 0.0f; });
        case EXP: return mapped(a, [](float x) { return math::exp(x); });
        case LN: return mapped(a, [](float x) { return math::ln(x); });
        case SQRT: return mapped(a, [](float x) { return __fsqrt_rn(x); });
        case TANH: return mapped(a, [](float x) { return math::tanh(x); });
        case SIGMOID: return mapped(a, [](float x) { return sigmoid(x); });
        case SILU: return mapped(a, [](float x) { return x * sigmoid(x); });
        case RELU: return mapped(a, [](float x) { return x <= 0.0f ? 0.0f : x; });
        case NOT: return mapped(a, [](float x) { return truth(x == 0.0f); });
        case SCALE: return mapped(a, [p](float x) { return p * x; });
        case SHIFT: return mapped(a, [p](float x) { return x + p; });
        case CLAMP: return mapped(a, [p, q](float x) {
            x = x < p ? p : x;
            return x > q ? q : x;
        });
        case ROUND_BF16: return mapped(a, [](float x) { return rounded_to_bf16(x); });
        case ROUND_F16: return mapped(a, [](float x) { return rounded_to_f16(x); });
        default: return a;
    }
}

__device__ __forceinline__ Quad of_two(const Step& step, const Quad& a, const Quad& b) {
    float p = step.p, q = step.q;
    switch (step.function) {
        case ADD: return mapped(a, b, [](float a, float b) { return a + b; });
        case SUB: return mapped(a, b, [](float a, float b) { return a - b; });
        case MUL: return mapped(a, b, [](float a, float b) { return a * b; });
        case DIV: return mapped(a, b, [](float a, float b) { return a / b; });
        case MAX: return mapped(a, b, [](float a, float b) { return b > a || b != b ? b : a; });
        case MIN: return mapped(a, b, [](float a, float b) { return b < a || b != b ? b : a; });
        case EQ: return mapped(a, b, [](float a, float b) { return truth(a == b); });
        case NE: return mapped(a, b, [](float a, float b) { return truth(a != b); });
        case LT: return mapped(a, b, [](float a, float b) { return truth(a < b); });
        case LE: return mapped(a, b, [](float a, float b) { return truth(a <= b); });
        case GT: return mapped(a, b, [](float a, float b) { return truth(a > b); });
        case GE: return mapped(a, b, [](float a, float b) { return truth(a >= b); });
        case ABS_GRAD: return mapped(a, b, [](float x, float dy) { return x < 0.0f ? -dy : x == 0.0f ? 0.0f : dy; });
        case SILU_GRAD: return mapped(a, b, [](float x, float dy) {
            float share = sigmoid(x);
            return dy * (share + x * (share * (1.0f - share)));
        });
        case CLAMP_GRAD: return mapped(a, b, [p, q](float x, float dy) { return x < p || x > q ? 0.0f : dy; });
        case SQRT_GRAD: return mapped(a, b, [](float y, float dy) { return dy / (y + y); });
        case TANH_GRAD: return mapped(a, b, [](float y, float dy) { return dy * (1.0f - y * y); });
        case SIGMOID_GRAD: return mapped(a, b, [](float y, float dy) { return dy * (y * (1.0f - y)); });
        case RELU_GRAD: return mapped(a, b, [](float y, float dy) { return y <= 0.0f ? 0.0f : dy; });
        default: return {{0.0f, 0.0f, 0.0f, 0.0f}};
    }
}

// One element after the other: the powers of four at a time would not fit in registers.
__device__ __forceinline__ Quad of_power(const Step& step, const Quad& a, const Quad& b) {
    Quad y = a;
#pragma unroll 1
    for (u32 i = 0; i < 4; i++) {
        float power = powers::fixed(y.x[0], step.power, step.power_kind);
        // By turns, so that no index into registers is taken.
        y = {{y.x[1], y.x[2], y.x[3], power}};
    }
    if (step.function == POW) return y;
    float factor = step.p;
    return mapped(y, b, [factor](float power, float dy) { return dy * (factor * power); });
}

// Chooses what is not 0 of the first: what is not chosen leaves no trace.
__device__ __forceinline__ Quad of_three(const Quad& a, const Quad& b, const Quad& c) {
    Quad y;
#pragma unroll
    for (u32 i = 0; i < 4; i++) y.x[i] = a.x[i] != 0.0f ? b.x[i] : c.x[i];
    return y;
}

enum Powers { NONE, SOME };

// Powers are only in the functions of a kernel of its own: they take the registers of all.
template <Powers powers>
__device__ __forceinline__ void run(const Tensors& tensors, const Program& program, const Walk<1 + INPUTS_MAX>& walk,
                                    float4* slots) {
    // Each thread has its own part of every slot.
    slots += threadIdx.x;
    for (u32 number = (u32)first_number(); number < walk.box.count; number += (u32)number_stride()) {
        Chunk chunk = walk::chunk(walk, number);
        Quad last = {{0.0f, 0.0f, 0.0f, 0.0f}};
        for (u32 i = 0; i < program.count; i++) {
            const Step& step = program.steps[i];
            auto operand = [&](u32 which) -> Quad {
                u32 from = step.from >> 8 * which & 255u;
                if (from == LAST) return last;
                if (from < SLOT) return walk::load(walk, chunk, 1 + from, tensors.x[from]);
                float4 kept = slots[(from - SLOT) * blockDim.x];
                return {{kept.x, kept.y, kept.z, kept.w}};
            };
            Quad a = operand(0);
            if (powers == SOME && (step.function == POW || step.function == POW_GRAD)) {
                last = of_power(step, a, step.function == POW ? a : operand(1));
            } else if (step.function == WHERE) {
                Quad b = operand(1);
                last = of_three(a, b, operand(2));
            } else if (step.function >= ADD) {
                last = of_two(step, a, operand(1));
            } else {
                last = of_one(step, a);
            }
            u32 output = step.to & 255u, slot = step.to >> 8;
            if (slot != NOTHING) slots[slot * blockDim.x] = make_float4(last.x[0], last.x[1], last.x[2], last.x[3]);
            if (output < OUTPUTS_MAX) walk::store(walk, chunk, 0, tensors.y[output], last);
        }
    }
}

BOUNDED_KERNEL(THREADS, each, const __grid_constant__ Tensors tensors, const __grid_constant__ Program program,
               const __grid_constant__ Walk<1 + INPUTS_MAX> walk) {
    DYNAMIC_SHARED(float4, slots);
    run<NONE>(tensors, program, walk, slots);
}

BOUNDED_KERNEL(THREADS, each_with_powers, const __grid_constant__ Tensors tensors, const __grid_constant__ Program program,
               const __grid_constant__ Walk<1 + INPUTS_MAX> walk) {
    DYNAMIC_SHARED(float4, slots);
    run<SOME>(tensors, program, walk, slots);
}
