//! Runs one op now, on this thread's team. What it makes is new memory.

use super::dtype::Class;
use super::storage::Storage;
use crate::float_mode::Ieee;
use crate::graph::{DType, Type};
use crate::ops::{IO_MAX, Io, Key, Op, Work};
use crate::real::Real;
use std::cell::RefCell;

/// An input of an op: elements, and the type that the op's rules see.
pub(crate) struct Operand<'a> {
    pub data: &'a Storage,
    pub ty: Type,
}

/// The threads of this thread's operations, made when they are first needed.
struct Pool {
    threads: usize,
    f32: Option<Work<f32>>,
    f64: Option<Work<f64>>,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool { threads: default_threads(), f32: None, f64: None });
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// How many threads operations of the calling thread use, itself among them; at first as many as the machine has.
/// No bit of a result depends on it.
pub fn set_threads(threads: usize) {
    POOL.with_borrow_mut(|pool| *pool = Pool { threads: threads.max(1), f32: None, f64: None });
}

/// The op's outputs, as f32 or f64. The shapes were found to fit by `Op::infer`, which made `out_types`.
pub(crate) fn run(op: &Op, class: Class, inputs: &[Operand<'_>], out_types: &[Type]) -> Vec<Storage> {
    let _ieee = Ieee::enter();
    POOL.with_borrow_mut(|pool| match class {
        Class::F32 => {
            let work = pool.f32.get_or_insert_with(|| Work::new(pool.threads));
            let floats: Vec<_> = inputs.iter().map(|x| floats_of(x, Storage::f32s)).collect();
            run_as(work, op, &floats, inputs, out_types).into_iter().map(Storage::F32).collect()
        }
        Class::F64 => {
            let work = pool.f64.get_or_insert_with(|| Work::new(pool.threads));
            let floats: Vec<_> = inputs.iter().map(|x| floats_of(x, Storage::f64s)).collect();
            run_as(work, op, &floats, inputs, out_types).into_iter().map(Storage::F64).collect()
        }
    })
}

fn floats_of<'a, F: Real>(
    x: &Operand<'a>,
    read: impl Fn(&'a Storage) -> std::borrow::Cow<'a, [F]>,
) -> std::borrow::Cow<'a, [F]> {
    if x.ty.dtype == DType::Float { read(x.data) } else { (&[][..]).into() }
}

fn run_as<F: Real>(
    work: &mut Work<F>,
    op: &Op,
    floats: &[std::borrow::Cow<'_, [F]>],
    inputs: &[Operand<'_>],
    out_types: &[Type],
) -> Vec<Vec<F>> {
    let is_int = |x: &Operand<'_>| x.ty.dtype == DType::Int;
    let narrow = |x: &Operand<'_>| x.data.i64s().iter().map(|i| *i as i32).collect();
    let whole: Vec<Vec<i32>> = inputs.iter().map(|x| if is_int(x) { narrow(x) } else { Vec::new() }).collect();
    let mut outputs: Vec<Vec<F>> = out_types.iter().map(|ty| vec![F::ZERO; ty.len()]).collect();
    let mut y: [&mut [F]; IO_MAX] = std::array::from_fn(|_| &mut [][..]);
    y.iter_mut().zip(&mut outputs).for_each(|(slot, y)| *slot = y);
    let x = std::array::from_fn(|slot| floats.get(slot).map_or(&[][..], |x| x));
    let ints = std::array::from_fn(|slot| whole.get(slot).map_or(&[][..], |x| x));
    let types: Vec<Type> = inputs.iter().map(|x| x.ty.clone()).collect();
    let key = Key { seed: 0, step: 0, scale: 1.0, label_smoothing: 0.0, shards: 1, slots: &[] };
    op.run(Io { x, ints, y, types: &types, out_types, key: &key, path: "eager", work });
    outputs
}
