//! Each op has the same bits for every number of threads and on every instruction set.

use super::*;
use crate::gemm::{FORCED, Isa};

/// An op on inputs of these types.
struct Case {
    op: Op,
    x: Vec<Type>,
}

fn case(op: Op, shapes: &[&[usize]]) -> Case {
    Case { op, x: shapes.iter().map(|s| Type::float(s)).collect() }
}

/// Numbers around 0 for each input.
fn inputs(types: &[Type]) -> Vec<Vec<f32>> {
    let number = |slot: usize, i: usize| ((i * 7919 + slot * 31) % 1013) as f32 / 400.0 - 1.2;
    (0..).zip(types).map(|(slot, t)| (0..t.len()).map(|i| number(slot, i)).collect()).collect()
}

/// How an op is run.
#[derive(Clone, Copy)]
struct How {
    threads: usize,
    shards: usize,
    label_smoothing: f32,
}

const ALONE: How = How { threads: 1, shards: 1, label_smoothing: 0.0 };

/// Outputs' bits, run on `isa`.
fn run_on(case: &Case, isa: Isa, how: How, floats: &[Vec<f32>]) -> Vec<Vec<u32>> {
    FORCED.set(Some(isa));
    let ints: Vec<Vec<i32>> = case.x.iter().map(|t| (0..t.len()).map(|i| (i * 5 % 8) as i32 - 1).collect()).collect();
    let floats: Vec<&[f32]> = floats.iter().map(|x| &x[..]).collect();
    let ints: Vec<&[i32]> = ints.iter().map(|x| &x[..]).collect();
    let outputs = call(&case.op, &case.x, (&floats, &ints), how);
    FORCED.set(None);
    outputs.into_iter().map(|y| y.into_iter().map(f32::to_bits).collect()).collect()
}

/// Runs an op in memory that is dirty.
fn call(op: &Op, types: &[Type], (floats, ints): (&[&[f32]], &[&[i32]]), how: How) -> Vec<Vec<f32>> {
    let How { threads, shards, label_smoothing } = how;
    let out_types = op.infer(&types.iter().collect::<Vec<_>>()).expect("the case's shapes fit");
    let mut outputs: Vec<Vec<f32>> = out_types.iter().map(|t| vec![f32::NAN; t.len()]).collect();
    let mut work = Work::new(threads);
    for room in &mut work.rooms {
        room.columns = vec![f32::NAN; 100];
    }
    let slots: Vec<u64> = (5..70).collect();
    let key = Key { seed: 1, step: 1, scale: 1.0, label_smoothing, shards, slots: &slots };
    let mut y: [&mut [f32]; IO_MAX] = std::array::from_fn(|_| &mut [][..]);
    y.iter_mut().zip(&mut outputs).for_each(|(slot, y)| *slot = y);
    let x = std::array::from_fn(|slot| floats.get(slot).map_or(&[][..], |x| x));
    let ints = std::array::from_fn(|slot| ints.get(slot).map_or(&[][..], |x| x));
    let out_types = &out_types[..];
    op.run(Io { x, ints, y, types, out_types, key: &key, path: "test", work: &mut work });
    outputs
}

fn check(case: &Case) {
    let floats = inputs(&case.x);
    let how = How { label_smoothing: 0.1, ..ALONE };
    let wanted = run_on(case, Isa::Portable, how, &floats);
    for isa in Isa::here() {
        for threads in [1, 2, 3] {
            let got = run_on(case, isa, How { threads, ..how }, &floats);
            assert!(got == wanted, "{} {:?}: {isa:?}, {threads} threads", case.op.name(), case.x);
        }
    }
}

#[test]
fn elementwise_ops_have_one_result() {
    for len in [1, 7, 16, 1_000, 3 * each::CHUNK + 5] {
        let shape = &[len][..];
        for op in [Op::Gelu(Gelu), Op::Relu(Relu), Op::Scale(Scale { factor: 0.3 }), Op::Copy(Copy)] {
            check(&case(op, &[shape]));
        }
        for op in [Op::GeluGrad(GeluGrad), Op::ReluGrad(ReluGrad), Op::Add(Add), Op::Mul(Mul)] {
            check(&case(op, &[shape, shape]));
        }
    }
    check(&case(Op::Add(Add), &[&[3_000, 37], &[37]]));
    check(&case(Op::Add(Add), &[&[3, 0], &[0]]));
}

