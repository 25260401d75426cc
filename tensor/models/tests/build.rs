//! A job's model meets its data: what is built, and what is refused in the job file's words.

use elastic_models::build;
use elastic_spec::batch::DataShape;
use elastic_spec::job::{Activation, ModelKind};

const FEATURES: DataShape = DataShape::Features { features: 64, classes: 10 };
const TOKENS: DataShape = DataShape::Tokens { vocab: 50, context: 16 };

fn refused(kind: &ModelKind, data: &DataShape) -> String {
    build(kind, data, 4).err().expect("this model does not fit")
}

fn cnn(image: [u32; 3], kernel: u32) -> ModelKind {
    ModelKind::Cnn { image, channels: vec![8, 16], kernel, hidden: 0, batch_norm: true }
}

fn gpt(heads: u32, context: u32) -> ModelKind {
    ModelKind::Gpt { layers: 2, heads, width: 24, context, dropout: 0.1 }
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
}

#[test]
fn what_does_not_fit_the_data_is_said_in_the_job_files_words() {
    let mlp = ModelKind::Mlp { hidden: vec![8], activation: Activation::Gelu };
    assert_eq!(refused(&mlp, &TOKENS), "mlp reads features, but the data are tokens; choose model kind gpt");
    assert_eq!(refused(&cnn([1, 8, 9], 3), &FEATURES), "model.image 1×8×9 is 72 numbers, but a sample has 64");
    assert_eq!(refused(&cnn([1, 8, 8], 4), &FEATURES), "model.kernel is 4, but same padding needs an odd one");
    assert_eq!(refused(&gpt(5, 16), &TOKENS), "model.width 24 does not divide into model.heads 5");
    assert_eq!(refused(&gpt(4, 8), &TOKENS), "model.context is 8, but the data's windows have 16 tokens");
    assert!(refused(&gpt(4, 16), &FEATURES).starts_with("gpt reads tokens"));
}
