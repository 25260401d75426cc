//! y = f(a), f(a, b) or f(a, b, c), element by element, with NumPy's broadcasting: all such functions are one op.
//!
//! Since they are one op, a captured graph can run neighbours of them as one loop (`fused`). Comparisons give 1 or 0.
//! Functions whose names end in `Grad` are derivatives times dy, the last input.

use super::walk::{self, Walk};
use super::*;
use crate::half;
use crate::simd::Set;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Each {
    /// The same; no gradient passes.
    Detach,
    Neg,
    Abs,
    Exp,
    Ln,
    Sqrt,
    Tanh,
    Sigmoid,
    /// x σ(x).
    Silu,
    Relu,
    /// 1 where x is 0, else 0.
    Not,
    Scale(f64),
    Shift(f64),
    /// x to a fixed power. In f32 it is rounded once, from f64.
    Pow(f64),
    /// Into [low, high]; a NaN stays.
    Clamp(f64, f64),
    /// To the nearest number of a shorter format, and back.
    Round(half::Half),
    Add,
    Sub,
    Mul,
    Div,
    /// A NaN on either side wins.
    Max,
    Min,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// b where a is not 0, else c. It selects: what is not chosen leaves no trace, be it infinite or NaN.
    Where,
    /// Of x, dy.
    AbsGrad,
    SiluGrad,
    PowGrad(f64),
    ClampGrad(f64, f64),
    /// Of y, dy.
    SqrtGrad,
    TanhGrad,
    SigmoidGrad,
    ReluGrad,
}

impl Each {
    /// What errors call it: the name of the method that it stands for.
    pub fn name(self) -> &'static str {
        use Each::*;
        match self {
            Detach => "detach",
            Neg => "neg",
            Abs | AbsGrad => "abs",
            Exp => "exp",
            Ln => "ln",
            Sqrt | SqrtGrad => "sqrt",
            Tanh | TanhGrad => "tanh",
            Sigmoid | SigmoidGrad => "sigmoid",
            Silu | SiluGrad => "silu",
            Relu | ReluGrad => "relu",
            Not => "not",
            Scale(_) => "mul_scalar",
            Shift(_) => "add_scalar",
            Pow(_) | PowGrad(_) => "powf",
            Clamp(..) | ClampGrad(..) => "clamp",
            Round(_) => "to_dtype",
            Add => "add",
            Sub => "sub",
            Mul => "mul",
            Div => "div",
            Max => "maximum",
            Min => "minimum",
            Eq => "eq",
            Ne => "ne",
            Lt => "lt",
            Le => "le",
            Gt => "gt",
            Ge => "ge",
            Where => "select",
        }
    }

    pub fn arity(self) -> usize {
        use Each::*;
        match self {
            Where => 3,
            Add | Sub | Mul | Div | Max | Min | Eq | Ne | Lt | Le | Gt | Ge => 2,
            AbsGrad | SiluGrad | PowGrad(_) | ClampGrad(..) | SqrtGrad | TanhGrad | SigmoidGrad | ReluGrad => 2,
            _ => 1,
        }
    }
}

impl Rule for Each {
    const NAME: &'static str = "elementwise";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        assert!(x.len() == self.arity(), "{self:?} takes {} inputs", self.arity());
        let shapes: [&[usize]; 3] = std::array::from_fn(|i| x.get(i).map_or(&[][..], |ty| &ty.shape));
        Ok(vec![Type::float(&walk::broadcast_shape(&shapes[..x.len()])?)])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None; self.arity()]) };
        let wide = self.wide_gradient(graph, node, dy)?;
        let narrow = wide.into_iter().zip(&node.inputs).map(|(dx, input)| match dx {
            Some(dx) => Ok(Some(reduce::sum_to(graph, &node.path, dx, *input)?)),
            None => Ok(None),
        });
        narrow.collect()
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let shapes: [&[usize]; 3] = std::array::from_fn(|i| io.types.get(i).map_or(&[][..], |ty| &ty.shape));
        let walk = Walk::broadcast(&io.out_types[0].shape, shapes);
        let (set, x) = (Set::best(), io.x);
        walk.run(&io.work.team, y, |y, places| {
            let len = y.len();
            let lane = |i: usize| match x.get(i) {
                Some(x) if i < self.arity() => Lane::of(x, places[i], walk.inner(i), len),
                _ => Lane::One(F::ZERO),
            };
            eval(set, *self, y, [lane(0), lane(1), lane(2)]);
        });
    }
}

