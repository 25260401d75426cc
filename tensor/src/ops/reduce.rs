//! Sum, mean, largest and smallest over neighbouring axes, and the index of the largest or smallest.
//!
//! x: (outer, n, inner), y: (outer, inner), where the reduced axes are `from` to `to`. Each result is a function of its
//! own line of n elements: they go in ascending order into sixteen running results by turns, which are joined by
//! halves; every 4,096 elements such a result is closed, and those are joined in the same way. Neither threads nor the
//! place of the line among others changes that order. Largest and smallest: a NaN wins, as in NumPy.

use super::walk::AXES_MAX;
use super::*;
use crate::simd::{Set, vectorised};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceKind {
    Sum,
    /// The sum divided by how many there are; of none it is NaN.
    Mean,
    Max,
    Min,
}

#[derive(Clone, Debug)]
pub struct Reduce {
    pub kind: ReduceKind,
    pub from: usize,
    pub to: usize,
}

/// (outer, n, inner).
fn line(shape: &[usize], from: usize, to: usize) -> [usize; 3] {
    [&shape[..from], &shape[from..to], &shape[to..]].map(|axes| axes.iter().product())
}

fn without(x: &Type, from: usize, to: usize) -> Result<Type, String> {
    if from > to || to > x.shape.len() || x.shape.len() > AXES_MAX {
        return Err(format!("axes {from}..{to} are not axes of {x}, or it has more than {AXES_MAX}"));
    }
    Ok(Type::float(&[&x.shape[..from], &x.shape[to..]].concat()))
}

impl Rule for Reduce {
    const NAME: &'static str = "reduce";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let y = without(x[0], self.from, self.to)?;
        if matches!(self.kind, ReduceKind::Max | ReduceKind::Min) && line(&x[0].shape, self.from, self.to)[1] == 0 {
            return Err(format!("{} has no element along axes {}..{} to choose", x[0], self.from, self.to));
        }
        Ok(vec![y])
    }

    /// Of a largest, all that are as large share the gradient.
    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let (path, x) = (&node.path[..], node.inputs[0]);
        let shape = graph.ty(x).shape.clone();
        let mut thin = shape.clone();
        thin[self.from..self.to].fill(1);
        let thin = Op::Reshape(Reshape { shape: thin });
        let dy = graph.apply1(thin.clone(), path, &[dy])?;
        let n = line(&shape, self.from, self.to)[1];
        let repeat = Op::BroadcastTo(BroadcastTo { shape });
        let dx = match self.kind {
            ReduceKind::Sum => graph.apply1(repeat, path, &[dy])?,
            ReduceKind::Mean => {
                let dx = graph.apply1(Op::Each(Each::Scale(1.0 / n as f64)), path, &[dy])?;
                graph.apply1(repeat, path, &[dx])?
            }
            ReduceKind::Max | ReduceKind::Min => {
                let y = graph.apply1(thin.clone(), path, &[node.outputs[0]])?;
                let is_it = graph.apply1(Op::Each(Each::Eq), path, &[x, y])?;
                let count =
                    graph.apply1(Op::Reduce(Reduce { kind: ReduceKind::Sum, ..self.clone() }), path, &[is_it])?;
                let count = graph.apply1(thin, path, &[count])?;
                let share = graph.apply1(Op::Each(Each::Div), path, &[dy, count])?;
                let zero = graph.apply1(Op::Fill(Fill { shape: vec![], value: 0.0 }), path, &[])?;
                graph.apply1(Op::Each(Each::Where), path, &[is_it, share, zero])?
            }
        };
        Ok(vec![Some(dx)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let sizes = line(&io.types[0].shape, self.from, self.to);
        let end = F::of(f64::INFINITY);
        match self.kind {
            ReduceKind::Sum | ReduceKind::Mean => fold(io.work, y, io.x[0], sizes, F::ZERO, |a, b| a + b),
            ReduceKind::Max => fold(io.work, y, io.x[0], sizes, -end, larger),
            ReduceKind::Min => fold(io.work, y, io.x[0], sizes, end, smaller),
        }
        if self.kind == ReduceKind::Mean {
            let count = F::of_usize(sizes[1]);
            y.iter_mut().for_each(|y| *y = *y / count);
        }
    }
}

