//! Rates and optimizers at their edges: the ends of a schedule, a rate of zero, the first step, a resume.

use super::*;
use crate::GroupRates;

/// PyTorch's closed forms, `t` of `all` steps behind the warm-up: LinearLR, CosineAnnealingLR, StepLR.
fn closed_form(schedule: &LrSchedule, base: f64, t: f64, all: f64) -> f64 {
    match *schedule {
        LrSchedule::Constant { .. } => base,
        LrSchedule::Linear { end, .. } => base * (1.0 + (end - 1.0) * t / all),
        LrSchedule::Cosine { end, .. } => {
            let least = base * end;
            least + (base - least) * (1.0 + libm::cos(std::f64::consts::PI * t / all)) / 2.0
        }
        LrSchedule::Step { every, gamma, .. } => base * libm::pow(gamma, libm::floor(t / every as f64)),
    }
}

fn schedules(warmup: u64) -> [LrSchedule; 4] {
    [
        LrSchedule::Constant { warmup },
        LrSchedule::Linear { warmup, end: 0.1 },
        LrSchedule::Cosine { warmup, end: 0.1 },
        LrSchedule::Step { warmup, every: 7, gamma: 0.3 },
    ]
}

#[test]
fn behind_the_warm_up_rates_are_pytorchs_closed_forms() {
    let (base, steps) = (0.3, 100);
    for warmup in [0, 1, 10] {
        for schedule in schedules(warmup) {
            for step in warmup..steps {
                let wanted = closed_form(&schedule, base, (step - warmup) as f64, (steps - 1 - warmup) as f64);
                let got = learning_rate(base, &schedule, step, steps);
                assert!((got - wanted).abs() < 1e-15, "{schedule:?} at {step}: {got} instead of {wanted}");
            }
        }
    }
}

#[test]
fn the_full_rate_is_met_exactly_at_both_sides_of_the_warm_ups_end() {
    for schedule in schedules(10) {
        let at = |step| learning_rate(0.3, &schedule, step, 100);
        assert_eq!((at(9), at(10)), (0.3, 0.3), "{schedule:?}");
        assert!(at(0) > 0.0 && (at(0) - 0.03).abs() < 1e-16, "the first step is not lost: {}", at(0));
        assert!((0..9).all(|step| at(step) < at(step + 1)), "{schedule:?}");
    }
}

#[test]
fn a_fall_ends_at_the_last_step_and_stays_there() {
    let (linear, cosine) = (LrSchedule::Linear { warmup: 3, end: 0.0 }, LrSchedule::Cosine { warmup: 3, end: 0.0 });
    for schedule in [linear, cosine] {
        let at = |step| learning_rate(0.3, &schedule, step, 20);
        assert_eq!((at(19), at(20), at(1_000)), (0.0, 0.0, 0.0), "{schedule:?}");
        assert!(at(18) > 0.0);
    }
}

#[test]
fn jobs_that_are_shorter_than_their_schedule_have_a_finite_rate() {
    for schedule in schedules(10).into_iter().chain(schedules(0)) {
        for steps in [0, 1, 9, 10, 11, 12] {
            let rates: Vec<f64> = (0..=steps).map(|step| learning_rate(0.3, &schedule, step, steps)).collect();
            assert!(rates.iter().all(|lr| (0.0..=0.3).contains(lr)), "{schedule:?} of {steps}: {rates:?}");
        }
    }
    // The only step of a job is its last: a fall is over before it began.
    assert_eq!(learning_rate(0.3, &LrSchedule::Cosine { warmup: 0, end: 0.5 }, 0, 1), 0.15);
}

fn one(len: usize) -> StateLayout {
    let (name, shape) = ("w".into(), vec![len, 1]);
    let info =
        crate::ParamInfo { name, shape, offset: 0, len, decay: true, trainable: true, group: GroupRates::default() };
    StateLayout { params: vec![info], ..StateLayout::default() }
}