impl Each {
    /// The inputs' gradients in the output's shape.
    fn wide_gradient(self, graph: &mut Graph, node: &Node, dy: Value) -> Result<Grads, ShapeError> {
        use Each::*;
        let path = &node.path[..];
        let (x, y) = (&node.inputs, node.outputs[0]);
        let mut each = |f: Each, inputs: &[Value]| graph.apply1(Op::Each(f), path, inputs);
        Ok(match self {
            Detach => vec![None],
            Neg => vec![Some(each(Neg, &[dy])?)],
            Abs => vec![Some(each(AbsGrad, &[x[0], dy])?)],
            Exp => vec![Some(each(Mul, &[dy, y])?)],
            Ln => vec![Some(each(Div, &[dy, x[0]])?)],
            Sqrt => vec![Some(each(SqrtGrad, &[y, dy])?)],
            Tanh => vec![Some(each(TanhGrad, &[y, dy])?)],
            Sigmoid => vec![Some(each(SigmoidGrad, &[y, dy])?)],
            Silu => vec![Some(each(SiluGrad, &[x[0], dy])?)],
            Relu => vec![Some(each(ReluGrad, &[y, dy])?)],
            Scale(factor) => vec![Some(each(Scale(factor), &[dy])?)],
            Shift(_) => vec![Some(dy)],
            Pow(power) => vec![Some(each(PowGrad(power), &[x[0], dy])?)],
            Clamp(low, high) => vec![Some(each(ClampGrad(low, high), &[x[0], dy])?)],
            Round(half) => vec![Some(each(Round(half), &[dy])?)],
            Add => vec![Some(dy), Some(dy)],
            Sub => vec![Some(dy), Some(each(Neg, &[dy])?)],
            Mul => vec![Some(each(Mul, &[dy, x[1]])?), Some(each(Mul, &[dy, x[0]])?)],
            // d(a/b)/db = -(a/b)/b.
            Div => {
                let da = each(Div, &[dy, x[1]])?;
                let slope = each(Mul, &[da, y])?;
                vec![Some(da), Some(each(Neg, &[slope])?)]
            }
            // Equal operands get a half each.
            Max | Min => {
                let zero = graph.apply1(Op::Fill(Fill { shape: vec![], value: 0.0 }), path, &[])?;
                let mut each = |f: Each, inputs: &[Value]| graph.apply1(Op::Each(f), path, inputs);
                let is_tie = each(Eq, &[x[0], x[1]])?;
                let half = each(Scale(0.5), &[dy])?;
                let share = each(Where, &[is_tie, half, dy])?;
                let (a_loses, b_loses) = if self == Max { (Lt, Gt) } else { (Gt, Lt) };
                let (a_loses, b_loses) = (each(a_loses, &[x[0], x[1]])?, each(b_loses, &[x[0], x[1]])?);
                vec![Some(each(Where, &[a_loses, zero, share])?), Some(each(Where, &[b_loses, zero, share])?)]
            }
            Where => {
                let zero = graph.apply1(Op::Fill(Fill { shape: vec![], value: 0.0 }), path, &[])?;
                let mut each = |f: Each, inputs: &[Value]| graph.apply1(Op::Each(f), path, inputs);
                vec![None, Some(each(Where, &[x[0], dy, zero])?), Some(each(Where, &[x[0], zero, dy])?)]
            }
            // Steps: flat wherever they have a slope.
            Not => vec![None],
            Eq | Ne | Lt | Le | Gt | Ge => vec![None, None],
            AbsGrad | SiluGrad | PowGrad(_) | ClampGrad(..) | SqrtGrad | TanhGrad | SigmoidGrad | ReluGrad => {
                let message = "gradients of gradients are not there".to_string();
                return Err(ShapeError { op: Self::NAME, path: node.path.clone(), message });
            }
        })
    }
}

/// An operand of one piece of a row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lane<'a, F> {
    Row(&'a [F]),
    One(F),
}

