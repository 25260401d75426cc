//! A job's model meets its data: what is built, and what is refused in the job file's words.

use elastic_models::build;
use elastic_spec::batch::DataShape;
use elastic_spec::job::{Activation, ModelKind, Norm, Positions, Stem};

const FEATURES: DataShape = DataShape::Features { features: 64, classes: 10 };
const TOKENS: DataShape = DataShape::Tokens { vocab: 50, context: 16 };

fn refused(kind: &ModelKind, data: &DataShape) -> String {
    build(kind, data, 4).err().expect("this model does not fit")
}

fn cnn(image: [u32; 3], kernel: u32) -> ModelKind {
    ModelKind::Cnn { image, channels: vec![8, 16], kernel, hidden: 0, batch_norm: true }
}

fn gpt(heads: u32, context: u32) -> ModelKind {
    ModelKind::Gpt {
        layers: 2,
        heads,
        width: 24,
        context,
        dropout: 0.1,
        norm: Norm::Layer,
        positions: Positions::Learned,
    }
}

fn resnet18(image: [u32; 3], stem: Stem, width: u32) -> ModelKind {
    ModelKind::Resnet18 { image, stem, width, zero_init_residual: false }
}

#[test]
fn every_kind_has_the_parameters_that_its_description_says() {
    let mlp = ModelKind::Mlp { hidden: vec![128], activation: Activation::Relu };
    let floats = |kind: &ModelKind, data| {
        let network = build(kind, data, 4).unwrap();
        (network.layout().param_floats(), network.layout().floats())
    };
    assert_eq!(floats(&mlp, &FEATURES), (64 * 128 + 128 + 1280 + 10, 64 * 128 + 128 + 1280 + 10));
    let cnn_params = 8 * 9 + 16 + 16 * 8 * 9 + 32 + 16 * 4 * 10 + 10;
    assert_eq!(floats(&cnn([1, 8, 8], 3), &FEATURES), (cnn_params, cnn_params + 48));
    // Per block 12 width² + 13 width; the output layer is the token table.
    let gpt_params = (50 + 16) * 24 + 2 * (12 * 24 * 24 + 13 * 24) + 2 * 24;
    assert_eq!(floats(&gpt(4, 16), &TOKENS), (gpt_params, gpt_params));
    // Without shifts of five norms and without places.
    let (norm, positions) = (Norm::Rms, Positions::Rotary);
    let turned = ModelKind::Gpt { layers: 2, heads: 4, width: 24, context: 16, dropout: 0.1, norm, positions };
    let turned_params = gpt_params - 5 * 24 - 16 * 24;
    assert_eq!(floats(&turned, &TOKENS), (turned_params, turned_params));
}

#[test]
fn the_smallest_gpt2_has_its_names_and_count() {
    let kind = ModelKind::Gpt {
        layers: 12,
        heads: 12,
        width: 768,
        context: 1024,
        dropout: 0.1,
        norm: Norm::Layer,
        positions: Positions::Learned,
    };
    let network = build(&kind, &DataShape::Tokens { vocab: 50257, context: 1024 }, 1).unwrap();
    assert_eq!(network.layout().param_floats(), 124_439_808);
    assert_eq!(network.layout().params.len(), 2 + 12 * 12 + 2);
    let shape = |name: &str| network.layout().params.iter().find(|p| p.name == name).map(|p| p.shape.clone());
    assert_eq!(shape("wte.weight"), Some(vec![50257, 768]));
    assert_eq!(shape("wpe.weight"), Some(vec![1024, 768]));
    assert_eq!(shape("h.11.attn.c_attn.weight"), Some(vec![2304, 768]));
    assert_eq!(shape("h.0.mlp.c_proj.weight"), Some(vec![768, 3072]));
    assert_eq!(shape("lm_head.weight"), None);
}

