//! Elements by index along an axis, and their gradients.

use crate::case::{CALL, Case, Input, check, floats, given, ints, random, special};
use elastic_spec::job::Dtype;
use elastic_tensor::ops::*;

/// Indices under `n` in no order, small ones more often.
fn indices(shape: &[usize], n: usize) -> Input {
    let values = random(&format!("indices {shape:?}"), shape.iter().product());
    ints(shape, &values.iter().map(|x| (x * x * n as f32) as i32).collect::<Vec<_>>())
}

#[test]
fn whole_rows_are_taken_and_get_the_sums_of_their_uses() {
    for (shape, axis, uses) in [
        (&[1][..], 0, &[1][..]),
        (&[7], 0, &[20]),
        (&[5, 3], 0, &[2, 4]),
        (&[5, 3], 1, &[7]),
        (&[3, 5, 1], 1, &[130]),
        (&[2, 4, 36], 1, &[9]),
        (&[2, 3, 37], 1, &[101]),
        (&[3, 300, 2], 1, &[70]),
        (&[2, 3, 0], 1, &[3]),
        (&[0, 3, 2], 1, &[3]),
        (&[2, 3, 4], 1, &[0]),
        (&[2, 0, 4], 1, &[0]),
    ] {
        let at = indices(uses, shape[axis]);
        let out = [&shape[..axis], uses, &shape[axis + 1..]].concat();
        for values in [floats, special] {
            check(Op::Take(Take { axis }), &[values(shape), at.clone()]);
            check(Op::TakeGrad(TakeGrad { axis, shape: shape.to_vec() }), &[values(&out), at.clone()]);
        }
    }
}

#[test]
fn single_elements_are_gathered_and_get_the_sums_of_their_uses() {
    for (shape, axis, uses) in [
        (&[1][..], 0, 1),
        (&[7], 0, 20),
        (&[7], 0, 3000),
        (&[5, 3], 0, 16),
        (&[5, 3], 0, 17),
        (&[5, 3], 1, 40),
        (&[2, 4, 36], 1, 9),
        (&[2, 300, 5], 1, 33),
        (&[2, 3, 0], 1, 20),
        (&[0, 3, 2], 1, 20),
        (&[2, 3, 4], 1, 0),
        (&[1, 3, 33000], 1, 17),
    ] {
        let mut out = shape.to_vec();
        out[axis] = uses;
        let at = indices(&out, shape[axis]);
        for values in [floats, special] {
            check(Op::Gather(Gather { axis }), &[values(shape), at.clone()]);
            check(Op::GatherGrad(GatherGrad { axis, shape: shape.to_vec() }), &[values(&out), at.clone()]);
        }
    }
}

/// The processor stops at such an index.
#[test]
fn an_index_outside_of_the_axis_touches_nothing_and_is_nan() {
    let (x, dy) = (random("x", 3), random("dy", 20));
    let wrong = |i: usize| [3, -1, i32::MAX, i32::MIN, 2][i % 5];
    let is_wrong = |i: usize| i % 5 < 4;
    let mut sum = 0.0;
    (0..20).filter(|i| !is_wrong(*i)).for_each(|i| sum += dy[i]);
    for count in [5, 20] {
        let at = ints(&[count], &(0..count).map(wrong).collect::<Vec<_>>());
        let on_gpu = |op, floats: &[f32]| {
            Case::new(CALL, op, &[given(&[floats.len()], floats.to_vec()), at.clone()]).on_gpu(Dtype::F32)
        };
        let ops = [Op::Take(Take { axis: 0 }), Op::Gather(Gather { axis: 0 })];
        for y in ops.map(|op| on_gpu(op, &x)) {
            assert!((0..count).all(|i| if is_wrong(i) { y[i].is_nan() } else { y[i] == x[2] }), "{y:?}");
        }
        let shape = vec![3];
        let ops = [
            Op::TakeGrad(TakeGrad { axis: 0, shape: shape.clone() }),
            Op::GatherGrad(GatherGrad { axis: 0, shape: shape.clone() }),
        ];
        for dx in ops.map(|op| on_gpu(op, &dy[..count])) {
            let wanted = if count == 5 { 0.0 + dy[4] } else { sum };
            assert_eq!(dx, [0.0, 0.0, wanted]);
        }
    }
}
