//! A hundred steps of every optimizer under every schedule against PyTorch in f64, weight decay and clipping included.
//! golden/make.py made the file.

use elastic_spec::job::{LrSchedule, Optimizer};
use elastic_tensor::{GroupRates, ParamInfo, StateLayout, Update, apply, learning_rate, moments_of};
use safetensors::SafeTensors;
use std::collections::BTreeMap;

static FILE: &[u8] = include_bytes!("../golden/long_optimizers.safetensors");
const STEPS: u64 = 100;
const LEN: usize = 16;
const LR: f64 = 0.03;

fn read<const N: usize, T>(name: &str, value: fn([u8; N]) -> T) -> Vec<T> {
    let file = SafeTensors::deserialize(FILE).unwrap();
    file.tensor(name).unwrap().data().as_chunks::<N>().0.iter().map(|b| value(*b)).collect()
}

fn metadata(name: &str) -> String {
    let (_, header) = SafeTensors::read_metadata(FILE).unwrap();
    header.metadata().as_ref().unwrap()[name].clone()
}

fn optimizers() -> BTreeMap<String, Optimizer> {
    serde_json::from_str(&metadata("optimizers")).unwrap()
}

fn schedules() -> BTreeMap<String, LrSchedule> {
    serde_json::from_str(&metadata("schedules")).unwrap()
}

/// A matrix, which decays, and a vector, which does not.
fn layout() -> StateLayout {
    let info = |name: &str, shape: &[usize], offset| ParamInfo {
        name: name.into(),
        shape: shape.to_vec(),
        offset,
        len: shape.iter().product(),
        decay: shape.len() >= 2,
        trainable: true,
        group: GroupRates::default(),
    };
    StateLayout { params: vec![info("weight", &[3, 4], 0), info("bias", &[4], 12)], ..StateLayout::default() }
}

fn train(optimizer: &Optimizer, schedule: &LrSchedule, steps: u64) -> Vec<f32> {
    let layout = layout();
    let (mut state, mut grads) = (read("start", f32::from_le_bytes), read("grads", f32::from_le_bytes));
    let mut moments = vec![vec![0.0; LEN]; moments_of(optimizer)];
    for (step, reduced) in (0..steps).zip(grads.chunks_exact_mut(LEN)) {
        let lr = learning_rate(LR, schedule, step, STEPS);
        let (layout, state, moments) = (&layout, &mut state[..], &mut moments[..]);
        let update = Update { layout, reduced, state, moments, step, lr, correction: 1.0, clip_norm: Some(1.5) };
        apply(optimizer, update);
    }
    state
}

fn check(what: &str, got: &[f32], limit: f64) {
    let wanted = read(what, f64::from_le_bytes);
    for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        let off = (*got as f64 - wanted).abs();
        assert!(off < limit, "{what}, element {i}: {got}, PyTorch has {wanted}");
    }
}

#[test]
fn a_hundred_steps_of_every_optimizer_under_every_schedule_follow_pytorch() {
    let (optimizers, schedules) = (optimizers(), schedules());
    assert_eq!((optimizers.len(), schedules.len()), (6, 6));
    for (name, optimizer) in &optimizers {
        for (schedule_name, schedule) in &schedules {
            // Two hundred roundings of numbers of size 1 to 4.
            check(&format!("{name}.{schedule_name}"), &train(optimizer, schedule, STEPS), 2e-5);
        }
    }
}

#[test]
fn the_first_step_of_every_optimizer_is_pytorchs() {
    // The first momentum is the gradient itself, Adam's the bias-corrected one: its step has the rate's size.
    for (name, optimizer) in optimizers() {
        check(&format!("{name}.first"), &train(&optimizer, &LrSchedule::Constant { warmup: 0 }, 1), 4e-7);
    }
}

#[test]
fn every_rate_is_pytorchs_from_the_first_step_to_the_last() {
    for (name, schedule) in schedules() {
        for (step, wanted) in (0..).zip(read(&format!("rate.{name}"), f64::from_le_bytes)) {
            let rate = learning_rate(LR, &schedule, step, STEPS);
            // PyTorch multiplies its rate on from step to step.
            assert!((rate - wanted).abs() < 1e-12, "{name}, step {step}: {rate}, PyTorch has {wanted}");
        }
    }
}
