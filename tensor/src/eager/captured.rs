//! A captured graph: planned into one arena, and run as often as one likes without an allocation.

use super::capture::{Limit, Named, Trace, capture_error, gradient_name, missing};
use super::dtype::{Class, DType};
use super::fuse;
use super::storage::Storage;
use super::tensor::Tensor;
use super::{Error, Result};
use crate::exec::{Bound, Scratch, run};
use crate::graph::{Source, Value};
use crate::ops::Key;
use crate::plan::{Goal, Plan};
use crate::real::Real;
use std::ops::Range;
use std::rc::Rc;

/// A program with named inputs and outputs.
pub struct Captured {
    plan: Plan,
    inputs: Vec<Slot>,
    outputs: Vec<Slot>,
    memory: Memory,
    integers: Vec<i32>,
}

/// Where a named value lies: in the state, among the integers, or in the output vector.
struct Slot {
    named: Named,
    range: Range<usize>,
    limits: Vec<Limit>,
}

enum Memory {
    F32(Floats<f32>),
    F64(Floats<f64>),
}

struct Floats<F: Real> {
    /// Inputs and constants.
    state: Vec<F>,
    out: Vec<F>,
    scratch: Scratch<F>,
}

impl Captured {
    pub(super) fn new(trace: Trace, threads: usize) -> Result<Captured> {
        let class = trace.class();
        let recording = &trace.recording;
        let graph = fuse::fused(&recording.graph.borrow(), &trace.outputs.iter().map(|o| o.value).collect::<Vec<_>>());
        let (graph, values) = graph;
        let (mut offsets, mut end) = (Vec::new(), 0);
        for state in graph.states() {
            offsets.push(end);
            end += state.shape.iter().product::<usize>();
        }
        let place = |named: &Named| {
            let len: usize = named.shape.iter().product();
            let at = match recording.graph.borrow().source(named.value) {
                Source::State(index) => offsets[index],
                Source::Integers(at) => at,
                other => unreachable!("an input is given, not {other:?}"),
            };
            let limits = recording.limits.borrow().iter().filter(|(v, _)| *v == named.value).map(|(_, l)| *l).collect();
            Slot { named: named.clone(), range: at..at + len, limits }
        };
        let inputs = trace.inputs.iter().map(place).collect();
        let (mut outputs, mut goal, mut out) = (Vec::new(), Vec::<(Value, usize)>::new(), 0);
        for (named, value) in trace.outputs.iter().zip(&values) {
            let len = graph.ty(*value).len();
            goal.push((*value, out));
            outputs.push(Slot { named: named.clone(), range: out..out + len, limits: Vec::new() });
            out += len;
        }
        let plan = Plan::new(&graph, &Goal { states: &offsets, out: &goal, keep: &[] });
        let constants = recording.floats.borrow();
        let memory = match class {
            Class::F32 => Memory::F32(Floats::new(threads, constants.iter().map(|x| x.f32s().into_owned()), out)),
            Class::F64 => Memory::F64(Floats::new(threads, constants.iter().map(|x| x.f64s().into_owned()), out)),
        };
        drop(constants);
        let integers = recording.integers.borrow().clone();
        Ok(Captured { plan, inputs, outputs, memory, integers })
    }

    /// Floats of the arena in which all intermediate values lie.
    pub fn arena_floats(&self) -> usize {
        self.plan.arena
    }

    /// How many loops and products a run consists of.
    pub fn steps(&self) -> usize {
        self.plan.steps.len()
    }

