//! Capture: a function of tensors is traced once into a graph, with named inputs and outputs.
//!
//! While it is traced, tensors have shapes and types but no numbers; each operation becomes a node. Tensors from
//! outside become constants. `captured` plans the graph and runs it.

use super::captured::Captured;
use super::device::Device;
use super::dtype::{Class, DType};
use super::storage::Storage;
use super::tape;
use super::tensor::{Body, Tensor, is_index, name_of};
use super::{Error, Result};
use crate::autograd;
use crate::graph::{Graph, Role, ShapeError, Source, State, Type, Value};
use crate::init::Init;
use crate::ops::{Each, Op};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A value of a graph that is being captured.
pub(super) struct Traced {
    pub recording: Rc<Recording>,
    pub value: Value,
}

impl Traced {
    pub fn detached(&self) -> Traced {
        let mut graph = self.recording.graph.borrow_mut();
        // Integers have no gradient to stop.
        let value = match graph.ty(self.value).dtype {
            crate::graph::DType::Int => Ok(self.value),
            crate::graph::DType::Float => graph.apply1(Op::Each(Each::Detach), "detach", &[self.value]),
        };
        Traced { recording: self.recording.clone(), value: value.expect("any shape can be detached") }
    }
}

/// A graph that is being captured.
#[derive(Default)]
pub(super) struct Recording {
    pub graph: RefCell<Graph>,
    /// Floats and integers that come from outside: in the order of the graph's states, and one behind the other.
    pub floats: RefCell<Vec<Rc<Storage>>>,
    pub integers: RefCell<Vec<i32>>,
    /// Integer inputs are indices under these.
    pub limits: RefCell<Vec<(Value, Limit)>>,
    class: Cell<Option<Class>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub end: usize,
    /// A target may also be `IGNORE`.
    pub may_be_ignored: bool,
}

impl Limit {
    pub fn of(op: &Op, x: &[usize]) -> Option<Limit> {
        Some(match op {
            Op::Take(op) => Limit { end: x[op.axis], may_be_ignored: false },
            Op::Gather(op) => Limit { end: x[op.axis], may_be_ignored: false },
            Op::Embedding(_) => Limit { end: x[0], may_be_ignored: false },
            Op::CrossEntropy(_) => Limit { end: *x.last()?, may_be_ignored: true },
            _ => return None,
        })
    }

    /// The first index that is not allowed.
    pub fn first_wrong(self, indices: &[i64]) -> Option<i64> {
        let ignored = elastic_spec::batch::IGNORE as i64;
        let is_fine = |i: &i64| (0..self.end as i64).contains(i) || (self.may_be_ignored && *i == ignored);
        indices.iter().copied().find(|i| !is_fine(i))
    }
}

impl Recording {
    /// Records an op, whose operands are values of this graph or constants.
    pub fn apply(this: &Rc<Recording>, op: Op, inputs: &[&Tensor], out: DType) -> Result<Vec<Tensor>> {
        let values: Vec<Value> =
            inputs.iter().enumerate().map(|(slot, x)| this.value(x, is_index(&op, slot))).collect::<Result<_>>()?;
        if let Some(limit) = inputs.first().and_then(|x| Limit::of(&op, x.shape())) {
            this.limits.borrow_mut().push((values[1], limit));
        }
        let mut graph = this.graph.borrow_mut();
        let name = name_of(&op);
        let wrong = |error: ShapeError| Error::Shape { op: name, message: error.message };
        let mut outputs = graph.apply(op, "graph", &values).map_err(wrong)?;
        if !tape::is_on() {
            for value in &mut outputs {
                *value = graph.apply1(Op::Each(Each::Detach), "no_grad", &[*value])?;
            }
        }
        let tensor = |value: Value| {
            let traced = Traced { recording: this.clone(), value };
            Tensor::traced(&graph.ty(value).shape, out, traced)
        };
        Ok(outputs.into_iter().map(tensor).collect())
    }

