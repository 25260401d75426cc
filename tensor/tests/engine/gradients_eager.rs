//! Gradients of the ops that eager code brought against central finite differences in f64, and f32 kernels against f64.

use crate::common::{Build, Case, Ints, apply, distance, random};
use elastic_tensor::ops::*;

const EPS: f64 = 1e-6;

fn check(shapes: &[&[usize]], build: Build) {
    check_with(shapes, Ints::default(), build);
}

fn check_with(shapes: &[&[usize]], ints: Ints, build: Build) {
    let case = Case { shapes: shapes.iter().map(|s| s.to_vec()).collect(), ints, smoothing: 0.0, build };
    let inputs = case.inputs();
    let dy = random("dy", case.output_len());
    let (exact, fast) = (case.run::<f64>(&inputs, &dy), case.run::<f32>(&inputs, &dy));
    assert!(distance(&fast.y, &exact.y) < 2e-6, "value: f32 is off by {}", distance(&fast.y, &exact.y));
    for (i, dx) in exact.dx.iter().enumerate() {
        let off = distance(&fast.dx[i], dx);
        assert!(off < 5e-6, "gradient of input {i}: f32 is off by {off}");
        let weigh = |inputs: &[Vec<f64>]| {
            let y = case.run::<f64>(inputs, &dy).y;
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        let difference = |at: usize| {
            let mut moved = inputs.clone();
            moved[i][at] = inputs[i][at] + EPS;
            let up = weigh(&moved);
            moved[i][at] = inputs[i][at] - EPS;
            (up - weigh(&moved)) / (2.0 * EPS)
        };
        let numeric: Vec<f64> = (0..dx.len()).map(difference).collect();
        assert!(distance(dx, &numeric) < 1e-6, "input {i}: {dx:?}, by differences {numeric:?}");
    }
}

const SHAPES: [&[usize]; 5] = [&[3, 7], &[1], &[], &[0, 4], &[2, 3, 5]];

macro_rules! each {
    ($shapes:expr, $($f:expr),* $(,)?) => {
        for shapes in $shapes {
            $(check(&shapes, |g, x, _| apply(g, Op::Each($f), x));)*
        }
    };
}

#[test]
fn functions_of_one_number() {
    each!(
        SHAPES.map(|shape| [shape]),
        Each::Neg,
        Each::Abs,
        Each::Exp,
        Each::Tanh,
        Each::Sigmoid,
        Each::Silu,
        Each::Relu,
        Each::Scale(-1.7),
        Each::Shift(0.3),
        Each::Pow(2.0),
        Each::Pow(3.0),
        Each::Pow(0.0),
        Each::Clamp(-0.5, 0.4),
    );
}

#[test]
fn functions_of_positive_numbers() {
    for shape in SHAPES {
        // e^x + 0.2: away from 0, where slopes are steep.
        let positive: [Build; 4] = [
            |g, x, _| above(g, x, Each::Ln),
            |g, x, _| above(g, x, Each::Sqrt),
            |g, x, _| above(g, x, Each::Pow(-1.0)),
            |g, x, _| above(g, x, Each::Pow(0.37)),
        ];
        positive.into_iter().for_each(|build| check(&[shape], build));
    }
}

type Made = Result<elastic_tensor::graph::Value, elastic_tensor::ShapeError>;

fn above(g: &mut elastic_tensor::graph::Graph, x: &[elastic_tensor::graph::Value], f: Each) -> Made {
    let y = apply(g, Op::Each(Each::Exp), x)?;
    let y = apply(g, Op::Each(Each::Shift(0.2)), &[y])?;
    apply(g, Op::Each(f), &[y])
}

#[test]
fn functions_of_two_numbers_with_every_kind_of_broadcasting() {
    let shapes: [[&[usize]; 2]; 8] = [
        [&[2, 3, 4], &[2, 3, 4]],
        [&[2, 3, 4], &[3, 1]],
        [&[3, 1], &[2, 3, 4]],
        [&[4, 1], &[1, 5]],
        [&[], &[7]],
        [&[2, 1, 3, 1], &[5, 1, 2]],
        [&[0, 3], &[1, 3]],
        [&[1, 1], &[1]],
    ];
    each!(shapes, Each::Add, Each::Sub, Each::Mul, Each::Max, Each::Min);
    for shapes in shapes {
        check(&shapes, |g, x, _| {
            let below = above(g, &x[1..], Each::Neg)?;
            apply(g, Op::Each(Each::Div), &[x[0], below])
        });
    }
}

#[test]
fn a_selection_passes_its_gradient_where_it_chose() {
    for shapes in [[&[2, 3][..], &[2, 3], &[2, 3]], [&[3, 1], &[1, 4], &[]], [&[4], &[2, 4], &[1]]] {
        check(&shapes, |g, x, _| {
            let zero = apply(g, Op::Fill(Fill { shape: vec![], value: 0.0 }), &[])?;
            let is = apply(g, Op::Each(Each::Gt), &[x[0], zero])?;
            apply(g, Op::Each(Each::Where), &[is, x[1], x[2]])
        });
    }
}

#[test]
fn what_a_selection_did_not_choose_leaves_no_trace_in_the_gradient() {
    let build: Build = |g, x, _| {
        let zero = apply(g, Op::Fill(Fill { shape: vec![], value: 0.0 }), &[])?;
        let is = apply(g, Op::Each(Each::Gt), &[x[0], zero])?;
        let root = apply(g, Op::Each(Each::Sqrt), &[x[0]])?;
        let safe = apply(g, Op::Each(Each::Where), &[is, root, zero])?;
        let is = apply(g, Op::Each(Each::Gt), &[x[0], zero])?;
        apply(g, Op::Each(Each::Where), &[is, safe, zero])
    };
    let case = Case { shapes: vec![vec![3]], ints: Ints::default(), smoothing: 0.0, build };
    let outcome = case.run::<f32>(&[vec![4.0, -1.0, f64::NAN]], &[1.0, f64::INFINITY, f64::NAN]);
    assert_eq!(outcome.y, [2.0, 0.0, 0.0]);
    // dy is chosen away before it meets the root, whose slope at -1 is NaN: 0 / NaN would be NaN.
    assert_eq!(outcome.dx[0][0], 0.25);
}

#[test]
fn reductions() {
    for (from, to) in [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3), (1, 1)] {
        macro_rules! at {
            ($($kind:ident),*) => {$(
                match (from, to) {
                    (0, 1) => check(&[&[3, 5, 2]], |g, x, _| reduce(g, x, ReduceKind::$kind, 0, 1)),
                    (1, 2) => check(&[&[3, 5, 2]], |g, x, _| reduce(g, x, ReduceKind::$kind, 1, 2)),
                    (2, 3) => check(&[&[3, 1, 7]], |g, x, _| reduce(g, x, ReduceKind::$kind, 2, 3)),
                    (0, 2) => check(&[&[3, 5, 2]], |g, x, _| reduce(g, x, ReduceKind::$kind, 0, 2)),
                    (1, 3) => check(&[&[3, 5, 2]], |g, x, _| reduce(g, x, ReduceKind::$kind, 1, 3)),
                    (0, 3) => check(&[&[3, 17, 2]], |g, x, _| reduce(g, x, ReduceKind::$kind, 0, 3)),
                    _ => check(&[&[3, 5, 2]], |g, x, _| reduce(g, x, ReduceKind::$kind, 1, 1)),
                }
            )*};
        }
        at!(Sum, Mean, Max, Min);
    }
    check(&[&[0, 3]], |g, x, _| reduce(g, x, ReduceKind::Sum, 0, 1));
    check(&[&[2, 4100]], |g, x, _| reduce(g, x, ReduceKind::Mean, 1, 2));
}

