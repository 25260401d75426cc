//! A tensor's elements, one vector by type, and their conversion from one type to another.

use super::dtype::DType;
use crate::float_mode::Ieee;
use crate::half::Half;
use std::borrow::Cow;

#[derive(Clone, Debug, PartialEq)]
pub enum Storage {
    Bool(Vec<bool>),
    U8(Vec<u8>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    /// Bits.
    F16(Vec<u16>),
    /// Bits.
    Bf16(Vec<u16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
}

/// `with!(storage, xs => body)`: the body for whatever vector there is.
macro_rules! with {
    ($storage:expr, $xs:ident => $body:expr) => {
        match $storage {
            Storage::Bool($xs) => $body,
            Storage::U8($xs) => $body,
            Storage::I32($xs) => $body,
            Storage::I64($xs) => $body,
            Storage::F16($xs) => $body,
            Storage::Bf16($xs) => $body,
            Storage::F32($xs) => $body,
            Storage::F64($xs) => $body,
        }
    };
}

/// A Rust type that a tensor can be made of and read as.
pub trait Element: Copy + 'static {
    const DTYPE: DType;
    fn store(xs: Vec<Self>) -> Storage;
    /// The elements, if they are of this type.
    fn read(storage: &Storage) -> Option<&[Self]>;
}

macro_rules! element {
    ($($ty:ty: $name:ident),*) => {$(
        impl Element for $ty {
            const DTYPE: DType = DType::$name;

            fn store(xs: Vec<$ty>) -> Storage {
                Storage::$name(xs)
            }

            fn read(storage: &Storage) -> Option<&[$ty]> {
                if let Storage::$name(xs) = storage { Some(xs) } else { None }
            }
        }
    )*};
}

element!(bool: Bool, u8: U8, i32: I32, i64: I64, f32: F32, f64: F64);

impl Storage {
    pub fn dtype(&self) -> DType {
        match self {
            Storage::Bool(_) => DType::Bool,
            Storage::U8(_) => DType::U8,
            Storage::I32(_) => DType::I32,
            Storage::I64(_) => DType::I64,
            Storage::F16(_) => DType::F16,
            Storage::Bf16(_) => DType::Bf16,
            Storage::F32(_) => DType::F32,
            Storage::F64(_) => DType::F64,
        }
    }

    pub fn len(&self) -> usize {
        with!(self, xs => xs.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements at these places, in their order.
    pub(crate) fn pick(&self, places: impl Iterator<Item = usize>) -> Storage {
        match self {
            Storage::Bool(xs) => Storage::Bool(places.map(|i| xs[i]).collect()),
            Storage::U8(xs) => Storage::U8(places.map(|i| xs[i]).collect()),
            Storage::I32(xs) => Storage::I32(places.map(|i| xs[i]).collect()),
            Storage::I64(xs) => Storage::I64(places.map(|i| xs[i]).collect()),
            Storage::F16(xs) => Storage::F16(places.map(|i| xs[i]).collect()),
            Storage::Bf16(xs) => Storage::Bf16(places.map(|i| xs[i]).collect()),
            Storage::F32(xs) => Storage::F32(places.map(|i| xs[i]).collect()),
            Storage::F64(xs) => Storage::F64(places.map(|i| xs[i]).collect()),
        }
    }

    /// As f32, without a copy where they are such. f64 is rounded.
    pub(crate) fn f32s(&self) -> Cow<'_, [f32]> {
        Cow::Owned(match self {
            Storage::F32(xs) => return Cow::Borrowed(xs),
            Storage::Bool(xs) => xs.iter().map(|x| *x as u8 as f32).collect(),
            Storage::U8(xs) => xs.iter().map(|x| *x as f32).collect(),
            Storage::I32(xs) => xs.iter().map(|x| *x as f32).collect(),
            Storage::I64(xs) => xs.iter().map(|x| *x as f32).collect(),
            Storage::F16(xs) => xs.iter().map(|x| Half::F16.to_f32(*x)).collect(),
            Storage::Bf16(xs) => xs.iter().map(|x| Half::Bf16.to_f32(*x)).collect(),
            Storage::F64(xs) => xs.iter().map(|x| *x as f32).collect(),
        })
    }

    /// As f64, without a copy where they are such; only i64 beyond 2^53 is rounded.
    pub(crate) fn f64s(&self) -> Cow<'_, [f64]> {
        Cow::Owned(match self {
            Storage::F64(xs) => return Cow::Borrowed(xs),
            Storage::I64(xs) => xs.iter().map(|x| *x as f64).collect(),
            Storage::I32(xs) => xs.iter().map(|x| *x as f64).collect(),
            _ => self.f32s().iter().map(|x| *x as f64).collect(),
        })
    }

