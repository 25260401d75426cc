//! Walks the tape backwards: the last operation first, each by the gradient rule of its op.
//!
//! A rule writes IR nodes, and these run at once. Contributions to one gradient are added in the order in which they
//! come, which is that of `autograd::backward` on a captured graph: hence the same bits.

use super::checkpoint;
use super::dtype::Class;
use super::run::{self, Operand};
use super::storage::Storage;
use super::tape::{Made, Record, Saved, Slot, Track, What};
use super::tensor::{Tensor, is_index, name_of};
use super::{Error, Result};
use crate::graph::{DType, Graph, Source, Type, Value};
use crate::ops::{Add, Op};
use std::collections::BTreeMap;
use std::rc::Rc;

#[derive(Default)]
struct Walk {
    /// Gradients so far, in f32 or f64, by track.
    sums: BTreeMap<u64, Rc<Storage>>,
    /// Operations that got a gradient, by number: the last one has nothing behind it any more.
    pending: BTreeMap<u64, Rc<Made>>,
    leaves: BTreeMap<u64, Leaf>,
    is_kept: bool,
}

struct Leaf {
    slot: Rc<Slot>,
    shape: Vec<usize>,
    dtype: super::DType,
}

impl Tensor {
    /// Adds the gradient of this one-element tensor to that of each leaf it was made of, leaves in the order in which
    /// they were made, and lets go of the tape. Nothing is added if there is an error: more than one element, no tape
    /// (or one that was used), or a tensor that was changed in place though its value is needed.
    pub fn backward(&self) -> Result<()> {
        self.backward_from_one(false)
    }

    /// The same, and the tape can be walked again.
    pub fn backward_keep(&self) -> Result<()> {
        self.backward_from_one(true)
    }

    /// The same for a tensor of any shape, with its gradient given.
    pub fn backward_with(&self, gradient: &Tensor) -> Result<()> {
        let wrong = gradient.shape() != self.shape() || !gradient.dtype().is_float();
        if wrong {
            let message = format!("{gradient:?} is no gradient of a tensor {:?}", self.shape());
            return Err(Error::Gradient { op: "backward", message });
        }
        self.walk(gradient.data("backward")?.cast(self.dtype().class().dtype()), false)
    }

    fn backward_from_one(&self, is_kept: bool) -> Result<()> {
        if self.len() != 1 {
            let message = format!("{:?} has {} elements; sum them, or use backward_with", self.shape(), self.len());
            return Err(Error::Gradient { op: "backward", message });
        }
        self.walk(Storage::F64(vec![1.0]).cast(self.dtype().class().dtype()), is_kept)
    }

    fn walk(&self, gradient: Storage, is_kept: bool) -> Result<()> {
        self.here("backward")?;
        let Some(track) = self.track() else {
            let message = format!("the tensor {:?} was not made of any that requires a gradient", self.shape());
            return Err(Error::Gradient { op: "backward", message });
        };
        let mut walk = Walk { is_kept, ..Walk::default() };
        walk.give(&track, || (self.shape().to_vec(), self.dtype()), Rc::new(gradient));
        while let Some((_, made)) = walk.pending.pop_last() {
            walk.step(&made)?;
        }
        walk.finish()
    }
}

impl Walk {
    fn give(&mut self, track: &Rc<Track>, of: impl FnOnce() -> (Vec<usize>, super::DType), gradient: Rc<Storage>) {
        let sum = match self.sums.remove(&track.id) {
            None => gradient,
            Some(sum) => Rc::new(add(&sum, &gradient)),
        };
        self.sums.insert(track.id, sum);
        if let Some((made, _)) = &track.made {
            self.pending.insert(made.number, made.clone());
        } else {
            let leaf = || {
                let (shape, dtype) = of();
                Leaf { slot: track.slot.clone(), shape, dtype }
            };
            self.leaves.entry(track.id).or_insert_with(leaf);
        }
    }