fn reduce(
    g: &mut elastic_tensor::graph::Graph,
    x: &[elastic_tensor::graph::Value],
    kind: ReduceKind,
    from: usize,
    to: usize,
) -> Made {
    apply(g, Op::Reduce(Reduce { kind, from, to }), x)
}

#[test]
fn all_that_are_as_large_share_the_gradient() {
    let build: Build = |g, x, _| reduce(g, x, ReduceKind::Max, 0, 1);
    let case = Case { shapes: vec![vec![4]], ints: Ints::default(), smoothing: 0.0, build };
    assert_eq!(case.run::<f32>(&[vec![1.0, 3.0, 3.0, 2.0]], &[1.0]).dx[0], [0.0, 0.5, 0.5, 0.0]);
    let build: Build = |g, x, _| apply(g, Op::Each(Each::Max), x);
    let case = Case { shapes: vec![vec![3], vec![3]], ints: Ints::default(), smoothing: 0.0, build };
    let both = case.run::<f32>(&[vec![1.0, 2.0, 3.0], vec![2.0, 2.0, 1.0]], &[1.0, 1.0, 1.0]);
    assert_eq!((&both.dx[0][..], &both.dx[1][..]), (&[0.0, 0.5, 1.0][..], &[1.0, 0.5, 0.0][..]));
}

