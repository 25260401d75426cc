//! Which samples are in which batch: pure arithmetic on indices.

use crate::Data;
use crate::order::Permutation;
use elastic_spec::batch::Batch;
use elastic_spec::job::TrainSpec;
use elastic_spec::{Shard, Step};

/// How batches are cut: fixed for the job's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub global_batch: u32,
    /// V; divides `global_batch`.
    pub shards: u16,
}

impl From<&TrainSpec> for Plan {
    fn from(train: &TrainSpec) -> Plan {
        Plan { seed: train.seed, global_batch: train.global_batch, shards: train.shards }
    }
}

impl Plan {
    /// m: samples of one shard, padding included.
    pub fn shard_samples(&self) -> u64 {
        let (batch, shards) = (u64::from(self.global_batch), u64::from(self.shards));
        assert!(shards > 0 && batch >= shards && batch.is_multiple_of(shards), "V divides the global batch");
        batch / shards
    }
}

impl Data {
    /// The samples of `shard` in training step `step`: always m of them. Each training sample comes once an
    /// epoch; what the last batch of an epoch lacks is padding, at the end of the global batch.
    pub fn train_batch(&self, plan: &Plan, step: Step, shard: Shard) -> Batch {
        let mut batch = Batch::default();
        self.add_train_batch(plan, step, shard, &mut batch);
        batch
    }

    /// Puts them behind those in `batch`.
    pub fn add_train_batch(&self, plan: &Plan, step: Step, shard: Shard, batch: &mut Batch) {
        assert!(shard.0 < plan.shards, "the shard is one of V");
        let samples = self.train_samples();
        let (epoch, batch_of_epoch) = epoch_of(step, samples, plan.global_batch);
        let order = Permutation::new(plan.seed, epoch, samples);
        let first = batch_of_epoch * u64::from(plan.global_batch);
        let m = plan.shard_samples();
        for slot in u64::from(shard.0) * m..(u64::from(shard.0) + 1) * m {
            match first + slot {
                place if place < samples => {
                    self.samples.push(self.train[order.at(place) as usize], slot, batch);
                }
                _ => self.samples.pad(slot, batch),
            }
        }
    }

    /// The share of the validation samples that `shard` evaluates: every V-th block of m, the last one padded.
    /// Over all shards, each sample comes once. Slots are places among the validation samples.
    pub fn validation_batches(&self, plan: &Plan, shard: Shard) -> ValidationBatches<'_> {
        assert!(shard.0 < plan.shards, "the shard is one of V");
        ValidationBatches { data: self, plan: *plan, block: u64::from(shard.0) }
    }
}

/// Batches of one shard's share of the validation samples.
#[derive(Debug)]
pub struct ValidationBatches<'a> {
    data: &'a Data,
    plan: Plan,
    block: u64,
}

impl Iterator for ValidationBatches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let (m, kept) = (self.plan.shard_samples(), &self.data.validation);
        let first = self.block * m;
        if first >= kept.len() as u64 {
            return None;
        }
        self.block += u64::from(self.plan.shards);
        let mut batch = Batch::default();
        for place in first..first + m {
            match kept.get(place as usize) {
                Some(index) => self.data.samples.push(*index, place, &mut batch),
                None => self.data.samples.pad(place, &mut batch),
            }
        }
        Some(batch)
    }
}

/// The epoch that a step is in, and how many batches of it come before.
pub fn epoch_of(step: Step, train_samples: u64, global_batch: u32) -> (u64, u64) {
    let per_epoch = train_samples.div_ceil(u64::from(global_batch)).max(1);
    (step.0 / per_epoch, step.0 % per_epoch)
}
