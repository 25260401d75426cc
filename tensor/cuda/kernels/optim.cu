// One step of an optimizer on flat vectors: element by element, with the formulas and roundings of
// `elastic_tensor::optim`.
//
//   g = sum · correction · clip + coupled · p                     each product and sum rounded
//   sgd       p -= lr · g
//   momentum  m = β m + g,  p -= lr · m                           nesterov: p -= lr · (g + β m)
//   adam      m += (1-β₁)(g - m),  v = β₂ v + (1-β₂) g g,  p = p · shrink - size · (m / (√v / root + eps))
//   pool      running statistics from the moments of all shards about the old mean
//   follow    average += rate · (p - average)
//   clear     the gradients of what is not trained are 0: it has no share in the norm
//
// Grid: a block a piece, neighbours in the flat vector that have the same rates, at most a few thousand numbers. A piece
// may begin anywhere: up to a multiple of four its numbers are taken one by one, then four by four in 16 bytes. No number
// depends on another, so there is no order. Where the reduced vector was found not to be finite, nothing moves.
#include "optim.cuh"

static const u32 THREADS = 256;

// Calls `one` for the numbers of a piece that lie before and behind its multiples of four, and `four` for those.
template <class One, class Four>
__device__ __forceinline__ void each(u64 start, u32 count, One one, Four four) {
    u32 head = (u32)(0 - start) & 3u;
    if (head > count) head = count;
    u32 fours = (count - head) / 4;
    u32 tail = head + 4 * fours;
    if (threadIdx.x < head) one(start + threadIdx.x);
    for (u32 i = threadIdx.x; i < fours; i += THREADS) four(start + head + 4 * i);
    if (threadIdx.x < count - tail) one(start + tail + threadIdx.x);
}

__device__ __forceinline__ float4 read4(const float* x, u64 i) { return *reinterpret_cast<const float4*>(x + i); }
__device__ __forceinline__ void write4(float* x, u64 i, float4 y) { *reinterpret_cast<float4*>(x + i) = y; }

// The two factors on a sum. Sums count as 0 where no sample does.
struct Gradient {
    float correction, clip;
    bool counts;
    __device__ __forceinline__ Gradient(const StepScalars* step, const Found* found)
        : correction(step->correction), clip(found->clip), counts(step->counts != 0) {}
    __device__ __forceinline__ float operator()(float sum) const { return (counts ? sum : 0.0f) * correction * clip; }
};

struct Sgd {
    __device__ __forceinline__ static void step(const Rates& rates, float g, float& p) {
        p -= rates.lr * (g + rates.coupled * p);
    }
};

struct Momentum {
    __device__ __forceinline__ static void step(const Rates& rates, float g, float& p, float& m) {
        m = rates.beta[0] * m + (g + rates.coupled * p);
        p -= rates.lr * m;
    }
};

struct Nesterov {
    __device__ __forceinline__ static void step(const Rates& rates, float g, float& p, float& m) {
        g = g + rates.coupled * p;
        m = rates.beta[0] * m + g;
        p -= rates.lr * (g + rates.beta[0] * m);
    }
};

struct Adam {
    __device__ __forceinline__ static void step(const Rates& rates, float g, float& p, float& m, float& v) {
        g = g + rates.coupled * p;
        m += rates.rest[0] * (g - m);
        v = rates.beta[1] * v + rates.rest[1] * g * g;
        p = p * rates.shrink - rates.size * (m / (__fsqrt_rn(v) / rates.root + rates.eps));
    }
};

BOUNDED_KERNEL(THREADS, sgd, float* p, const float* sums, const Piece* pieces, const StepScalars* step, const Rates* all,
               const Found* found) {
    if (found->is_bad) return;
    Piece piece = pieces[blockIdx.x];
    Rates rates = all[piece.rates];
    Gradient gradient(step, found);
    auto one = [&](u64 i) {
        float own = p[i];
        Sgd::step(rates, gradient(sums[i]), own);
        p[i] = own;
    };
    auto four = [&](u64 i) {
        float4 g = read4(sums, i), own = read4(p, i);
        Sgd::step(rates, gradient(g.x), own.x);
        Sgd::step(rates, gradient(g.y), own.y);
        Sgd::step(rates, gradient(g.z), own.z);
        Sgd::step(rates, gradient(g.w), own.w);
        write4(p, i, own);
    };
    each(piece.start, piece.count, one, four);
}

