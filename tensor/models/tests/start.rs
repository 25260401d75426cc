//! `model.init` and `model.freeze`: other people's files become the state they say, or all that is wrong is told.

use elastic_models::{Files, build, start_from};
use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::{ModelKind, ModelSpec, Norm, Optimizer, Positions, Stem};
use elastic_tensor::{LeafKey, Network, Update, freeze, optim};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const VOCAB: usize = 11;
const CONTEXT: usize = 6;

fn gpt() -> ModelSpec {
    let kind = ModelKind::Gpt {
        layers: 2,
        heads: 2,
        width: 8,
        context: CONTEXT as u32,
        dropout: 0.0,
        norm: Norm::Layer,
        positions: Positions::Learned,
    };
    ModelSpec { kind, init: Some("folder".into()), init_sha256: None, init_except: vec![], freeze: vec![] }
}

fn network(model: &ModelSpec) -> Box<dyn Network> {
    let data = match model.kind {
        ModelKind::Gpt { .. } => DataShape::Tokens { vocab: VOCAB, context: CONTEXT },
        _ => DataShape::Features { features: 64, classes: 10 },
    };
    build(&model.kind, &data, 4).expect("it fits")
}

/// Numbers that 8 bits of fraction hold, each tensor its own.
fn number(name: &str, index: usize) -> f32 {
    let salt: usize = name.bytes().map(usize::from).sum();
    ((salt * 31 + index * 7) % 61) as f32 / 32.0 - 0.9375
}

fn bytes_of(dtype: Dtype, numbers: impl Iterator<Item = f32>) -> Vec<u8> {
    let bits = |x: f32| x.to_bits();
    match dtype {
        Dtype::F32 => numbers.flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::BF16 => numbers.flat_map(|x| ((bits(x) >> 16) as u16).to_le_bytes()).collect(),
        // Normal numbers only: the sign, the exponent on its other bias, the upper ten bits of the fraction.
        Dtype::F16 => numbers
            .flat_map(|x| match bits(x) {
                0 => 0u16.to_le_bytes(),
                b => ((b >> 16 & 0x8000 | ((b >> 23 & 0xff) - 112) << 10 | b >> 13 & 0x3ff) as u16).to_le_bytes(),
            })
            .collect(),
        other => panic!("{other:?} is not written here"),
    }
}

#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Stored>;

fn file(tensors: &Tensors) -> Vec<u8> {
    let views = tensors.iter().map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    serialize(views, None).unwrap()
}

/// The network's parameters as Hugging Face stores them: linear weights (in, out).
fn stored(network: &dyn Network, dtype: Dtype, prefix: &str) -> Tensors {
    let is_linear = |name: &str| name.contains(".attn.c_") || name.contains(".mlp.c_");
    let one = |info: &elastic_tensor::ParamInfo| {
        let name = &info.name;
        let tensor = match info.shape[..] {
            [out, inner] if is_linear(name) => {
                let numbers = (0..inner * out).map(|at| number(name, at % out * inner + at / out));
                Stored { dtype, shape: vec![inner, out], bytes: bytes_of(dtype, numbers) }
            }
            _ => {
                let bytes = bytes_of(dtype, (0..info.len).map(|at| number(name, at)));
                Stored { dtype, shape: info.shape.clone(), bytes }
            }
        };
        (format!("{prefix}{name}"), tensor)
    };
    network.layout().params.iter().map(one).collect()
}

fn config() -> Value {
    json!({
        "model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": CONTEXT, "vocab_size": VOCAB,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_inner": null, "torch_dtype": "float32",
    })
}

type Folder = BTreeMap<String, Vec<u8>>;

fn folder(config: &Value, weights: &Tensors) -> Folder {
    let files = [("config.json", config.to_string().into_bytes()), ("model.safetensors", file(weights))];
    files.map(|(name, bytes)| (name.to_string(), bytes)).into()
}

fn start(model: &ModelSpec, folder: &Folder) -> Result<Vec<f32>, String> {
    let network = network(model);
    let mut state = network.init(1);
    let files = Files {
        is_folder: folder.contains_key("config.json"),
        read: &|name| folder.get(name).cloned().ok_or_else(|| format!("read {name}: it is not there")),
        has: &|name| folder.contains_key(name),
    };
    start_from(model, network.layout(), &files, &mut state)?;
    Ok(state)
}