impl<'a, F: Real> Lane<'a, F> {
    pub(super) fn of(x: &'a [F], at: usize, step: isize, len: usize) -> Lane<'a, F> {
        if step == 0 && len > 0 { Lane::One(x[at]) } else { Lane::Row(&x[at..at + len]) }
    }

    #[inline(always)]
    fn get(self, i: usize) -> F {
        match self {
            Lane::Row(x) => x[i],
            Lane::One(x) => x,
        }
    }
}

/// y = f(x), for one piece.
pub(super) fn eval<F: Real>(set: Set, f: Each, y: &mut [F], x: [Lane<'_, F>; 3]) {
    use Each::*;
    let [a, b, c] = x;
    let (zero, one) = (F::ZERO, F::ONE);
    let truth = move |is: bool| if is { one } else { zero };
    match f {
        Detach => map(set, y, a, |x| x),
        Neg => map(set, y, a, |x| -x),
        Abs => map(set, y, a, abs),
        Exp => map(set, y, a, |x| x.exp()),
        Ln => map(set, y, a, |x| x.ln()),
        Sqrt => map(set, y, a, |x| x.sqrt()),
        Tanh => map(set, y, a, |x| x.tanh()),
        Sigmoid => map(set, y, a, sigmoid),
        Silu => map(set, y, a, |x| x * sigmoid(x)),
        Relu => map(set, y, a, |x| if x <= zero { zero } else { x }),
        Not => map(set, y, a, |x| truth(x == zero)),
        Scale(factor) => {
            let factor = F::of(factor);
            map(set, y, a, |x| factor * x)
        }
        Shift(by) => {
            let by = F::of(by);
            map(set, y, a, |x| x + by)
        }
        Pow(power) => map(set, y, a, |x| x.pow(power)),
        Clamp(low, high) => {
            let (low, high) = (F::of(low), F::of(high));
            map(set, y, a, |x| {
                let x = if x < low { low } else { x };
                if x > high { high } else { x }
            })
        }
        Round(half) => map(set, y, a, |x| F::of(half.round(x.f64() as f32) as f64)),
        Add => map2(set, y, a, b, |a, b| a + b),
        Sub => map2(set, y, a, b, |a, b| a - b),
        Mul => map2(set, y, a, b, |a, b| a * b),
        Div => map2(set, y, a, b, |a, b| a / b),
        Max => map2(set, y, a, b, reduce::larger),
        Min => map2(set, y, a, b, reduce::smaller),
        Eq => map2(set, y, a, b, |a, b| truth(a == b)),
        Ne => map2(set, y, a, b, |a, b| truth(a != b)),
        Lt => map2(set, y, a, b, |a, b| truth(a < b)),
        Le => map2(set, y, a, b, |a, b| truth(a <= b)),
        Gt => map2(set, y, a, b, |a, b| truth(a > b)),
        Ge => map2(set, y, a, b, |a, b| truth(a >= b)),
        Where => (0..).zip(y).for_each(|(i, y)| *y = if a.get(i) != zero { b.get(i) } else { c.get(i) }),
        AbsGrad => map2(set, y, a, b, |x, dy| {
            if x < zero {
                -dy
            } else if x == zero {
                zero
            } else {
                dy
            }
        }),
        SiluGrad => map2(set, y, a, b, |x, dy| {
            let share = sigmoid(x);
            dy * (share + x * (share * (one - share)))
        }),
        PowGrad(power) => {
            let factor = F::of(power);
            map2(set, y, a, b, |x, dy| if power == 0.0 { zero } else { dy * (factor * x.pow(power - 1.0)) })
        }
        ClampGrad(low, high) => {
            let (low, high) = (F::of(low), F::of(high));
            map2(set, y, a, b, |x, dy| if x < low || x > high { zero } else { dy })
        }
        SqrtGrad => map2(set, y, a, b, |y, dy| dy / (y + y)),
        TanhGrad => map2(set, y, a, b, |y, dy| dy * (one - y * y)),
        SigmoidGrad => map2(set, y, a, b, |y, dy| dy * (y * (one - y))),
        ReluGrad => map2(set, y, a, b, |y, dy| if y <= zero { zero } else { dy }),
    }
}

fn map<F: Real>(set: Set, y: &mut [F], a: Lane<'_, F>, f: impl Fn(F) -> F) {
    match a {
        Lane::Row(a) => each::map_chunk(set, y, a, f),
        Lane::One(a) => y.fill(f(a)),
    }
}

fn map2<F: Real>(set: Set, y: &mut [F], a: Lane<'_, F>, b: Lane<'_, F>, f: impl Fn(F, F) -> F) {
    match (a, b) {
        (Lane::Row(a), Lane::Row(b)) => each::map2_chunk(set, y, a, b, f),
        (Lane::Row(a), Lane::One(b)) => each::map_chunk(set, y, a, |a| f(a, b)),
        (Lane::One(a), Lane::Row(b)) => each::map_chunk(set, y, b, |b| f(a, b)),
        (Lane::One(a), Lane::One(b)) => y.fill(f(a, b)),
    }
}

/// Of -0 it is 0.
#[inline(always)]
fn abs<F: Real>(x: F) -> F {
    if x < F::ZERO { -x } else { x + F::ZERO }
}

#[inline(always)]
fn sigmoid<F: Real>(x: F) -> F {
    F::ONE / (F::ONE + (-x).exp())
}
