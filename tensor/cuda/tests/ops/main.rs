//! Each op on the tests' GPU, which runs the kernels' own sources on the processor (`tests/fake/emulator.h`), against the
//! engine's executor: the same bits, from dirty memory, whatever the order in which threads run. `ELASTIC_TEST_DEVICE=gpu`
//! runs them on a real GPU (`device`).

#[path = "../common/mod.rs"]
mod common;

mod attention;
mod basic;
mod batch_norm;
mod bf16;
mod case;
mod conv;
mod device;
mod dropout;
mod each;
mod flash;
mod fold;
mod losses;
mod matrix;
mod norms;
mod optim;
mod pointwise;
mod pools;
mod reductions;
mod rotary;
mod shapes;
mod sums;
mod tables;
mod take;

use std::process::Command;

/// A kernel that lacks a barrier has other bits when its threads run the other way round.
#[test]
fn all_of_it_again_with_threads_blocks_and_lanes_backwards() {
    if device::is_real() {
        let why = "a GPU runs its threads in an order of its own";
        return println!("skipped: all_of_it_again_with_threads_blocks_and_lanes_backwards: {why}");
    }
    if std::env::var_os("EMULATOR_ORDER").is_some() {
        return;
    }
    let this = std::env::current_exe().expect("a program knows where it is");
    let again = Command::new(this).env("EMULATOR_ORDER", "reverse").output().expect("it starts once more");
    let said = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success(), "{said}\n{}", String::from_utf8_lossy(&again.stderr));
}
