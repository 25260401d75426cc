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
