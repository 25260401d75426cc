//! One shard's samples: what the loader makes and a network reads. Fixed shapes for the job's life.

use serde::{Deserialize, Serialize};

/// What the data offers, from which a model takes its input and output sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataShape {
    /// `features` numbers a sample, one of `classes` classes.
    Features { features: usize, classes: usize },
    /// Windows of `context` tokens out of `vocab`; the target of each is the token after it.
    Tokens { vocab: usize, context: usize },
}

/// `m` samples. Padding samples (a short last batch) have all targets [`IGNORE`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// (m, features); empty for tokens.
    pub features: Vec<f32>,
    /// (m, context); empty for features.
    pub tokens: Vec<i32>,
    /// (m) classes or (m, context) next tokens; [`IGNORE`] where nothing counts.
    pub targets: Vec<i32>,
    /// (m) slot of each sample in the global batch: the key of its random numbers.
    pub slots: Vec<u64>,
}

impl Batch {
    /// Without samples, and with the memory that it has.
    pub fn clear(&mut self) {
        let Batch { features, tokens, targets, slots } = self;
        features.clear();
        tokens.clear();
        targets.clear();
        slots.clear();
    }
}

/// The target that losses, norms and metrics leave out.
pub const IGNORE: i32 = -1;
