//! Each sample is trained once an epoch and validated once, for any size, batch and number of shards.

use elastic_loader::{Data, Plan, epoch_of, open, schedule, total_steps};
use elastic_spec::batch::{Batch, DataShape, IGNORE};
use elastic_spec::job::{DataSource, JobSpec, Length, Norm, ParseContext, Positions, parse};
use elastic_spec::{Shard, Step};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn spec(flags: &[String]) -> JobSpec {
    let text = "[model]\nkind = \"mlp\"\nhidden = []\n\n\
        [data]\nkind = \"synthetic\"\nsamples = 100\nfeatures = 3\nclasses = 5\n\n\
        [train]\nglobal_batch = 8\nepochs = 2\nlr = 0.1\n";
    let context = ParseContext { overrides: flags.to_vec(), ..ParseContext::default() };
    parse(text, &context).unwrap_or_else(|mistakes| panic!("{mistakes:?}")).spec
}

fn job(samples: u64, validation: f64, batch: u32, shards: u16, seed: u64) -> (JobSpec, Data) {
    let spec = spec(&[
        format!("data.samples={samples}"),
        format!("data.validation={validation:?}"),
        format!("train.global_batch={batch}"),
        format!("train.shards={shards}"),
        format!("train.seed={seed}"),
    ]);
    let data = open(&spec, &|path| PathBuf::from(path)).expect("synthetic data needs no file");
    (spec, data)
}

/// How often each sample (known by its numbers) comes, padding left out.
fn count(counts: &mut BTreeMap<Vec<u32>, u32>, batch: &Batch, m: usize, width: usize) {
    assert_eq!(
        (batch.features.len(), batch.targets.len(), batch.slots.len()),
        (m * width, m, m),
        "shapes never change"
    );
    for (sample, target) in batch.features.chunks(width).zip(&batch.targets) {
        match *target {
            IGNORE => assert!(sample.iter().all(|number| *number == 0.0), "padding is zeros"),
            _ => *counts.entry(sample.iter().map(|number| number.to_bits()).collect()).or_default() += 1,
        }
    }
}

/// The samples trained in an epoch.
fn trained(data: &Data, plan: &Plan, epoch: u64) -> BTreeMap<Vec<u32>, u32> {
    let per_epoch = data.train_samples().div_ceil(u64::from(plan.global_batch));
    let mut counts = BTreeMap::new();
    for step in epoch * per_epoch..(epoch + 1) * per_epoch {
        assert_eq!(epoch_of(Step(step), data.train_samples(), plan.global_batch).0, epoch);
        let mut slots = Vec::new();
        let mut valid = Vec::new();
        for shard in 0..plan.shards {
            let batch = data.train_batch(plan, Step(step), Shard(shard));
            count(&mut counts, &batch, plan.shard_samples() as usize, 3);
            slots.extend(batch.slots);
            valid.extend(batch.targets.iter().map(|target| *target != IGNORE));
        }
        assert!(slots.into_iter().eq(0..u64::from(plan.global_batch)), "slots are places in the global batch");
        assert!(valid.is_sorted_by(|before, after| before >= after), "padding is at the end");
    }
    counts
}

fn validated(data: &Data, plan: &Plan) -> BTreeMap<Vec<u32>, u32> {
    let mut counts = BTreeMap::new();
    for shard in 0..plan.shards {
        for batch in data.validation_batches(plan, Shard(shard)) {
            count(&mut counts, &batch, plan.shard_samples() as usize, 3);
        }
    }
    counts
}

fn check(samples: u64, validation: f64, batch: u32, shards: u16, seed: u64) {
    let (spec, data) = job(samples, validation, batch, shards, seed);
    let plan = Plan::from(&spec.train);
    assert_eq!(data.train_samples() + data.validation_samples(), samples);
    let kept = validated(&data, &plan);
    assert_eq!(kept.len() as u64, data.validation_samples());
    assert!(kept.values().all(|times| *times == 1), "each validation sample once");
    for epoch in [0, 1, 7] {
        let seen = trained(&data, &plan, epoch);
        assert_eq!(seen.len() as u64, data.train_samples(), "each training sample, epoch {epoch}");
        assert!(seen.values().all(|times| *times == 1), "each training sample once, epoch {epoch}");
        assert!(seen.keys().all(|sample| !kept.contains_key(sample)), "nothing is trained that is validated");
    }
}

