//! Logits as the outputs that a model gives: probabilities, class and label are made of them, once for all protocols.

use crate::model::{Face, Output, Takes};
use crate::refusal::{Refusal, quote};
use crate::tensor::Datatype;
use elastic_bundle::{class_of, softmax};

/// One output of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    pub name: &'static str,
    pub datatype: Datatype,
    pub shape: Vec<usize>,
    pub values: Values,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    I64(Vec<i64>),
    Text(Vec<String>),
}

/// What a request wants of one output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub output: Output,
    /// Behind the JSON as raw bytes.
    pub binary: bool,
    /// Only the so many largest, as texts `value:index:label`.
    pub largest: Option<usize>,
}

/// By its name.
pub fn find(face: &Face, name: &str) -> Result<Output, Refusal> {
    let found = face.kinds().iter().find(|output| output.name() == name);
    found.copied().ok_or_else(|| {
        let all: Vec<&str> = face.kinds().iter().map(|output| output.name()).collect();
        Refusal::Invalid(format!("the model has no output '{}'; it has {}", quote(name), all.join(", ")))
    })
}

/// Logits of `count` rows, each of `length` tokens (1 for features).
pub fn give(face: &Face, wanted: &[Wanted], logits: Vec<f32>, count: usize, length: usize) -> Vec<Given> {
    let mut logits = logits;
    let last = wanted.len().saturating_sub(1);
    let one = |(at, wanted): (usize, &Wanted)| one(face, *wanted, &mut logits, at == last, [count, length]);
    wanted.iter().enumerate().map(one).collect()
}

/// The last one may have the logits for itself.
fn one(face: &Face, wanted: Wanted, logits: &mut Vec<f32>, is_last: bool, [count, length]: [usize; 2]) -> Given {
    let name = wanted.output.name();
    let (width, wide) = match &face.takes {
        Takes::Features { classes, .. } => (*classes, vec![count, *classes]),
        Takes::Tokens { vocab, .. } => (*vocab, vec![count, length, *vocab]),
    };
    let floats = |values: Vec<f32>| match wanted.largest {
        None => Given { name, datatype: Datatype::Fp32, shape: wide.clone(), values: Values::F32(values) },
        Some(most) => largest(face, name, &values, width, most),
    };
    match wanted.output {
        Output::Logits if is_last => floats(std::mem::take(logits)),
        Output::Logits => floats(logits.clone()),
        Output::Probabilities => floats(probabilities(logits, width)),
        Output::Class => {
            let classes = logits.chunks_exact(width).map(|row| class_of(row) as i64).collect();
            Given { name, datatype: Datatype::Int64, shape: vec![count], values: Values::I64(classes) }
        }
        Output::Label => {
            let labels = logits.chunks_exact(width).map(|row| label(face, class_of(row))).collect();
            Given { name, datatype: Datatype::Bytes, shape: vec![count], values: Values::Text(labels) }
        }
    }
}

pub fn probabilities(logits: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; logits.len()];
    for (row, out) in logits.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        softmax(row, out);
    }
    out
}

fn label(face: &Face, class: usize) -> String {
    face.labels.get(class).cloned().unwrap_or_else(|| class.to_string())
}

/// Numbers of the largest values of a row, the largest first; of equal ones the first first.
pub fn order(row: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
    order
}

fn largest(face: &Face, name: &'static str, values: &[f32], width: usize, most: usize) -> Given {
    let most = most.min(width);
    let mut texts = Vec::new();
    for row in values.chunks_exact(width) {
        for class in order(row).into_iter().take(most) {
            let value = row[class];
            texts.push(match face.labels.get(class) {
                Some(label) => format!("{value:.6}:{class}:{label}"),
                None => format!("{value:.6}:{class}"),
            });
        }
    }
    let shape = vec![values.len() / width, most];
    Given { name, datatype: Datatype::Bytes, shape, values: Values::Text(texts) }
}

impl Given {
    /// Little-endian, row-major; texts with their length before each, as u32.
    pub fn bytes(&self, out: &mut Vec<u8>) {
        match &self.values {
            Values::F32(values) => values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
            Values::I64(values) => values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
            Values::Text(texts) => texts.iter().for_each(|text| {
                out.extend_from_slice(&(text.len() as u32).to_le_bytes());
                out.extend_from_slice(text.as_bytes());
            }),
        }
    }

    pub fn byte_len(&self) -> usize {
        match &self.values {
            Values::F32(values) => values.len() * 4,
            Values::I64(values) => values.len() * 8,
            Values::Text(texts) => texts.iter().map(|text| text.len() + 4).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face() -> Face {
        let takes = Takes::Features { shape: vec![2], classes: 3 };
        Face { takes, labels: ["a", "b", "c"].map(String::from).to_vec(), content: String::new(), created_s: 0 }
    }

    fn want(output: Output) -> Wanted {
        Wanted { output, binary: false, largest: None }
    }

    #[test]
    fn everything_is_made_of_the_logits_in_the_order_that_was_asked_for() {
        let wanted = [Output::Label, Output::Logits, Output::Class, Output::Probabilities, Output::Logits].map(want);
        let given = give(&face(), &wanted, vec![0.0, 2.0, 1.0, 5.0, 5.0, 5.0], 2, 1);
        assert_eq!(given[0].values, Values::Text(vec!["b".into(), "a".into()]));
        assert_eq!((&given[1].values, &given[1].shape), (&given[4].values, &vec![2, 3]));
        assert_eq!(given[2].values, Values::I64(vec![1, 0]));
        let Values::F32(p) = &given[3].values else { panic!("probabilities are floats") };
        assert!((p.iter().sum::<f32>() - 2.0).abs() < 1e-6 && p[1] > p[2] && p[3] == p[4]);
    }

    #[test]
    fn the_largest_come_as_texts_with_their_labels() {
        let wanted = Wanted { largest: Some(2), ..want(Output::Logits) };
        let given = give(&face(), &[wanted], vec![0.5, 2.0, 1.0], 1, 1);
        assert_eq!(given[0].values, Values::Text(vec!["2.000000:1:b".into(), "1.000000:2:c".into()]));
        assert_eq!((&given[0].shape, given[0].byte_len()), (&vec![1, 2], 32));
    }
}