/// One step of a single weight that decays: the weight and its moments.
fn step(optimizer: &Optimizer, from: (f32, &[f32]), grad: f32, (at, lr): (u64, f64)) -> (f32, Vec<f32>) {
    let (mut reduced, mut state) = ([grad], [from.0]);
    let mut moments: Vec<Vec<f32>> = from.1.iter().map(|m| vec![*m]).collect();
    let update = Update {
        layout: &one(1),
        reduced: &mut reduced,
        state: &mut state,
        moments: &mut moments,
        step: at,
        lr,
        correction: 1.0,
        clip_norm: None,
    };
    apply(optimizer, update);
    (state[0], moments.concat())
}

#[test]
fn a_rate_of_zero_moves_no_weight_but_moments_go_on() {
    let momentum = Optimizer::Sgd { momentum: 0.5, nesterov: false, weight_decay: 0.0 };
    assert_eq!(step(&momentum, (1.5, &[0.25]), 2.0, (9, 0.0)), (1.5, vec![2.125]));
    let nesterov = Optimizer::Sgd { momentum: 0.5, nesterov: true, weight_decay: 0.0 };
    assert_eq!(step(&nesterov, (1.5, &[0.25]), 2.0, (9, 0.0)), (1.5, vec![2.125]));
    for weight_decay in [0.0, 0.1] {
        let adamw = Optimizer::AdamW { beta1: 0.5, beta2: 0.75, eps: 1e-8, weight_decay };
        assert_eq!(step(&adamw, (1.5, &[1.0, 4.0]), 2.0, (9, 0.0)), (1.5, vec![1.5, 4.0]));
    }
}

#[test]
fn adams_first_step_is_the_rate_whatever_the_gradients_size() {
    let adam = Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-12, weight_decay: 0.0 };
    for grad in [1e-4f32, 1.0, -3e5] {
        let (w, _) = step(&adam, (0.0, &[0.0, 0.0]), grad, (0, 0.01));
        assert!((w + 0.01 * grad.signum()).abs() < 1e-8, "{grad}: {w}");
    }
}

#[test]
fn adams_corrections_follow_the_step_that_is_said_as_after_a_resume() {
    // Moments of a constant gradient of 2 after 4 steps: g (1 - b^4), g² (1 - b²^4). The fifth step corrects by
    // the fifth powers and moves by the rate; a count from 0 would move by another amount.
    let adam = Optimizer::Adam { beta1: 0.5, beta2: 0.75, eps: 1e-12, weight_decay: 0.0 };
    let kept = [2.0 * (1.0 - 0.0625), 4.0 * (1.0 - 0.316_406_25)];
    let (resumed, _) = step(&adam, (1.0, &kept), 2.0, (4, 0.125));
    assert!((resumed - 0.875).abs() < 1e-6, "{resumed}");
    let (anew, _) = step(&adam, (1.0, &kept), 2.0, (0, 0.125));
    assert!((anew - 0.875).abs() > 0.01, "{anew}");
}

#[test]
fn weight_decay_is_coupled_in_adam_and_apart_in_adamw() {
    let beta = |weight_decay| (0.0, 0.0, 1e-12, weight_decay);
    let (beta1, beta2, eps, weight_decay) = beta(0.5);
    // Without memory Adam moves by the rate in the direction of gradient and decay together: 0 here, and no move.
    let adam = Optimizer::Adam { beta1, beta2, eps, weight_decay };
    assert_eq!(step(&adam, (2.0, &[0.0, 0.0]), -1.0, (0, 0.125)).0, 2.0);
    // AdamW shrinks the weight by rate times decay, and moves against the gradient alone.
    let adamw = Optimizer::AdamW { beta1, beta2, eps, weight_decay };
    let (w, _) = step(&adamw, (2.0, &[0.0, 0.0]), -1.0, (0, 0.125));
    assert!((w - (2.0 * (1.0 - 0.0625) + 0.125)).abs() < 1e-6, "{w}");
}