#[test]
fn each_sample_comes_once_whatever_the_last_batch_lacks() {
    for samples in [1, 2, 7, 8, 9, 16, 17, 31, 33] {
        for shards in [1, 2, 4, 8] {
            check(samples, 0.0, 8, shards, 3);
            check(samples, 0.25, 8, shards, 3);
        }
    }
}

#[test]
fn the_validation_blocks_do_not_depend_on_who_evaluates_them() {
    let (spec, data) = job(101, 0.37, 8, 4, 1);
    let plan = Plan::from(&spec.train);
    // Shard i has every fourth block, whoever holds the shard: the same batches from a second reader.
    let (_, again) = job(101, 0.37, 8, 4, 1);
    for shard in 0..4 {
        let first: Vec<Batch> = data.validation_batches(&plan, Shard(shard)).collect();
        let second: Vec<Batch> = again.validation_batches(&plan, Shard(shard)).collect();
        assert_eq!(first, second);
    }
}

#[test]
fn epochs_differ_in_order_and_a_seed_repeats_it() {
    let order = |seed, step| {
        let (spec, data) = job(64, 0.0, 8, 1, seed);
        data.train_batch(&Plan::from(&spec.train), Step(step), Shard(0)).targets
    };
    assert_eq!(order(1, 3), order(1, 3));
    assert_ne!(order(1, 3), order(1, 11), "the fourth batch of two epochs");
}

#[test]
fn the_length_of_a_job_counts_the_padded_batch() {
    let (mut spec, data) = job(33, 0.0, 8, 2, 0);
    assert_eq!(total_steps(&spec, data.train_samples()).unwrap(), 10);
    assert_eq!(schedule(&spec, &data).unwrap().rounds().0, 10);
    spec.train.length = Length::Steps(3);
    assert_eq!(total_steps(&spec, data.train_samples()).unwrap(), 3);
    spec.train.length = Length::Epochs(1 << 61);
    assert!(total_steps(&spec, data.train_samples()).unwrap_err().to_string().contains("set it lower"));
}

#[test]
fn a_window_of_tokens_is_followed_by_its_targets() {
    let mut spec = spec(&[]);
    spec.model.kind = elastic_spec::job::ModelKind::Gpt {
        layers: 1,
        heads: 1,
        width: 8,
        context: 4,
        dropout: 0.0,
        norm: Norm::Layer,
        positions: Positions::Learned,
    };
    spec.data.source = DataSource::Text { path: "a.txt".to_string(), tokenizer: None };
    spec.data.validation = 0.0;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.txt"), b"abcdefghijk").unwrap();
    let data = open(&spec, &|path| folder.path().join(path)).unwrap();
    assert_eq!(data.shape(), DataShape::Tokens { vocab: 256, context: 4 });
    // Two windows of four; the eleventh byte would begin a third.
    assert_eq!(data.train_samples(), 2);
    let plan = Plan { seed: 0, global_batch: 4, shards: 2 };
    let batches = [0, 1].map(|shard| data.train_batch(&plan, Step(0), Shard(shard)));
    let tokens: Vec<i32> = batches[0].tokens.clone();
    let mut windows: Vec<&[i32]> = tokens.chunks(4).collect();
    windows.sort();
    assert_eq!(windows, [&[97, 98, 99, 100], &[101, 102, 103, 104]]);
    let followed = tokens.iter().zip(&batches[0].targets).all(|(token, target)| *target == token + 1);
    assert!(followed, "{batches:?}");
    assert_eq!(batches[1].targets, [IGNORE; 8]);
}

proptest! {
    #[test]
    fn any_job_trains_and_validates_each_sample_once(
        samples in 1u64..200, validation in 0.0f64..0.95, power in 0u32..5, each in 1u32..9, seed in any::<u64>()
    ) {
        check(samples, validation, each << power, 1 << power, seed);
    }
}
