//! A job that begins with somebody's weights: the same bits on every number of workers, and what is frozen stays.

use crate::cluster::{Cluster, assert_same, elastic, job_file, submit_local};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A safetensors file's tensors: type, shape, bytes.
fn tensors(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let data = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (length, rest) = data.split_first_chunk::<8>().expect("a header");
    let (header, body) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).expect("the header is JSON");
    let own = header.into_iter().filter(|(name, _)| name != "__metadata__");
    own.map(|(name, of)| {
        let number = |value: &Value| value.as_u64().expect("a number") as usize;
        let shape = of["shape"].as_array().expect("a shape").iter().map(number).collect();
        let bytes = body[number(&of["data_offsets"][0])..number(&of["data_offsets"][1])].to_vec();
        (name, (of["dtype"].as_str().expect("a type").to_string(), shape, bytes))
    })
    .collect()
}

fn newest_weights(run_dir: &str) -> PathBuf {
    let steps = std::fs::read_dir(Path::new(run_dir).join("checkpoints")).expect("checkpoints");
    steps.flatten().map(|step| step.path()).max().expect("a checkpoint").join("weights.safetensors")
}

fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff) / 1024.0);
    let size = if exponent == 0 { fraction * 2f32.powi(-14) } else { (1.0 + fraction) * 2f32.powi(exponent - 15) };
    if bits >> 15 == 1 { -size } else { size }
}

/// What the example's folder says, in our order of axes.
fn start() -> BTreeMap<String, Vec<f32>> {
    let folder = job_file("finetune").with_file_name("sums");
    let read = |(name, (dtype, shape, bytes)): (String, (String, Vec<usize>, Vec<u8>))| {
        assert_eq!(dtype, "F16", "{name}");
        let numbers: Vec<f32> = bytes.chunks(2).map(|b| half(u16::from_le_bytes([b[0], b[1]]))).collect();
        let is_linear = [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"].iter().any(|end| name.ends_with(end));
        let numbers = match (is_linear, &shape[..]) {
            (true, [rows, columns]) => {
                (0..columns * rows).map(|i| numbers[i % rows * columns + i / rows]).collect::<Vec<f32>>()
            }
            _ => numbers,
        };
        (name.strip_prefix("transformer.").expect("Hugging Face's name").to_string(), numbers)
    };
    tensors(&folder.join("model.safetensors")).into_iter().map(read).collect()
}

const SHORT: [&str; 2] = ["--set", "train.epochs=6"];

fn is_frozen(name: &str) -> bool {
    ["wte.", "wpe.", "h.0."].iter().any(|of| name.starts_with(of))
}

#[test]
fn a_folder_of_hugging_face_trains_to_the_same_bits_and_what_is_frozen_keeps_its_own() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let once = dir.path().join("once");
    std::fs::create_dir_all(&once).expect("a directory");
    let kill =
        [("ELASTIC_FAIL", "after-contribute:20:kill".to_string()), ("ELASTIC_FAIL_ONCE", once.display().to_string())];
    let with = |workers: &str, env: &[(&str, String)]| {
        let args: Vec<&str> = SHORT.into_iter().chain(["--workers", workers]).collect();
        submit_local(dir.path(), &job_file("finetune"), &args, env)
    };
    let (result, alone) = with("1", &[]);
    assert_same(&with("2", &[]).1, &alone);
    assert_same(&with("3", &kill).1, &alone);
    assert_eq!(std::fs::read_dir(&once).expect("the directory").count(), 1, "nobody was killed");
    let (start, end) = (start(), tensors(&newest_weights(result["run_dir"].as_str().expect("run_dir"))));
    assert_eq!(start.keys().collect::<Vec<_>>(), end.keys().collect::<Vec<_>>(), "the same tensors");
    for (name, (dtype, _, bytes)) in &end {
        assert_eq!(dtype, "F32", "{name}");
        let began: Vec<u8> = start[name].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(began == *bytes, is_frozen(name), "{name} {}", if is_frozen(name) { "moved" } else { "stayed" });
    }
}