#[test]
fn norms_losses_pools_and_dropout_have_one_result() {
    for (rows, cols) in [(1, 1), (5, 7), (37, 16), (67, 100), (2, 5_003), (700, 65), (0, 3), (3, 0)] {
        let (x, cols_only, rows_only) = (&[rows, cols][..], &[cols][..], &[rows][..]);
        check(&case(Op::LayerNorm(LayerNorm { eps: 1e-5 }), &[x, cols_only, cols_only]));
        check(&case(Op::LayerNormGrad(LayerNormGrad), &[x, cols_only, rows_only, rows_only, x]));
        check(&case(Op::Dropout(Dropout { p: 0.3 }), &[&[rows.min(60), cols]]));
        // Targets of the test are -1 to 6.
        if cols >= 7 {
            check(&case(Op::CrossEntropy(CrossEntropy), &[x, rows_only]));
            check(&case(Op::CrossEntropyGrad(CrossEntropyGrad), &[x, rows_only, rows_only, rows_only]));
        }
    }
    for (kernel, stride, h, w) in
        [(2, 2, 6, 150), (3, 2, 9, 9), (3, 1, 5, 67), (1, 3, 7, 8), (2, 2, 5, 3), (7, 7, 7, 7)]
    {
        let (image, pool) = ([5, 3, h, w], MaxPool { kernel, stride });
        let out = pool.out(&Type::float(&image)).expect("the window fits");
        let average = AvgPool { kernel, stride };
        check(&case(Op::MaxPool(pool), &[&image]));
        check(&case(Op::MaxPoolGrad(MaxPoolGrad(pool)), &[&image, &out]));
        check(&case(Op::AvgPool(average), &[&image]));
        check(&case(Op::AvgPoolGrad(AvgPoolGrad { pool: average, image: image.to_vec() }), &[&out]));
    }
}

#[test]
fn broadcast_and_moved_elements_have_one_result() {
    let long = 2 * each::CHUNK + 3;
    for shapes in [[&[long][..], &[long]], [&[long], &[]], [&[], &[long]], [&[700, 53], &[53]], [&[300, 1], &[1, 90]]] {
        for f in
            [Each::Add, Each::Sub, Each::Mul, Each::Div, Each::Max, Each::Min, Each::Lt, Each::TanhGrad, Each::SiluGrad]
        {
            check(&case(Op::Each(f), &shapes));
        }
    }
    check(&case(Op::Each(Each::Where), &[&[300, 1], &[1, 90], &[]]));
    check(&case(Op::Each(Each::Add), &[&[0, 3], &[1, 3]]));
    let half = crate::half::Half::Bf16;
    for f in [
        Each::Exp,
        Each::Ln,
        Each::Sqrt,
        Each::Tanh,
        Each::Sigmoid,
        Each::Silu,
        Each::Pow(3.0),
        Each::Pow(0.3),
        Each::Round(half),
    ] {
        check(&case(Op::Each(f), &[&[long]]));
    }
    check(&case(Op::Permute(Permute { axes: vec![2, 0, 1] }), &[&[31, 70, 17]]));
    let ranges = vec![Range { start: 30, step: -3, len: 9 }, Range { start: 2, step: 2, len: 30 }];
    let slice = Slice { ranges };
    check(&case(Op::Slice(slice.clone()), &[&[31, 70]]));
    check(&case(Op::SliceGrad(SliceGrad { slice, shape: vec![31, 70] }), &[&[9, 30]]));
}

#[test]
fn a_fused_loop_has_the_bits_of_its_functions_one_after_the_other() {
    use FusedInput::{Given, Nothing, Step};
    let step = |f, x| FusedStep { f, x };
    let (a, b) = ([200usize, 190], [190usize]);
    let steps = vec![
        step(Each::Mul, [Given(0), Given(1), Nothing]),
        step(Each::Tanh, [Step(0), Nothing, Nothing]),
        step(Each::Lt, [Step(1), Given(1), Nothing]),
        step(Each::Where, [Step(2), Step(0), Given(2)]),
    ];
    for outputs in [vec![3], vec![1, 3], vec![0, 1, 3]] {
        let fused = Fused { shape: a.to_vec(), steps: steps.clone(), outputs: outputs.clone() };
        let fused = case(Op::Fused(fused), &[&a, &b, &[]]);
        check(&fused);
        let floats = inputs(&fused.x);
        let got = run_on(&fused, Isa::here()[0], ALONE, &floats);
        let mut made: Vec<Vec<f32>> = Vec::new();
        for FusedStep { f, x } in &steps {
            let used = x.iter().filter(|x| **x != Nothing);
            let (shapes, values): (Vec<&[usize]>, Vec<Vec<f32>>) = used
                .map(|x| match *x {
                    Given(i) => (&fused.x[i].shape[..], floats[i].clone()),
                    Step(i) => (&a[..], made[i].clone()),
                    Nothing => unreachable!("filtered"),
                })
                .unzip();
            let y = run_on(&case(Op::Each(*f), &shapes), Isa::Portable, ALONE, &values).swap_remove(0);
            made.push(y.into_iter().map(f32::from_bits).collect());
        }
        for (got, wanted) in got.iter().zip(outputs) {
            assert!(
                got.iter().eq(made[wanted].iter().map(|x| x.to_bits()).collect::<Vec<_>>().iter()),
                "step {wanted}"
            );
        }
    }
}

