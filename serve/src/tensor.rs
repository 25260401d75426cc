//! Tensors of a request: their types by the protocol's names, and the rows that they become.

use crate::limits::{ANSWER_NUMBERS_MAX, DIMENSIONS_MAX, ROWS_MAX};
use crate::model::{Face, Takes};
use crate::refusal::{Refusal, quote};

/// The protocol's types. Others than those of a model are only named, never read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bf16,
    Bytes,
}

const NAMES: [(Datatype, &str); 14] = [
    (Datatype::Bool, "BOOL"),
    (Datatype::Uint8, "UINT8"),
    (Datatype::Uint16, "UINT16"),
    (Datatype::Uint32, "UINT32"),
    (Datatype::Uint64, "UINT64"),
    (Datatype::Int8, "INT8"),
    (Datatype::Int16, "INT16"),
    (Datatype::Int32, "INT32"),
    (Datatype::Int64, "INT64"),
    (Datatype::Fp16, "FP16"),
    (Datatype::Fp32, "FP32"),
    (Datatype::Fp64, "FP64"),
    (Datatype::Bf16, "BF16"),
    (Datatype::Bytes, "BYTES"),
];

impl Datatype {
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|row| row.0 == self).expect("every type has a name").1
    }

    pub fn parse(name: &str) -> Result<Datatype, Refusal> {
        let known = NAMES.iter().find(|row| row.1 == name);
        known.map(|row| row.0).ok_or_else(|| {
            let all: Vec<&str> = NAMES.iter().map(|row| row.1).collect();
            Refusal::Invalid(format!("there is no datatype '{}'; allowed: {}", quote(name), all.join(", ")))
        })
    }
}

/// What a request's one input becomes: checked, row after row.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    /// values: (row, feature)
    Features { count: usize, values: Vec<f32> },
    /// ids: (row, token), all rows of one length
    Tokens { count: usize, length: usize, ids: Vec<i32> },
}

impl Rows {
    pub fn count(&self) -> usize {
        match self {
            Rows::Features { count, .. } | Rows::Tokens { count, .. } => *count,
        }
    }

    /// Tokens a row; 1 for features, which have no length.
    pub fn length(&self) -> usize {
        match self {
            Rows::Features { .. } => 1,
            Rows::Tokens { length, .. } => *length,
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Rows::Features { values, .. } => values.len() * 4,
            Rows::Tokens { ids, .. } => ids.len() * 4,
        }
    }

    /// Rows that share one call follow each other.
    pub fn append(&mut self, other: &Rows) {
        match (self, other) {
            (Rows::Features { count, values }, Rows::Features { count: more, values: others }) => {
                *count += more;
                values.extend_from_slice(others);
            }
            (Rows::Tokens { count, length, ids }, Rows::Tokens { count: more, length: same, ids: others }) => {
                assert!(length == same, "rows of one batch have one length");
                *count += more;
                ids.extend_from_slice(others);
            }
            _ => panic!("rows of one model are of one kind"),
        }
    }

    /// Some of them, by number.
    pub fn slice(&self, from: usize, to: usize) -> Rows {
        match self {
            Rows::Features { count, values } => {
                let width = values.len() / count.max(&1);
                Rows::Features { count: to - from, values: values[from * width..to * width].to_vec() }
            }
            Rows::Tokens { length, ids, .. } => {
                Rows::Tokens { count: to - from, length: *length, ids: ids[from * length..to * length].to_vec() }
            }
        }
    }
}

/// Numbers of an input, read as its datatype says.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    F32(Vec<f32>),
    I32(Vec<i32>),
}

impl Numbers {
    fn len(&self) -> usize {
        match self {
            Numbers::F32(values) => values.len(),
            Numbers::I32(values) => values.len(),
        }
    }
}

