//! The tensor: a shape, elements of one type, and how it was made where gradients are wanted.

use super::capture::{Recording, Traced};
use super::device::Device;
use super::dtype::{Class, DType};
use super::run::{self, Operand};
use super::storage::{Element, Storage};
use super::tape::{self, Saved, Track, What};
use super::{Error, Result, shape_error, type_error};
use crate::graph::{self, Type};
use crate::init::Init;
use crate::ops::{AXES_MAX, Each, Op};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

/// An array of numbers. Cheap to clone: clones are the same tensor.
///
/// It belongs to the thread that made it; operations run on that thread's team ([`super::set_threads`]).
#[derive(Clone)]
pub struct Tensor(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub body: Body,
}

pub(super) enum Body {
    Here(Here),
    /// A value of a graph that is being captured: it has no elements yet.
    Traced(Traced),
}

pub(super) struct Here {
    pub data: RefCell<Rc<Storage>>,
    /// Counts the changes in place. Whoever saved the tensor for a gradient shares it.
    pub version: Rc<Cell<u64>>,
    pub track: RefCell<Option<Rc<Track>>>,
}

impl Tensor {
    /// `xs` in row-major order. An error if `shape` has another number of elements, or more than eight axes.
    pub fn from_vec<T: Element>(xs: Vec<T>, shape: &[usize]) -> Result<Tensor> {
        Tensor::from_storage(T::store(xs), shape)
    }

    /// The same from elements of any type, also the 16-bit floats.
    pub fn from_storage(data: Storage, shape: &[usize]) -> Result<Tensor> {
        check_axes("from_vec", shape)?;
        if shape.iter().product::<usize>() != data.len() {
            return shape_error("from_vec", format!("{} elements do not have the shape {shape:?}", data.len()));
        }
        Ok(Tensor::fresh(Rc::new(data), shape, None))
    }

    /// A tensor without axes.
    pub fn scalar<T: Element>(x: T) -> Tensor {
        Tensor::fresh(Rc::new(T::store(vec![x])), &[], None)
    }

    /// `value` everywhere. Panics on more than eight axes, as do the other constructors by shape.
    pub fn full(shape: &[usize], value: f64, dtype: DType) -> Tensor {
        check_axes("full", shape).expect("at most eight axes");
        let data = Storage::F64(vec![value; shape.iter().product()]).cast(dtype);
        Tensor::fresh(Rc::new(data), shape, None)
    }

    pub fn zeros(shape: &[usize], dtype: DType) -> Tensor {
        Tensor::full(shape, 0.0, dtype)
    }

    pub fn ones(shape: &[usize], dtype: DType) -> Tensor {
        Tensor::full(shape, 1.0, dtype)
    }

    /// 0, 1, … `len` - 1.
    pub fn arange(len: usize, dtype: DType) -> Tensor {
        let data = Storage::I64((0..len as i64).collect()).cast(dtype);
        Tensor::fresh(Rc::new(data), &[len], None)
    }

    /// Standard normal numbers of f32, from the Philox stream of `seed` and `name`: a function of the arguments alone.
    pub fn randn(seed: u64, name: &str, shape: &[usize]) -> Tensor {
        Tensor::random(seed, name, shape, Init::Normal { std: 1.0 })
    }

    /// Uniform numbers of f32 from -1 to 1, likewise.
    pub fn uniform(seed: u64, name: &str, shape: &[usize]) -> Tensor {
        Tensor::random(seed, name, shape, Init::Uniform { bound: 1.0 })
    }

    fn random(seed: u64, name: &str, shape: &[usize], init: Init) -> Tensor {
        check_axes("random", shape).expect("at most eight axes");
        let mut xs = vec![0.0; shape.iter().product()];
        init.fill(seed, name, &mut xs);
        Tensor::fresh(Rc::new(Storage::F32(xs)), shape, None)
    }

    pub(super) fn fresh(data: Rc<Storage>, shape: &[usize], track: Option<Rc<Track>>) -> Tensor {
        let dtype = data.dtype();
        let here = Here { data: RefCell::new(data), version: Rc::default(), track: RefCell::new(track) };
        Tensor(Rc::new(Inner { shape: shape.to_vec(), dtype, body: Body::Here(here) }))
    }

    pub(super) fn traced(shape: &[usize], dtype: DType, traced: Traced) -> Tensor {
        Tensor(Rc::new(Inner { shape: shape.to_vec(), dtype, body: Body::Traced(traced) }))
    }

    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Where its elements lie.
    pub fn device(&self) -> Device {
        Device::Cpu
    }

