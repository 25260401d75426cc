//! The arithmetic of one job: what a leaf of each round is, and what a reduced round makes of the state.
//!
//! Pure in (spec, data, state, round): no member, link or disk is known here. Where leaves are added up
//! is the pool's and the member's business.

use crate::rows::Row;
use crate::state::State;
use elastic_loader::{Data, Plan};
use elastic_spec::job::JobSpec;
use elastic_spec::job::schedule::{Kind, Schedule};
use elastic_spec::layout::{Layout, Tail};
use elastic_spec::{Round, Shard, Step};
use elastic_tensor::optim::{self, Update};
use elastic_tensor::{LeafKey, Network};
use std::any::Any;

pub struct Job {
    pub spec: JobSpec,
    pub schedule: Schedule,
    pub network: Box<dyn Network>,
    pub data: Data,
    pub plan: Plan,
}

impl Job {
    pub fn new(spec: JobSpec, schedule: Schedule, network: Box<dyn Network>, data: Data) -> Job {
        let plan = Plan::from(&spec.train);
        Job { spec, schedule, network, data, plan }
    }

    /// How a training round's value is cut.
    pub fn layout(&self) -> Layout {
        Layout::new(self.network.layout().reduced_floats())
    }

    pub fn layout_of(&self, round: Round) -> Layout {
        match self.schedule.kind(round) {
            Kind::Train(_) => self.layout(),
            Kind::Validate(_) => Layout::TAIL_ONLY,
        }
    }

    /// The state before the first step.
    pub fn first_state(&self) -> State {
        let moments = optim::moments_of(&self.spec.train.optimizer);
        State {
            round: Round(0),
            floats: self.network.init(self.spec.train.seed),
            moments: vec![vec![0.0; self.network.layout().param_floats()]; moments],
            rows: Vec::new(),
        }
    }

    /// What `shard` contributes to `round`; its floats are written to `out`, all of them.
    pub fn leaf(
        &self,
        scratch: &mut (dyn Any + Send),
        floats: &[f32],
        round: Round,
        shard: Shard,
        out: &mut [f32],
    ) -> Tail {
        match self.schedule.kind(round) {
            Kind::Train(step) => {
                let batch = self.data.train_batch(&self.plan, step, shard);
                let train = &self.spec.train;
                let scale = 1.0 / train.global_batch as f32;
                let key = LeafKey { seed: train.seed, step: step.0, scale, label_smoothing: train.label_smoothing };
                self.network.leaf(scratch, floats, &batch, key, out)
            }
            Kind::Validate(_) => self
                .data
                .validation_batches(&self.plan, shard)
                .map(|batch| self.network.evaluate(scratch, floats, &batch))
                .fold(Tail::default(), Tail::add),
        }
    }

    /// Makes the state of the next round. `reduced` is used up.
    pub fn apply(&self, state: &mut State, reduced: &mut [f32], tail: Tail) {
        match self.schedule.kind(state.round) {
            Kind::Train(step) => self.train(state, step, reduced, tail),
            Kind::Validate(_) => {
                if let Some(row) = state.rows.last_mut() {
                    row.validation = tail;
                }
            }
        }
        state.round = state.round.next();
    }

    fn train(&self, state: &mut State, step: Step, reduced: &mut [f32], tail: Tail) {
        let train = &self.spec.train;
        let lr = optim::learning_rate(train.lr, &train.lr_schedule, step.0, self.schedule.steps);
        // Leaves were scaled by the constant 1/B; the mean is over the samples (or tokens) that count.
        // Infinite where nothing counts: the update then leaves the gradient at zero.
        let correction = f64::from(train.global_batch) / tail.count as f64;
        let report = optim::apply(
            &train.optimizer,
            Update {
                layout: self.network.layout(),
                reduced,
                state: &mut state.floats,
                moments: &mut state.moments,
                step: step.0,
                lr,
                correction: correction as f32,
                clip_norm: train.clip_norm,
            },
        );
        state.rows.push(Row { train: tail, lr, grad_norm: report.grad_norm, validation: Tail::default() });
    }
}