/// Is the type the model's? Tokens may come as INT64 too, because that is what most tokenizers give.
pub fn check_datatype(face: &Face, datatype: Datatype) -> Result<(), Refusal> {
    let port = face.input();
    let fits = datatype == port.datatype || (port.datatype == Datatype::Int32 && datatype == Datatype::Int64);
    match fits {
        true => Ok(()),
        false => Err(Refusal::Invalid(format!(
            "input '{}' has datatype {}, the model takes {}",
            port.name,
            datatype.name(),
            port.datatype.name()
        ))),
    }
}

/// How many numbers a shape has; its dimensions are checked against the model's.
pub fn check_shape(face: &Face, shape: &[i64]) -> Result<Dims, Refusal> {
    let port = face.input();
    let bad = |why: &str| {
        let shape = &shape[..shape.len().min(DIMENSIONS_MAX)];
        let text = format!("input '{}' has shape {shape:?}, the model takes {:?}: {why}", port.name, port.shape);
        Err(Refusal::Invalid(text))
    };
    if shape.len() > DIMENSIONS_MAX {
        return bad("too many dimensions");
    }
    if shape.iter().any(|n| *n < 0) {
        return bad("a dimension is below 0");
    }
    let Some((rows, rest)) = shape.split_first() else { return bad("the first dimension, of rows, is missing") };
    let rows = *rows as usize;
    if rows == 0 || rows > ROWS_MAX {
        return bad(&format!("1 to {ROWS_MAX} rows are taken"));
    }
    let row = match &face.takes {
        Takes::Features { shape: features, .. } => {
            let width: usize = features.iter().product();
            let whole = rest.iter().map(|n| *n as usize).eq(features.iter().copied());
            if !whole && rest != [width as i64] {
                return bad("the dimensions behind the first differ");
            }
            width
        }
        Takes::Tokens { context, .. } => match rest {
            [length] if *length >= 1 && *length as usize <= *context => *length as usize,
            [_] => return bad(&format!("1 to {context} tokens a row are taken")),
            _ => return bad("two dimensions are taken: rows and tokens"),
        },
    };
    let Some(numbers) = rows.checked_mul(row) else { return bad("too many numbers") };
    Ok(Dims { rows, row, numbers })
}

/// A checked shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    pub rows: usize,
    /// Numbers of one row.
    pub row: usize,
    pub numbers: usize,
}

/// Numbers and their shape as rows; tokens must be in the vocabulary.
pub fn rows(face: &Face, dims: Dims, numbers: Numbers) -> Result<Rows, Refusal> {
    let name = face.input().name;
    if numbers.len() != dims.numbers {
        return Err(Refusal::Invalid(format!(
            "input '{name}' has {} numbers, its shape has {}",
            numbers.len(),
            dims.numbers
        )));
    }
    let rows = match (&face.takes, numbers) {
        (Takes::Features { .. }, Numbers::F32(values)) => Rows::Features { count: dims.rows, values },
        (Takes::Tokens { vocab, .. }, Numbers::I32(ids)) => {
            if let Some(at) = ids.iter().position(|id| *id < 0 || *id as usize >= *vocab) {
                let (row, token, id) = (at / dims.row, at % dims.row, ids[at]);
                let text = format!("input '{name}': token {id} in row {row}, place {token}: 0 to {} exist", vocab - 1);
                return Err(Refusal::Invalid(text));
            }
            Rows::Tokens { count: dims.rows, length: dims.row, ids }
        }
        _ => return Err(Refusal::Internal("an input was read as another type than its model's".into())),
    };
    let logits = face.logits_of(&rows);
    if logits > ANSWER_NUMBERS_MAX {
        return Err(Refusal::TooLarge(format!(
            "the answer would have {logits} numbers, more than {ANSWER_NUMBERS_MAX}: send fewer rows at once"
        )));
    }
    Ok(rows)
}

