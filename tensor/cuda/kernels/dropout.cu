// y = x keep, or 0 where a random number is under p: the masks of `tensor/src/ops/dropout.rs`, drawn again.
//
// x: (sample, width). The mask is a function of (seed, path, step, slot of the sample, element): four neighbours of a sample
// are the four words of one Philox counter. `key` hashes seed and path in one thread, since the seed is only known when a
// call comes; `dropout` gives a thread four neighbours, more by turns. No number depends on another.
#include "map.cuh"

// SHA-256 (FIPS 180-4): the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
__constant__ u32 ROUNDS[64] = {
    0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u,
    0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u,
    0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau,
    0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u,
    0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
    0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u,
    0x19a4c116u, 0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
    0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u};

__device__ __forceinline__ u32 turned(u32 x, u32 by) { return x >> by | x << (32u - by); }

// Takes one block of sixteen words into the state.
__device__ __forceinline__ void compress(u32 (&state)[8], u32 (&words)[16]) {
    u32 a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
#pragma unroll
    for (u32 i = 0; i < 64; i++) {
        u32 word = words[i % 16];
        if (i >= 16) {
            u32 x = words[(i + 1) % 16], y = words[(i + 14) % 16];
            word += (turned(x, 7) ^ turned(x, 18) ^ x >> 3) + words[(i + 9) % 16] + (turned(y, 17) ^ turned(y, 19) ^ y >> 10);
            words[i % 16] = word;
        }
        u32 choice = (e & f) ^ (~e & g), majority = (a & b) ^ (a & c) ^ (b & c);
        u32 first = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + choice + ROUNDS[i] + word;
        u32 second = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + majority;
        h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

__device__ __forceinline__ u32 reversed(u32 word) {
    return word << 24 | (word & 0xff00u) << 8 | (word >> 8 & 0xff00u) | word >> 24;
}

// Up to four blocks of the padded message, as big-endian words. The seed's place in the first block of all is left 0.
struct Message {
    u32 words[64];
    u32 blocks;
    // 1 if the message begins here.
    u32 begins;
};

// key (8): the hash's state, from one part of a message to the next; behind the last part the first two words are the
// key of Philox. One thread.
KERNEL(key, u32* key, const Call* call, const __grid_constant__ Message message) {
    u32 state[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au, 0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
    if (!message.begins) {
        for (u32 i = 0; i < 8; i++) state[i] = key[i];
    }
    for (u32 block = 0; block < message.blocks; block++) {
        u32 words[16];
        for (u32 i = 0; i < 16; i++) words[i] = message.words[16 * block + i];
        if (message.begins && block == 0) {
            // The seed's eight bytes, the lowest first, are bytes 17 to 24.
            u32 low = reversed((u32)call->seed), high = reversed((u32)(call->seed >> 32));
            words[4] |= low >> 8;
            words[5] = low << 24 | high >> 8;
            words[6] |= high << 24;
        }
        compress(state, words);
    }
    for (u32 i = 0; i < 8; i++) key[i] = state[i];
}

// Ten rounds of Philox4x32, as `tensor/src/philox.rs`.
__device__ __forceinline__ uint4 philox(uint4 counter, u32 k0, u32 k1) {
#pragma unroll
    for (u32 i = 0; i < 10; i++) {
        u64 a = (u64)0xd2511f53u * counter.x, b = (u64)0xcd9e8d57u * counter.z;
        counter = make_uint4((u32)(b >> 32) ^ counter.y ^ k0, (u32)b, (u32)(a >> 32) ^ counter.w ^ k1, (u32)a);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return counter;
}

__device__ __forceinline__ float dropped(float x, u32 word, float p, float keep) {
    return (float)(word >> 8) * (1.0f / 16777216.0f) < p ? 0.0f : x * keep;
}

// `quads`: of a sample, the last of which may be short.
KERNEL(dropout, float* y, const float* x, const u32* key, const u64* slots, const Call* call, u64 samples, u64 width,
       float p, float keep) {
    u64 quads = (width + 3) / 4, count = samples * quads;
    bool are_whole = width % 4 == 0 && is_aligned(y) && is_aligned(x);
    // A division of 64 bits takes longer than the rounds.
    bool is_short = count >> 32 == 0;
    // The words of the hash are big-endian, those of the key are not.
    u32 k0 = reversed(key[0]), k1 = reversed(key[1]);
    u32 low = (u32)call->step, high = (u32)(call->step >> 32);
    for (u64 i = first_number(); i < count; i += number_stride()) {
        u64 sample = is_short ? (u32)i / (u32)quads : i / quads;
        u64 quad = i - sample * quads;
        uint4 words = philox(make_uint4((u32)quad, (u32)slots[sample], low, high), k0, k1);
        u64 at = sample * width + 4 * quad;
        if (are_whole) {
            float4 four = *reinterpret_cast<const float4*>(x + at);
            *reinterpret_cast<float4*>(y + at) =
                make_float4(dropped(four.x, words.x, p, keep), dropped(four.y, words.y, p, keep),
                            dropped(four.z, words.z, p, keep), dropped(four.w, words.w, p, keep));
            continue;
        }
        u64 left = width - 4 * quad;
        y[at] = dropped(x[at], words.x, p, keep);
        if (left > 1) y[at + 1] = dropped(x[at + 1], words.y, p, keep);
        if (left > 2) y[at + 2] = dropped(x[at + 2], words.z, p, keep);
        if (left > 3) y[at + 3] = dropped(x[at + 3], words.w, p, keep);
    }
}
