//! The programs of others read what is exported and answer as the bundle does: NumPy, ONNX's checker and runtime,
//! transformers. `python/check.py` compares; what it needs is installed by the scripts beside it, or the test is skipped.

use super::models::{CONTEXT, Draw, all, decoders};
use crate::{Format, export, npz, onnx, sorted};
use elastic_bundle::{Model, Predictor, Rows, Shape, Tensor, publish};
use elastic_spec::job::Dtype;
use elastic_spec::weights;
use elastic_transform::Tokenizer;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn numpy_and_onnxruntime_read_every_kind_of_model_and_onnxruntime_has_its_logits() {
    let test = "numpy_and_onnxruntime_read_every_kind_of_model_and_onnxruntime_has_its_logits";
    let Some(python) = python(test, "onnx-python") else { return };
    let place = tempfile::tempdir().unwrap();
    for model in all() {
        let dir = place.path().join(&model.description.name);
        for format in [Format::Safetensors, Format::Npz, Format::Onnx] {
            export(&model, format, &dir.join(format.as_str())).unwrap();
        }
        write_answers(&model, &dir.join("answers.npz"));
    }
    // Once more with the weights in a file beside.
    let model = all().into_iter().find(|model| model.description.name == "gpt-rms-rotary").unwrap();
    let dir = place.path().join("beside");
    let files = onnx::files_in(&model, &sorted(&model.weights).unwrap(), 1).unwrap();
    assert_eq!(files.len(), 2);
    publish(&dir.join("onnx"), &files).unwrap();
    write_answers(&model, &dir.join("answers.npz"));
    check(&python, "onnx", place.path(), all().len() + 1);
}

#[test]
fn transformers_loads_decoders_and_has_their_logits_and_tokens() {
    let test = "transformers_loads_decoders_and_has_their_logits_and_tokens";
    let Some(python) = python(test, "transformers-python") else { return };
    let place = tempfile::tempdir().unwrap();
    for model in decoders() {
        let dir = place.path().join(&model.description.name);
        export(&model, Format::Hf, &dir.join("hf")).unwrap();
        write_answers(&model, &dir.join("answers.npz"));
        let texts: Vec<(&str, Vec<i32>)> = TEXTS.map(|text| (text, text.bytes().map(i32::from).collect())).to_vec();
        fs::write(dir.join("texts.json"), serde_json::to_vec(&texts).unwrap()).unwrap();
    }
    // One whose tokens are those of a tokenizer, with a token that ends a text.
    let json = include_str!("../../../transform/tests/tokenizers/gpt2.json").replace("<|end|>", END);
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["decoder"] = json["pre_tokenizer"].clone();
    let json = serde_json::to_vec(&json).unwrap();
    let tokenizer = Tokenizer::parse(&json).unwrap();
    assert!(tokenizer.special(END).is_some());
    let mut model = super::models::of_tokenizer("gpt-tokenizer", tokenizer.vocab());
    model.tokenizer = Some(json);
    let dir = place.path().join("gpt-tokenizer");
    export(&model, Format::Hf, &dir.join("hf")).unwrap();
    write_answers(&model, &dir.join("answers.npz"));
    let texts = TEXTS.map(|text| (text, tokenizer.encode(text).unwrap())).to_vec();
    fs::write(dir.join("texts.json"), serde_json::to_vec(&texts).unwrap()).unwrap();
    check(&python, "hf", place.path(), decoders().len() + 1);
}

const END: &str = "<|endoftext|>";

const TEXTS: [&str; 5] = [
    "",
    "Hello, world",
    "  it's 12\n\n\tfull \u{e9} \u{4f60}\u{597d} \u{1f600} ",
    "\u{0}\u{7f}\u{80}\u{ffff}",
    "one<|endoftext|> two",
];

/// Inputs and our logits: `x0`, `y0`, `x1`, …, and of a job in bf16 also `bf16_y0`, which is what the bundle answers.
fn write_answers(model: &Model, path: &Path) {
    let mut in_f32 = model.clone();
    in_f32.description.dtype = Dtype::F32;
    let mut exact = Predictor::new(&in_f32, 1).unwrap();
    let mut own = (model.description.dtype == Dtype::Bf16).then(|| Predictor::new(model, 1).unwrap());
    let mut tensors = Vec::new();
    for (at, input) in inputs(model).into_iter().enumerate() {
        tensors.push(output(&format!("y{at}"), model, &mut exact, &input));
        tensors.extend(own.as_mut().map(|own| output(&format!("bf16_y{at}"), model, own, &input)));
        tensors.push(Tensor { name: format!("x{at}"), ..input });
    }
    tensors.push(Tensor::of_floats("count", &[1], &[inputs(model).len() as f32]));
    fs::write(path, npz::archive(&tensors.iter().collect::<Vec<_>>()).unwrap()).unwrap();
}

