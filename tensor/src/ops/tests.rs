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

/// Outputs' bits, run with `threads` on `isa` in memory that is dirty.
fn run(case: &Case, isa: Isa, threads: usize, shards: usize) -> Vec<Vec<u32>> {
    FORCED.set(Some(isa));
    let types: Vec<&Type> = case.x.iter().collect();
    let out_types = case.op.infer(&types).expect("the case's shapes fit");
    let number = |slot: usize, i: usize| ((i * 7919 + slot * 31) % 1013) as f32 / 400.0 - 1.2;
    let floats: Vec<Vec<f32>> =
        (0..).zip(&types).map(|(slot, t)| (0..t.len()).map(|i| number(slot, i)).collect()).collect();
    let ints: Vec<Vec<i32>> = types.iter().map(|t| (0..t.len()).map(|i| (i * 5 % 8) as i32 - 1).collect()).collect();
    let mut outputs: Vec<Vec<f32>> = out_types.iter().map(|t| vec![f32::NAN; t.len()]).collect();
    let mut work = Work::new(threads);
    for room in &mut work.rooms {
        room.columns = vec![f32::NAN; 100];
    }
    let slots: Vec<u64> = (5..70).collect();
    let key = Key { seed: 1, step: 1, scale: 1.0, label_smoothing: 0.1, shards, slots: &slots };
    let mut y: [&mut [f32]; IO_MAX] = std::array::from_fn(|_| &mut [][..]);
    y.iter_mut().zip(&mut outputs).for_each(|(slot, y)| *slot = y);
    let x = std::array::from_fn(|slot| floats.get(slot).map_or(&[][..], |x| x));
    let ints = std::array::from_fn(|slot| ints.get(slot).map_or(&[][..], |x| x));
    let (types, out_types) = (&case.x[..], &out_types[..]);
    case.op.run(Io { x, ints, y, types, out_types, key: &key, path: "test", work: &mut work });
    FORCED.set(None);
    outputs.into_iter().map(|y| y.into_iter().map(f32::to_bits).collect()).collect()
}

fn check(case: &Case) {
    let wanted = run(case, Isa::Portable, 1, 1);
    for isa in Isa::here() {
        for threads in [1, 2, 3] {
            let got = run(case, isa, threads, 1);
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
        let types = [Type::float(&[1, TOKENS, 3 * WIDTH])];
        let out_types = attention.infer(&[&types[0]]).expect("the shapes fit");
        let (mut y, mut sums) = (vec![f32::NAN; TOKENS * WIDTH], vec![f32::NAN; TOKENS]);
        let mut work = Work::new(1);
        let key = Key { seed: 1, step: 1, scale: 1.0, label_smoothing: 0.0, shards: 1, slots: &[0] };
        let mut outputs: [&mut [f32]; IO_MAX] = std::array::from_fn(|_| &mut [][..]);
        (outputs[0], outputs[1]) = (&mut y, &mut sums);
        let x = std::array::from_fn(|slot| if slot == 0 { qkv } else { &[] });
        let ints = [&[][..]; IO_MAX];
        let (types, out_types) = (&types[..], &out_types[..]);
        attention.run(Io { x, ints, y: outputs, types, out_types, key: &key, path: "test", work: &mut work });
        (y, sums)
    };
    let (y, sums) = run(&qkv);
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
    let (y, _) = run(&qkv);
    for (token, row) in y.chunks_exact(WIDTH).enumerate() {
        assert_eq!(row.iter().any(|y| y.is_nan()), token >= 65, "a key that is NaN, seen by token {token}");
    }
}
