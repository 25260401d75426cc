//! A caller may have told its processor to flush denormal numbers to zero (a library built with -ffast-math does so
//! when it is loaded). The bits of a step must not hear of it.
#![cfg(target_arch = "x86_64")]

use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::Optimizer;
use elastic_tensor::nn::{Module, Scope};
use elastic_tensor::team::Team;
use elastic_tensor::{LeafKey, Result, Tensor, Update, apply, compile, moments_of};
use std::arch::asm;
use std::sync::Mutex;

/// Results that are denormal become zero (bit 15), and so do operands (bit 6).
const FLUSH: u32 = 1 << 15 | 1 << 6;
const DEFAULT: u32 = 0x1f80;

fn set_mode(mode: u32) {
    // SAFETY: it reads four bytes that live. The mode is the caller's own for the rest of its thread, and no code
    // here relies on the compiler knowing denormal results: they come from black boxes.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &mode, options(nostack, readonly)) };
}

fn mode() -> u32 {
    let mut mode = 0u32;
    // SAFETY: it writes four bytes that live.
    unsafe { asm!("stmxcsr [{}]", in(reg) &mut mode, options(nostack)) };
    mode & !0x3f
}

/// A denormal number, computed anew.
fn denormal() -> f32 {
    std::hint::black_box(1e-38f32) * std::hint::black_box(0.01)
}

struct Net;

impl Module for Net {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        let x = nn.linear("first", &x, 48)?.relu();
        nn.linear("out", &nn.layer_norm("norm", &x)?.gelu(), nn.outputs())
    }
}

/// The bits of a leaf and of the update after it, on numbers of which half are denormal.
fn step(threads: usize) -> Vec<u32> {
    let data = DataShape::Features { features: 40, classes: 3 };
    let network = compile(&Net, &data, 16).unwrap();
    let (layout, mut state) = (network.layout(), network.init(1));
    for (i, x) in state.iter_mut().enumerate().filter(|(i, _)| i % 2 == 0) {
        *x = f32::from_bits(i as u32 * 977 + 1);
    }
    let batch = Batch {
        features: (0..16 * 40).map(|i| if i % 3 == 0 { 1e-37 } else { f32::from_bits(i * 4099 + 1) }).collect(),
        targets: (0..16).map(|i| i % 3).collect(),
        slots: (0..16).collect(),
        ..Batch::default()
    };
    let mut reduced = vec![0.0; layout.reduced_floats()];
    let key = LeafKey { seed: 1, step: 0, scale: 1e-36, label_smoothing: 0.0 };
    let tail = network.sum(&mut *network.new_scratch(threads), &state, &batch, key, &mut reduced);
    let mut bits: Vec<u32> = reduced.iter().map(|x| x.to_bits()).collect();
    let adam = Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let mut moments = vec![vec![0.0; layout.param_floats()]; moments_of(&adam)];
    let (reduced, now, moments_now) = (&mut reduced[..], &mut state[..], &mut moments[..]);
    let update = Update {
        layout,
        reduced,
        state: now,
        moments: moments_now,
        step: 0,
        lr: 1e-3,
        correction: 1.0,
        clip_norm: Some(1e-9),
    };
    let report = apply(&adam, update);
    bits.extend(moments.iter().flatten().chain(&state).map(|x| x.to_bits()));
    bits.extend([tail.loss, report.grad_norm].map(|x| x.to_bits() as u32));
    bits
}

/// What `f` gives on a thread of its own whose processor flushes.
fn flushed<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            set_mode(DEFAULT | FLUSH);
            assert_eq!(denormal(), 0.0, "the mode is on");
            let out = f();
            assert_eq!(mode(), DEFAULT | FLUSH, "the caller's mode is the caller's again");
            out
        });
        thread.join().expect("the step has no panic")
    })
}

#[test]
fn a_callers_flush_to_zero_changes_no_bit_of_a_step() {
    let plain = step(1);
    let is_denormal = |bits: &&u32| (1..0x80_0000).contains(&(**bits & 0x7fff_ffff));
    assert!(plain.iter().filter(is_denormal).count() > 1_000, "the step is about denormal numbers");
    for threads in [1, 2, 3] {
        assert!(flushed(|| step(threads)) == plain, "other bits on {threads} threads");
    }
}

#[test]
fn the_threads_of_a_team_do_not_inherit_flush_to_zero() {
    let seen = Mutex::new(Vec::new());
    flushed(|| {
        let team = Team::new(3);
        // Each waits until all three are inside, so that each of them has a task.
        let barrier = std::sync::Barrier::new(3);
        team.run(3, &|thread, _| {
            barrier.wait();
            seen.lock().unwrap().push((thread, denormal() != 0.0));
        });
    });
    let mut seen = seen.into_inner().unwrap();
    seen.sort();
    // The caller keeps its own mode here: what is run over plans and updates sets it.
    assert_eq!(seen, [(0, false), (1, true), (2, true)]);
}