template <class Rule>
__device__ __forceinline__ void with_a_moment(float* p, float* m, const float* sums, const Piece* pieces,
                                              const StepScalars* step, const Rates* all, const Found* found) {
    if (found->is_bad) return;
    Piece piece = pieces[blockIdx.x];
    Rates rates = all[piece.rates];
    Gradient gradient(step, found);
    auto one = [&](u64 i) {
        float own = p[i], moment = m[i];
        Rule::step(rates, gradient(sums[i]), own, moment);
        p[i] = own;
        m[i] = moment;
    };
    auto four = [&](u64 i) {
        float4 g = read4(sums, i), own = read4(p, i), moment = read4(m, i);
        Rule::step(rates, gradient(g.x), own.x, moment.x);
        Rule::step(rates, gradient(g.y), own.y, moment.y);
        Rule::step(rates, gradient(g.z), own.z, moment.z);
        Rule::step(rates, gradient(g.w), own.w, moment.w);
        write4(p, i, own);
        write4(m, i, moment);
    };
    each(piece.start, piece.count, one, four);
}

BOUNDED_KERNEL(THREADS, momentum, float* p, float* m, const float* sums, const Piece* pieces, const StepScalars* step,
               const Rates* all, const Found* found) {
    with_a_moment<Momentum>(p, m, sums, pieces, step, all, found);
}

BOUNDED_KERNEL(THREADS, nesterov, float* p, float* m, const float* sums, const Piece* pieces, const StepScalars* step,
               const Rates* all, const Found* found) {
    with_a_moment<Nesterov>(p, m, sums, pieces, step, all, found);
}

BOUNDED_KERNEL(THREADS, adam, float* p, float* m, float* v, const float* sums, const Piece* pieces,
               const StepScalars* step, const Rates* all, const Found* found) {
    if (found->is_bad) return;
    Piece piece = pieces[blockIdx.x];
    Rates rates = all[piece.rates];
    Gradient gradient(step, found);
    auto one = [&](u64 i) {
        float own = p[i], first = m[i], second = v[i];
        Adam::step(rates, gradient(sums[i]), own, first, second);
        p[i] = own;
        m[i] = first;
        v[i] = second;
    };
    auto four = [&](u64 i) {
        float4 g = read4(sums, i), own = read4(p, i), first = read4(m, i), second = read4(v, i);
        Adam::step(rates, gradient(g.x), own.x, first.x, second.x);
        Adam::step(rates, gradient(g.y), own.y, first.y, second.y);
        Adam::step(rates, gradient(g.z), own.z, first.z, second.z);
        Adam::step(rates, gradient(g.w), own.w, first.w, second.w);
        write4(p, i, own);
        write4(m, i, first);
        write4(v, i, second);
    };
    each(piece.start, piece.count, one, four);
}

// A block a part of a batch norm's statistics, which lie at the same places in the state and in the reduced vector.
BOUNDED_KERNEL(THREADS, pool, float* state, const float* reduced, const PoolPiece* pieces, const StepScalars* step,
               const Found* found) {
    if (found->is_bad || !step->counts) return;
    PoolPiece piece = pieces[blockIdx.x];
    float correction = step->correction;
    for (u32 k = threadIdx.x; k < piece.count; k += THREADS) {
        u64 mean = piece.mean + k, var = piece.var + k;
        float off = reduced[mean] * correction, square = reduced[var] * correction;
        state[mean] += piece.momentum * off;
        state[var] += piece.momentum * ((square - off * off) - state[var]);
    }
}

BOUNDED_KERNEL(THREADS, clear, float* sums, const Piece* pieces) {
    Piece piece = pieces[blockIdx.x];
    auto one = [&](u64 i) { sums[i] = 0.0f; };
    auto four = [&](u64 i) { write4(sums, i, make_float4(0.0f, 0.0f, 0.0f, 0.0f)); };
    each(piece.start, piece.count, one, four);
}

// All parameters, whatever their rates and whether they are trained: a block takes `chunk` numbers.
BOUNDED_KERNEL(THREADS, follow, float* average, const float* p, u64 count, u32 chunk, float rate, const Found* found) {
    if (found->is_bad) return;
    u64 start = (u64)blockIdx.x * chunk;
    u32 here = count - start < chunk ? (u32)(count - start) : chunk;
    auto one = [&](u64 i) {
        float own = average[i];
        average[i] = own + rate * (p[i] - own);
    };
    auto four = [&](u64 i) {
        float4 x = read4(p, i), own = read4(average, i);
        own.x += rate * (x.x - own.x);
        own.y += rate * (x.y - own.y);
        own.z += rate * (x.z - own.z);
        own.w += rate * (x.w - own.w);
        write4(average, i, own);
    };
    each(start, here, one, four);
}