/// Two tensors of three numbers, a matrix and a bias, with their groups.
fn grouped(groups: [GroupRates; 2]) -> StateLayout {
    let info = |i: usize| {
        let (name, shape, group) = (format!("p{i}"), vec![3; 2 - i], groups[i]);
        crate::ParamInfo { name, shape, offset: 3 * i, len: 3, decay: i == 0, trainable: true, group }
    };
    StateLayout { params: vec![info(0), info(1)], ..StateLayout::default() }
}

/// Parameters after three steps of a rate that falls; the moments are not looked at, since parameters depend on them.
fn three_steps(optimizer: &Optimizer, layout: &StateLayout) -> Vec<f32> {
    let mut state = vec![0.5, -1.25, 2.0, 0.75, -0.5, 1.0];
    let mut moments = vec![vec![0.0; 6]; moments_of(optimizer)];
    for step in 0..3 {
        let mut reduced = [0.3, -0.2, 0.1, -0.4, 0.25, 0.15].map(|g| g * (step + 1) as f32);
        let lr = 0.1 / (step + 1) as f64;
        let (reduced, state, moments) = (&mut reduced[..], &mut state[..], &mut moments[..]);
        let update = Update { layout, reduced, state, moments, step, lr, correction: 1.0, clip_norm: None };
        apply(optimizer, update);
    }
    state
}

#[test]
fn a_groups_rates_are_the_formulas_of_adamw_and_momentum_in_f64() {
    let groups = [(0.25, Some(0.2)), (2.0, Some(0.05))];
    let layout = grouped(groups.map(|(lr_scale, weight_decay)| GroupRates { lr_scale, weight_decay }));
    // Without groups the matrix would have the optimizer's decay, the bias none.
    let plain = grouped([GroupRates::default(); 2]);
    let adamw = Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01 };
    let sgd = Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.01 };
    for optimizer in [adamw, sgd] {
        let got = three_steps(&optimizer, &layout);
        assert!(got.iter().zip(three_steps(&optimizer, &plain)).all(|(a, b)| *a != b), "groups change every number");
        let start = [0.5, -1.25, 2.0, 0.75, -0.5, 1.0f64];
        let grads = [0.3, -0.2, 0.1, -0.4, 0.25, 0.15f64];
        for i in 0..6 {
            let (scale, decay) = (groups[i / 3].0, groups[i / 3].1.expect("both have one"));
            let (mut p, mut m, mut v) = (start[i], 0.0, 0.0);
            for t in 1..4 {
                let (lr, g) = (0.1 / t as f64 * scale, grads[i] * t as f64);
                if matches!(optimizer, Optimizer::Sgd { .. }) {
                    m = 0.9 * m + g + decay * p;
                    p -= lr * m;
                    continue;
                }
                p -= lr * decay * p;
                (m, v) = (0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g);
                let root = libm::sqrt(v / (1.0 - libm::pow(0.99, t as f64)));
                p -= lr * (m / (1.0 - libm::pow(0.9, t as f64))) / (root + 1e-8);
            }
            assert!((got[i] as f64 - p).abs() < 1e-6, "{optimizer:?} {i}: {} instead of {p}", got[i]);
        }
    }
}

#[test]
fn a_group_without_a_decay_keeps_the_usual_rule_and_one_of_scale_one_every_bit() {
    let adamw = |weight_decay| Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay };
    let plain = three_steps(&adamw(0.1), &grouped([GroupRates::default(); 2]));
    let said = GroupRates { lr_scale: 1.0, weight_decay: Some(0.1) };
    assert_eq!(three_steps(&adamw(0.1), &grouped([said, GroupRates::default()])), plain);
    let slow = GroupRates { lr_scale: 0.5, weight_decay: None };
    let halved = three_steps(&adamw(0.1), &grouped([slow; 2]));
    // A bias moves as without any decay, a matrix does not.
    let without = three_steps(&adamw(0.0), &grouped([slow; 2]));
    assert_eq!(halved[3..], without[3..]);
    assert_ne!(halved[..3], without[..3]);
}
