//! Schedules and edge cases; the formulas are checked against PyTorch in `tests/golden.rs`.

use super::*;
use crate::GroupRates;
use crate::gemm::{FORCED, Isa};

#[test]
fn rates_rise_linearly_and_then_follow_their_schedule() {
    let rates = |schedule: LrSchedule| {
        (0..8).map(|s| (learning_rate(2.0, &schedule, s, 8) * 1e3).round() / 1e3).collect::<Vec<_>>()
    };
    assert_eq!(rates(LrSchedule::Constant { warmup: 0 }), [2.0; 8]);
    assert_eq!(rates(LrSchedule::Constant { warmup: 4 }), [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]);
    assert_eq!(rates(LrSchedule::Linear { warmup: 2, end: 0.5 }), [1.0, 2.0, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0]);
    assert_eq!(rates(LrSchedule::Cosine { warmup: 5, end: 0.0 }), [0.4, 0.8, 1.2, 1.6, 2.0, 2.0, 1.0, 0.0]);
    let step = LrSchedule::Step { warmup: 0, every: 3, gamma: 0.5 };
    assert_eq!(rates(step), [2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.5, 0.5]);
}

#[test]
fn a_step_without_a_valid_sample_moves_nothing_under_plain_sgd() {
    let layout = StateLayout {
        params: vec![crate::ParamInfo {
            name: "w".into(),
            shape: vec![1],
            offset: 0,
            len: 1,
            decay: false,
            trainable: true,
            group: GroupRates::default(),
        }],
        ..StateLayout::default()
    };
    let (mut reduced, mut state) = ([0.0], [1.5]);
    let sgd = Optimizer::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let update = Update {
        layout: &layout,
        reduced: &mut reduced,
        state: &mut state,
        moments: &mut [],
        step: 0,
        lr: 1.0,
        correction: f32::INFINITY,
        clip_norm: Some(1.0),
    };
    assert_eq!(apply(&sgd, update).grad_norm, 0.0);
    assert_eq!(state, [1.5]);
}

/// The formulas one after the other, each over the whole vector: `apply_on` before its passes were joined.
fn step_by_step(optimizer: &Optimizer, update: Update<'_>) -> f64 {
    let Update { layout, reduced: g, state: p, moments, step, lr, correction, clip_norm } = update;
    g.iter_mut().for_each(|g| *g *= correction);
    for info in layout.params.iter().filter(|p| !p.trainable) {
        g[info.offset..info.offset + info.len].fill(0.0);
    }
    let lanes = |block: &[f32]| {
        let mut lanes = [0.0f64; 16];
        block.iter().enumerate().for_each(|(i, g)| lanes[i % 16] += *g as f64 * *g as f64);
        sum(&lanes, |x| x)
    };
    let norm = libm::sqrt(g.chunks(BLOCK_FLOATS).map(lanes).fold(0.0, |a, b| a + b));
    let clip = clip_norm.expect("the test clips") / (norm + 1e-6);
    if clip < 1.0 {
        g.iter_mut().for_each(|g| *g *= clip as f32);
    }
    for info in layout.params.iter().filter(|p| p.trainable) {
        let mut own = *optimizer;
        let (Optimizer::Sgd { weight_decay: decay, .. }
        | Optimizer::Adam { weight_decay: decay, .. }
        | Optimizer::AdamW { weight_decay: decay, .. }) = &mut own;
        *decay = match info.group.weight_decay {
            Some(of_the_group) => of_the_group,
            None if info.decay => *decay,
            None => 0.0,
        };
        let rates = Rates::new(&own, step, lr * info.group.lr_scale);
        let (coupled, shrink) = (rates.coupled, rates.shrink);
        for i in info.offset..info.offset + info.len {
            let g = g[i] + coupled * p[i];
            match (optimizer, &mut *moments) {
                (Optimizer::Sgd { .. }, []) => p[i] -= rates.lr * g,
                (Optimizer::Sgd { nesterov, .. }, [m]) => {
                    m[i] = rates.beta[0] * m[i] + g;
                    p[i] -= rates.lr * if *nesterov { g + rates.beta[0] * m[i] } else { m[i] };
                }
                (_, [m, v]) => {
                    m[i] += rates.rest[0] * (g - m[i]);
                    v[i] = rates.beta[1] * v[i] + rates.rest[1] * g * g;
                    p[i] = p[i] * shrink - rates.size * (m[i] / (v[i].sqrt() / rates.root + rates.eps));
                }
                _ => unreachable!("as many moments as the optimizer has"),
            }
        }
    }
    norm
}

