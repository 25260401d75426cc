//! The tape: how each tensor was made, as far as gradients are wanted of it.
//!
//! A tensor that requires a gradient has a [`Track`]; one that an operation made points to what made it, with the
//! inputs as they were. Nothing points forward, so what nobody needs any more is gone. `backward` walks it.

use super::checkpoint::Block;
use super::dtype::DType;
use super::reads::Reads;
use super::storage::Storage;
use super::tensor::{Body, Tensor};
use super::{Error, Result};
use crate::ops::Op;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Called with a gradient when it is complete; may give another one in its place.
pub(super) type Hook = dyn Fn(&Tensor) -> Result<Option<Tensor>>;

/// The gradient's side of a tensor.
pub(super) struct Track {
    /// In the order in which tensors were made.
    pub id: u64,
    pub made: Option<(Rc<Made>, usize)>,
    pub slot: Rc<Slot>,
}

/// What a gradient meets when it is complete.
#[derive(Default)]
pub(super) struct Slot {
    pub hooks: RefCell<Vec<Rc<Hook>>>,
    pub grad: RefCell<Option<Tensor>>,
    pub is_kept: Cell<bool>,
}

/// An operation that was done.
pub(super) struct Made {
    /// From the same counter as the tracks' ids: an operation has a larger one than those that made its inputs.
    pub number: u64,
    pub record: RefCell<Option<Record>>,
}

pub(super) struct Record {
    pub what: What,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
}

pub(super) enum What {
    Op(Op),
    /// Between f32 and f64.
    Cast,
    Block(Block),
}

pub(super) struct Input {
    pub saved: Saved,
    pub track: Option<Rc<Track>>,
}

pub(super) struct Output {
    pub id: u64,
    pub saved: Saved,
    pub slot: Rc<Slot>,
}

/// A tensor as it was; its numbers only where the gradient reads them.
#[derive(Clone)]
pub(super) struct Saved {
    pub data: Option<Rc<Storage>>,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub version: u64,
    /// The tensor's count of changes by now.
    pub current: Rc<Cell<u64>>,
}

impl Saved {
    fn only_if(mut self, is_read: bool) -> Saved {
        self.data = self.data.filter(|_| is_read);
        self
    }

    /// The numbers, if they are still the tensor's.
    pub fn read(&self, op: &'static str) -> Result<&Rc<Storage>> {
        let changes = self.current.get() - self.version;
        match changes {
            0 => Ok(self.data.as_ref().expect("`Reads` says what the gradient reads")),
            _ => Err(Error::Gradient {
                op,
                message: format!(
                    "its gradient needs a tensor {:?} as it was, but that was changed in place since (changes: {changes}); \
                     compute a new tensor instead, or change it after backward()",
                    self.shape
                ),
            }),
        }
    }
}

thread_local! {
    static NEXT: Cell<u64> = const { Cell::new(0) };
    static IS_ON: Cell<bool> = const { Cell::new(true) };
}

pub(super) fn next() -> u64 {
    NEXT.replace(NEXT.get() + 1)
}

/// Whether operations are recorded.
pub(super) fn is_on() -> bool {
    IS_ON.get()
}

/// Runs `f` without recording, so that nothing it makes requires a gradient.
pub fn no_grad<T>(f: impl FnOnce() -> T) -> T {
    with_recording(false, f)
}

/// Runs `f` with recording on or off; afterwards it is as before, also after a panic.
pub(super) fn with_recording<T>(on: bool, f: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            IS_ON.set(self.0);
        }
    }
    let _before = Before(IS_ON.replace(on));
    f()
}

/// The tensors that an operation made, recorded if any input requires a gradient.
pub(super) fn record(
    what: impl FnOnce() -> What,
    inputs: &[&Tensor],
    outputs: Vec<(Rc<Storage>, Vec<usize>)>,
) -> Vec<Tensor> {
    let is_float = outputs.iter().all(|(data, _)| data.dtype().is_float());
    if !is_on() || !is_float || inputs.iter().all(|x| x.track().is_none()) {
        return outputs.into_iter().map(|(data, shape)| Tensor::fresh(data, &shape, None)).collect();
    }
    record_always(what(), inputs, outputs)
}

