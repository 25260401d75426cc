//! The samples of a job in memory, whatever file they came from.

use elastic_spec::batch::{Batch, DataShape, IGNORE};

#[derive(Debug)]
pub(crate) enum Samples {
    /// features: (samples, width); classes: (samples).
    Rows { features: Vec<f32>, classes: Vec<i32>, width: usize, class_count: usize },
    /// Sample i is the window of `context` tokens from i * context; its targets are one token further.
    Windows { tokens: Vec<i32>, context: usize, vocab: usize },
}

impl Samples {
    pub fn len(&self) -> u64 {
        match self {
            Samples::Rows { classes, .. } => classes.len() as u64,
            Samples::Windows { tokens, context, .. } => (tokens.len().saturating_sub(1) / context) as u64,
        }
    }

    pub fn shape(&self) -> DataShape {
        match *self {
            Samples::Rows { width, class_count, .. } => DataShape::Features { features: width, classes: class_count },
            Samples::Windows { context, vocab, .. } => DataShape::Tokens { vocab, context },
        }
    }

    /// Puts sample `index` behind those in `batch`.
    pub fn push(&self, index: u64, slot: u64, batch: &mut Batch) {
        let index = index as usize;
        match self {
            Samples::Rows { features, classes, width, .. } => {
                batch.features.extend_from_slice(&features[index * width..(index + 1) * width]);
                batch.targets.push(classes[index]);
            }
            Samples::Windows { tokens, context, .. } => {
                let window = &tokens[index * context..=(index + 1) * context];
                batch.tokens.extend_from_slice(&window[..*context]);
                batch.targets.extend_from_slice(&window[1..]);
            }
        }
        batch.slots.push(slot);
    }

    /// Puts a sample there that counts for nothing.
    pub fn pad(&self, slot: u64, batch: &mut Batch) {
        let targets = match *self {
            Samples::Rows { width, .. } => {
                batch.features.resize(batch.features.len() + width, 0.0);
                1
            }
            Samples::Windows { context, .. } => {
                batch.tokens.resize(batch.tokens.len() + context, 0);
                context
            }
        };
        batch.targets.resize(batch.targets.len() + targets, IGNORE);
        batch.slots.push(slot);
    }
}