#[test]
fn resnet18_has_torchvisions_names_and_count() {
    let full = build(
        &resnet18([3, 224, 224], Stem::Full, 64),
        &DataShape::Features { features: 3 * 224 * 224, classes: 1000 },
        1,
    );
    let full = full.unwrap();
    assert_eq!(full.layout().param_floats(), 11_689_512);
    let mut names: Vec<&str> = full.layout().params.iter().rev().map(|p| p.name.as_str()).collect();
    let convs = |prefix: &str| names.iter().filter(|n| n.starts_with(prefix)).count();
    assert_eq!([convs("layer1."), convs("layer2."), convs("layer3."), convs("layer4.")], [12, 15, 15, 15]);
    let shape = |name: &str| full.layout().params.iter().find(|p| p.name == name).map(|p| p.shape.clone());
    assert_eq!(shape("conv1.weight"), Some(vec![64, 3, 7, 7]));
    assert_eq!(shape("layer2.0.downsample.0.weight"), Some(vec![128, 64, 1, 1]));
    assert_eq!(shape("layer4.1.conv2.weight"), Some(vec![512, 512, 3, 3]));
    assert_eq!(shape("fc.weight"), Some(vec![1000, 512]));
    names.truncate(9);
    let first = [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "layer1.0.conv1.weight",
        "layer1.0.bn1.weight",
        "layer1.0.bn1.bias",
        "layer1.0.conv2.weight",
        "layer1.0.bn2.weight",
        "layer1.0.bn2.bias",
    ];
    assert_eq!(names, first);
    // Two running statistics for each of the 20 batch norms, and the pool's padding.
    assert_eq!(full.layout().buffers.len(), 41);
    assert!(full.layout().buffers.iter().any(|b| b.name == "layer3.0.downsample.1.running_var"));
}

#[test]
fn resnet18_starts_as_torchvisions() {
    let at = |zero_init_residual, name: &str| {
        let kind = ModelKind::Resnet18 { image: [1, 8, 8], stem: Stem::Small, width: 16, zero_init_residual };
        let network = build(&kind, &FEATURES, 8).unwrap();
        let info = network.layout().params.iter().find(|p| p.name == name).unwrap().clone();
        network.init(3)[info.offset..][..info.len].to_vec()
    };
    let weight = at(false, "layer4.0.conv2.weight");
    let var = weight.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / weight.len() as f64;
    // Normal of 2 / (128 channels · 9), estimated from 147,456 numbers: within 2 %.
    assert!((var * 64.0 * 9.0 - 1.0).abs() < 0.02, "variance {var}");
    assert!(at(false, "layer1.1.bn2.weight").iter().all(|x| *x == 1.0));
    assert!(at(true, "layer1.1.bn2.weight").iter().all(|x| *x == 0.0));
    assert!(at(true, "layer1.1.bn1.weight").iter().all(|x| *x == 1.0));
    let bound = 1.0 / 128f32.sqrt();
    let fc = at(false, "fc.weight");
    assert!(fc.iter().all(|x| x.abs() <= bound) && fc.iter().any(|x| x.abs() > 0.9 * bound));
}

#[test]
fn what_does_not_fit_the_data_is_said_in_the_job_files_words() {
    let mlp = ModelKind::Mlp { hidden: vec![8], activation: Activation::Gelu };
    assert_eq!(refused(&mlp, &TOKENS), "mlp reads features, but the data are tokens; choose model kind gpt");
    assert_eq!(refused(&cnn([1, 8, 9], 3), &FEATURES), "model.image 1×8×9 is 72 numbers, but a sample has 64");
    assert_eq!(refused(&cnn([1, 8, 8], 4), &FEATURES), "model.kernel is 4, but same padding needs an odd one");
    let resnet = resnet18([1, 4, 16], Stem::Small, 8);
    assert_eq!(refused(&resnet, &FEATURES), "model.image is 4×16, but resnet18 pools over a square");
    assert_eq!(refused(&gpt(5, 16), &TOKENS), "model.width 24 does not divide into model.heads 5");
    assert_eq!(refused(&gpt(4, 8), &TOKENS), "model.context is 8, but the data's windows have 16 tokens");
    assert!(refused(&gpt(4, 16), &FEATURES).starts_with("gpt reads tokens"));
}
