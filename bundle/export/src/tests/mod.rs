//! What is exported has the same bytes for the same model, is read by the programs of others, and answers as the bundle.

mod models;
mod others;

use crate::{Format, export, files};
use elastic_bundle::Model;
use elastic_models::{Files, build_forward, start_from};
use elastic_spec::job::{Dtype, ModelKind, ModelSpec};
use elastic_spec::weights;
use elastic_transform::Tokenizer;
use models::{all, decoders};
use std::collections::BTreeMap;
use std::fs;

#[test]
fn the_same_model_has_the_same_bytes_in_whatever_order_its_tensors_come() {
    for model in all() {
        let mut turned = model.clone();
        turned.weights.reverse();
        for format in Format::ALL {
            let Ok(once) = files(&model, format) else { continue };
            assert_eq!(once, files(&model, format).unwrap(), "{format} of {}", model.description.name);
            assert_eq!(once, files(&turned, format).unwrap(), "{format} of {} turned", model.description.name);
        }
    }
}

#[test]
fn a_folder_appears_whole_and_replaces_nothing() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("deep/out");
    let model = &decoders()[0];
    let paths = export(model, Format::Hf, &dir).unwrap();
    assert!(paths.iter().all(|path| path.is_file()) && paths.len() == fs::read_dir(&dir).unwrap().count());
    let before = fs::read(dir.join("config.json")).unwrap();
    let again = export(model, Format::Npz, &dir).unwrap_err().to_string();
    assert!(again.contains("is there already"), "{again}");
    assert_eq!(fs::read(dir.join("config.json")).unwrap(), before);
    assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1, "nothing is left beside");
}

#[test]
fn what_cannot_be_exported_is_named_with_what_can() {
    let refused = |model: &Model, format| format!("{:#}", files(model, format).unwrap_err());
    let models: BTreeMap<String, Model> = all().into_iter().map(|m| (m.description.name.clone(), m)).collect();
    let mlp = refused(&models["mlp-relu"], Format::Hf);
    assert!(mlp.contains("\"mlp\"") && mlp.contains("export onnx, safetensors or npz"), "{mlp}");
    let rms = refused(&models["gpt-rms"], Format::Hf);
    assert!(rms.contains("positions = \"learned\"") && rms.contains("export onnx"), "{rms}");
    let mut own = models["mlp-relu"].clone();
    own.description.model = ModelKind::Own { program: "./p".into(), params: serde_json::Value::Null };
    for format in [Format::Hf, Format::Onnx] {
        let own = refused(&own, format);
        assert!(own.contains("\"own\"") && own.contains("safetensors or npz"), "{own}");
    }
    for format in [Format::Safetensors, Format::Npz] {
        files(&own, format).unwrap();
    }
    let mut short = models["cnn"].clone();
    let lost = short.weights.pop().unwrap().name;
    assert!(refused(&short, Format::Onnx).contains(&format!("tensor {lost:?} of the model is not there")));
    let mut twice = models["cnn"].clone();
    twice.weights.push(twice.weights[0].clone());
    assert!(refused(&twice, Format::Npz).contains("comes twice"));
    let mut half = models["mlp-relu"].clone();
    half.weights[0].dtype = weights::Dtype::Bf16;
    half.weights[0].shape.push(2);
    assert!(refused(&half, Format::Npz).contains("export safetensors"));
    assert_eq!(
        "onxx".parse::<Format>().unwrap_err(),
        "there is no format \"onxx\"; known are safetensors, hf, onnx, npz"
    );
}

#[test]
fn a_job_begins_with_the_bits_of_an_exported_folder() {
    let model = &decoders()[0];
    let folder: BTreeMap<&str, Vec<u8>> = files(model, Format::Hf).unwrap().into_iter().collect();
    let read = |name: &str| folder.get(name).cloned().ok_or_else(|| format!("{name} is not there"));
    let kind = model.description.model.clone();
    let network = build_forward(Dtype::F32, &kind, &model.description.data.into()).unwrap();
    let layout = network.layout();
    let mut state = vec![f32::NAN; layout.floats()];
    let spec = ModelSpec { kind, init: Some("folder".into()), init_sha256: None, init_except: vec![], freeze: vec![] };
    let from = Files { is_folder: true, read: &read, has: &|name| folder.contains_key(name) };
    start_from(&spec, layout, &from, &mut state).unwrap();
    for info in &layout.params {
        let ours = model.weights.iter().find(|tensor| tensor.name == info.name).unwrap().floats().unwrap();
        let back = &state[info.offset..info.offset + info.len];
        assert!(ours.iter().map(|x| x.to_bits()).eq(back.iter().map(|x| x.to_bits())), "{}", info.name);
    }
}

#[test]
fn the_tokens_of_a_byte_models_tokenizer_are_the_bytes() {
    let folder: BTreeMap<&str, Vec<u8>> = files(&decoders()[0], Format::Hf).unwrap().into_iter().collect();
    let tokenizer = Tokenizer::parse(&folder["tokenizer.json"]).unwrap();
    assert_eq!(tokenizer.vocab(), 256);
    let text = " a\u{0}\n\u{e9}\u{1f600}\u{7f}  it's 12 \u{ffff}";
    let bytes: Vec<i32> = text.bytes().map(i32::from).collect();
    assert_eq!(tokenizer.encode(text).unwrap(), bytes);
}
