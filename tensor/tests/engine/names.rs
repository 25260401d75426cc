//! What a user sees of a model: names, initial values, errors.

use elastic_spec::batch::{Batch, DataShape};
use elastic_tensor::nn::{Bias, Conv, Module, Scope};
use elastic_tensor::{Init, LeafKey, Network, Result, Tensor, compile, init_from_safetensors};
use safetensors::tensor::{Dtype, TensorView, serialize};

const DATA: DataShape = DataShape::Features { features: 6, classes: 3 };

struct Closure<F>(F);

impl<F: Fn(&Scope, Tensor) -> Result<Tensor>> Module for Closure<F> {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        (self.0)(nn, x)
    }
}

fn build(forward: impl Fn(&Scope, Tensor) -> Result<Tensor>) -> std::result::Result<Box<dyn Network>, String> {
    compile(&Closure(forward), &DATA, 4)
}

fn error(forward: impl Fn(&Scope, Tensor) -> Result<Tensor>) -> String {
    build(forward).err().expect("the shapes do not fit")
}

fn two_layers() -> Box<dyn Network> {
    build(|nn, x| nn.linear("b", &nn.linear("a", &x, 5)?.relu(), 3)).unwrap()
}

#[test]
fn errors_name_the_op_the_place_and_the_axes() {
    let image = |nn: &Scope, x: Tensor| {
        let conv = Conv { out: 2, kernel: 5, stride: 1, pad: 0, bias: Bias::None };
        nn.enter("net").conv2d("first", &x.reshape(&[4, 1, 2, 3])?, conv)
    };
    assert_eq!(
        error(image),
        "conv2d at `net.first`: axis 2 of the input is 2, with padding 2: less than the kernel's 5 (stride 1)"
    );
    assert_eq!(
        error(|nn, x| nn.linear("a", &x, 5)?.add(&x)),
        "add at `a`: axis 1 of the second operand (4, 6) is 6, but must be 5"
    );
    assert_eq!(
        error(|nn, x| nn.linear("a", &x, 5)?.reshape(&[4, 4])),
        "reshape at `a`: (4, 5) has 20 elements, shape [4, 4] has 16"
    );
    assert_eq!(
        error(|nn, x| {
            let weight = nn.param("w", &[3, 5], Init::Constant(0.0))?;
            x.linear_with(&weight)
        }),
        "linear at `model`: axis 1 of the input (4, 6) is 6, but axis 1 of the weight (3, 5) (out, in) is 5"
    );
    assert_eq!(
        error(|nn, x| nn.linear("a", &x, 5)),
        "cross entropy at `model`: the module returns [4, 5], but the data wants scores [4, 3]"
    );
    assert_eq!(
        error(|nn, x| nn.linear("a", &x, 1 << 62)),
        "parameter at `a.weight`: (4611686018427387904, 6) would have more than 2^34 elements; make an axis smaller"
    );
    assert_eq!(
        error(|nn, x| nn.linear("a", &nn.linear("a", &x, 5)?, 3)),
        "parameter at `a.weight`: used with shape [5, 6] and with shape [3, 5]"
    );
}

#[test]
fn a_name_used_twice_is_one_tensor() {
    let square = |nn: &Scope, x: Tensor| {
        let x = nn.linear("same", &x, 6)?.relu();
        nn.linear("out", &nn.linear("same", &x, 6)?, 3)
    };
    let network = build(square).unwrap();
    let names: Vec<_> = network.layout().params.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["out.bias", "out.weight", "same.bias", "same.weight"]);
}

#[test]
fn the_layout_is_contiguous_and_decay_spares_biases() {
    let network = two_layers();
    let mut end = 0;
    for info in &network.layout().params {
        assert_eq!((info.offset, info.len), (end, info.shape.iter().product()));
        assert_eq!(info.decay, info.name.ends_with("weight"));
        end += info.len;
    }
    assert_eq!((end, network.layout().floats()), (network.layout().param_floats(), 6 * 5 + 5 + 5 * 3 + 3));
}

#[test]
fn initial_values_hang_on_seed_and_name_alone() {
    let (one, other) = (
        two_layers(),
        build(|nn, x| {
            let side = nn.linear("extra", &x, 3)?;
            nn.linear("b", &nn.linear("a", &x, 5)?.relu(), 3)?.add(&side)
        })
        .unwrap(),
    );
    let values = |network: &dyn Network, name: &str, seed| {
        let info = network.layout().params.iter().find(|p| p.name == name).unwrap();
        network.init(seed)[info.offset..][..info.len].to_vec()
    };
    for name in ["a.weight", "b.bias"] {
        assert_eq!(values(&*one, name, 7), values(&*other, name, 7));
        assert_ne!(values(&*one, name, 7), values(&*one, name, 8));
    }
    let bound = 1.0 / 6f32.sqrt();
    assert!(values(&*one, "a.weight", 7).iter().all(|x| x.abs() <= bound));
}

