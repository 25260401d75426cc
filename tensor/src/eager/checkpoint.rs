//! Blocks whose inner tensors are not kept for the gradient, but computed again when it comes.

use super::Result;
use super::tape::{self, Saved, Track, What};
use super::tensor::{Body, Tensor};
use std::rc::Rc;

pub(super) type Block = Rc<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// `f(inputs)`, of which only the inputs and the result are kept; `backward` calls `f` again, on the inputs as they were.
/// The gradients have the bits of `f(inputs)` without it, as `f` is to depend on its inputs and on tensors that nobody
/// changes until then. In a graph that is being captured `f` is recorded as it is: its memory is planned.
pub fn checkpoint(inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Result<Tensor> {
    let given: Vec<Tensor> = inputs.iter().map(|x| (*x).clone()).collect();
    let is_traced = inputs.iter().any(|x| matches!(x.0.body, Body::Traced(_)));
    if is_traced || !tape::is_on() {
        return f(&given);
    }
    let y = tape::no_grad(|| f(&given))?;
    let y = (y.data("checkpoint")?, y.shape().to_vec());
    if !y.0.dtype().is_float() {
        return Ok(Tensor::fresh(y.0, &y.1, None));
    }
    // Also without an input that requires a gradient: `f` may know parameters.
    Ok(tape::record_always(What::Block(Rc::new(f)), inputs, vec![y]).swap_remove(0))
}

/// Runs the block again with recording, on inputs that lead to the same tracks.
pub(super) fn again(block: &Block, inputs: &[(&Saved, &Option<Rc<Track>>)]) -> Result<Tensor> {
    let as_it_was = |(saved, track): &(&Saved, &Option<Rc<Track>>)| {
        let data = saved.read("checkpoint")?.clone();
        Ok(Tensor::fresh(data, &saved.shape, (*track).clone()))
    };
    let given: Vec<Tensor> = inputs.iter().map(as_it_was).collect::<Result<_>>()?;
    tape::with_recording(true, || block(&given))
}