pub(super) fn record_always(what: What, inputs: &[&Tensor], outputs: Vec<(Rc<Storage>, Vec<usize>)>) -> Vec<Tensor> {
    let reads = Reads::of(&what);
    let input = |x: &&Tensor| Input { saved: x.saved().only_if(reads.inputs), track: x.track() };
    let inputs = inputs.iter().map(input).collect();
    let made = Rc::new(Made { number: next(), record: RefCell::new(None) });
    let mut kept = Vec::new();
    let mut tensors = Vec::new();
    for (at, (data, shape)) in outputs.into_iter().enumerate() {
        let (id, slot) = (next(), Rc::<Slot>::default());
        let track = Track { id, made: Some((made.clone(), at)), slot: slot.clone() };
        let tensor = Tensor::fresh(data, &shape, Some(Rc::new(track)));
        kept.push(Output { id, saved: tensor.saved().only_if(reads.outputs), slot });
        tensors.push(tensor);
    }
    made.record.replace(Some(Record { what, inputs, outputs: kept }));
    tensors
}

/// Lets go of a long chain link by link: dropped as it is, it would need a stack as deep as it is long.
impl Drop for Made {
    fn drop(&mut self) {
        let inputs = |record: Option<Record>| record.map_or(Vec::new(), |record| record.inputs);
        let mut rest: Vec<Input> = inputs(self.record.take());
        while let Some(input) = rest.pop() {
            let Some(Ok(mut track)) = input.track.map(Rc::try_unwrap) else { continue };
            if let Some((made, _)) = track.made.take()
                && let Ok(made) = Rc::try_unwrap(made)
            {
                rest.append(&mut inputs(made.record.take()));
            }
        }
    }
}

impl Tensor {
    /// A new leaf with the same elements whose gradient `backward` adds up in [`Tensor::grad`]. An error if elements
    /// are no floats, or if a graph is being captured.
    pub fn requires_grad(&self) -> Result<Tensor> {
        if !self.dtype().is_float() {
            return Err(Error::Gradient {
                op: "requires_grad",
                message: format!("elements are {}; only floats have gradients", self.dtype()),
            });
        }
        let track = Track { id: next(), made: None, slot: Rc::default() };
        Ok(Tensor::fresh(self.data("requires_grad")?, self.shape(), Some(Rc::new(track))))
    }

    /// Whether operations on it are recorded.
    pub fn is_tracked(&self) -> bool {
        self.track().is_some()
    }

    /// The same elements without a history: no gradient passes. It is a value of its own; a later change in place of
    /// one does not show in the other.
    pub fn detach(&self) -> Tensor {
        match &self.0.body {
            Body::Here(here) => Tensor::fresh(here.data.borrow().clone(), self.shape(), None),
            Body::Traced(traced) => Tensor::traced(self.shape(), self.dtype(), traced.detached()),
        }
    }

    /// The gradient that `backward` added up, in the tensor's own type. None before, and for tensors that an operation
    /// made, unless [`Tensor::keep_grad`] asked for it.
    pub fn grad(&self) -> Option<Tensor> {
        self.track()?.slot.grad.borrow().clone()
    }

    /// Forgets the gradient.
    pub fn zero_grad(&self) {
        if let Some(track) = self.track() {
            track.slot.grad.replace(None);
        }
    }

    /// Has `backward` keep the gradient of a tensor that an operation made.
    pub fn keep_grad(&self) {
        if let Some(track) = self.track() {
            track.slot.is_kept.set(true);
        }
    }

    /// Calls `hook` with the tensor's gradient, in f32 or f64, each time `backward` completed it; a tensor of the same
    /// shape that it returns is put in its place. Hooks of one tensor run in the order of registration. Tensors that
    /// operations made come first, the last made first, as their gradients are completed; then leaves, the first
    /// made first, before the gradient is added to what they have. An error if the tensor requires no gradient.
    pub fn register_hook(&self, hook: impl Fn(&Tensor) -> Result<Option<Tensor>> + 'static) -> Result<()> {
        let Some(track) = self.track() else {
            let message = format!("the tensor {:?} requires no gradient, so none will come", self.shape());
            return Err(Error::Gradient { op: "register_hook", message });
        };
        track.slot.hooks.borrow_mut().push(Rc::new(hook));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tape_holds_no_numbers_that_no_gradient_reads() {
        let x = Tensor::randn(1, "x", &[4]).requires_grad().unwrap();
        let holders = |t: &Tensor| Rc::strong_count(&t.data("test").unwrap()) - 1;
        // One for the tensor itself.
        let h = x.mul_scalar(2.0).unwrap();
        let sum = h.add(&x).unwrap().sum_all().unwrap();
        assert_eq!((holders(&h), holders(&x), holders(&sum)), (1, 1, 1));
        let y = h.exp().unwrap();
        let z = h.mul(&x).unwrap();
        assert_eq!((holders(&h), holders(&x), holders(&y), holders(&z)), (2, 2, 2, 1));
        drop((y, z));
        assert_eq!((holders(&h), holders(&x)), (1, 1), "nor what nobody needs any more");
    }
}
