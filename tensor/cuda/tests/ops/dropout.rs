//! Dropout: the masks of the processor, whatever keys them.

use crate::case::{CALL, Call, check_shards, check_with, floats, special};
use elastic_tensor::ops::*;

fn dropout(p: f32) -> Op {
    Op::Dropout(Dropout { p })
}

#[test]
fn samples_of_any_width() {
    // A block of Philox on the processor is 128 numbers; a quad of a sample may be short.
    for shape in [
        &[1][..],
        &[16],
        &[3, 1],
        &[5, 3],
        &[16, 4],
        &[7, 128],
        &[3, 129],
        &[2, 3, 61],
        &[16, 5, 8, 3],
        &[0, 4],
        &[3, 0],
    ] {
        check_with(CALL, dropout(0.3), &[special(shape)]);
    }
    check_with(CALL, dropout(0.1), &[floats(&[3, 5003])]);
}

#[test]
fn probabilities_up_to_one() {
    for p in [0.0, 1e-8, 0.1, 0.5, 0.999, 1.0 - f32::EPSILON] {
        check_with(CALL, dropout(p), &[floats(&[4, 513])]);
    }
}

#[test]
fn seeds_steps_and_slots_key_the_mask() {
    let x = [floats(&[4, 67])];
    for seed in [0, 1, 0x0102_0304_0506_0708, u64::MAX] {
        check_with(Call { seed, ..CALL }, dropout(0.5), &x);
    }
    for step in [0, 1, u32::MAX as u64, 1 << 32, u64::MAX] {
        check_with(Call { step, ..CALL }, dropout(0.5), &x);
    }
    for slot in [0, 1000, u32::MAX as u64 - 4, 1 << 40] {
        check_with(Call { slot, ..CALL }, dropout(0.5), &x);
    }
}

#[test]
fn shards_are_samples_like_others() {
    for shards in [2, 4] {
        check_shards(shards, dropout(0.25), &[floats(&[shards * 3, 45])]);
    }
}

/// The hash takes 64 bytes at a time, of which the first 25 are before the path and the last 9 are padding; a launch
/// takes four such blocks.
#[test]
fn paths_of_any_length_key_the_mask() {
    const PART: &str = "encoder.layers.11.self_attention.drop/";
    let long: &'static str = PART.repeat(20).leak();
    for len in [0, 1, 3, 30, 31, 38, 39, 94, 95, 222, 223, 230, 231, 700] {
        check_with(Call { path: &long[..len], ..CALL }, dropout(0.5), &[floats(&[2, 70])]);
    }
}