#[test]
fn joined_passes_have_the_bits_of_the_formulas_on_every_team_and_set() {
    let mut params = Vec::new();
    let mut offset = 0;
    // Around the edges of chunks and blocks; the fourth is not trained, and its gradient is not in the norm.
    for (i, len) in [3, BLOCK_FLOATS - 3, 1, 100, 2 * CHUNK + 7, 7, 5 * BLOCK_FLOATS].into_iter().enumerate() {
        let (name, shape) = (format!("p{i}"), vec![len]);
        let group = match i {
            1 | 2 => GroupRates { lr_scale: 0.25, weight_decay: None },
            5 => GroupRates { lr_scale: 3.0, weight_decay: Some(0.3) },
            _ => GroupRates::default(),
        };
        params.push(crate::ParamInfo { name, shape, offset, len, decay: i % 2 == 0, trainable: i != 3, group });
        offset += len;
    }
    let layout = StateLayout { params, ..StateLayout::default() };
    let number = |i: usize, by: usize| ((i * by) % 1009) as f32 * 3e-3 - 1.5;
    let vector = |by: usize| (0..offset).map(|i| number(i, by)).collect::<Vec<f32>>();
    let sgd = |momentum, nesterov| Optimizer::Sgd { momentum, nesterov, weight_decay: 0.01 };
    let (beta1, beta2, eps, weight_decay) = (0.9, 0.95, 1e-8, 0.1);
    for optimizer in [
        sgd(0.0, false),
        sgd(0.9, false),
        sgd(0.9, true),
        Optimizer::Adam { beta1, beta2, eps, weight_decay },
        Optimizer::AdamW { beta1, beta2, eps, weight_decay },
    ] {
        let run = |clip_norm: f64, update: &dyn Fn(&Optimizer, Update<'_>) -> f64| {
            let (mut reduced, mut state) = (vector(7), vector(11));
            let mut moments: Vec<Vec<f32>> = (0..moments_of(&optimizer)).map(|_| vector(13)).collect();
            moments.iter_mut().flatten().for_each(|m| *m = m.abs());
            let (reduced, state_now, moments_now) = (&mut reduced[..], &mut state[..], &mut moments[..]);
            let norm = update(
                &optimizer,
                Update {
                    layout: &layout,
                    reduced,
                    state: state_now,
                    moments: moments_now,
                    step: 3,
                    lr: 0.01,
                    correction: 1.25,
                    clip_norm: Some(clip_norm),
                },
            );
            let floats = moments.into_iter().flatten().chain(state);
            (norm.to_bits(), floats.map(f32::to_bits).collect::<Vec<_>>())
        };
        for clip_norm in [1.0, 1e9] {
            let wanted = run(clip_norm, &step_by_step);
            for isa in Isa::here() {
                FORCED.set(Some(isa));
                for team in [1, 2, 3].map(Team::new) {
                    let got = run(clip_norm, &|optimizer, update| apply_on(&team, optimizer, update).grad_norm);
                    assert!(got == wanted, "{optimizer:?} clipped to {clip_norm}: {isa:?}, {team:?}");
                }
            }
            FORCED.set(None);
        }
    }
}