    /// Passes the gradients of an operation's outputs on to its inputs.
    fn step(&mut self, made: &Rc<Made>) -> Result<()> {
        let Some(record) = made.record.borrow_mut().take() else {
            return Err(Error::Gradient {
                op: "backward",
                message: "this part of the tape was used by an earlier backward(); call backward_keep() there".into(),
            });
        };
        let done = self.pass_on(&record);
        if self.is_kept || done.is_err() {
            made.record.replace(Some(record));
        }
        done
    }

    fn pass_on(&mut self, record: &Record) -> Result<()> {
        let mut dy = Vec::new();
        for output in &record.outputs {
            let saved = &output.saved;
            dy.push(match self.sums.remove(&output.id) {
                Some(sum) => Some(self.complete(&output.slot, sum, &saved.shape, saved.dtype)?),
                None => None,
            });
        }
        let give = |walk: &mut Walk, slot: usize, dx: Rc<Storage>| {
            let input = &record.inputs[slot];
            if let Some(track) = &input.track {
                walk.give(track, || (input.saved.shape.clone(), input.saved.dtype), dx);
            }
        };
        match &record.what {
            What::Op(op) => {
                for (slot, dx) in gradients(op, record, &dy)? {
                    give(self, slot, dx);
                }
            }
            What::Cast => {
                let class = record.inputs[0].saved.dtype.class();
                let dy = dy[0].as_ref().expect("it is pending because its output got a gradient");
                give(self, 0, Rc::new(dy.cast(class.dtype())));
            }
            What::Block(block) => {
                let inputs: Vec<_> = record.inputs.iter().map(|input| (&input.saved, &input.track)).collect();
                let y = checkpoint::again(block, &inputs)?;
                let dy = dy.swap_remove(0).expect("it is pending because its output got a gradient");
                if let Some(track) = y.track() {
                    self.give(&track, || (y.shape().to_vec(), y.dtype()), dy);
                }
            }
        }
        Ok(())
    }

    /// Hooks, and the gradient itself where it is asked for.
    fn complete(&self, slot: &Slot, sum: Rc<Storage>, shape: &[usize], dtype: super::DType) -> Result<Rc<Storage>> {
        let mut sum = sum;
        let hooks = slot.hooks.borrow().clone();
        for hook in hooks {
            let now = Tensor::fresh(sum.clone(), shape, None);
            let Some(other) = super::tape::no_grad(|| hook(&now))? else { continue };
            if other.shape() != shape || !other.dtype().is_float() {
                let message = format!("a hook on a gradient {shape:?} gave {other:?}");
                return Err(Error::Gradient { op: "register_hook", message });
            }
            sum = Rc::new(other.data("register_hook")?.cast(sum.dtype()));
        }
        if slot.is_kept.get() {
            store(slot, &sum, shape, dtype);
        }
        Ok(sum)
    }

    fn finish(mut self) -> Result<()> {
        let mut ready = Vec::new();
        for (id, leaf) in std::mem::take(&mut self.leaves) {
            leaf.slot.is_kept.set(false);
            let sum = self.sums.remove(&id).expect("a leaf is there because it got a gradient");
            ready.push((self.complete(&leaf.slot, sum, &leaf.shape, leaf.dtype)?, leaf));
        }
        ready.iter().for_each(|(sum, leaf)| store(&leaf.slot, sum, &leaf.shape, leaf.dtype));
        Ok(())
    }
}

/// Adds to the gradient that is there.
fn store(slot: &Slot, sum: &Rc<Storage>, shape: &[usize], dtype: super::DType) {
    let before = slot.grad.borrow().as_ref().map(|grad| grad.data("grad").expect("a gradient has elements"));
    let sum = match before {
        Some(before) => Rc::new(add(&before.cast(sum.dtype()), sum)),
        None => sum.clone(),
    };
    let sum = if sum.dtype() == dtype { sum } else { Rc::new(sum.cast(dtype)) };
    slot.grad.replace(Some(Tensor::fresh(sum, shape, None)));
}

fn add(a: &Storage, b: &Storage) -> Storage {
    let ty = Type::float(&[a.len()]);
    let operands = [a, b].map(|data| Operand { data, ty: ty.clone() });
    run::run(&Op::Add(Add), a.dtype().class(), &operands, &[ty]).swap_remove(0)
}

