//! Times each op but the products: nanoseconds per element on one and on two threads, as a table.
//!
//! `cargo run --release -p elastic-tensor --example kernels [part of a name]`. Sizes are those of a GPT with 256
//! channels, 8 heads and 256 tokens on 8 samples; attention is timed on one sample, so that a call is shorter than a
//! scheduler's slice and the least of many is clean on a busy machine too.

use elastic_spec::job::Optimizer;
use elastic_tensor::graph::Type;
use elastic_tensor::ops::*;
use elastic_tensor::team::Team;
use elastic_tensor::{GroupRates, ParamInfo, StateLayout, Update, apply_on};
use std::time::Instant;

const TOKENS: usize = 256;
const SAMPLES: usize = 8;
const CHANNELS: usize = 256;
const HEADS: usize = 8;

/// An op, its inputs' types, and the floating-point operations that the causal half of attention needs.
struct Kernel {
    name: &'static str,
    op: Op,
    x: Vec<Type>,
    flop: usize,
}

fn kernels() -> Vec<Kernel> {
    let rows = SAMPLES * TOKENS;
    let wide = Type::float(&[rows, 4 * CHANNELS]);
    let hidden = Type::float(&[rows, CHANNELS]);
    let (cols, per_row) = (Type::float(&[CHANNELS]), Type::float(&[rows]));
    let logits = Type::float(&[256, 4096]);
    let (targets, losses) = (Type::int(&[256]), Type::float(&[256]));
    let qkv = Type::float(&[1, TOKENS, 3 * CHANNELS]);
    let y = Type::float(&[1, TOKENS, CHANNELS]);
    let attention = CausalAttention { heads: HEADS };
    let kept = attention.infer(&[&qkv]).expect("the sizes fit").swap_remove(1);
    let image = Type::float(&[16, 32, 32, 32]);
    let pooled = Type::float(&[16, 32, 16, 16]);
    let half = TOKENS * (TOKENS + 1) / 2 * CHANNELS * 2;
    let of = |name, op, x: &[&Type], flop| Kernel { name, op, x: x.iter().map(|t| (*t).clone()).collect(), flop };
    let (max, average) = (MaxPool { kernel: 2, stride: 2 }, AvgPool { kernel: 2, stride: 2 });
    let average_back = AvgPoolGrad { pool: average, image: image.shape.clone() };
    vec![
        of("gelu", Op::Gelu(Gelu), &[&wide], 0),
        of("gelu gradient", Op::GeluGrad(GeluGrad), &[&wide, &wide], 0),
        of("attention", Op::CausalAttention(attention), &[&qkv], 2 * half),
        of(
            "attention gradient",
            Op::CausalAttentionGrad(CausalAttentionGrad(attention)),
            &[&qkv, &y, &kept, &y],
            5 * half,
        ),
        of("layer norm", Op::LayerNorm(LayerNorm { eps: 1e-5 }), &[&hidden, &cols, &cols], 0),
        of("layer norm gradient", Op::LayerNormGrad(LayerNormGrad), &[&hidden, &cols, &per_row, &per_row, &hidden], 0),
        of("cross entropy", Op::CrossEntropy(CrossEntropy), &[&logits, &targets], 0),
        of("cross entropy gradient", Op::CrossEntropyGrad(CrossEntropyGrad), &[&logits, &targets, &losses, &losses], 0),
        of("add", Op::Add(Add), &[&hidden, &hidden], 0),
        of("mul", Op::Mul(Mul), &[&hidden, &hidden], 0),
        of("scale", Op::Scale(Scale { factor: 0.5 }), &[&hidden], 0),
        of("copy", Op::Copy(Copy), &[&hidden], 0),
        of("relu", Op::Relu(Relu), &[&hidden], 0),
        of("relu gradient", Op::ReluGrad(ReluGrad), &[&hidden, &hidden], 0),
        of("dropout", Op::Dropout(Dropout { p: 0.1 }), &[&y], 0),
        of("max pool", Op::MaxPool(max), &[&image], 0),
        of("max pool gradient", Op::MaxPoolGrad(MaxPoolGrad(max)), &[&image, &pooled], 0),
        of("average pool", Op::AvgPool(average), &[&image], 0),
        of("average pool gradient", Op::AvgPoolGrad(average_back), &[&pooled], 0),
    ]
}

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    println!("{:24} {:>9} {:>10} {:>10} {:>10}", "", "elements", "ns/el 1t", "ns/el 2t", "ms 2t");
    for kernel in kernels().iter().filter(|k| k.name.contains(&wanted)) {
        let elements = kernel.x[0].len();
        let [one, two] = [1, 2].map(|threads| time(kernel, threads));
        row(kernel.name, elements, one, two, kernel.flop);
    }
    let params = 1 << 20;
    if "adamw".contains(&wanted) {
        let [one, two] = [1, 2].map(|threads| time_adam(params, threads));
        row("adamw", params, one, two, 0);
    }
}