    /// An operand's value; a tensor from outside is a constant of the graph.
    fn value(self: &Rc<Recording>, x: &Tensor, is_index: bool) -> Result<Value> {
        match &x.0.body {
            Body::Traced(traced) if Rc::ptr_eq(&traced.recording, self) => {
                let is_int = self.graph.borrow().ty(traced.value).dtype == crate::graph::DType::Int;
                match is_int == is_index {
                    true => Ok(traced.value),
                    false if is_int => capture_error("integers of a captured graph can only be indices and targets"),
                    false => capture_error("indices of a captured graph must be an integer input of it, or a constant"),
                }
            }
            Body::Traced(_) => capture_error(format!("the tensor {:?} belongs to another capture", x.shape())),
            Body::Here(here) if is_index => {
                let indices = here.data.borrow().i64s().iter().map(|i| *i as i32).collect::<Vec<_>>();
                Ok(self.integers(x.shape(), indices))
            }
            Body::Here(here) => self.floats(x.shape(), here.data.borrow().clone()),
        }
    }

    fn integers(&self, shape: &[usize], indices: Vec<i32>) -> Value {
        let at = self.integers.borrow().len();
        self.integers.borrow_mut().extend(indices);
        self.graph.borrow_mut().push(Type::int(shape), Source::Integers(at))
    }

    fn floats(&self, shape: &[usize], data: Rc<Storage>) -> Result<Value> {
        if data.dtype().is_float() {
            let class = data.dtype().class();
            if self.class.replace(Some(class)).is_some_and(|other| other != class) {
                return two_classes();
            }
        }
        let mut floats = self.floats.borrow_mut();
        // A tensor that is used twice is one constant.
        let mut graph = self.graph.borrow_mut();
        let known = floats.iter().position(|other| Rc::ptr_eq(other, &data));
        let index = known.filter(|at| graph.states()[*at].shape == shape).unwrap_or(floats.len());
        if index == floats.len() {
            floats.push(data);
        }
        let (name, init) = (index.to_string(), Init::Constant(0.0));
        Ok(graph.state(State { name, shape: shape.to_vec(), init, role: Role::Param })?)
    }
}

pub(super) fn capture_error<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::Capture(message.into()))
}

pub(super) fn two_classes<T>() -> Result<T> {
    capture_error("it computes in f32 or in f64, not in both; convert outside of the capture")
}

/// A named value of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub value: Value,
}

/// A function that was traced; [`Trace::compile`] makes it a program.
pub struct Trace {
    pub(super) recording: Rc<Recording>,
    pub(super) inputs: Vec<Named>,
    pub(super) outputs: Vec<Named>,
}