#[test]
fn placements() {
    check(&[&[3, 1]], |g, x, _| apply(g, Op::BroadcastTo(BroadcastTo { shape: vec![2, 3, 4] }), x));
    check(&[&[]], |g, x, _| apply(g, Op::BroadcastTo(BroadcastTo { shape: vec![0, 2] }), x));
    check(&[&[2, 3, 5]], |g, x, _| apply(g, Op::Permute(Permute { axes: vec![2, 0, 1] }), x));
    check(&[&[]], |g, x, _| apply(g, Op::Permute(Permute { axes: vec![] }), x));
    check(&[&[7, 5]], |g, x, _| {
        let ranges = vec![Range { start: 6, step: -2, len: 3 }, Range { start: 1, step: 3, len: 2 }];
        apply(g, Op::Slice(Slice { ranges }), x)
    });
    check(&[&[4]], |g, x, _| apply(g, Op::Slice(Slice { ranges: vec![Range { start: 0, step: 1, len: 0 }] }), x));
    check(&[&[2, 3], &[2, 0], &[2, 1]], |g, x, _| apply(g, Op::Concat(Concat { axis: 1 }), x));
    check(&[&[2, 3], &[5, 3]], |g, x, _| apply(g, Op::Concat(Concat { axis: 0 }), x));
}

#[test]
fn rows_and_elements_by_index_add_the_gradients_of_their_uses() {
    let take: Build = |g, x, at| apply(g, Op::Take(Take { axis: 1 }), &[x[0], at]);
    check_with(&[&[2, 4, 3]], Ints::new(&[2, 2], &[3, 0, 3, 1]), take);
    check_with(&[&[2, 4, 3]], Ints::new(&[0], &[]), take);
    check_with(&[&[2, 4]], Ints::new(&[], &[2]), take);
    let gather: Build = |g, x, at| apply(g, Op::Gather(Gather { axis: 1 }), &[x[0], at]);
    check_with(&[&[2, 4, 2]], Ints::new(&[2, 3, 2], &[0, 1, 3, 1, 0, 2, 2, 2, 1, 0, 2, 3]), gather);
}

#[test]
fn softmax_and_its_logarithm() {
    for shape in [&[3, 5][..], &[7], &[2, 3, 1], &[0, 3], &[1, 37]] {
        check(&[shape], |g, x, _| apply(g, Op::Softmax(Softmax { log: false }), x));
        check(&[shape], |g, x, _| apply(g, Op::Softmax(Softmax { log: true }), x));
    }
}

#[test]
fn batched_products_in_every_transposition() {
    check(&[&[2, 3, 5], &[2, 5, 4]], |g, x, _| batched(g, x, false, false));
    check(&[&[2, 5, 3], &[2, 5, 4]], |g, x, _| batched(g, x, true, false));
    check(&[&[2, 3, 5], &[2, 4, 5]], |g, x, _| batched(g, x, false, true));
    check(&[&[2, 5, 3], &[2, 4, 5]], |g, x, _| batched(g, x, true, true));
    check(&[&[0, 3, 5], &[0, 5, 4]], |g, x, _| batched(g, x, false, false));
    check(&[&[1, 1, 1], &[1, 1, 1]], |g, x, _| batched(g, x, false, false));
}

fn batched(
    g: &mut elastic_tensor::graph::Graph,
    x: &[elastic_tensor::graph::Value],
    a_transposed: bool,
    b_transposed: bool,
) -> Made {
    apply(g, Op::BatchMatMul(BatchMatMul { a_transposed, b_transposed }), x)
}
