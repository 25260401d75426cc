// What the kernels of an optimizer's step share: the tables and scalars that `src/optim.rs` writes, and what a step finds.
#pragma once
#include "device.cuh"

// Scalars of a step, in the GPU's memory so that a captured graph reads them anew each time.
struct StepScalars {
    // Infinity where nothing is clipped.
    double clip_norm;
    // On every gradient; 1 where no sample counts.
    float correction;
    // 0 where no sample counts: every gradient is then 0, and running statistics stay.
    u32 counts;
};

// Scalars of the elements of one class, as `elastic_tensor::optim::Rates` says what each is.
struct Rates {
    float lr, coupled, shrink, beta[2], rest[2], size, root, eps;
};

// Neighbours in the flat vector with the same rates: the work of one block.
struct Piece {
    u64 start;
    u32 count;
    u32 rates;
};

// One part of a batch norm's running statistics.
struct PoolPiece {
    u64 mean, var;
    u32 count;
    float momentum;
};

// What was found in the reduced vector.
struct Found {
    double grad_norm;
    // The first number that is not finite, if `is_bad`; then nothing may move.
    u64 first_bad;
    u32 is_bad;
    // On every corrected gradient; 1 changes no bit.
    float clip;
};
