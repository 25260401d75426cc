//! The scalars of one step, the same for every element of a run: computed in f64 and rounded once, whatever the device.

use crate::groups::GroupRates;
use crate::network::ParamInfo;
use elastic_spec::job::Optimizer;

/// Parameters of one class have the same rates in every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateClass {
    /// Whether the optimizer's own weight decay applies.
    pub decay: bool,
    pub group: GroupRates,
}

impl From<&ParamInfo> for RateClass {
    fn from(info: &ParamInfo) -> RateClass {
        RateClass { decay: info.decay, group: info.group }
    }
}

/// The scalars of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub lr: f32,
    /// L2 decay added to the gradient.
    pub coupled: f32,
    /// Factor on the parameter before the step.
    pub shrink: f32,
    pub beta: [f32; 2],
    pub rest: [f32; 2],
    /// lr over the first moment's bias correction.
    pub size: f32,
    /// Root of the second moment's bias correction.
    pub root: f32,
    pub eps: f32,
}

impl Rates {
    pub(super) fn new(optimizer: &Optimizer, step: u64, lr: f64) -> Rates {
        let none = Rates {
            lr: lr as f32,
            coupled: 0.0,
            shrink: 1.0,
            beta: [0.0; 2],
            rest: [1.0; 2],
            size: 0.0,
            root: 1.0,
            eps: 0.0,
        };
        let adam = |beta1: f64, beta2: f64, eps: f64| {
            let t = (step + 1) as f64;
            Rates {
                beta: [beta1 as f32, beta2 as f32],
                rest: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
                size: (lr / (1.0 - libm::pow(beta1, t))) as f32,
                root: libm::sqrt(1.0 - libm::pow(beta2, t)) as f32,
                eps: eps as f32,
                ..none
            }
        };
        match *optimizer {
            Optimizer::Sgd { momentum, weight_decay, .. } => {
                Rates { coupled: weight_decay as f32, beta: [momentum as f32, 0.0], ..none }
            }
            Optimizer::Adam { beta1, beta2, eps, weight_decay } => {
                Rates { coupled: weight_decay as f32, ..adam(beta1, beta2, eps) }
            }
            Optimizer::AdamW { beta1, beta2, eps, weight_decay } => {
                Rates { shrink: (1.0 - lr * weight_decay) as f32, ..adam(beta1, beta2, eps) }
            }
        }
    }
}

/// The scalars of one step for every parameter.
#[derive(Clone, Copy, Debug)]
pub struct StepRates<'a> {
    optimizer: &'a Optimizer,
    step: u64,
    lr: f64,
    /// Those of what is in no group. Others are made anew for each run in a chunk, two powers for 16 thousand numbers
    /// or a tensor's end, so that there is no list of them to allocate.
    usual: Rates,
}

impl<'a> StepRates<'a> {
    /// Of the step after `step` others, at the rate `lr`.
    pub fn new(optimizer: &'a Optimizer, step: u64, lr: f64) -> StepRates<'a> {
        StepRates { optimizer, step, lr, usual: Rates::new(optimizer, step, lr) }
    }

    pub fn of(&self, class: RateClass) -> Rates {
        let GroupRates { lr_scale, weight_decay } = class.group;
        let rates = match class.group == GroupRates::default() {
            true => self.usual,
            false => Rates::new(&decayed_by(self.optimizer, weight_decay), self.step, self.lr * lr_scale),
        };
        match class.decay || weight_decay.is_some() {
            true => rates,
            false => Rates { coupled: 0.0, shrink: 1.0, ..rates },
        }
    }
}

/// The optimizer with a group's weight decay, if the group has one.
fn decayed_by(optimizer: &Optimizer, group: Option<f64>) -> Optimizer {
    let mut optimizer = *optimizer;
    let (Optimizer::Sgd { weight_decay, .. }
    | Optimizer::Adam { weight_decay, .. }
    | Optimizer::AdamW { weight_decay, .. }) = &mut optimizer;
    *weight_decay = group.unwrap_or(*weight_decay);
    optimizer
}