    /// The same tensor on a device. An error if this build does not have it.
    pub fn to_device(&self, device: Device) -> Result<Tensor> {
        device.present().map(|_| self.clone())
    }

    /// Number of axes.
    pub fn axes(&self) -> usize {
        self.0.shape.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in row-major order. An error if they are not of the type `T`, or of a graph that is being
    /// captured.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let data = self.here("to_vec")?.data.borrow().clone();
        match T::read(&data) {
            Some(xs) => Ok(xs.to_vec()),
            None => type_error(
                "to_vec",
                format!("elements are {}, not {}; convert with to_dtype first", self.dtype(), T::DTYPE),
            ),
        }
    }

    /// The elements as they are stored. An error for a graph that is being captured.
    pub fn to_storage(&self) -> Result<Storage> {
        let data = self.data("to_storage")?;
        Ok(Storage::clone(&data))
    }

    /// The one element as f64. An error if there are more or fewer, or if a graph is being captured.
    pub fn item(&self) -> Result<f64> {
        match &self.data("item")?.f64s()[..] {
            [x] => Ok(*x),
            _ => shape_error("item", format!("{:?} has {} elements, not one", self.shape(), self.len())),
        }
    }

    /// The same numbers as another type; gradients pass from float to float. Rules: [`Storage::cast`].
    pub fn to_dtype(&self, to: DType) -> Result<Tensor> {
        let from = self.dtype();
        match (from.is_float(), to.is_float()) {
            _ if from == to => Ok(self.clone()),
            (true, true) if from.class() != to.class() => self.to_class(to),
            (true, true) => match to.half() {
                Some(half) => apply1(Op::Each(Each::Round(half)), &[self], to),
                None => super::shapes::same(self, to),
            },
            (true, false) if to == DType::Bool => {
                let zero = Tensor::zeros(&[], self.dtype());
                apply1(Op::Each(Each::Ne), &[self, &zero], to)
            }
            // A boolean of a captured graph is 0 or 1 already.
            (false, true) if matches!(self.0.body, Body::Traced(_)) => super::shapes::same(self, to),
            _ => Ok(Tensor::fresh(Rc::new(self.data("to_dtype")?.cast(to)), self.shape(), None)),
        }
    }

    /// Between f32 and f64 (and 16-bit floats through f32): no op of a graph, which has one float type.
    fn to_class(&self, to: DType) -> Result<Tensor> {
        if let Body::Traced(_) = self.0.body {
            return super::capture::two_classes();
        }
        let wide = if to.half().is_some() { self.to_class(DType::F32)? } else { self.clone() };
        if to.half().is_some() {
            return wide.to_dtype(to);
        }
        let data = Rc::new(wide.data("to_dtype")?.cast(to));
        let made = || What::Cast;
        Ok(tape::record(made, &[&wide], vec![(data, self.shape().to_vec())]).swap_remove(0))
    }

    pub(super) fn here(&self, op: &'static str) -> Result<&Here> {
        match &self.0.body {
            Body::Here(here) => Ok(here),
            Body::Traced(_) => type_error(
                op,
                format!(
                    "the tensor {:?} belongs to a graph that is being captured, and has no numbers yet; \
                     read them after a run, or compute this part outside of the capture",
                    self.shape()
                ),
            ),
        }
    }

    pub(super) fn data(&self, op: &'static str) -> Result<Rc<Storage>> {
        Ok(self.here(op)?.data.borrow().clone())
    }

    pub(super) fn track(&self) -> Option<Rc<Track>> {
        match &self.0.body {
            Body::Here(here) => here.track.borrow().clone(),
            Body::Traced(_) => None,
        }
    }

    pub(super) fn saved(&self) -> Saved {
        match &self.0.body {
            Body::Here(here) => Saved {
                data: Some(here.data.borrow().clone()),
                dtype: self.dtype(),
                shape: self.shape().to_vec(),
                version: here.version.get(),
                current: here.version.clone(),
            },
            Body::Traced(_) => unreachable!("what is traced is recorded in its graph, not on the tape"),
        }
    }
}

pub(super) fn check_axes(op: &'static str, shape: &[usize]) -> Result<()> {
    // Also beside an axis of 0: places along the others are counted.
    let places = shape.iter().try_fold(1usize, |n, axis| n.checked_mul((*axis).max(1)));
    match places.is_some_and(|n| n <= isize::MAX as usize) && shape.len() <= AXES_MAX {
        true => Ok(()),
        false => {
            shape_error(op, format!("{shape:?} has more than {AXES_MAX} axes, or more places than can be counted"))
        }
    }
}