#[test]
fn zeros_around_an_image_are_what_a_convolutions_padding_is() {
    let conv = |pad| Conv { out: 2, kernel: 3, stride: 2, pad, bias: Bias::None };
    let image = |x: &Tensor| x.reshape(&[4, 2, 1, 3]);
    let padded = build(|nn, x| {
        let y = nn.conv2d("b", &nn.conv2d("a", &image(&x)?, conv(1))?.relu(), conv(1))?;
        nn.linear("out", &y.flatten()?, 3)
    });
    let around = build(|nn, x| {
        let y = nn.conv2d("a", &image(&x)?, conv(1))?.relu();
        let y = nn.conv2d("b", &nn.zero_pad("pad", &y, 1)?, conv(0))?;
        nn.linear("out", &y.flatten()?, 3)
    });
    let leaf = |network: Box<dyn Network>| {
        let features = (0..24).map(|i| (i * 7 % 11) as f32 / 11.0 - 0.4).collect();
        let batch = Batch { features, targets: vec![0, 1, 2, 1], slots: vec![0, 1, 2, 3], ..Batch::default() };
        let key = LeafKey { seed: 1, step: 0, scale: 0.25, label_smoothing: 0.0 };
        let layout = network.layout();
        let mut out = vec![f32::NAN; layout.reduced_floats()];
        let tail = network.sum(&mut *network.new_scratch(1), &network.init(5), &batch, key, &mut out);
        (out[..layout.param_floats()].to_vec(), tail.loss.to_bits())
    };
    let (with, without) = (leaf(around.unwrap()), leaf(padded.unwrap()));
    assert!(with.0.iter().any(|g| *g != 0.0));
    assert_eq!(with, without);
}

#[test]
fn normal_initial_values_have_their_mean_and_spread() {
    let mut x = vec![0.0; 100_001];
    Init::Normal { std: 0.5 }.fill(3, "some.name", &mut x);
    let mean = x.iter().map(|x| *x as f64).sum::<f64>() / x.len() as f64;
    let var = x.iter().map(|x| (*x as f64 - mean).powi(2)).sum::<f64>() / x.len() as f64;
    assert!(mean.abs() < 0.01 && (var - 0.25).abs() < 0.01, "mean {mean}, variance {var}");
}

#[test]
fn a_safetensors_file_replaces_the_state_or_says_all_that_is_wrong() {
    let network = two_layers();
    let layout = network.layout();
    let bytes: Vec<u8> = (0..30).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let file = |tensors: &[(&str, Dtype, &[usize])]| {
        let views = tensors.iter().map(|(name, dtype, shape)| {
            let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            (*name, TensorView::new(*dtype, shape.to_vec(), &bytes[..len]).unwrap())
        });
        serialize(views, None).unwrap()
    };
    let all: [(&str, Dtype, &[usize]); 4] = [
        ("a.weight", Dtype::F32, &[5, 6]),
        ("a.bias", Dtype::F64, &[5]),
        ("b.weight", Dtype::BF16, &[3, 5]),
        ("b.bias", Dtype::F32, &[3]),
    ];
    let mut state = network.init(1);
    init_from_safetensors(layout, &file(&all), &mut state).unwrap();
    let weight = layout.params.iter().find(|p| p.name == "a.weight").unwrap();
    assert_eq!(state[weight.offset..][..30], (0..30).map(|i| i as f32).collect::<Vec<_>>());

    let wrong = file(&[
        ("a.weight", Dtype::F32, &[6, 5]),
        ("a.bias", Dtype::I32, &[5]),
        ("b.bias", Dtype::F32, &[3]),
        ("c", Dtype::F32, &[1]),
    ]);
    assert_eq!(
        init_from_safetensors(layout, &wrong, &mut state).unwrap_err(),
        "tensor `a.bias` is of type I32; convert it to F32, F64, F16 or BF16; \
         tensor `a.weight` is [6, 5] in the file, but [5, 6] in the model; \
         transpose it, or, if it is a GPT-2 of Hugging Face, name the folder that holds config.json; \
         tensor `b.weight` [3, 5] is missing; take a file that has it, or name it in model.init_except; \
         tensor `c` is not of this model; take it out of the file, or change the model to have it"
    );
    assert!(init_from_safetensors(layout, b"nonsense", &mut state).unwrap_err().starts_with("read safetensors: "));
}