#[test]
fn reductions_have_one_result_and_lie_where_they_may() {
    for (shape, from, to) in [
        (&[5usize, 9_001][..], 1, 2),
        (&[9_001, 5], 0, 1),
        (&[3, 4_500, 70], 1, 2),
        (&[40_000], 0, 1),
        (&[7, 0, 3], 1, 2),
        (&[2, 3, 5, 7], 1, 3),
    ] {
        for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max, ReduceKind::Min] {
            if shape.contains(&0) && matches!(kind, ReduceKind::Max | ReduceKind::Min) {
                continue;
            }
            check(&case(Op::Reduce(Reduce { kind, from, to }), &[shape]));
        }
    }
    check(&case(Op::ArgMax(ArgMax { axis: 1, smallest: false }), &[&[300, 70, 3]]));
    for log in [false, true] {
        check(&case(Op::Softmax(Softmax { log }), &[&[600, 41]]));
        check(&case(Op::SoftmaxGrad(SoftmaxGrad { log }), &[&[600, 41], &[600, 41]]));
    }
    check(&case(
        Op::BatchMatMul(BatchMatMul { a_transposed: true, b_transposed: true }),
        &[&[3, 40, 33], &[3, 50, 40]],
    ));
}

#[test]
fn a_lines_sum_is_the_same_whichever_axis_it_lies_along() {
    for n in [1, 15, 4_096, 4_097, 9_000] {
        let line = case(Op::Reduce(Reduce { kind: ReduceKind::Sum, from: 1, to: 2 }), &[&[3, n]]);
        let floats = inputs(&line.x);
        let along = run_on(&line, Isa::here()[0], ALONE, &floats);
        let column = case(Op::Reduce(Reduce { kind: ReduceKind::Sum, from: 0, to: 1 }), &[&[n, 3]]);
        let turned = vec![(0..3 * n).map(|i| floats[0][i % 3 * n + i / 3]).collect()];
        assert_eq!(run_on(&column, Isa::here()[0], ALONE, &turned), along, "{n}");
    }
}

#[test]
fn norm_gradients_of_shards_together_are_the_trees_sum_of_each_alone() {
    const SHARDS: usize = 4;
    for (rows, cols) in [(1, 5), (3, 100)] {
        let of = |n: usize| case(Op::LayerNormGrad(LayerNormGrad), &[&[n, cols], &[cols], &[n], &[n], &[n, cols]]);
        let together = of(SHARDS * rows);
        let floats = inputs(&together.x);
        let wanted = run_on(&together, Isa::here()[0], How { threads: 2, shards: SHARDS, ..ALONE }, &floats);
        let alone: Vec<Vec<Vec<u32>>> = (0..SHARDS)
            .map(|shard| {
                let part = |slot: usize, width: usize| floats[slot][shard * rows * width..][..rows * width].to_vec();
                let mine = vec![part(0, cols), floats[1].clone(), part(2, 1), part(3, 1), part(4, cols)];
                run_on(&of(rows), Isa::Portable, ALONE, &mine)
            })
            .collect();
        for output in [1, 2] {
            let value = |shard: usize, i: usize| f32::from_bits(alone[shard][output][i]);
            for (i, got) in wanted[output].iter().enumerate() {
                let sum = (value(0, i) + value(1, i)) + (value(2, i) + value(3, i));
                assert_eq!(*got, sum.to_bits(), "output {output} of {rows} rows, column {i}");
            }
        }
        let dx: Vec<u32> = alone.iter().flat_map(|outputs| outputs[0].clone()).collect();
        assert_eq!(wanted[0], dx);
    }
}