#[inline(always)]
#[allow(clippy::eq_op, reason = "only a NaN differs from itself")]
pub(super) fn larger<F: Real>(a: F, b: F) -> F {
    if b > a || b != b { b } else { a }
}

#[inline(always)]
#[allow(clippy::eq_op, reason = "only a NaN differs from itself")]
pub(super) fn smaller<F: Real>(a: F, b: F) -> F {
    if b < a || b != b { b } else { a }
}

/// Running results of a line.
const LANES: usize = 16;
/// Elements of a line after which the running results are joined.
const BLOCK: usize = 4096;
/// Lines that lie side by side and are reduced together.
const COLUMNS: usize = 64;

fn fold<F: Real>(
    work: &mut Work<F>,
    y: &mut [F],
    x: &[F],
    [_, n, inner]: [usize; 3],
    none: F,
    f: impl Fn(F, F) -> F + std::marker::Copy + Sync,
) {
    let set = Set::best();
    if y.is_empty() || n == 0 {
        return y.fill(none);
    }
    let blocks = n.div_ceil(BLOCK);
    let Work { team, rooms } = work;
    match (inner, blocks) {
        (1, 1) => {
            let lines = each::rows_of_task(n);
            team.chunks(y, lines, |_, task, y| {
                for (y, x) in y.iter_mut().zip(x[task * lines * n..].chunks_exact(n)) {
                    *y = join(set, x, none, f);
                }
            });
        }
        // Long lines: the blocks of all of them first, then what they came to.
        (1, _) => {
            let mut parts = std::mem::take(&mut rooms[0].parts);
            let closed = take(&mut parts, y.len() * blocks);
            team.chunks(closed, BLOCKS, |_, task, closed| {
                for (at, closed) in (task * BLOCKS..).zip(closed) {
                    let (first, end) = (at % blocks * BLOCK, (at % blocks * BLOCK + BLOCK).min(n));
                    *closed = join(set, &x[at / blocks * n..][first..end], none, f);
                }
            });
            y.iter_mut().zip(closed.chunks_exact(blocks)).for_each(|(y, closed)| *y = join(set, closed, none, f));
            rooms[0].parts = parts;
        }
        _ => {
            let wide = inner.div_ceil(COLUMNS);
            // A task writes one line of columns of its own, so lines are padded to whole tasks.
            let mut padded = std::mem::take(&mut rooms[0].columns);
            let out = take(&mut padded, y.len() / inner * wide * COLUMNS);
            team.chunks_in(rooms, out, COLUMNS, |room, task, out| {
                let (outer, first) = (task / wide, task % wide * COLUMNS);
                let columns = COLUMNS.min(inner - first);
                let closed = take(&mut room.parts, (blocks + 1) * COLUMNS);
                let (line, closed) = closed.split_at_mut(blocks);
                for (block, closed) in closed.chunks_exact_mut(COLUMNS).take(blocks).enumerate() {
                    let rows = block * BLOCK..(block * BLOCK + BLOCK).min(n);
                    let mut lanes = [[none; COLUMNS]; LANES];
                    for (lane, row) in (0..).zip(rows) {
                        let x = &x[(outer * n + row) * inner + first..][..columns];
                        beside(set, &mut lanes[lane % LANES], x, f);
                    }
                    for (column, closed) in closed.iter_mut().enumerate().take(columns) {
                        *closed = halves(lanes.each_ref().map(|lane| lane[column]), f);
                    }
                }
                for (column, out) in out.iter_mut().enumerate().take(columns) {
                    line.iter_mut().zip(closed.chunks_exact(COLUMNS)).for_each(|(line, closed)| *line = closed[column]);
                    *out = if blocks == 1 { line[0] } else { join(set, line, none, f) };
                }
            });
            for (y, out) in y.chunks_exact_mut(inner).zip(out.chunks_exact(wide * COLUMNS)) {
                y.copy_from_slice(&out[..inner]);
            }
            rooms[0].columns = padded;
        }
    }
}