/// Three tensors, the second frozen, and one batch norm's running statistics.
fn with_statistics() -> StateLayout {
    let info = |name: &str, offset: usize, len: usize, trainable: bool| {
        let (name, shape) = (name.into(), vec![len]);
        crate::ParamInfo { name, shape, offset, len, decay: trainable, trainable, group: GroupRates::default() }
    };
    let params = vec![info("a", 0, 40, true), info("frozen", 40, 20, false), info("b", 60, 30, true)];
    let buffers = vec![info("mean", 90, 2, false), info("var", 92, 2, false)];
    let running = vec![RunningPair { mean: 90..92, var: 92..94, momentum: 0.1 }];
    StateLayout { params, buffers, running }
}

#[test]
fn what_is_not_finite_moves_nothing_and_is_found_on_every_team_and_set() {
    let layout = with_statistics();
    let (beta1, beta2, eps, weight_decay) = (0.9, 0.95, 1e-8, 0.1);
    let momentum = Optimizer::Sgd { momentum: 0.9, nesterov: true, weight_decay };
    let plain = Optimizer::Sgd { momentum: 0.0, nesterov: false, weight_decay };
    // The last is finite until it is corrected by 2.
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38];
    for optimizer in [plain, momentum, Optimizer::AdamW { beta1, beta2, eps, weight_decay }] {
        let run = |team: &Team, put: &[(usize, f32)]| {
            let mut reduced: Vec<f32> = (0..94).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect();
            put.iter().for_each(|(at, x)| reduced[*at] = *x);
            let mut state: Vec<f32> = (0..94).map(|i| i as f32 * 0.01).collect();
            let mut moments = vec![vec![0.5; 90]; moments_of(&optimizer)];
            let (reduced, state_now, moments_now) = (&mut reduced[..], &mut state[..], &mut moments[..]);
            let update = Update {
                layout: &layout,
                reduced,
                state: state_now,
                moments: moments_now,
                step: 3,
                lr: 0.01,
                correction: 2.0,
                clip_norm: Some(1.0),
            };
            let report = apply_on(team, &optimizer, update);
            let still = state.iter().enumerate().all(|(i, x)| *x == i as f32 * 0.01)
                && moments.iter().flatten().all(|m| *m == 0.5);
            (report, still)
        };
        for isa in Isa::here() {
            FORCED.set(Some(isa));
            for team in [1, 3].map(Team::new) {
                let (report, still) = run(&team, &[]);
                assert!(!still && report.grad_norm.is_finite() && report.not_finite.is_none(), "{optimizer:?}");
                for x in bad {
                    // A gradient, two of them in the order of the layout, a running statistic.
                    for (put, first) in [(&[(70, x)][..], 70), (&[(89, x), (3, x)], 3), (&[(93, x)], 93)] {
                        let (report, still) = run(&team, put);
                        assert!(still, "{optimizer:?} moved with {x} at {put:?}");
                        assert_eq!(
                            (report.not_finite, report.grad_norm.is_nan()),
                            (Some(first), true),
                            "{x} at {put:?}"
                        );
                    }
                    let (report, still) = run(&team, &[(45, x)]);
                    assert!(report.not_finite.is_none() && !still, "the gradient of what is frozen is not looked at");
                }
            }
        }
        FORCED.set(None);
    }
    let named = |at| layout.tensor_at(at).map(|info| info.name.as_str());
    assert_eq!(
        [named(0), named(59), named(60), named(93), named(94)],
        [Some("a"), Some("frozen"), Some("b"), Some("var"), None]
    );
}

#[test]
fn a_step_without_a_valid_sample_leaves_statistics_that_are_not_finite_alone() {
    let layout = with_statistics();
    let (mut reduced, mut state) = ([f32::NAN; 94], [1.0; 94]);
    let sgd = Optimizer::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let (reduced, state_now) = (&mut reduced[..], &mut state[..]);
    let update = Update {
        layout: &layout,
        reduced,
        state: state_now,
        moments: &mut [],
        step: 0,
        lr: 1.0,
        correction: f32::INFINITY,
        clip_norm: None,
    };
    assert_eq!(apply(&sgd, update), UpdateReport { grad_norm: 0.0, not_finite: None });
    assert_eq!(state, [1.0; 94]);
}