fn output(name: &str, model: &Model, predictor: &mut Predictor, input: &Tensor) -> Tensor {
    let samples = input.shape[0];
    match model.description.data {
        Shape::Features { classes, .. } => {
            let mut logits = vec![0.0; samples * classes];
            predictor.logits(Rows::Features(&input.floats().unwrap()), &mut logits);
            Tensor::of_floats(name, &[samples, classes], &logits)
        }
        Shape::Tokens { vocab, .. } => {
            let tokens: Vec<i32> =
                input.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as i32).collect();
            let rows = tokens.chunks_exact(input.shape[1]);
            let logits: Vec<f32> = rows.flat_map(|row| predictor.sequence_logits(row)).collect();
            Tensor::of_floats(name, &[samples, input.shape[1], vocab], &logits)
        }
    }
}

/// Random ones and those at the edges: zeros, tiny and large numbers, one sample and several, every number of tokens.
fn inputs(model: &Model) -> Vec<Tensor> {
    let mut draw = Draw(11);
    match model.description.data {
        Shape::Features { features, .. } => {
            let kinds: [(usize, &dyn Fn(f32) -> f32); 7] = [
                (1, &|x| 16.0 * x),
                (2, &|x| 16.0 * x),
                (7, &|x| 16.0 * x),
                (1, &|_| 0.0),
                (2, &|x| 1e5 * x),
                (2, &|x| 1e-30 * x),
                (3, &|_| 255.0),
            ];
            let one = |(samples, number): (usize, &dyn Fn(f32) -> f32)| {
                let floats: Vec<f32> = (0..samples * features).map(|_| number(draw.next())).collect();
                let shape: Vec<usize> = [samples].into_iter().chain(model.description.sample_shape()).collect();
                Tensor::of_floats("", &shape, &floats)
            };
            kinds.into_iter().map(one).collect()
        }
        Shape::Tokens { vocab, .. } => {
            let lengths = (1..=CONTEXT).map(|tokens| (1, tokens)).chain([(2, CONTEXT), (7, 5), (3, 1)]);
            let mut one = |(samples, tokens): (usize, usize), token: &dyn Fn(usize) -> usize| {
                let number = |_| token(draw.below(vocab)) as i64;
                let bytes = (0..samples * tokens).map(number).flat_map(i64::to_le_bytes).collect::<Vec<u8>>().into();
                let shape = vec![samples, tokens];
                Tensor { name: String::new(), dtype: weights::Dtype::I64, shape, bytes }
            };
            let mut inputs: Vec<Tensor> = lengths.map(|sides| one(sides, &|token| token)).collect();
            inputs.push(one((1, CONTEXT), &|_| 0));
            inputs.push(one((1, CONTEXT), &|_| vocab - 1));
            inputs
        }
    }
}

/// The Python that a script beside `check.py` finds or makes.
fn python(test: &str, script: &str) -> Option<PathBuf> {
    let output = Command::new(folder().join(script)).output().expect("bash is there");
    if output.status.success() {
        return Some(String::from_utf8(output.stdout).unwrap().trim().into());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    skip(test, reason.trim().lines().last().unwrap_or("no Python"));
    None
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

/// Every folder in `place`; one line is printed for each.
fn check(python: &Path, what: &str, place: &Path, models: usize) {
    let mut command = Command::new(python);
    command.arg(folder().join("check.py")).arg(what).arg(place);
    let output = command.env("HF_HUB_OFFLINE", "1").output().expect("the Python that was found starts");
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), models);
}

/// The same line as `elastic_tests::skip`, which this crate cannot see.
fn skip(test: &str, reason: &str) {
    let line = format!("{test}: {reason}\n");
    print!("skipped: {line}");
    if let Some(path) = std::env::var_os("ELASTIC_SKIP_FILE") {
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the skip is noted");
    }
}
