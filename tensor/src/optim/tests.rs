//! Schedules and edge cases; the formulas are checked against PyTorch in `tests/golden.rs`.

use super::*;

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
