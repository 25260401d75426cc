//! Rates and optimizers at their edges: the ends of a schedule, a rate of zero, the first step, a resume.

use super::*;

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
    let info = crate::ParamInfo { name, shape, offset: 0, len, decay: true, trainable: true };
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
