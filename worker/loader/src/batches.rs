//! Which samples are in which batch: pure arithmetic on indices.

use crate::Data;
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
    pub fn shard_samples(&self) -> usize {
        self.global_batch as usize / usize::from(self.shards)
    }
}

impl Data {
    /// The samples of `shard` in training step `step`: always m of them, padding last in the batch.
    pub fn train_batch(&self, plan: &Plan, step: Step, shard: Shard) -> Batch {
        let _ = (plan, step, shard);
        Batch::default()
    }

    /// The share of the validation samples that `shard` evaluates: blocks of m, the last one padded.
    pub fn validation_batches(&self, plan: &Plan, shard: Shard) -> ValidationBatches<'_> {
        ValidationBatches { data: self, plan: *plan, block: u64::from(shard.0) }
    }
}

/// Every V-th block of m validation samples.
#[derive(Debug)]
pub struct ValidationBatches<'a> {
    data: &'a Data,
    plan: Plan,
    block: u64,
}

impl Iterator for ValidationBatches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let blocks = self.data.validation_samples().div_ceil(self.plan.shard_samples() as u64);
        self.block += u64::from(self.plan.shards);
        (self.block < blocks).then(Batch::default)
    }
}