#[test]
fn the_loss_of_many_and_large_logits_is_finite_and_right() {
    const CLASSES: usize = 128 << 10;
    let mut logits: Vec<f32> = (0..CLASSES).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) * 9.9).collect();
    (logits[77], logits[CLASSES - 1]) = (1e4 + 2.0, 1e4 + 2.0);
    let top = 1e4 + 2.0;
    let total: f64 = logits.iter().map(|x| libm::exp(*x as f64 - top)).sum();
    for (target, correct) in [(77, 1.0), (CLASSES - 1, 0.0), (3, 0.0)] {
        let x = [Type::float(&[1, CLASSES]), Type::int(&[1])];
        let floats = [&logits[..]];
        let outputs = call(&Op::CrossEntropy(CrossEntropy), &x, (&floats, &[&[], &[target as i32]]), ALONE);
        let wanted = top + libm::log(total) - logits[target] as f64;
        assert!((outputs[0][0] as f64 - wanted).abs() <= 2e-7 * top + 1e-6, "{} and {wanted}", outputs[0][0]);
        assert_eq!(outputs[2], [correct], "the first of the largest is the answer");
        let x = [x[0].clone(), x[1].clone(), Type::float(&[1]), Type::float(&[1])];
        let floats = [&logits[..], &[], &outputs[1], &[1.0]];
        let dx = call(&Op::CrossEntropyGrad(CrossEntropyGrad), &x, (&floats, &[&[], &[target as i32]]), ALONE);
        assert!(dx[0].iter().all(|dx| dx.is_finite() && dx.abs() <= 1.0 + 1e-3));
    }
}

#[test]
fn attention_has_one_result() {
    for (samples, tokens, heads, width) in
        [(1, 1, 1, 1), (2, 2, 3, 8), (1, 37, 2, 32), (3, 64, 1, 64), (1, 97, 2, 80), (0, 4, 1, 4), (2, 0, 1, 4)]
    {
        let attention = CausalAttention { heads };
        let (qkv, y) = ([samples, tokens, 3 * heads * width], [samples, tokens, heads * width]);
        check(&case(Op::CausalAttention(attention), &[&qkv]));
        let gradient = Op::CausalAttentionGrad(CausalAttentionGrad(attention));
        check(&case(gradient, &[&qkv, &y, &[samples, heads, tokens], &y]));
    }
}

/// What one query sees, by definition, in f64.
fn attend(q: &[f32], k: &[f32], v: &[f32], token: usize, width: usize) -> Vec<f64> {
    let row = |m: &[f32], t: usize| m[t * width..][..width].iter().map(|x| *x as f64).collect::<Vec<_>>();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scores: Vec<f64> = (0..=token).map(|t| dot(&row(q, token), &row(k, t)) / libm::sqrt(width as f64)).collect();
    let top = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
    let weights: Vec<f64> = scores.iter().map(|s| libm::exp(s - top)).collect();
    let total: f64 = weights.iter().sum();
    (0..width).map(|c| (0..=token).map(|t| weights[t] / total * row(v, t)[c]).sum()).collect()
}

#[test]
fn attention_stays_finite_where_scores_are_huge_and_keeps_a_nan_to_those_who_see_it() {
    const TOKENS: usize = 70;
    const WIDTH: usize = 4;
    let mut qkv: Vec<f32> = (0..TOKENS * 3 * WIDTH).map(|i| ((i * 37 % 101) as f32 - 50.0) * 20.0).collect();
    let attention = Op::CausalAttention(CausalAttention { heads: 1 });
    let run = |qkv: &[f32]| {
        let outputs = call(&attention, &[Type::float(&[1, TOKENS, 3 * WIDTH])], (&[qkv], &[]), ALONE);
        <[Vec<f32>; 2]>::try_from(outputs).expect("two outputs")
    };
    let [y, sums] = run(&qkv);
    let whole = y.clone();
    assert!(sums.iter().all(|s| s.is_finite()));
    let part = |which: usize| -> Vec<f32> {
        qkv.chunks_exact(3 * WIDTH).flat_map(|row| row[which * WIDTH..][..WIDTH].to_vec()).collect()
    };
    let (q, k, v) = (part(0), part(1), part(2));
    for token in 0..TOKENS {
        let wanted = attend(&q, &k, &v, token, WIDTH);
        for (got, wanted) in y[token * WIDTH..][..WIDTH].iter().zip(wanted) {
            assert!((*got as f64 - wanted).abs() < 1.0, "token {token}: {got}, not {wanted}");
        }
    }
    qkv[65 * 3 * WIDTH + WIDTH] = f32::NAN;
    let [y, _] = run(&qkv);
    for (token, row) in y.chunks_exact(WIDTH).enumerate() {
        assert_eq!(row.iter().any(|y| y.is_nan()), token >= 65, "a key that is NaN, seen by token {token}");
    }
    qkv[65 * 3 * WIDTH + WIDTH] = 1.0;
    for bad in [f32::NAN, f32::INFINITY] {
        qkv[65 * 3 * WIDTH + 2 * WIDTH] = bad;
        let [with, _] = run(&qkv);
        let same = |token: usize| (0..WIDTH).all(|c| with[token * WIDTH + c] == whole[token * WIDTH + c]);
        assert!((0..65).all(same), "a value of {bad} that no earlier token may see");
        assert!(!with[65 * WIDTH].is_finite());
    }
}
