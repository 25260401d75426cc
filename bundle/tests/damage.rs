//! Bundles of any content whose digests are right: taken or refused with a reason, never a panic and never memory that the
//! files do not have.

use elastic_bundle::{Bundle, Description, FileEntry, Manifest, Model, Predictor, Provenance, Shape, Tensor, write};
use elastic_models::build_forward;
use elastic_spec::Digest;
use elastic_spec::job::{Activation, Dtype, ModelKind, Norm, Positions, Stem};
use elastic_transform::Transform;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn kinds() -> Vec<ModelKind> {
    let (image, norm, positions) = ([1, 4, 4], Norm::Rms, Positions::Rotary);
    vec![
        ModelKind::Mlp { hidden: vec![5], activation: Activation::Relu },
        ModelKind::Cnn { image, channels: vec![2], kernel: 3, hidden: 3, batch_norm: true },
        ModelKind::Resnet18 { image, stem: Stem::Small, width: 1, zero_init_residual: false },
        ModelKind::Gpt { layers: 1, heads: 2, width: 8, context: 6, dropout: 0.0, norm, positions },
    ]
}

fn model(kind: ModelKind) -> Model {
    let is_gpt = matches!(kind, ModelKind::Gpt { .. });
    let data = match is_gpt {
        true => Shape::Tokens { vocab: 256, context: 6 },
        false => Shape::Features { features: 16, classes: 2 },
    };
    let network = build_forward(Dtype::F32, &kind, &data.into()).unwrap();
    let layout = network.layout();
    let tensors = layout.params.iter().chain(&layout.buffers);
    let mut weights: Vec<Tensor> =
        tensors.map(|info| Tensor::of_floats(&info.name, &info.shape, &vec![0.5; info.len])).collect();
    weights.sort_by(|a, b| a.name.cmp(&b.name));
    let transform = if is_gpt { Transform::Bytes } else { Transform::Scale { scale: 1.0 } };
    let labels = if is_gpt { vec![] } else { vec!["a".into(), "b".into()] };
    let description = Description { name: "t".into(), model: kind, dtype: Dtype::F32, data, transform, labels };
    Model { description, weights, tokenizer: None }
}

/// The files of a bundle, but for its manifest.
fn files(dir: &Path, model: &Model) -> (Manifest, BTreeMap<String, Vec<u8>>) {
    let manifest = write(dir, model, &Provenance::default()).unwrap();
    let read = |file: &FileEntry| (file.name.clone(), fs::read(dir.join(&file.name)).unwrap());
    let files = manifest.files.iter().map(read).collect();
    (manifest, files)
}

/// Lays the files down with a manifest that agrees, opens them, and computes with what is taken.
fn opens(dir: &Path, weights: Digest, files: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    fs::create_dir_all(dir).unwrap();
    let mut entries = Vec::new();
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
        entries.push(FileEntry { name: name.clone(), bytes: bytes.len() as u64, sha256: Digest::of(bytes) });
    }
    fs::write(dir.join("manifest.json"), Manifest::of(weights, entries).to_json()).unwrap();
    let bundle = Bundle::open(dir).map_err(|error| error.to_string())?;
    let mut predictor = Predictor::new(&bundle.model, 1)?;
    let mut logits = vec![0.0; predictor.logits_len()];
    let (numbers, tokens) = (vec![1.0; predictor.input_len()], vec![0; predictor.input_len()]);
    match bundle.model.description.data {
        Shape::Features { .. } => predictor.logits(elastic_bundle::Rows::Features(&numbers), &mut logits),
        Shape::Tokens { .. } => predictor.logits(elastic_bundle::Rows::Tokens(&tokens), &mut logits),
    }
    Ok(())
}

/// Places of all values in a JSON text.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.into());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| places(value, &format!("{at}/{key}"), out)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, value)| places(value, &format!("{at}/{i}"), out)),
        _ => {}
    }
}