    /// Gives an input its numbers, which stay until they are replaced. An error on another type or shape than was traced,
    /// or on an index that is out of range.
    pub fn set(&mut self, name: &str, x: &Tensor) -> Result<()> {
        let Slot { named, range, limits } = slot(&self.inputs, "input", name)?;
        if x.dtype() != named.dtype || x.shape() != named.shape {
            let (dtype, shape) = (named.dtype, &named.shape);
            let (got, is) = (x.dtype(), x.shape());
            return capture_error(format!("the input `{name}` is {dtype} {shape:?}, but {got} {is:?} was given"));
        }
        let data = x.data("set")?;
        if matches!(named.dtype, DType::I64 | DType::I32 | DType::U8) {
            let indices = data.i64s();
            if let Some((limit, wrong)) = limits.iter().find_map(|limit| Some((limit, limit.first_wrong(&indices)?))) {
                return capture_error(format!(
                    "the input `{name}` holds the index {wrong}; it must be under {}",
                    limit.end
                ));
            }
            self.integers[range.clone()].iter_mut().zip(&indices[..]).for_each(|(to, from)| *to = *from as i32);
            return Ok(());
        }
        match &mut self.memory {
            Memory::F32(floats) => floats.state[range.clone()].copy_from_slice(&data.f32s()),
            Memory::F64(floats) => floats.state[range.clone()].copy_from_slice(&data.f64s()),
        }
        Ok(())
    }

    /// Computes all outputs of the inputs that were set (those never set are zeros). Allocates nothing but, in the first
    /// run, the kernels' room.
    pub fn run(&mut self) {
        match &mut self.memory {
            Memory::F32(floats) => floats.run(&self.plan, &self.integers),
            Memory::F64(floats) => floats.run(&self.plan, &self.integers),
        }
    }

    /// An output of the last run.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let Slot { named, range, .. } = slot(&self.outputs, "output", name)?;
        let data = match &self.memory {
            Memory::F32(floats) => Storage::of_f32s(floats.out[range.clone()].to_vec(), named.dtype),
            Memory::F64(floats) => Storage::of_f64s(floats.out[range.clone()].to_vec(), named.dtype),
        };
        Ok(Tensor::fresh(Rc::new(data), &named.shape, None))
    }

    /// The gradient of an output with respect to an input, of the last run.
    pub fn gradient(&self, of: &str, by: &str) -> Result<Tensor> {
        self.get(&gradient_name(of, by))
    }

    /// Makes an output of the last run the input of the next one, without an allocation: weights that were updated in the
    /// graph. Both must be of one type and shape.
    pub fn carry(&mut self, output: &str, input: &str) -> Result<()> {
        let (from, to) = (slot(&self.outputs, "output", output)?, slot(&self.inputs, "input", input)?);
        if (from.named.dtype, &from.named.shape) != (to.named.dtype, &to.named.shape) || !to.named.dtype.is_float() {
            return Err(Error::Capture(format!(
                "`{output}` is {} {:?}, but `{input}` is {} {:?}; floats of one type and shape can be carried",
                from.named.dtype, from.named.shape, to.named.dtype, to.named.shape
            )));
        }
        let (from, to) = (from.range.clone(), to.range.clone());
        match &mut self.memory {
            Memory::F32(floats) => floats.state[to].copy_from_slice(&floats.out[from]),
            Memory::F64(floats) => floats.state[to].copy_from_slice(&floats.out[from]),
        }
        Ok(())
    }
}

fn slot<'a>(slots: &'a [Slot], kind: &str, name: &str) -> Result<&'a Slot> {
    let found = slots.iter().find(|slot| slot.named.name == name);
    found.ok_or_else(|| missing(kind, name, slots.iter().map(|slot| &slot.named)))
}

impl<F: Real> Floats<F> {
    fn new(threads: usize, constants: impl Iterator<Item = Vec<F>>, out: usize) -> Floats<F> {
        Floats { state: constants.flatten().collect(), out: vec![F::ZERO; out], scratch: Scratch::new(threads) }
    }

    fn run(&mut self, plan: &Plan, integers: &[i32]) {
        let key = Key { seed: 0, step: 0, scale: 1.0, label_smoothing: 0.0, shards: 1, slots: &[] };
        let bound = Bound { state: &self.state, features: &[], tokens: integers, targets: &[], key };
        run(plan, &mut self.scratch, &bound, &mut self.out);
    }
}
