//! Changes in place: the tensor is the same, its elements are others. What was made of it before keeps the old ones.

use super::tape;
use super::tensor::{Body, Tensor};
use super::{Error, Result, shape_error, type_error};

/// Each counts as a change: a gradient that needs the tensor as it was is refused afterwards. Refused are a leaf that
/// requires a gradient (outside of `no_grad`), a result of another shape, and floats into integers. The result is
/// rounded to the tensor's own type.
impl Tensor {
    pub fn add_(&self, other: &Tensor) -> Result<()> {
        self.change("add_", |x| x.add(other))
    }

    pub fn sub_(&self, other: &Tensor) -> Result<()> {
        self.change("sub_", |x| x.sub(other))
    }

    pub fn mul_(&self, other: &Tensor) -> Result<()> {
        self.change("mul_", |x| x.mul(other))
    }

    pub fn div_(&self, other: &Tensor) -> Result<()> {
        self.change("div_", |x| x.div(other))
    }

    /// Takes the elements of `other`, which may broadcast.
    pub fn copy_(&self, other: &Tensor) -> Result<()> {
        self.change("copy_", |x| other.broadcast_to(x.shape()))
    }

    pub fn fill_(&self, value: f64) -> Result<()> {
        self.change("fill_", |x| Ok(Tensor::full(x.shape(), value, x.dtype())))
    }

    fn change(&self, op: &'static str, new: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<()> {
        let here = self.here(op)?;
        let track = here.track.borrow().clone();
        if tape::is_on() && track.as_ref().is_some_and(|track| track.made.is_none()) {
            return Err(Error::Gradient {
                op,
                message: format!(
                    "the leaf {:?} requires a gradient: changed here, its gradient would be that of other numbers; \
                     change it inside no_grad, or compute a new tensor",
                    self.shape()
                ),
            });
        }
        // The operation reads the elements as they are now, under a count of its own.
        let before = Tensor::fresh(here.data.borrow().clone(), self.shape(), track);
        let y = new(&before)?;
        if y.shape() != self.shape() {
            return shape_error(op, format!("the result {:?} does not fit into {:?}", y.shape(), self.shape()));
        }
        if y.dtype().is_float() && !self.dtype().is_float() {
            return type_error(op, format!("the result is {}, the tensor {}", y.dtype(), self.dtype()));
        }
        let y = y.to_dtype(self.dtype())?;
        let Body::Here(made) = &y.0.body else { return type_error(op, "a captured tensor cannot go into one outside") };
        here.data.replace(made.data.borrow().clone());
        here.version.set(here.version.get() + 1);
        if tape::is_on() {
            here.track.replace(made.track.borrow().clone());
        }
        Ok(())
    }
}