fn edge() -> impl Strategy<Value = Value> {
    let number = |n: u64| Just(json!(n)).boxed();
    let mut values: Vec<BoxedStrategy<Value>> =
        [0, 1, 2, 3, 7, 1 << 16, 1 << 24, (1 << 24) + 1, u32::MAX.into(), u64::MAX].map(number).to_vec();
    let others = [
        json!(-1),
        json!(0.5),
        json!(1e300),
        json!(null),
        json!("x"),
        json!([]),
        json!([4294967295u64, 4294967295u64, 4294967295u64]),
    ];
    values.extend(others.map(|value| Just(value).boxed()));
    values.push(any::<u32>().prop_map(|n| json!(n)).boxed());
    proptest::strategy::Union::new(values)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_description_is_taken_or_refused(
        kind in prop::sample::select(kinds()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), edge()), 1..4),
    ) {
        let place = tempfile::tempdir().unwrap();
        let model = model(kind);
        let (manifest, mut files) = files(&place.path().join("whole"), &model);
        let mut json: Value = serde_json::from_slice(&files["model.json"]).unwrap();
        for (at, value) in changes {
            let mut all = Vec::new();
            places(&json, "", &mut all);
            *json.pointer_mut(&all[at.index(all.len())]).unwrap() = value;
        }
        let text = serde_json::to_vec(&json).unwrap();
        if let Ok(description) = Description::parse(&text) {
            let signature = serde_json::to_string_pretty(&description.signature()).unwrap() + "\n";
            files.insert("signature.json".into(), signature.into_bytes());
        }
        files.insert("model.json".into(), text);
        if let Err(why) = opens(&place.path().join("other"), manifest.weights_sha256, &files) {
            prop_assert!(!why.is_empty());
        }
    }

    #[test]
    fn any_bytes_in_a_file_are_taken_or_refused(
        kind in prop::sample::select(kinds()),
        file in any::<prop::sample::Index>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let place = tempfile::tempdir().unwrap();
        let (manifest, mut files) = files(&place.path().join("whole"), &model(kind));
        let names: Vec<String> = files.keys().cloned().collect();
        let bytes = files.get_mut(&names[file.index(names.len())]).unwrap();
        for (at, byte) in changes {
            // Headers are where a reader can be misled.
            let end = bytes.len().min(600);
            bytes[at.index(end)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = opens(&place.path().join("other"), manifest.weights_sha256, &files);
    }
}

#[test]
fn what_is_too_large_is_refused_before_it_is_made() {
    let refused = |change: &dyn Fn(&mut Model)| {
        let mut model = model(kinds().pop().unwrap());
        change(&mut model);
        let place = tempfile::tempdir().unwrap();
        write(&place.path().join("b"), &model, &Provenance::default()).unwrap_err().to_string()
    };
    let wide = refused(&|model| {
        let ModelKind::Gpt { width, context, .. } = &mut model.description.model else { unreachable!() };
        (*width, *context) = (1 << 16, 1 << 16);
        model.description.data = Shape::Tokens { vocab: 256, context: 1 << 16 };
    });
    assert!(wide.contains("tensor \"wte.weight\" is F32 [256, 8] where the model has F32 [256, 65536]"), "{wide}");
    let deep = refused(&|model| {
        let ModelKind::Gpt { layers, .. } = &mut model.description.model else { unreachable!() };
        *layers = u32::MAX;
    });
    assert!(deep.contains("model.layers is 4294967295, and this program takes 1 to 512"), "{deep}");
    let none = refused(&|model| model.description.data = Shape::Features { features: 0, classes: 0 });
    assert!(none.contains("data.features is 0"), "{none}");
    let short = refused(&|model| model.weights[0].bytes = model.weights[0].bytes.slice(4..));
    assert!(short.contains("bytes, which are no F32"), "{short}");
}

#[test]
fn a_manifest_lists_each_file_once_in_order_and_a_folder_is_no_file() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("b");
    let (manifest, _) = files(&dir, &model(kinds().remove(0)));
    let mut twice = manifest.clone();
    twice.files.push(twice.files[0].clone());
    // Not by `Manifest::of`, which sorts.
    let lines: String = twice.files.iter().map(|file| format!("{}  {}\n", file.sha256, file.name)).collect();
    twice.content_sha256 = Digest::of(lines.as_bytes());
    fs::write(dir.join("manifest.json"), twice.to_json()).unwrap();
    assert!(Bundle::open(&dir).unwrap_err().to_string().contains("stands behind"));
    fs::write(dir.join("manifest.json"), manifest.to_json()).unwrap();
    fs::remove_file(dir.join("model.json")).unwrap();
    fs::create_dir(dir.join("model.json")).unwrap();
    assert!(Bundle::open(&dir).unwrap_err().to_string().contains("model.json is no file"));
}
