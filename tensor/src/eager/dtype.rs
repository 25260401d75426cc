//! The types of elements, and which type an operation on two of them has.

use crate::half::Half;
use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    Bool,
    U8,
    I32,
    I64,
    /// Stored in 16 bits, computed with as f32, and rounded on the way back.
    F16,
    /// The same.
    Bf16,
    F32,
    F64,
}

pub(crate) const ALL: [DType; 8] =
    [DType::Bool, DType::U8, DType::I32, DType::I64, DType::F16, DType::Bf16, DType::F32, DType::F64];

/// The float that kernels compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    F32,
    F64,
}

impl Class {
    pub(crate) fn dtype(self) -> DType {
        match self {
            Class::F32 => DType::F32,
            Class::F64 => DType::F64,
        }
    }
}

impl DType {
    pub fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::U8 => "u8",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }

    pub fn is_float(self) -> bool {
        self >= DType::F16
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            DType::Bool | DType::U8 => 1,
            DType::F16 | DType::Bf16 => 2,
            DType::I32 | DType::F32 => 4,
            DType::I64 | DType::F64 => 8,
        }
    }

    /// What its elements are computed as: f64 for f64, f32 for all else.
    pub(crate) fn class(self) -> Class {
        if self == DType::F64 { Class::F64 } else { Class::F32 }
    }

    pub(crate) fn half(self) -> Option<Half> {
        match self {
            DType::F16 => Some(Half::F16),
            DType::Bf16 => Some(Half::Bf16),
            _ => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = String;

    /// `f32`, `bf16`, `f16`, `f64`, `i64`, `i32`, `u8` or `bool`.
    fn from_str(name: &str) -> Result<DType, String> {
        let found = ALL.into_iter().find(|dtype| dtype.name() == name);
        found.ok_or_else(|| {
            format!("`{name}` is no type of elements; there are bool, u8, i32, i64, f16, bf16, f32, f64")
        })
    }
}

/// The type of an operation on two types: bool under integers under floats, in each the longer one; bf16 with f16 is
/// f32. As in PyTorch an integer beside a float takes the float's type (NumPy would go to f64).
pub fn promote(a: DType, b: DType) -> DType {
    match (a, b) {
        (DType::F16, DType::Bf16) | (DType::Bf16, DType::F16) => DType::F32,
        _ => a.max(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promotion_is_symmetric_and_its_own_upper_bound() {
        for a in ALL {
            assert_eq!(promote(a, a), a);
            for b in ALL {
                let both = promote(a, b);
                assert_eq!(promote(b, a), both);
                assert_eq!((promote(both, a), promote(both, b)), (both, both));
                assert_eq!(both.is_float(), a.is_float() || b.is_float());
            }
        }
        assert_eq!(promote(DType::F16, DType::Bf16), DType::F32);
        assert_eq!(promote(DType::I64, DType::F16), DType::F16);
    }

    #[test]
    fn the_documented_table_is_the_rule() {
        let page = include_str!("../../../docs/tensor.md");
        let rows: Vec<Vec<&str>> = page
            .lines()
            .filter(|line| ALL.iter().any(|dtype| line.starts_with(&format!("| **{dtype}** |"))))
            .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('*')).collect())
            .collect();
        assert_eq!(rows.len(), ALL.len());
        for (row, a) in rows.iter().zip(ALL) {
            let wanted: Vec<&str> = ALL.iter().map(|b| promote(a, *b).name()).collect();
            assert_eq!((row[0], &row[1..]), (a.name(), &wanted[..]));
        }
    }

    #[test]
    fn names_are_read_back() {
        assert!(ALL.iter().all(|dtype| dtype.name().parse() == Ok(*dtype)));
        assert!("float".parse::<DType>().unwrap_err().contains("f32"));
    }
}
