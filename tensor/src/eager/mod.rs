//! Define-by-run tensors: NumPy's broadcasting and slicing, gradients by a tape, and capture of a function as a graph.
//!
//! ```
//! use elastic_tensor::eager::{DType, Tensor};
//! # fn main() -> elastic_tensor::eager::Result<()> {
//! let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0], &[3])?.requires_grad()?;
//! let y = x.mul(&x)?.sum_all()?;
//! y.backward()?;
//! assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [2.0, 4.0, 6.0]);
//! # Ok(())
//! # }
//! ```
//! Every float operation is an op of the engine's IR (`ops`), run at once by the kernel that a captured graph runs too,
//! and gradients follow the ops' own rules; therefore both modes have the same bits. A tensor is a value: slices and
//! reshapes never show what is done in place to the tensor that they came from. docs/tensor.md is the newcomer's page.

mod arithmetic;
mod backward;
mod capture;
mod captured;
mod checkpoint;
mod device;
mod dtype;
mod fuse;
mod in_place;
mod index;
mod integers;
pub mod io;
mod products;
mod reads;
mod reductions;
mod run;
mod shapes;
mod storage;
mod tape;
mod tensor;

pub use capture::{Lookup, Trace, gradient_name, trace};
pub use captured::Captured;
pub use checkpoint::checkpoint;
pub use device::Device;
pub use dtype::{DType, promote};
pub use index::Index;
pub use run::set_threads;
pub use storage::{Element, Storage};
pub use tape::no_grad;
pub use tensor::Tensor;

use crate::graph::ShapeError;

/// The programs of the page are tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/tensor.md")]
struct Page;

pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation on tensors cannot be. Each names the operation, what it was given, and what would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Axes, lengths or indices do not fit.
    #[error("{op}: {message}")]
    Shape { op: &'static str, message: String },
    /// The operation does not take this type of element.
    #[error("{op}: {message}")]
    Type { op: &'static str, message: String },
    /// There is no such gradient, or a tensor that it needs was changed.
    #[error("{op}: {message}")]
    Gradient { op: &'static str, message: String },
    /// A function cannot be captured like this, or a captured one has no such input.
    #[error("captured graph: {0}")]
    Capture(String),
    /// A file is damaged, or holds what tensors cannot.
    #[error("{file}, {place}: {message}")]
    File { file: String, place: String, message: String },
    #[error("device `{device}`: {message}")]
    Device { device: String, message: String },
}

impl From<ShapeError> for Error {
    fn from(error: ShapeError) -> Error {
        Error::Shape { op: error.op, message: error.message }
    }
}

pub(crate) fn shape_error<T>(op: &'static str, message: impl Into<String>) -> Result<T> {
    Err(Error::Shape { op, message: message.into() })
}

pub(crate) fn type_error<T>(op: &'static str, message: impl Into<String>) -> Result<T> {
    Err(Error::Type { op, message: message.into() })
}