    /// As i64: floats lose what is behind the point; those out of range, and NaN, become the nearest end, and 0.
    pub(crate) fn i64s(&self) -> Cow<'_, [i64]> {
        Cow::Owned(match self {
            Storage::I64(xs) => return Cow::Borrowed(xs),
            Storage::Bool(xs) => xs.iter().map(|x| *x as i64).collect(),
            Storage::U8(xs) => xs.iter().map(|x| *x as i64).collect(),
            Storage::I32(xs) => xs.iter().map(|x| *x as i64).collect(),
            _ => self.f64s().iter().map(|x| *x as i64).collect(),
        })
    }

    /// Integers as this type: those that do not fit keep their low bits. Booleans: whether it is not 0.
    pub(crate) fn of_i64s(xs: Vec<i64>, to: DType) -> Storage {
        match to {
            DType::I64 => Storage::I64(xs),
            DType::I32 => Storage::I32(xs.into_iter().map(|x| x as i32).collect()),
            DType::U8 => Storage::U8(xs.into_iter().map(|x| x as u8).collect()),
            DType::Bool => Storage::Bool(xs.into_iter().map(|x| x != 0).collect()),
            float => Storage::I64(xs).cast(float),
        }
    }

    /// The same numbers as another type: floats are rounded to nearest, integers keep their low bits, floats become
    /// integers towards 0 (at the ends of the range: the end; NaN: 0), and anything but 0 is true.
    pub fn cast(&self, to: DType) -> Storage {
        if self.dtype() == to {
            return self.clone();
        }
        let _ieee = Ieee::enter();
        match to {
            DType::F32 => Storage::F32(self.f32s().into_owned()),
            DType::F64 => Storage::F64(self.f64s().into_owned()),
            DType::F16 => Storage::F16(self.halves(Half::F16)),
            DType::Bf16 => Storage::Bf16(self.halves(Half::Bf16)),
            DType::Bool if self.dtype().is_float() => Storage::Bool(self.f64s().iter().map(|x| *x != 0.0).collect()),
            _ => match self.dtype().is_float() {
                // Straight from the float, so that the ends are those of the type.
                true if to == DType::I32 => Storage::I32(self.f64s().iter().map(|x| *x as i32).collect()),
                true if to == DType::U8 => Storage::U8(self.f64s().iter().map(|x| *x as u8).collect()),
                _ => Storage::of_i64s(self.i64s().into_owned(), to),
            },
        }
    }

    /// Rounded once, also from f64 and i64.
    fn halves(&self, half: Half) -> Vec<u16> {
        match self {
            Storage::F64(_) | Storage::I64(_) | Storage::I32(_) => {
                self.f64s().iter().map(|x| half.of_f64(*x)).collect()
            }
            _ => self.f32s().iter().map(|x| half.of_f32(*x)).collect(),
        }
    }

    /// Floats that kernels made, as a tensor's elements.
    pub(crate) fn of_f32s(xs: Vec<f32>, to: DType) -> Storage {
        if to == DType::F32 { Storage::F32(xs) } else { Storage::F32(xs).cast(to) }
    }

    pub(crate) fn of_f64s(xs: Vec<f64>, to: DType) -> Storage {
        if to == DType::F64 { Storage::F64(xs) } else { Storage::F64(xs).cast(to) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_keep_what_the_type_can_hold() {
        let xs = Storage::F32(vec![1.9, -1.9, 300.5, f32::NAN, f32::INFINITY, 0.0]);
        assert_eq!(xs.cast(DType::U8), Storage::U8(vec![1, 0, 255, 0, 255, 0]));
        assert_eq!(xs.cast(DType::I32), Storage::I32(vec![1, -1, 300, 0, i32::MAX, 0]));
        assert_eq!(xs.cast(DType::Bool), Storage::Bool(vec![true, true, true, true, true, false]));
        let xs = Storage::I64(vec![257, -1, 1 << 40]);
        assert_eq!(xs.cast(DType::U8), Storage::U8(vec![1, 255, 0]));
        assert_eq!(xs.cast(DType::I32), Storage::I32(vec![257, -1, 0]));
        assert_eq!(xs.cast(DType::F64), Storage::F64(vec![257.0, -1.0, (1u64 << 40) as f64]));
    }

    #[test]
    fn f64_is_rounded_to_16_bits_once() {
        // Just over the tie between 1 and 1 + 2^-10: f32 would round it onto the tie, and then to the even 1.
        let over = 1.0 + 1.0 / 2048.0 + 1e-12;
        assert_eq!(Storage::F64(vec![over]).cast(DType::F16), Storage::F16(vec![0x3c01]));
        assert_eq!(Storage::F64(vec![1e300, -0.0]).cast(DType::F16), Storage::F16(vec![0x7c00, 0x8000]));
    }
}