fn row(name: &str, elements: usize, one: f64, two: f64, flop: usize) {
    let per = |seconds: f64| seconds * 1e9 / elements as f64;
    let speed = if flop > 0 { format!("{:.0} GFLOP/s", flop as f64 / two / 1e9) } else { String::new() };
    println!("{name:24} {elements:9} {:10.3} {:10.3} {:10.3} {speed}", per(one), per(two), two * 1e3);
}

/// The least seconds of a call, over about half a second.
fn least(mut call: impl FnMut()) -> f64 {
    call();
    let begun = Instant::now();
    let mut least = f64::INFINITY;
    for calls in 0.. {
        let start = Instant::now();
        call();
        least = least.min(start.elapsed().as_secs_f64());
        if calls > 4 && begun.elapsed().as_secs_f64() > 0.5 {
            break;
        }
    }
    least
}

fn time(kernel: &Kernel, threads: usize) -> f64 {
    let types: Vec<&Type> = kernel.x.iter().collect();
    let out_types = kernel.op.infer(&types).expect("the sizes fit");
    let number = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7 & 0xffff) as f32 / 16_384.0 - 2.0;
    let floats: Vec<Vec<f32>> = types.iter().map(|t| (0..t.len()).map(number).collect()).collect();
    let ints: Vec<Vec<i32>> = types.iter().map(|t| (0..t.len()).map(|i| (i * 37 % 256) as i32).collect()).collect();
    let mut outputs: Vec<Vec<f32>> = out_types.iter().map(|t| vec![0.0; t.len()]).collect();
    let mut work = Work::new(threads);
    let slots: Vec<u64> = (0..64).collect();
    let key = Key { seed: 1, step: 1, scale: 1.0, label_smoothing: 0.0, shards: 1, slots: &slots };
    least(|| {
        let mut y: [&mut [f32]; IO_MAX] = std::array::from_fn(|_| &mut [][..]);
        y.iter_mut().zip(&mut outputs).for_each(|(slot, y)| *slot = y);
        let mut x: [&[f32]; IO_MAX] = [&[]; IO_MAX];
        x.iter_mut().zip(&floats).for_each(|(slot, x)| *slot = x);
        let mut whole: [&[i32]; IO_MAX] = [&[]; IO_MAX];
        whole.iter_mut().zip(&ints).for_each(|(slot, x)| *slot = x);
        let (types, out_types) = (&kernel.x[..], &out_types[..]);
        kernel.op.run(Io { x, ints: whole, y, types, out_types, key: &key, path: "bench", work: &mut work });
    })
}

fn time_adam(params: usize, threads: usize) -> f64 {
    let team = Team::new(threads);
    let adam = Optimizer::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let (name, shape, group) = ("p".into(), vec![params], GroupRates::default());
    let info = ParamInfo { name, shape, offset: 0, len: params, decay: true, trainable: true, group };
    let layout = StateLayout { params: vec![info], ..StateLayout::default() };
    let (mut reduced, mut state) = (vec![1e-3; params], vec![1.0; params]);
    let mut moments = vec![vec![0.0; params]; 2];
    least(|| {
        let (reduced, state, moments) = (&mut reduced[..], &mut state[..], &mut moments[..]);
        let (correction, clip_norm) = (1.01, Some(1.0));
        let layout = &layout;
        apply_on(&team, &adam, Update { layout, reduced, state, moments, step: 10, lr: 1e-3, correction, clip_norm });
    })
}
