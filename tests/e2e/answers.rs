//! The server's answers are those of `elastic evaluate`, bit for bit: of each example's model, at every batch size and
//! every place in a batch, with others' rows beside them, and for tokens with and without something behind them.

use crate::cluster::{Guarded, elastic, job_file, run, submit_local};
use crate::serving::{Client, ready};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// One over the largest batch that the server computes at once, and one over twice that.
const SIZES: [usize; 11] = [1, 2, 3, 7, 16, 31, 63, 64, 65, 100, 129];
const CLIENTS: usize = 6;
const ASKS: usize = 24;

/// A row as `elastic evaluate --answers` wrote it.
struct Sample {
    input: Vec<String>,
    logits: Vec<u32>,
}

fn bits(value: &Value) -> Vec<u32> {
    let numbers = value.as_array().expect("numbers").iter();
    numbers.map(|number| (number.as_f64().expect("a number") as f32).to_bits()).collect()
}

/// Trains the example for an epoch; its bundle, and what `evaluate` says of the data's first rows.
fn evaluated(dir: &Path, example: &str, data: &str, most: usize) -> (std::path::PathBuf, Vec<Sample>) {
    let (result, _) = submit_local(dir, &job_file(example), &["--set", "train.epochs=1"], &[]);
    let (bundle, answers) = (dir.join("bundle"), dir.join("answers.jsonl"));
    let mut export = Command::new(elastic());
    run(export.arg("export").arg(result["run_dir"].as_str().expect("run_dir")).arg("--out").arg(&bundle));
    let mut evaluate = Command::new(elastic());
    evaluate.arg("evaluate").arg(&bundle).arg("--data").arg(job_file("digits").with_file_name(data));
    run(evaluate.arg("--answers").arg(&answers));
    let text = std::fs::read_to_string(&answers).expect("the answers");
    let lines = text.lines().take(most).map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    let sample = |line: Value| {
        let input = if line["input"].is_array() { &line["input"] } else { &line["tokens"] };
        let input = input.as_array().expect("numbers").iter().map(Value::to_string).collect();
        Sample { input, logits: bits(&line["logits"]) }
    };
    (bundle, lines.map(sample).collect())
}

/// The server, and the name that its model has.
struct Up {
    _process: Guarded,
    port: u16,
    name: String,
}

fn serve(bundle: &Path) -> Up {
    let (process, port) = ready(bundle);
    let model = std::fs::read(bundle.join("model.json")).expect("model.json");
    let model: Value = serde_json::from_slice(&model).expect("JSON");
    Up { _process: process, port, name: model["name"].as_str().expect("a name").to_string() }
}

/// Asks for the logits of these rows, each of the input's first `length` numbers.
fn asked(client: &mut Client, name: &str, port: (&str, &str), rows: &[&Sample], length: usize) -> Vec<u32> {
    let data: Vec<&str> = rows.iter().flat_map(|row| row.input[..length].iter().map(String::as_str)).collect();
    let body = format!(
        r#"{{"inputs":[{{"name":"{}","datatype":"{}","shape":[{},{length}],"data":[{}]}}],"outputs":[{{"name":"logits"}}]}}"#,
        port.0,
        port.1,
        rows.len(),
        data.join(",")
    );
    let head = format!("POST /v2/models/{name}/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = client.ask((head + &body).as_bytes()).expect("an answer");
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let answer: Value = serde_json::from_slice(&answer.body).expect("JSON");
    bits(&answer["outputs"][0]["data"])
}

/// Many clients at once, so that the server's batches are made of rows of several: `ask` gets a client's number, and
/// which of its requests it is.
fn together(up: &Up, ask: impl Fn(&mut Client, usize, usize) + Sync) {
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let ask = &ask;
            scope.spawn(move || {
                let mut client = Client::connect(up.port).expect("a connection");
                (0..ASKS).for_each(|at| ask(&mut client, number, at));
            });
        }
    });
}

#[test]
fn a_server_answers_with_the_bits_of_evaluate_at_every_batch_size_and_place() {
    for example in ["digits", "cnn", "resnet18"] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (bundle, samples) = evaluated(dir.path(), example, "digits.csv.gz", 600);
        let up = serve(&bundle);
        let check = |client: &mut Client, from: usize, size: usize, what: &str| {
            let rows: Vec<&Sample> = (0..size).map(|at| &samples[(from + at) % samples.len()]).collect();
            let expected: Vec<u32> = rows.iter().flat_map(|row| row.logits.iter().copied()).collect();
            let found = asked(client, &up.name, ("input", "FP32"), &rows, rows[0].input.len());
            assert!(found == expected, "{example}: {size} rows from {from}, {what}: other bits");
        };
        let mut client = Client::connect(up.port).expect("a connection");
        for (at, size) in SIZES.into_iter().enumerate() {
            check(&mut client, at * 37, size, "alone");
        }
        // One row in every place of a batch.
        for place in 0..64 {
            check(&mut client, samples.len() - place, 64, "its first row goes through all places");
        }
        together(&up, |client, number, at| {
            check(client, number * 91 + at * 5, SIZES[(number + at) % 7], "among others")
        });
    }
}

#[test]
fn tokens_have_the_bits_of_evaluate_whatever_is_behind_them_and_beside_them() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (bundle, samples) = evaluated(dir.path(), "gpt", "../gpt/sums.txt", 40);
    let up = serve(&bundle);
    let context = samples[0].input.len();
    let vocab = samples[0].logits.len() / context;
    let check = |client: &mut Client, from: usize, size: usize, length: usize| {
        let rows: Vec<&Sample> = (0..size).map(|at| &samples[(from + at) % samples.len()]).collect();
        let expected: Vec<u32> = rows.iter().flat_map(|row| row.logits[..length * vocab].iter().copied()).collect();
        let found = asked(client, &up.name, ("tokens", "INT32"), &rows, length);
        assert!(found == expected, "{size} rows of {length} tokens from {from}: other bits");
    };
    let mut client = Client::connect(up.port).expect("a connection");
    for length in 1..=context {
        check(&mut client, length, 1 + length % 3, length);
    }
    together(&up, |client, number, at| check(client, number * 7 + at, 1 + at % 3, 1 + (number * 5 + at * 3) % context));
}
