//! Bundles on a disk: what is written reads back, damage is refused, and bits of an answer depend on its row alone.

mod models;

use elastic_bundle::{
    Bundle, BundleError, FolderError, Lived, Model, Predictor, Provenance, Rows, Shape, Tensor, WriteError,
};
use elastic_bundle::{class_of, softmax, write};
use elastic_spec::Round;
use elastic_spec::job::{Dtype, ModelKind, Norm, Positions, Stem};
use elastic_transform::Transform;
use models::{features, mlp, tokens};
use std::fs;
use std::path::Path;

fn models() -> Vec<Model> {
    let gpt =
        |norm, positions| ModelKind::Gpt { layers: 2, heads: 2, width: 32, context: 12, dropout: 0.1, norm, positions };
    let cnn = ModelKind::Cnn { image: [1, 8, 8], channels: vec![4, 8], kernel: 3, hidden: 16, batch_norm: true };
    let resnet = ModelKind::Resnet18 { image: [1, 8, 8], stem: Stem::Small, width: 8, zero_init_residual: false };
    let mut out = vec![mlp()];
    for dtype in [Dtype::F32, Dtype::Bf16] {
        out.push(features(cnn.clone(), dtype, 64));
        out.push(features(resnet.clone(), dtype, 64));
        out.push(tokens(gpt(Norm::Layer, Positions::Learned), dtype, 12));
        out.push(tokens(gpt(Norm::Rms, Positions::Rotary), dtype, 12));
    }
    out
}

#[test]
fn the_bits_of_an_answer_depend_on_its_row_alone() {
    for model in models() {
        let mut one = Predictor::new(&model, 1).unwrap();
        let (width, scores) = (one.input_len(), one.logits_len());
        let count = 21;
        let numbers: Vec<f32> = (0..count * width).map(|i| ((i * 7919) % 17) as f32).collect();
        let tokens: Vec<i32> = (0..count * width).map(|i| ((i * 7919) % 256) as i32).collect();
        let rows = |range: std::ops::Range<usize>| match model.description.data {
            Shape::Features { .. } => Rows::Features(&numbers[range.start * width..range.end * width]),
            Shape::Tokens { .. } => Rows::Tokens(&tokens[range.start * width..range.end * width]),
        };
        let mut alone = vec![0.0; count * scores];
        for at in 0..count {
            one.logits(rows(at..at + 1), &mut alone[at * scores..(at + 1) * scores]);
        }
        assert!(alone.iter().all(|x| x.is_finite()) && alone[..scores] != alone[scores..2 * scores]);
        let mut three = one.another(3).unwrap();
        for (begin, end) in [(0, count), (0, 2), (1, 8), (5, 18), (3, 7), (20, 21)] {
            let mut together = vec![0.0; (end - begin) * scores];
            three.logits(rows(begin..end), &mut together);
            let same = together.iter().zip(&alone[begin * scores..]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "rows {begin} to {end} of {:?}", model.description.model);
        }
    }
}

#[test]
fn what_stands_behind_a_token_changes_nothing_before_it() {
    let model = models().into_iter().find(|m| m.description.transform == Transform::Bytes).unwrap();
    let mut predictor = Predictor::new(&model, 1).unwrap();
    let text: Vec<i32> = b"hello, world".iter().map(|byte| i32::from(*byte)).collect();
    let whole = predictor.sequence_logits(&text);
    for len in 1..text.len() {
        let part = predictor.sequence_logits(&text[..len]);
        assert!(part.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits()) && part.len() == len * 256);
    }
}

#[test]
fn what_is_written_reads_back_and_the_same_model_has_the_same_digest() {
    let folder = tempfile::tempdir().unwrap();
    for (at, model) in models().iter().enumerate() {
        let dir = folder.path().join(at.to_string());
        let again = folder.path().join(format!("{at}-again"));
        let manifest = write(&dir, model, &Provenance::default()).unwrap();
        let elsewhere = Provenance {
            job: "other".into(),
            views: vec![Lived { term: 1, gen_: 2, round: Round(0), members: vec!["a".into()], at: 7 }],
            ..Provenance::default()
        };
        let second = write(&again, model, &elsewhere).unwrap();
        assert_eq!(manifest.content_sha256, second.content_sha256, "provenance is in no digest");
        let bundle = Bundle::open(&dir).unwrap();
        assert_eq!((&bundle.model, &bundle.manifest), (model, &manifest));
        for file in &manifest.files {
            assert_eq!(fs::read(dir.join(&file.name)).unwrap(), fs::read(again.join(&file.name)).unwrap());
        }
        assert_eq!(elastic_bundle::read_provenance(&again).unwrap(), Some(elsewhere));
    }
    let left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().filter(|e| e.as_ref().unwrap().path().extension().is_some()).collect();
    assert!(left.is_empty(), "nothing is left beside: {left:?}");
}