/// A value of an operation's gradient: of the tape, or computed here.
enum Held<'a> {
    Tape(&'a Saved),
    Here(Rc<Storage>),
}

/// By the op's rule, for each input that wants one, its gradient.
fn gradients(op: &Op, record: &Record, dy: &[Option<Rc<Storage>>]) -> Result<Vec<(usize, Rc<Storage>)>> {
    let mut graph = Graph::default();
    let mut held: Vec<Option<Held>> = Vec::new();
    let given =
        |graph: &mut Graph, dtype, shape: &[usize]| graph.push(Type { dtype, shape: shape.to_vec() }, Source::Features);
    let mut inputs = Vec::new();
    for (slot, input) in record.inputs.iter().enumerate() {
        let dtype = if is_index(op, slot) { DType::Int } else { DType::Float };
        inputs.push(given(&mut graph, dtype, &input.saved.shape));
        held.push(Some(Held::Tape(&input.saved)));
    }
    let types = record.outputs.iter().map(|output| Type::float(&output.saved.shape)).collect();
    graph.push_node(op.clone(), "eager", &inputs, types, None);
    held.extend(record.outputs.iter().map(|output| Some(Held::Tape(&output.saved))));
    let mut seeds = Vec::new();
    for (dy, output) in dy.iter().zip(&record.outputs) {
        seeds.push(dy.as_ref().map(|dy| {
            held.push(Some(Held::Here(dy.clone())));
            given(&mut graph, DType::Float, &output.saved.shape)
        }));
    }
    let class = dy.iter().flatten().next().expect("pending, so there is one").dtype().class();
    let node = graph.nodes[0].clone();
    let dx = op.gradient(&mut graph, &node, &seeds)?;
    let wanted = |slot: usize| record.inputs[slot].track.is_some();
    let goals: Vec<(usize, Value)> =
        (0..).zip(dx).filter_map(|(slot, dx)| Some((slot, dx?))).filter(|(slot, _)| wanted(*slot)).collect();
    run_all(&graph, &mut held, &goals, (class, name_of(op)))?;
    let storage = |value: Value| match &held[value.0] {
        Some(Held::Here(data)) => Ok(data.clone()),
        Some(Held::Tape(saved)) => saved.read(name_of(op)).map(|data| Rc::new(data.cast(class.dtype()))),
        None => unreachable!("goals were run"),
    };
    goals.into_iter().map(|(slot, value)| Ok((slot, storage(value)?))).collect()
}

/// Runs the nodes behind the first one that the goals need.
fn run_all<'a>(
    graph: &Graph,
    held: &mut Vec<Option<Held<'a>>>,
    goals: &[(usize, Value)],
    (class, name): (Class, &'static str),
) -> Result<()> {
    let mut needed = vec![false; graph.values.len()];
    goals.iter().for_each(|(_, value)| needed[value.0] = true);
    let mut live = Vec::new();
    for node in graph.nodes[1..].iter().rev() {
        if node.outputs.iter().any(|v| needed[v.0]) {
            node.inputs.iter().for_each(|v| needed[v.0] = true);
            live.push(node);
        }
    }
    held.resize_with(graph.values.len(), || None);
    for node in live.into_iter().rev() {
        let mut operands = Vec::new();
        for value in &node.inputs {
            let data = match &held[value.0] {
                Some(Held::Here(data)) => data,
                Some(Held::Tape(saved)) => saved.read(name)?,
                None => unreachable!("nodes are in the order of their values"),
            };
            operands.push(Operand { data, ty: graph.ty(*value).clone() });
        }
        let out_types: Vec<Type> = node.outputs.iter().map(|v| graph.ty(*v).clone()).collect();
        let outputs = run::run(&node.op, class, &operands, &out_types);
        for (value, data) in node.outputs.iter().zip(outputs) {
            held[value.0] = Some(Held::Here(Rc::new(data)));
        }
    }
    Ok(())
}
