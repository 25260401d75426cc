//! The arithmetic of one job: what a unit's sum of each round is, and what a reduced round makes of the state.
//!
//! Pure in (spec, data, state, round): no member, link or disk is known here. Where leaves are added up
//! is the pool's and the member's business.

use crate::inputs::Inputs;
use crate::not_finite::NotFinite;
use crate::rows::{self, Row};
use crate::state::State;
use elastic_loader::{Data, Plan};
use elastic_spec::batch::Batch;
use elastic_spec::job::schedule::{Kind, Schedule};
use elastic_spec::job::{JobSpec, NonFinite};
use elastic_spec::layout::{Layout, Tail};
use elastic_spec::tree::{self, TreeNode};
use elastic_spec::{Round, Shard, Step};
use elastic_tensor::exec::Watch;
use elastic_tensor::optim::{self, Update};
use elastic_tensor::{Held, LeafKey, Network, UpdateReport};
use std::any::Any;
use std::collections::BTreeMap;

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
        let moments = optim::moments_of(&self.spec.train.optimizer) + usize::from(self.spec.train.ema.is_some());
        let mut state = State {
            round: Round(0),
            floats: self.network.init(self.spec.train.seed),
            moments: vec![vec![0.0; self.network.layout().param_floats()]; moments],
            rows: Vec::new(),
        };
        self.begin_average(&mut state);
        state
    }

    /// The average begins as the initial weights, wherever those come from.
    pub fn begin_average(&self, state: &mut State) {
        if self.spec.train.ema.is_some() {
            let average = state.moments.last_mut().expect("the average is the last of the vectors");
            let params = average.len();
            average.copy_from_slice(&state.floats[..params]);
        }
    }

    /// Where an average of the weights is kept: what is evaluated, the average and then the buffers.
    pub fn average(&self, state: &State) -> Option<Vec<f32>> {
        let average = self.spec.train.ema.and(state.moments.last())?;
        Some([average, &state.floats[average.len()..]].concat())
    }

    /// Most shards of a unit: those whose leaves are computed and added in one call.
    pub fn unit_max(&self) -> usize {
        unit_of(&*self.network, self.plan.shards.into())
    }

    /// What the shards under `unit` contribute to `round`, added along the tree; the floats are written to `out`, all of
    /// them.
    pub fn sum(
        &self,
        scratch: &mut (dyn Any + Send),
        floats: &[f32],
        (round, unit): (Round, TreeNode),
        inputs: &Inputs,
        out: &mut [f32],
    ) -> Tail {
        match self.schedule.kind(round) {
            Kind::Train(step) => {
                let batch = inputs.take(self, step, unit);
                let tail = self.network.sum(scratch, floats, &batch, self.key(step), out);
                inputs.give_back(batch);
                tail
            }
            Kind::Validate(_) => self.validate(scratch, floats, unit),
        }
    }

    /// The samples of a unit's shards, one behind the other.
    pub fn batch(&self, step: Step, unit: TreeNode) -> Batch {
        let mut batch = Batch::default();
        self.batch_into(step, unit, &mut batch);
        batch
    }

    /// The same in the place of what `batch` holds.
    pub fn batch_into(&self, step: Step, unit: TreeNode, batch: &mut Batch) {
        batch.clear();
        for shard in unit.range() {
            self.data.add_train_batch(&self.plan, step, Shard(shard), batch);
        }
    }

    /// The sum of a unit's leaves of a step, with a look at each op; None where the network cannot show its ops.
    pub fn sum_seen(
        &self,
        scratch: &mut (dyn Any + Send),
        floats: &[f32],
        (step, batch): (Step, &Batch),
        out: &mut [f32],
        watch: &mut dyn Watch,
    ) -> Option<Tail> {
        self.network.sum_seen(scratch, floats, batch, self.key(step), out, watch)
    }

    fn key(&self, step: Step) -> LeafKey {
        let train = &self.spec.train;
        let scale = 1.0 / train.global_batch as f32;
        LeafKey { seed: train.seed, step: step.0, scale, label_smoothing: train.label_smoothing }
    }

    /// Each shard's batches are folded one after the other, and the shards along the tree.
    fn validate(&self, scratch: &mut (dyn Any + Send), floats: &[f32], unit: TreeNode) -> Tail {
        let mut shards: Vec<_> =
            unit.range().map(|shard| self.data.validation_batches(&self.plan, Shard(shard))).collect();
        let mut tails: BTreeMap<TreeNode, Tail> =
            unit.range().map(|shard| (TreeNode::leaf(Shard(shard)), Tail::default())).collect();
        loop {
            // Blocks of samples go round the shards, so those that still have one are the first.
            let blocks: Vec<Batch> = shards.iter_mut().map_while(Iterator::next).collect();
            if blocks.is_empty() {
                break;
            }
            let mut tails = tails.values_mut();
            let mut blocks = blocks.into_iter();
            while blocks.len() > 0 {
                let mut batch = Batch::default();
                let together = 1 << blocks.len().ilog2();
                blocks.by_ref().take(together).for_each(|block| append(&mut batch, block));
                let found = self.network.evaluate(scratch, floats, &batch);
                found.into_iter().zip(&mut tails).for_each(|(found, tail)| *tail = tail.add(found));
            }
        }
        tree::fold(unit, &tails, &mut |a, b| a.add(*b)).expect("every shard has its tail")
    }

    /// Makes the state of the next round. `reduced` is used up. The error ends the job; the state is then as it was.
    pub fn apply(
        &self,
        scratch: &mut (dyn Any + Send),
        state: &mut State,
        reduced: &mut [f32],
        tail: Tail,
    ) -> Result<Newest, NotFinite> {
        let newest = match self.schedule.kind(state.round) {
            Kind::Train(step) => self.train(scratch, state, step, reduced, tail)?,
            Kind::Validate(_) => {
                if let Some(row) = state.rows.last_mut() {
                    row.validation = tail;
                }
                Newest::AsBefore
            }
        };
        state.round = state.round.next();
        Ok(newest)
    }

    fn train(
        &self,
        scratch: &mut (dyn Any + Send),
        state: &mut State,
        step: Step,
        reduced: &mut [f32],
        tail: Tail,
    ) -> Result<Newest, NotFinite> {
        let train = &self.spec.train;
        let lr = optim::learning_rate(train.lr, &train.lr_schedule, step.0, self.schedule.steps);
        // Leaves were scaled by the constant 1/B; the mean is over the samples (or tokens) that count.
        // Infinite where nothing counts: the update then leaves the gradient at zero.
        let correction = (f64::from(train.global_batch) / tail.count as f64) as f32;
        let held = Held {
            from: state.round.0,
            to: state.round.next().0,
            optimizer: &train.optimizer,
            ema: train.ema,
            reduced,
            state: &state.floats,
            moments: &state.moments,
            step: step.0,
            lr,
            correction,
            clip_norm: train.clip_norm,
        };
        let (report, newest) = match self.network.advance(scratch, held) {
            Some(report) => (report, Newest::OnDevice),
            None => (self.train_here(scratch, state, reduced, (step, lr, correction)), Newest::Here),
        };
        if let Some(at) = report.not_finite {
            let found = NotFinite { step, loss: rows::mean(tail), lr, ..NotFinite::at(self.network.layout(), at) };
            match train.non_finite {
                NonFinite::Fail => return Err(found),
                NonFinite::Skip => tracing::warn!("{found}; the step moved nothing"),
            }
        }
        state.rows.push(Row { train: tail, lr, grad_norm: report.grad_norm, validation: Tail::default() });
        Ok(newest)
    }

    /// The step on the host's vectors.
    fn train_here(
        &self,
        scratch: &mut (dyn Any + Send),
        state: &mut State,
        reduced: &mut [f32],
        (step, lr, correction): (Step, f64, f32),
    ) -> UpdateReport {
        let train = &self.spec.train;
        let of_optimizer = optim::moments_of(&train.optimizer);
        let update = Update {
            layout: self.network.layout(),
            reduced,
            state: &mut state.floats,
            moments: &mut state.moments[..of_optimizer],
            step: step.0,
            lr,
            correction,
            clip_norm: train.clip_norm,
        };
        let report = self.network.update(scratch, &train.optimizer, update);
        if let (Some(decay), None) = (train.ema, report.not_finite) {
            let average = &mut state.moments[of_optimizer];
            self.network.follow(scratch, decay, &state.floats[..average.len()], average);
        }
        report
    }
}

/// Where the newest state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newest {
    Here,
    /// The network has it; the host's vectors are those of an earlier round.
    OnDevice,
    /// Nothing was moved.
    AsBefore,
}

/// Most of `shards` that the network takes in one call.
pub fn unit_of(network: &dyn Network, shards: usize) -> usize {
    network.shards_max().min(shards)
}

/// Puts `next` behind the samples of `batch`.
fn append(batch: &mut Batch, next: Batch) {
    let Batch { features, tokens, targets, slots } = next;
    batch.features.extend(features);
    batch.tokens.extend(tokens);
    batch.targets.extend(targets);
    batch.slots.extend(slots);
}