/// Every parameter has the numbers that `stored` wrote, in our order.
fn expected(model: &ModelSpec) -> Vec<f32> {
    let network = network(model);
    let mut state = network.init(1);
    for info in &network.layout().params {
        (0..info.len).for_each(|at| state[info.offset + at] = number(&info.name, at));
    }
    state
}

#[test]
fn a_gpt2_of_hugging_face_is_taken_over_from_every_type() {
    let model = gpt();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        for prefix in ["", "transformer."] {
            let folder = folder(&config(), &stored(&*network(&model), dtype, prefix));
            assert_eq!(start(&model, &folder).unwrap(), expected(&model), "{dtype:?} \"{prefix}\"");
        }
    }
}

#[test]
fn weights_in_parts_with_masks_and_the_tied_output_layer_are_taken_over() {
    let model = gpt();
    let mut all = stored(&*network(&model), Dtype::F32, "transformer.");
    all.insert("lm_head.weight".into(), all["transformer.wte.weight"].clone());
    let mask = Stored { dtype: Dtype::U8, shape: vec![1, 1, 2, 2], bytes: vec![1, 0, 1, 1] };
    all.insert("transformer.h.0.attn.bias".into(), mask.clone());
    all.insert("transformer.h.0.attn.masked_bias".into(), mask);
    let (mut parts, mut map) = (vec![Tensors::new(); 3], BTreeMap::new());
    for (i, (name, tensor)) in all.into_iter().enumerate() {
        map.insert(name.clone(), format!("part-{}.safetensors", i % 3));
        parts[i % 3].insert(name, tensor);
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    let mut folder: Folder = (0..).zip(&parts).map(|(i, part)| (format!("part-{i}.safetensors"), file(part))).collect();
    folder.insert("config.json".into(), config().to_string().into_bytes());
    folder.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
    assert_eq!(start(&model, &folder).unwrap(), expected(&model));

    folder.remove("part-1.safetensors");
    assert_eq!(start(&model, &folder).unwrap_err(), "read part-1.safetensors: it is not there");
    folder.remove("model.safetensors.index.json");
    let told = start(&model, &folder).unwrap_err();
    assert_eq!(told, "has neither model.safetensors nor model.safetensors.index.json");
}

/// What `gpt2/make.py` wrote.
fn written(name: &str) -> Result<Vec<u8>, String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpt2").join(name);
    std::fs::read(&path).map_err(|e| format!("read {name}: {e}"))
}

#[test]
fn a_folder_has_the_losses_that_gpt2s_own_formulas_give() {
    let kind = ModelKind::Gpt {
        layers: 2,
        heads: 2,
        width: 6,
        context: 5,
        dropout: 0.0,
        norm: Norm::Layer,
        positions: Positions::Learned,
    };
    let model = ModelSpec { kind, init: Some("gpt2".into()), init_sha256: None, init_except: vec![], freeze: vec![] };
    let network = build(&model.kind, &DataShape::Tokens { vocab: 7, context: 5 }, 1).unwrap();
    let mut state = network.init(1);
    let files = Files { is_folder: true, read: &|name| written(name), has: &|name| written(name).is_ok() };
    start_from(&model, network.layout(), &files, &mut state).unwrap();
    let told: Value = serde_json::from_slice(&written("losses.json").unwrap()).unwrap();
    let row = |name: &str, i: usize| -> Vec<i32> { serde_json::from_value(told[name][i].clone()).unwrap() };
    for sample in 0..4 {
        let (tokens, targets) = (row("tokens", sample), row("targets", sample));
        let batch = Batch { tokens, targets, slots: vec![0], ..Batch::default() };
        let loss = network.evaluate(&mut *network.new_scratch(1), &state, &batch)[0].loss;
        let wanted = told["loss"][sample].as_f64().unwrap();
        // Of f32 sums of up to 24 terms, five losses of about 2 each.
        assert!((loss - wanted).abs() < 2e-5, "sample {sample}: {loss} instead of {wanted}");
    }
}