#[test]
fn a_small_folder_travels_to_a_cluster_whose_nodes_do_not_have_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args: Vec<&str> = SHORT.into_iter().chain(["--workers", "1"]).collect();
    let alone = submit_local(dir.path(), &job_file("finetune"), &args, &[]).1;
    let example = job_file("finetune").parent().expect("a folder").to_path_buf();
    let there = dir.path().join("there/finetune");
    std::fs::create_dir_all(there.join("sums")).expect("a folder");
    for file in ["job.toml", "times.txt", "sums/config.json", "sums/model.safetensors"] {
        std::fs::copy(example.join(file), there.join(file)).expect("a file of the example");
    }
    let cluster = Cluster::start(None, 2);
    let job = cluster.submit(&there.join("job.toml"), &SHORT);
    std::fs::remove_dir_all(&there).expect("the folder goes");
    assert_same(&cluster.until_done(&job).1, &alone);
}

#[test]
fn a_start_that_does_not_fit_fails_the_job_with_all_that_differs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let because = |code: i32, set: &[&str]| {
        let mut command = Command::new(elastic());
        command.arg("submit").arg(job_file("finetune")).args(["--local", "--workers", "2", "--runs"]);
        command.arg(dir.path().join("runs")).args(SHORT).args(set.iter().flat_map(|set| ["--set", set]));
        let out = command.current_dir(dir.path()).output().expect("elastic starts");
        assert_eq!(out.status.code(), Some(code), "{set:?}: {}", String::from_utf8_lossy(&out.stderr));
        [out.stdout, out.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat()
    };
    let said = because(1, &["model.width=64", "model.context=16"]);
    assert!(said.contains("n_embd is 32, but model.width is 64; set model.width = 32"), "{said}");
    assert!(said.contains("n_positions is 32, but model.context is 16; set model.context = 32"), "{said}");
    let said = because(2, &["model.freeze=[\"wtx.*\"]"]);
    assert!(said.contains("model.freeze: \"wtx.*\" matches no parameter; near it are `wte.weight`"), "{said}");
}

/// A safetensors file of these tensors, all numbers `x`.
fn file_of(tensors: &[(&str, &[usize])], x: f32) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let bytes = 4 * shape.iter().product::<usize>();
        header.insert(
            name.to_string(),
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [end, end + bytes]}),
        );
        end += bytes;
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &x.to_le_bytes().repeat(end / 4)].concat()
}

#[test]
fn weights_that_were_changed_after_the_submit_are_refused_by_every_worker() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // A little more than what travels with a job.
    let tensors: [(&str, &[usize]); 4] = [
        ("layers.0.weight", &[2048, 2048]),
        ("layers.0.bias", &[2048]),
        ("layers.1.weight", &[2, 2048]),
        ("layers.1.bias", &[2]),
    ];
    let weights = dir.path().join("weights.safetensors");
    std::fs::write(&weights, file_of(&tensors, 0.0)).expect("a file");
    let job = dir.path().join("job.toml");
    let text = "[model]\nkind = \"mlp\"\nhidden = [2048]\ninit = \"weights.safetensors\"\n\n[data]\nkind = \"synthetic\"\n\
                samples = 64\nfeatures = 2048\nclasses = 2\n\n[train]\nglobal_batch = 8\nsteps = 3\nlr = 0.01\n";
    std::fs::write(&job, text).expect("a file");
    let mut cluster = Cluster::start(None, 0);
    let id = cluster.submit(&job, &[]);
    std::fs::write(&weights, file_of(&tensors, 0.5)).expect("a file");
    cluster.start_agent("n0", &[]);
    let over = crate::cluster::wait_for("the job's end", 60, || {
        cluster.status(&id).filter(|s| s["state"] != "pending" && s["state"] != "running")
    });
    assert_eq!(over["state"], "failed", "{over}");
    let reason = over["reason"].as_str().expect("a reason");
    assert!(reason.contains("these are not the weights that were submitted: model.init_sha256 is "), "{reason}");
}