/// Blocks of a task: 16 Ki elements, as of other loops.
const BLOCKS: usize = each::CHUNK / BLOCK;

vectorised! {
    /// A line in one block, or what its blocks came to.
    fn join[F: Real, Two: Fn(F, F) -> F](xs: &[F], none: F, f: Two) -> F {
        let mut lanes = [none; LANES];
        let (whole, rest) = xs.as_chunks::<LANES>();
        for xs in whole {
            lanes.iter_mut().zip(xs).for_each(|(lane, x)| *lane = f(*lane, *x));
        }
        lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane = f(*lane, *x));
        halves(lanes, f)
    }
}

vectorised! {
    fn beside[F: Real, Two: Fn(F, F) -> F](lanes: &mut [F], xs: &[F], f: Two) {
        lanes.iter_mut().zip(xs).for_each(|(lane, x)| *lane = f(*lane, *x));
    }
}

#[inline(always)]
fn halves<F: Real>(mut lanes: [F; LANES], f: impl Fn(F, F) -> F) -> F {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

/// `value` summed over the axes along which one of the shape of `like` was repeated to it.
pub(super) fn sum_to(graph: &mut Graph, path: &str, value: Value, like: Value) -> Result<Value, ShapeError> {
    let (wide, shape) = (graph.ty(value).shape.clone(), graph.ty(like).shape.clone());
    if wide == shape {
        return Ok(value);
    }
    let lead = wide.len() - shape.len();
    let is_repeated = |axis: usize| axis < lead || shape[axis - lead] != wide[axis];
    let (mut value, mut to) = (value, wide.len());
    while to > 0 {
        let from = (0..to).rev().take_while(|axis| is_repeated(*axis)).last();
        if let Some(from) = from {
            value = graph.apply1(Op::Reduce(Reduce { kind: ReduceKind::Sum, from, to }), path, &[value])?;
        }
        to = from.unwrap_or(to - 1);
    }
    if graph.ty(value).shape == shape {
        Ok(value)
    } else {
        graph.apply1(Op::Reshape(Reshape { shape }), path, &[value])
    }
}

/// Index along axis `axis` of the first largest (or smallest) element, or of the first NaN; as a float, which holds
/// every index up to 2^24.
#[derive(Clone, Debug)]
pub struct ArgMax {
    pub axis: usize,
    pub smallest: bool,
}

impl Rule for ArgMax {
    const NAME: &'static str = "argmax";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let y = without(x[0], self.axis, self.axis + 1)?;
        match x[0].shape[self.axis] {
            1..=0x100_0000 => Ok(vec![y]),
            n => Err(format!("axis {} of {} has {n} elements; it must have 1 to 2^24", self.axis, x[0])),
        }
    }

    fn gradient(&self, _: &mut Graph, _: &Node, _: &[Option<Value>]) -> Result<Grads, ShapeError> {
        Ok(vec![None])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let [_, n, inner] = line(&io.types[0].shape, self.axis, self.axis + 1);
        let (x, lines) = (io.x[0], each::rows_of_task(n));
        let choose = if self.smallest { smaller } else { larger };
        io.work.team.chunks(y, lines, |_, task, y| {
            for (at, y) in (task * lines..).zip(y) {
                let start = at / inner * n * inner + at % inner;
                let (mut best, mut top) = (0, x[start]);
                for i in 1..n {
                    let next = x[start + i * inner];
                    if is_nan(top) {
                        break;
                    }
                    // Only something else than the best so far is chosen instead of it: of equals the first stays.
                    if choose(top, next) != top {
                        (best, top) = (i, next);
                    }
                }
                *y = F::of_usize(best);
            }
        });
    }
}

#[allow(clippy::eq_op, reason = "only a NaN differs from itself")]
fn is_nan<F: Real>(x: F) -> bool {
    x != x
}