/// Little-endian bytes as numbers of a datatype that [`check_datatype`] let pass.
pub fn from_bytes(face: &Face, datatype: Datatype, bytes: &[u8], numbers: usize) -> Result<Numbers, Refusal> {
    let name = face.input().name;
    let size = if datatype == Datatype::Int64 { 8 } else { 4 };
    if bytes.len() != numbers * size {
        return Err(Refusal::Invalid(format!(
            "input '{name}' has {} bytes, its shape and datatype {} need {}",
            bytes.len(),
            datatype.name(),
            numbers * size
        )));
    }
    match datatype {
        Datatype::Fp32 => {
            let four = bytes.as_chunks::<4>().0;
            Ok(Numbers::F32(four.iter().map(|b| f32::from_le_bytes(*b)).collect()))
        }
        Datatype::Int32 => {
            let four = bytes.as_chunks::<4>().0;
            Ok(Numbers::I32(four.iter().map(|b| i32::from_le_bytes(*b)).collect()))
        }
        Datatype::Int64 => {
            let eight = bytes.as_chunks::<8>().0;
            narrow(face, eight.iter().map(|b| i64::from_le_bytes(*b))).map(Numbers::I32)
        }
        other => Err(Refusal::Internal(format!("{} passed as a model's datatype", other.name()))),
    }
}

/// Whole numbers of 64 bits as tokens.
pub fn narrow(face: &Face, ids: impl Iterator<Item = i64>) -> Result<Vec<i32>, Refusal> {
    let outside = |id: i64| Refusal::Invalid(format!("input '{}': there is no token {id}", face.input().name));
    ids.map(|id| i32::try_from(id).map_err(|_| outside(id))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Face {
        let takes = Takes::Features { shape: vec![1, 2, 2], classes: 3 };
        Face { takes, labels: vec![], content: String::new(), created_s: 0 }
    }

    fn text() -> Face {
        let takes = Takes::Tokens { vocab: 10, context: 4 };
        Face { takes, labels: vec![], content: String::new(), created_s: 0 }
    }

    #[test]
    fn an_image_comes_in_its_shape_or_flat() {
        for shape in [&[5, 1, 2, 2][..], &[5, 4]] {
            assert_eq!(check_shape(&image(), shape).unwrap(), Dims { rows: 5, row: 4, numbers: 20 });
        }
    }

    #[test]
    fn a_wrong_shape_is_refused_with_both_shapes() {
        let cases: [&[i64]; 8] =
            [&[], &[5], &[0, 4], &[-1, 4], &[5, 2, 2], &[5, 4, 1], &[i64::MAX, 4], &[1, 1, 1, 1, 1, 1, 1, 1, 1]];
        for shape in cases {
            let text = check_shape(&image(), shape).unwrap_err().to_string();
            assert!(text.contains("the model takes [-1, 1, 2, 2]"), "{text}");
        }
        assert!(check_shape(&text(), &[1, 5]).unwrap_err().to_string().contains("1 to 4 tokens"));
    }

    #[test]
    fn a_token_outside_of_the_vocabulary_is_named_with_its_place() {
        let dims = check_shape(&text(), &[2, 3]).unwrap();
        let error = rows(&text(), dims, Numbers::I32(vec![0, 1, 2, 3, 10, 5])).unwrap_err().to_string();
        assert!(error.contains("token 10 in row 1, place 1: 0 to 9 exist"), "{error}");
    }

    #[test]
    fn bytes_must_be_as_many_as_the_shape_needs() {
        let error = from_bytes(&image(), Datatype::Fp32, &[0; 15], 4).unwrap_err().to_string();
        assert!(error.contains("has 15 bytes") && error.contains("need 16"), "{error}");
        let tokens = from_bytes(&text(), Datatype::Int64, &7i64.to_le_bytes(), 1).unwrap();
        assert_eq!(tokens, Numbers::I32(vec![7]));
        assert!(from_bytes(&text(), Datatype::Int64, &i64::MAX.to_le_bytes(), 1).is_err());
    }

    #[test]
    fn rows_are_cut_and_joined() {
        let mut rows = Rows::Features { count: 2, values: vec![1.0, 2.0, 3.0, 4.0] };
        rows.append(&Rows::Features { count: 1, values: vec![5.0, 6.0] });
        assert_eq!(rows.slice(1, 3), Rows::Features { count: 2, values: vec![3.0, 4.0, 5.0, 6.0] });
    }
}
