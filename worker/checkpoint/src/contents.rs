//! What goes into a checkpoint and comes out of it again.

use bytes::Bytes;
use elastic_spec::weights::{self, Dtype, Tensor};
use elastic_spec::{Digest, Epoch, JobId, Round, Step};
use std::collections::{BTreeMap, BTreeSet};

/// The whole state of a job after `step` updates.
///
/// Tensors may come in any order; a restored one has them as they lie in the file (see `docs/checkpoint-format.md`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    pub step: Step,
    pub round: Round,
    /// What else the next step depends on (the loader's cursor). Part of the state digest, so it must be a
    /// function of (spec, data, step): no host names, no times.
    pub meta: BTreeMap<String, String>,
    /// Weights and buffers: what the weights digest covers.
    pub weights: Vec<TensorBytes>,
    /// Moments, averages: what is needed to go on, but not to predict.
    pub optimizer: Vec<TensorBytes>,
    /// The run's event log so far. Not part of the state digest.
    pub rows: Bytes,
}

/// A tensor by name: raw little-endian bytes, row-major, unpadded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorBytes {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}

/// Who publishes: the fence is (cluster, term).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Names the store that counts the terms; terms of different clusters are not compared.
    pub cluster: String,
    pub job: JobId,
    /// Digest of the resolved spec.
    pub config: Digest,
    pub epoch: Epoch,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadContents {
    #[error("tensor {0:?} is named twice")]
    Twice(String),
    #[error("tensor name {0:?} is empty, reserved or holds a NUL")]
    Name(String),
    #[error("tensor {name:?} of {dtype} {shape:?} has {bytes} bytes")]
    Size { name: String, dtype: Dtype, shape: Vec<usize>, bytes: usize },
    #[error("meta entry {0:?} holds a NUL")]
    Meta(String),
}

impl TensorBytes {
    pub fn as_tensor(&self) -> Tensor<'_> {
        Tensor { name: &self.name, dtype: self.dtype, shape: &self.shape, bytes: &self.bytes }
    }
}

impl Contents {
    pub fn weights_digest(&self) -> Digest {
        weights::digest(self.weights.iter().map(TensorBytes::as_tensor))
    }

    pub fn state_digest(&self) -> Digest {
        weights::state_digest(
            self.weights.iter().map(TensorBytes::as_tensor),
            self.optimizer.iter().map(TensorBytes::as_tensor),
            (self.step, self.round),
            &self.meta,
        )
    }

    /// Whether this can be stored at all.
    pub fn check(&self) -> Result<(), BadContents> {
        check_tensors(&self.weights)?;
        check_tensors(&self.optimizer)?;
        match self.meta.iter().find(|(key, value)| key.contains('\0') || value.contains('\0')) {
            Some((key, _)) => Err(BadContents::Meta(key.clone())),
            None => Ok(()),
        }
    }
}

fn check_tensors(tensors: &[TensorBytes]) -> Result<(), BadContents> {
    let mut names = BTreeSet::new();
    for tensor in tensors {
        let TensorBytes { name, dtype, shape, bytes } = tensor;
        if name.is_empty() || name == "__metadata__" || name.contains('\0') {
            return Err(BadContents::Name(name.clone()));
        }
        if !names.insert(name) {
            return Err(BadContents::Twice(name.clone()));
        }
        if size_of(*dtype, shape) != Some(bytes.len() as u64) {
            let (name, shape) = (name.clone(), shape.clone());
            return Err(BadContents::Size { name, dtype: *dtype, shape, bytes: bytes.len() });
        }
    }
    Ok(())
}

/// Bytes of a tensor; `None` where no machine could hold it.
pub(crate) fn size_of(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    shape.iter().try_fold(dtype.bytes() as u64, |bytes, axis| bytes.checked_mul(*axis as u64))
}