#[test]
fn one_changed_bit_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("b");
    write(&dir, &mlp(), &Provenance::default()).unwrap();
    for name in ["model.json", "signature.json", "weights.safetensors", "manifest.json"] {
        let bytes = fs::read(dir.join(name)).unwrap();
        for at in (0..bytes.len()).step_by(bytes.len() / 40 + 1) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            fs::write(dir.join(name), &damaged).unwrap();
            let error = Bundle::open(&dir).expect_err(&format!("byte {at} of {name}")).to_string();
            assert!(error.starts_with(&format!("{}: ", dir.display())), "{error}");
        }
        fs::write(dir.join(name), &bytes[..bytes.len() - 2]).unwrap();
        assert!(Bundle::open(&dir).is_err(), "{name} cut short");
        fs::write(dir.join(name), &bytes).unwrap();
    }
    Bundle::open(&dir).unwrap();
    fs::remove_file(dir.join("weights.safetensors")).unwrap();
    assert!(matches!(Bundle::open(&dir), Err(BundleError::Missing { .. })));
    fs::remove_file(dir.join("manifest.json")).unwrap();
    assert!(matches!(Bundle::open(&dir), Err(BundleError::NoManifest(_))));
}

#[test]
fn nothing_is_ever_replaced_and_a_model_that_does_not_fit_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("b");
    write(&dir, &mlp(), &Provenance::default()).unwrap();
    assert!(matches!(write(&dir, &mlp(), &Provenance::default()), Err(WriteError::Folder(FolderError::There(_)))));
    let refused =
        |model: Model| write(&folder.path().join("c"), &model, &Provenance::default()).unwrap_err().to_string();
    let mut short = mlp();
    let lost = short.weights.pop().unwrap();
    assert!(refused(short).contains(&format!("tensor {:?} of the model is not there", lost.name)));
    let mut more = mlp();
    more.weights.push(Tensor::of_floats("stray", &[1], &[0.0]));
    assert!(refused(more).contains("7 tensors where the model has 6"));
    let mut own = mlp();
    own.description.model = ModelKind::Own { program: "./p".into(), params: serde_json::Value::Null };
    assert!(refused(own).contains("kind \"own\""));
    let mut unnamed = mlp();
    unnamed.description.labels.pop();
    assert!(refused(unnamed).contains("9 labels for 10 classes"));
    assert!(!Path::new(&folder.path().join("c")).exists());
}

#[test]
fn what_cannot_be_computed_with_is_found_by_its_place() {
    let predictor = Predictor::new(&mlp(), 1).unwrap();
    let mut row = vec![1.0; 64];
    assert_eq!(predictor.check(Rows::Features(&row)), Ok(()));
    row[5] = f32::NAN;
    assert_eq!(predictor.check(Rows::Features(&row)), Err(5));
    let gpt = models().into_iter().find(|m| m.description.transform == Transform::Bytes).unwrap();
    let predictor = Predictor::new(&gpt, 1).unwrap();
    assert_eq!(predictor.check(Rows::Tokens(&[0, 255, 256])), Err(2));
    assert_eq!(predictor.check(Rows::Tokens(&[0, -1])), Err(1));
}

#[test]
fn probabilities_add_up_and_the_first_of_the_largest_is_the_class() {
    let mut p = [0.0; 3];
    softmax(&[1000.0, 1000.0, f32::NEG_INFINITY], &mut p);
    assert_eq!(p, [0.5, 0.5, 0.0]);
    assert_eq!(class_of(&[1.0, 3.0, 3.0]), 1);
    assert_eq!(class_of(&[]), 0);
}