/// Files as they come out of a broken copy or a hostile hand: each is told, none is followed or crashes.
#[test]
fn a_folder_that_is_broken_is_told_by_the_file_that_is() {
    let model = gpt();
    let good = folder(&config(), &stored(&*network(&model), Dtype::F32, "transformer."));
    let told = |name: &str, bytes: &[u8]| {
        let mut folder = good.clone();
        if name == "model.safetensors.index.json" {
            folder.remove("model.safetensors");
        }
        folder.insert(name.into(), bytes.to_vec());
        start(&model, &folder).unwrap_err()
    };
    let config = &good["config.json"];
    let weights = &good["model.safetensors"];
    assert!(told("config.json", &config[..config.len() / 2]).starts_with("config.json: EOF while parsing"));
    assert!(told("config.json", b"[1, 2]").starts_with("config.json: is no JSON object"));
    let index = b"{\"weight_map\": {\"wte.weight\": \"model-0";
    assert!(told("model.safetensors.index.json", index).starts_with("model.safetensors.index.json: EOF while parsing"));
    let index = br#"{"weight_map": {"wte.weight": "../../etc/weights.safetensors"}}"#;
    assert!(told("model.safetensors.index.json", index).contains("which is no file of this folder"));
    let index = br#"{"weight_map": {"wte.weight": "gone.safetensors"}}"#;
    assert_eq!(told("model.safetensors.index.json", index), "read gone.safetensors: it is not there");
    let broken = |bytes: &[u8]| {
        let told = told("model.safetensors", bytes);
        assert!(told.starts_with("model.safetensors: read safetensors: "), "{told}");
    };
    broken(b"");
    broken(&weights[..weights.len() / 2]);
    // A header of 2^63 bytes, of more than there are, of no JSON, and a tensor that ends behind the file.
    broken(&(1u64 << 63).to_le_bytes());
    broken(&[&90_000_000u64.to_le_bytes()[..], b"{}"].concat());
    broken(&[&2u64.to_le_bytes()[..], b"{{"].concat());
    let header = br#"{"wte.weight":{"dtype":"F32","shape":[11,8],"data_offsets":[0,352]}}"#;
    broken(&[&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat());
}

#[test]
fn an_embedding_that_begins_anew_may_have_another_size() {
    let mut model = gpt();
    let mut weights = stored(&*network(&model), Dtype::F32, "");
    let long = (0..1024 * 8).map(|_| 0.25);
    let bytes = bytes_of(Dtype::F32, long);
    weights.insert("wpe.weight".into(), Stored { dtype: Dtype::F32, shape: vec![1024, 8], bytes });
    let mut other = config();
    other["n_positions"] = json!(1024);
    assert!(start(&model, &folder(&other, &weights)).unwrap_err().contains("n_positions is 1024"));
    model.init_except = vec!["wpe.*".into()];
    let (state, network) = (start(&model, &folder(&other, &weights)).unwrap(), network(&model));
    let (fresh, taken) = (network.init(1), expected(&model));
    for info in &network.layout().params {
        let from = if info.name == "wpe.weight" { &fresh } else { &taken };
        assert_eq!(state[info.offset..][..info.len], from[info.offset..][..info.len], "{}", info.name);
    }
}

#[test]
fn a_model_of_other_sizes_is_told_with_what_to_set() {
    let model = gpt();
    let weights = stored(&*network(&model), Dtype::F32, "");
    let mut other = config();
    for (key, value) in [("n_head", json!(4)), ("n_positions", json!(1024)), ("vocab_size", json!(50257))] {
        other[key] = value;
    }
    assert_eq!(
        start(&model, &folder(&other, &weights)).unwrap_err(),
        "config.json: n_head is 4, but model.heads is 2; set model.heads = 4; \
         n_positions is 1024, but model.context is 6; set model.context = 1024; \
         vocab_size is 50257, but the data has 11 tokens; take the tokenizer of the model: data.tokenizer"
    );
    let mut other = config();
    other["activation_function"] = json!("relu");
    other["n_inner"] = json!(16);
    other["model_type"] = json!("llama");
    assert_eq!(
        start(&model, &folder(&other, &weights)).unwrap_err(),
        "config.json: model_type is \"llama\", but a gpt here has \"gpt2\"; this model cannot be taken over; \
         activation_function is \"relu\", but a gpt here has \"gelu_new\"; this model cannot be taken over; \
         n_inner is 16, but a gpt here has 32; this model cannot be taken over"
    );
    assert!(start(&model, &folder(&json!({}), &weights)).unwrap_err().contains("n_layer is 12, but model.layers is 2"));
    assert!(start(&model, &folder(&json!({}), &weights)).unwrap_err().contains("model_type is null"));
}

#[test]
fn tensors_that_do_not_fit_are_told_all_at_once() {
    let model = gpt();
    let mut weights = stored(&*network(&model), Dtype::F32, "transformer.");
    let swapped = weights.get_mut("transformer.h.1.mlp.c_fc.weight").unwrap();
    swapped.shape = vec![32, 8];
    weights.remove("transformer.ln_f.bias");
    weights.insert("transformer.h.2.ln_1.bias".into(), weights["transformer.h.1.ln_1.bias"].clone());
    weights.get_mut("transformer.wpe.weight").unwrap().dtype = Dtype::I32;
    let head = weights["transformer.wte.weight"].clone();
    weights.insert("lm_head.weight".into(), Stored { bytes: head.bytes.iter().map(|b| b ^ 1).collect(), ..head });
    assert_eq!(
        start(&model, &folder(&config(), &weights)).unwrap_err(),
        "tensor `lm_head.weight` is not `wte.weight` again; this gpt's output layer is its token table, so the file does not fit; \
         tensor `ln_f.bias` [8] is missing; take a file that has it, or name it in model.init_except; \
         tensor `transformer.h.1.mlp.c_fc.weight` is [32, 8] in the file (in, out), but [32, 8] (out, in) in the \
         model; change the model to fit, or name it in model.init_except to begin it at random; \
         tensor `transformer.h.2.ln_1.bias` is not of this model; take it out of the file, or change the model to have it; \
         tensor `transformer.wpe.weight` is of type I32; convert it to F32, F64, F16 or BF16"
    );
}

#[test]
fn a_file_of_hugging_face_without_its_folder_is_told_apart_by_its_axes() {
    let model = gpt();
    let weights = stored(&*network(&model), Dtype::F32, "");
    let told = start(&model, &[(String::new(), file(&weights))].into()).unwrap_err();
    assert!(
        told.starts_with(
            "tensor `h.0.attn.c_attn.weight` is [8, 24] in the file, but [24, 8] in the model; \
             transpose it, or, if it is a GPT-2 of Hugging Face, name the folder that holds config.json; "
        ),
        "{told}"
    );
}

fn resnet18() -> ModelSpec {
    let kind = ModelKind::Resnet18 { image: [1, 8, 8], stem: Stem::Small, width: 2, zero_init_residual: false };
    ModelSpec { kind, init: Some("weights.safetensors".into()), init_sha256: None, init_except: vec![], freeze: vec![] }
}

#[test]
fn a_resnet18_of_torchvision_is_taken_over_and_its_last_layer_may_begin_anew() {
    let mut model = resnet18();
    let network = network(&model);
    let all = network.layout().params.iter().chain(&network.layout().buffers);
    let mut weights: Tensors = all
        .map(|info| {
            let bytes = bytes_of(Dtype::F32, (0..info.len).map(|at| number(&info.name, at)));
            (info.name.clone(), Stored { dtype: Dtype::F32, shape: info.shape.clone(), bytes })
        })
        .collect();
    let count = Stored { dtype: Dtype::I64, shape: vec![], bytes: vec![7, 0, 0, 0, 0, 0, 0, 0] };
    weights.insert("layer4.0.downsample.1.num_batches_tracked".into(), count);
    let folder = |weights: &Tensors| -> Folder { [(String::new(), file(weights))].into() };
    let state = start(&model, &folder(&weights)).unwrap();
    for info in network.layout().params.iter().chain(&network.layout().buffers) {
        assert!((0..info.len).all(|at| state[info.offset + at] == number(&info.name, at)), "{}", info.name);
    }

    let bytes = bytes_of(Dtype::F32, (0..1000 * 16).map(|_| 0.5));
    weights.insert("fc.weight".into(), Stored { dtype: Dtype::F32, shape: vec![1000, 16], bytes });
    assert_eq!(
        start(&model, &folder(&weights)).unwrap_err(),
        "tensor `fc.weight` is [1000, 16] in the file, but [10, 16] in the model; change the model to \
         fit, or name it in model.init_except to begin it at random"
    );
    model.init_except = vec!["fc.*".into()];
    let fresh = network.init(1);
    let state = start(&model, &folder(&weights)).unwrap();
    for info in &network.layout().params {
        let (is, at_random) = (&state[info.offset..][..info.len], &fresh[info.offset..][..info.len]);
        match info.name.starts_with("fc.") {
            true => assert_eq!(is, at_random),
            false => assert!((0..info.len).all(|at| is[at] == number(&info.name, at)), "{}", info.name),
        }
    }
    model.init_except = vec!["head.*".into()];
    assert!(start(&model, &folder(&weights)).unwrap_err().starts_with("model.init_except: \"head.*\" matches no"));
}

#[test]
fn only_a_gpt_begins_from_a_folder() {
    let folder = folder(&config(), &stored(&*network(&gpt()), Dtype::F32, ""));
    assert!(start(&resnet18(), &folder).unwrap_err().starts_with("is a folder; only of a gpt a folder is read"));
}

/// Three steps with `patterns` frozen: the state and moments after them, and the last norm.
fn trained(optimizer: &Optimizer, patterns: &[&str], clip_norm: Option<f64>) -> (Vec<f32>, Vec<Vec<f32>>, f64) {
    let mut network = network(&gpt());
    let patterns: Vec<String> = patterns.iter().map(|p| p.to_string()).collect();
    freeze(network.layout_mut(), &patterns).unwrap();
    let layout = network.layout();
    let (mut state, mut scratch) = (network.init(3), network.new_scratch(1));
    let mut moments = vec![vec![0.0; layout.param_floats()]; optim::moments_of(optimizer)];
    let mut grad_norm = 0.0;
    for step in 0..3 {
        let tokens: Vec<i32> = (0..4 * CONTEXT as i32).map(|i| (i * 5 + step as i32) % VOCAB as i32).collect();
        let targets = tokens.iter().map(|t| (t + 3) % VOCAB as i32).collect();
        let batch = Batch { tokens, targets, slots: vec![0, 1, 2, 3], ..Batch::default() };
        let key = LeafKey { seed: 0, step, scale: 0.25, label_smoothing: 0.0 };
        let mut reduced = vec![0.0; layout.reduced_floats()];
        network.sum(&mut *scratch, &state, &batch, key, &mut reduced);
        let (state, moments) = (&mut state[..], &mut moments[..]);
        let correction = 1.0 / CONTEXT as f32;
        let update = Update { layout, reduced: &mut reduced, state, moments, step, lr: 0.1, correction, clip_norm };
        grad_norm = optim::apply(optimizer, update).grad_norm;
    }
    (state, moments, grad_norm)
}

#[test]
fn what_is_frozen_keeps_its_bits_and_moments_while_others_train() {
    let model = gpt();
    let network = network(&model);
    let first = network.init(3);
    for optimizer in [
        Optimizer::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.1 },
        Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 },
    ] {
        let (state, moments, _) = trained(&optimizer, &["wte.*", "h.0.*"], None);
        for info in &network.layout().params {
            let range = info.offset..info.offset + info.len;
            let is_frozen = info.name == "wte.weight" || info.name.starts_with("h.0.");
            assert_eq!(state[range.clone()] == first[range.clone()], is_frozen, "{}", info.name);
            let still = moments.iter().all(|m| m[range.clone()].iter().all(|x| *x == 0.0));
            assert_eq!(still, is_frozen, "{}", info.name);
        }
    }
}

#[test]
fn the_gradients_norm_is_that_of_what_trains() {
    let sgd = Optimizer::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let (all, part) = (trained(&sgd, &[], None).2, trained(&sgd, &["wte.*", "h.*"], None).2);
    assert!(part > 0.0 && part < all, "{part} of {all}");
    // So clipping, too, does not know of the rest: a bound that the trained part keeps changes nothing.
    assert_eq!(trained(&sgd, &["wte.*", "h.*"], Some(1e3)).0, trained(&sgd, &["wte.*", "h.*"], None).0);
}

#[test]
fn a_pattern_without_a_parameter_and_a_network_without_training_are_refused() {
    let mut network = network(&gpt());
    let refused = |network: &mut dyn Network, pattern: &str| freeze(network.layout_mut(), &[pattern.to_string()]);
    let told = refused(&mut *network, "wte.wieght").unwrap_err();
    assert!(told.starts_with("model.freeze: \"wte.wieght\" matches no parameter; near it are `wte.weight`"), "{told}");
    let told = refused(&mut *network, "*").unwrap_err();
    assert_eq!(told, "model.freeze: its patterns match all parameters, so nothing would be trained");
    assert!(network.layout().params.iter().all(|p| p.trainable));
}
