//! States and origins that the tests of this crate share.
#![allow(dead_code)]

use bytes::Bytes;
use elastic_checkpoint::{Contents, Origin, TensorBytes};
use elastic_spec::weights::Dtype;
use elastic_spec::{Digest, Epoch, JobId, Round, Step};

/// A state of a small model: a tensor of three blocks, a small one, a scalar, an empty one, in file order.
pub fn contents(step: u64) -> Contents {
    let tensor = |name: &str, shape: &[usize], seed: u64| {
        let floats: usize = shape.iter().product();
        let bytes = (0..floats).flat_map(|i| ((i as u64 * 37 + step * 101 + seed) as f32 * 0.37).to_le_bytes());
        TensorBytes { name: name.to_string(), dtype: Dtype::F32, shape: shape.to_vec(), bytes: bytes.collect() }
    };
    let flags = Bytes::from_static(b"abcd");
    Contents {
        step: Step(step),
        round: Round(step + step / 10),
        meta: [("cursor".to_string(), format!("epoch 0 step {step}"))].into(),
        weights: vec![
            tensor("layer.0.bias", &[7], 2),
            tensor("layer.0.weight", &[(64 << 10) * 2 + 5], 1),
            tensor("nothing", &[0, 3], 4),
            tensor("scale", &[], 3),
        ],
        optimizer: vec![
            tensor("layer.0.weight.moment", &[300], 5),
            TensorBytes { name: "flags".to_string(), dtype: Dtype::U8, shape: vec![4], bytes: flags },
        ],
        rows: Bytes::from(format!("step {step}\n").repeat(40)),
    }
}

/// A state that is quick to write: for many crashes, and for the fixture.
pub fn small(step: u64) -> Contents {
    let full = contents(step);
    let mut weights: Vec<TensorBytes> = full.weights.into_iter().filter(|t| t.name != "layer.0.weight").collect();
    let bytes: Bytes = (0..700u32).flat_map(|i| (i * 3 + step as u32).to_le_bytes()).collect();
    weights.push(TensorBytes { name: "w".to_string(), dtype: Dtype::F32, shape: vec![700], bytes });
    Contents { weights, ..full }
}

pub fn origin(term: u64, gen_: u64) -> Origin {
    Origin {
        cluster: "cluster-a".to_string(),
        job: JobId::parse("digits-7").unwrap(),
        config: Digest::of(b"config"),
        epoch: Epoch::new(term, gen_),
    }
}
