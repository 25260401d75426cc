//! Ops and optimizers against PyTorch's values (golden/make.py made the files and names the versions).

use crate::common::{Build, Case, Ints, apply, distance};
use elastic_spec::job::Optimizer;
use elastic_tensor::ops::*;
use elastic_tensor::{GroupRates, ParamInfo, StateLayout, Update, moments_of};
use safetensors::SafeTensors;
use std::collections::BTreeMap;

static OPS: &[u8] = include_bytes!("../golden/ops.safetensors");
static OPTIMIZERS: &[u8] = include_bytes!("../golden/optimizers.safetensors");

fn f64s(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let data = file.tensor(name).unwrap().data();
    data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let data = file.tensor(name).unwrap().data();
    data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Value and gradients of a case: f64 to 12 digits, f32 to 5.
fn check(name: &str, smoothing: f32, build: Build) {
    let file = SafeTensors::deserialize(OPS).unwrap();
    let count = (0..).take_while(|i| file.tensor(&format!("{name}.x{i}")).is_ok()).count();
    let shapes = (0..count).map(|i| file.tensor(&format!("{name}.x{i}")).unwrap().shape().to_vec()).collect();
    let ints = file.tensor(&format!("{name}.ints")).map(|t| {
        let values: Vec<i32> = t.data().as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
        Ints::new(t.shape(), &values)
    });
    let case = Case { shapes, ints: ints.unwrap_or_default(), smoothing, build };
    let inputs: Vec<Vec<f64>> = (0..count).map(|i| f64s(&file, &format!("{name}.x{i}"))).collect();
    let dy = f64s(&file, &format!("{name}.dy"));
    let (exact, fast) = (case.run::<f64>(&inputs, &dy), case.run::<f32>(&inputs, &dy));
    // A smoothing of 0.1 reaches the kernel as an f32, which is off by 1.5e-9.
    let tolerance = if smoothing > 0.0 { 1e-8 } else { 1e-12 };
    let wanted = (0..count).map(|i| f64s(&file, &format!("{name}.dx{i}")));
    for (what, (wanted, (exact, fast))) in std::iter::once(f64s(&file, &format!("{name}.y")))
        .chain(wanted)
        .zip(std::iter::once((exact.y, fast.y)).chain(exact.dx.into_iter().zip(fast.dx)))
        .enumerate()
    {
        assert!(distance(&exact, &wanted) < tolerance, "{name}, part {what}: f64 off by {}", distance(&exact, &wanted));
        assert!(distance(&fast, &wanted) < 1e-5, "{name}, part {what}: f32 off by {}", distance(&fast, &wanted));
    }
}

#[test]
fn linear() {
    check("linear", 0.0, |g, x, _| apply(g, Op::Linear(Linear), x));
}

#[test]
fn add() {
    check("add", 0.0, |g, x, _| apply(g, Op::Add(Add), x));
}

#[test]
fn products() {
    check("mul", 0.0, |g, x, _| apply(g, Op::Mul(Mul), x));
    check("matmul", 0.0, |g, x, _| apply(g, Op::MatMul(MatMul::default()), x));
}

#[test]
fn activations() {
    check("relu", 0.0, |g, x, _| apply(g, Op::Relu(Relu), x));
    check("gelu", 0.0, |g, x, _| apply(g, Op::Gelu(Gelu), x));
}

#[test]
fn convolutions() {
    check("conv2d", 0.0, |g, x, _| apply(g, Op::Conv2d(Conv2d { stride: 1, pad: 1 }), x));
    check("conv2d_stride", 0.0, |g, x, _| apply(g, Op::Conv2d(Conv2d { stride: 2, pad: 2 }), x));
}

#[test]
fn pools() {
    check("max_pool", 0.0, |g, x, _| apply(g, Op::MaxPool(MaxPool { kernel: 2, stride: 2 }), x));
    check("avg_pool", 0.0, |g, x, _| apply(g, Op::AvgPool(AvgPool { kernel: 3, stride: 2 }), x));
}

#[test]
fn norms() {
    check("layer_norm", 0.0, |g, x, _| apply(g, Op::LayerNorm(LayerNorm { eps: 1e-5 }), x));
    check("batch_norm", 0.0, |g, x, targets| {
        // The running mean only shifts the moments, which are not looked at: any value will do.
        apply(g, Op::BatchNorm(BatchNorm { eps: 1e-5, relu: false, pool: None }), &[x[0], x[1], x[2], x[2], targets])
    });
}

#[test]
fn rms_norm_and_rotary_positions() {
    check("rms_norm", 0.0, |g, x, _| apply(g, Op::RmsNorm(RmsNorm { eps: 1e-5 }), x));
    check("rotary", 0.0, |g, x, _| apply(g, Op::Rotary(Rotary::new(2, 4, 5, 1e4)), x));
}

#[test]
fn embedding() {
    check("embedding", 0.0, |g, x, ints| apply(g, Op::Embedding(Embedding), &[x[0], ints]));
}

#[test]
fn attention() {
    check("attention", 0.0, |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 3 }), x));
}

#[test]
fn cross_entropy() {
    let build: Build = |g, x, ints| apply(g, Op::CrossEntropy(CrossEntropy), &[x[0], ints]);
    check("cross_entropy", 0.0, build);
    check("cross_entropy_smooth", 0.1, build);
}

#[test]
fn six_clipped_steps_of_every_optimizer() {
    let file = SafeTensors::deserialize(OPTIMIZERS).unwrap();
    let (_, header) = SafeTensors::read_metadata(OPTIMIZERS).unwrap();
    let specs = &header.metadata().as_ref().unwrap()["optimizers"];
    let specs: BTreeMap<String, Optimizer> = serde_json::from_str(specs).unwrap();
    assert_eq!(specs.len(), 6);
    let (name, shape, group) = ("p".into(), vec![3, 4], GroupRates::default());
    let info = ParamInfo { name, shape, offset: 0, len: 12, decay: true, trainable: true, group };
    let layout = StateLayout { params: vec![info], ..StateLayout::default() };
    for (name, optimizer) in specs {
        let mut state = f32s(&file, "start");
        let mut moments = vec![vec![0.0; 12]; moments_of(&optimizer)];
        for (step, grads) in (0..).zip(f32s(&file, "grads").chunks_exact_mut(12)) {
            // Gradients arrive as sums over 8 of 4 valid samples: the correction doubles them.
            grads.iter_mut().for_each(|g| *g *= 0.5);
            let update = Update {
                layout: &layout,
                reduced: grads,
                state: &mut state,
                moments: &mut moments,
                step,
                lr: 0.03,
                correction: 2.0,
                clip_norm: Some(1.5),
            };
            elastic_tensor::apply(&optimizer, update);
        }
        let wanted: Vec<f64> = f32s(&file, &name).iter().map(|x| *x as f64).collect();
        assert!(distance(&state, &wanted) < 2e-6, "{name}: off by {}", distance(&state, &wanted));
    }
}
