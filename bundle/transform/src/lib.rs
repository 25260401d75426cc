//! What is done to a sample before a network sees it: scaling numbers, tokens of a text. The same code trains and serves.
//!
//! Reading files is the loader's and the server's business; which transform a job has follows from its data.

mod text;
mod tokenizer;

pub use text::Text;
pub use tokenizer::{Tokenizer, byte_letters};

use elastic_spec::job::{DataSource, DataSpec};
use serde::{Deserialize, Serialize};

/// What a sample goes through, in the words of a bundle's description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Transform {
    /// Each number is multiplied by `scale`, in f32.
    Scale { scale: f32 },
    /// Text becomes its bytes.
    Bytes,
    /// Text becomes the tokens of a tokenizer.json.
    Tokenizer,
}

impl Transform {
    /// Of a job's data.
    pub fn of(data: &DataSpec) -> Transform {
        match &data.source {
            DataSource::Csv { scale, .. } | DataSource::Npy { scale, .. } => Transform::Scale { scale: *scale },
            DataSource::Text { tokenizer: None, .. } => Transform::Bytes,
            DataSource::Text { tokenizer: Some(_), .. } => Transform::Tokenizer,
            DataSource::Synthetic { .. } => Transform::Scale { scale: 1.0 },
        }
    }
}

/// A feature as the network sees it; None where that is not finite.
pub fn scaled(number: f32, scale: f32) -> Option<f32> {
    Some(number * scale).filter(|number| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_scaled_once_or_refused() {
        assert_eq!(scaled(8.0, 0.0625), Some(0.5));
        assert_eq!(scaled(f32::MAX, 2.0), None);
        assert_eq!(scaled(f32::NAN, 1.0), None);
    }

    #[test]
    fn a_transform_reads_back_from_its_json() {
        for transform in [Transform::Scale { scale: 0.1 }, Transform::Bytes, Transform::Tokenizer] {
            let json = serde_json::to_string(&transform).unwrap();
            assert_eq!(serde_json::from_str::<Transform>(&json).unwrap(), transform);
        }
    }
}