/// Traces `f` once, on inputs of these names, types and shapes, which it gets in their order. It returns its outputs
/// with their names. What it does besides calling operations happens now and never again: so a branch on a number is an
/// error, since tensors have none yet.
///
/// Integer inputs (i64, i32, u8) are indices and targets. An error: a name that comes twice, f32 and f64 in one graph,
/// an output that is of no float operation, a device that this build does not have, or whatever `f` says.
pub fn trace(
    device: Device,
    inputs: &[(&str, DType, &[usize])],
    f: impl FnOnce(&[Tensor]) -> Result<Vec<(&'static str, Tensor)>>,
) -> Result<Trace> {
    device.present()?;
    let recording = Rc::new(Recording::default());
    let (mut named, mut given) = (Vec::new(), Vec::new());
    for (name, dtype, shape) in inputs {
        if named.iter().any(|n: &Named| n.name == *name) {
            return capture_error(format!("there are two inputs named `{name}`"));
        }
        super::tensor::check_axes("trace", shape)?;
        let len = shape.iter().product();
        let value = match dtype {
            DType::I64 | DType::I32 | DType::U8 => recording.integers(shape, vec![0; len]),
            _ => recording.floats(shape, Rc::new(Storage::F64(vec![0.0; len]).cast(*dtype)))?,
        };
        let traced = Traced { recording: recording.clone(), value };
        given.push(Tensor::traced(shape, *dtype, traced));
        named.push(Named { name: name.to_string(), dtype: *dtype, shape: shape.to_vec(), value });
    }
    let mut outputs: Vec<Named> = Vec::new();
    add_outputs(&recording, &mut outputs, f(&given)?)?;
    Ok(Trace { recording, inputs: named, outputs })
}

fn add_outputs(recording: &Rc<Recording>, outputs: &mut Vec<Named>, more: Vec<(&'static str, Tensor)>) -> Result<()> {
    for (name, y) in more {
        if outputs.iter().any(|n| n.name == name) {
            return capture_error(format!("there are two outputs named `{name}`"));
        }
        let value = recording.value(&y, false)?;
        outputs.push(Named { name: name.to_string(), dtype: y.dtype(), shape: y.shape().to_vec(), value });
    }
    Ok(())
}

/// From a name to the tensor of this name.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Result<Tensor>;

impl Trace {
    /// Derives the gradients of the output `of`, which has one element, with respect to the inputs `by`; each becomes
    /// an output named by [`gradient_name`]. Where nothing of an input reaches the output it is all zeros.
    pub fn with_gradients(mut self, of: &str, by: &[&str]) -> Result<Trace> {
        let root = find(&self.outputs, "output", of)?.clone();
        if root.shape.iter().product::<usize>() != 1 || !root.dtype.is_float() {
            return capture_error(format!("`{of}` is {} {:?}; a gradient is of one float", root.dtype, root.shape));
        }
        let inputs: Vec<Named> =
            by.iter().map(|name| find(&self.inputs, "input", name).cloned()).collect::<Result<_>>()?;
        if let Some(wrong) = inputs.iter().find(|input| !input.dtype.is_float()) {
            return capture_error(format!("the input `{}` is {}, which has no gradient", wrong.name, wrong.dtype));
        }
        let mut graph = self.recording.graph.borrow_mut();
        let fill = |value: f64, shape: &[usize]| Op::Fill(crate::ops::Fill { shape: shape.to_vec(), value });
        let seed = graph.apply1(fill(1.0, &root.shape), "gradient", &[])?;
        let wrt: Vec<Value> = inputs.iter().map(|input| input.value).collect();
        let grads = autograd::backward(&mut graph, root.value, seed, &wrt)?;
        for (input, grad) in inputs.into_iter().zip(grads) {
            let value = match grad {
                Some(grad) => grad,
                None => graph.apply1(fill(0.0, &input.shape), "gradient", &[])?,
            };
            self.outputs.push(Named { name: gradient_name(of, &input.name), value, ..input });
        }
        drop(graph);
        Ok(self)
    }

    /// Traces more outputs, made of inputs and of outputs that are there already (gradients among them), each asked for by
    /// its name: `f(input, output)`. So an optimizer's step becomes part of the graph.
    pub fn update(
        mut self,
        f: impl FnOnce(Lookup<'_>, Lookup<'_>) -> Result<Vec<(&'static str, Tensor)>>,
    ) -> Result<Trace> {
        let tensor = |named: &Named| {
            let traced = Traced { recording: self.recording.clone(), value: named.value };
            Tensor::traced(&named.shape, named.dtype, traced)
        };
        let input = |name: &str| find(&self.inputs, "input", name).map(tensor);
        let output = |name: &str| find(&self.outputs, "output", name).map(tensor);
        let more = f(&input, &output)?;
        add_outputs(&self.recording, &mut self.outputs, more)?;
        Ok(self)
    }

    /// Fuses neighbouring loops, plans the memory, and makes it ready to run on `threads`, the caller's among them. No
    /// bit depends on how many.
    pub fn compile(self, threads: usize) -> Result<Captured> {
        Captured::new(self, threads)
    }

    pub(super) fn class(&self) -> Class {
        self.recording.class.get().unwrap_or(Class::F32)
    }
}

/// The name of the output that holds the gradient of one value with respect to another: `d loss / d w`.
pub fn gradient_name(of: &str, by: &str) -> String {
    format!("d {of} / d {by}")
}

/// The value of this name, or an error that lists those there are.
fn find<'a>(all: &'a [Named], kind: &str, name: &str) -> Result<&'a Named> {
    all.iter().find(|named| named.name == name).ok_or_else(|| missing(kind, name, all.iter()))
}

pub(super) fn missing<'a>(kind: &str, name: &str, all: impl Iterator<Item = &'a Named>) -> Error {
    let there: Vec<String> = all.map(|n| format!("`{}` ({} {:?})", n.name, n.dtype, n.shape)).collect();
    Error::Capture(format!("there is no {kind} `{name}`; there are {}", there.join(", ")))
}