/// What errors call an op.
pub(super) fn name_of(op: &Op) -> &'static str {
    match op {
        Op::Each(f) => f.name(),
        other => other.name(),
    }
}

/// Inputs that an op reads as integers.
pub(super) fn is_index(op: &Op, slot: usize) -> bool {
    slot == 1 && matches!(op, Op::Take(_) | Op::Gather(_) | Op::Embedding(_) | Op::CrossEntropy(_))
}

/// Applies an op now, or records it in the graph that is being captured. The float that it computes with is that of
/// the inputs, which agree on it; the outputs are stored as `out`.
pub(super) fn apply(op: Op, inputs: &[&Tensor], out: DType) -> Result<Vec<Tensor>> {
    let traced = inputs.iter().find_map(|x| match &x.0.body {
        Body::Traced(traced) => Some(&traced.recording),
        Body::Here(_) => None,
    });
    if let Some(recording) = traced {
        return Recording::apply(recording, op, inputs, out);
    }
    let ty = |(slot, x): (usize, &&Tensor)| Type {
        dtype: if is_index(&op, slot) { graph::DType::Int } else { graph::DType::Float },
        shape: x.shape().to_vec(),
    };
    let types: Vec<Type> = inputs.iter().enumerate().map(ty).collect();
    let wrong = |message| Error::Shape { op: name_of(&op), message };
    let out_types = op.infer(&types.iter().collect::<Vec<_>>()).map_err(wrong)?;
    out_types.iter().try_for_each(|ty| graph::fits(name_of(&op), "", ty))?;
    let datas: Vec<Rc<Storage>> = inputs.iter().map(|x| x.data(op.name())).collect::<Result<_>>()?;
    let operands: Vec<Operand> = datas.iter().zip(types).map(|(data, ty)| Operand { data, ty }).collect();
    let outputs = run::run(&op, class_of(inputs, out), &operands, &out_types);
    let outputs = outputs.into_iter().zip(out_types).map(|(y, ty)| {
        let y = if y.dtype() == out { y } else { y.cast(out) };
        (Rc::new(y), ty.shape)
    });
    Ok(tape::record(|| What::Op(op.clone()), inputs, outputs.collect()))
}

/// f64 if a float input is f64; without float inputs, what the output is.
fn class_of(inputs: &[&Tensor], out: DType) -> Class {
    let mut floats = inputs.iter().filter(|x| x.dtype().is_float());
    floats.next().map_or(out.class(), |first| {
        floats.fold(first.dtype().class(), |class, x| {
            assert!(class == x.dtype().class(), "operands were brought to one float type");
            class
        })
    })
}

pub(super) fn apply1(op: Op, inputs: &[&Tensor], out: DType) -> Result<Tensor> {
    Ok(apply(op, inputs, out)?.swap_remove(0))
}

/// An op whose result is to be of float type `out`: it is computed in f32 or f64, and rounded if `out` is shorter.
pub(super) fn apply_float(op: Op, inputs: &[&Tensor], out: DType) -> Result<Tensor> {
    let class = out.class().dtype();
    let brought: Vec<Tensor> =
        inputs.iter().enumerate().map(|(slot, x)| bring(x, class, is_index(&op, slot))).collect::<Result<_>>()?;
    let y = apply1(op, &brought.iter().collect::<Vec<_>>(), class)?;
    match out.half() {
        Some(half) => apply1(Op::Each(Each::Round(half)), &[&y], out),
        None => Ok(y),
    }
}

/// An operand in the float type that is computed with. Kernels read 16-bit floats and integers as they are.
fn bring(x: &Tensor, class: DType, is_index: bool) -> Result<Tensor> {
    match x.dtype().is_float() && x.dtype().class() != class.class() && !is_index {
        true => x.to_dtype(class),
        false => Ok(x.clone()),
    }
}

impl fmt::Debug for Tensor {
    /// Type, shape, and the first elements.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype(), self.shape())?;
        let Ok(data) = self.data("debug") else { return write!(f, " of a graph that is being captured") };
        let shown: Vec<String> = data.f64s().iter().take(8).map(f64::to_string).collect();
        write!(f, " [{}{}]", shown.join(", "), if data.len() > 8 { ", …" } else { "" })
    }
}
