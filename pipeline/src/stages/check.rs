//! Check: the real server, started with the bundle, answers samples that it never saw, with the bits that are computed
//! without it. What was asked and answered is kept.

use super::{Failure, Made, Place, text};
use crate::artifact::{Artifact, Kind};
use crate::child::Running;
use crate::fail::{self, Moment};
use crate::http;
use anyhow::{Context, Result, anyhow, bail};
use elastic_spec::pipeline::Stage;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub fn run(place: &Place) -> Result<Made, Failure> {
    let bundle = place.fetched("bundle")?;
    let answers = offline(place, &bundle)?;
    let face = Face::of(&bundle)?;
    let dir = text(&bundle);
    let args = ["serve", &dir, "--http", "127.0.0.1:0", "--grpc", "off", "--threads", "1", "--poll-ms", "0"];
    let mut server = place.program.start(place.work, "serve", &args)?;
    let at = ready(place, &mut server)?;
    let mut kept = String::new();
    for (i, answer) in answers.iter().enumerate() {
        place.in_time()?;
        let request = face.request(answer)?;
        let path = format!("/v2/models/{}/infer", face.model);
        let (status, body) = ask(place, at, ("POST", &path), request.to_string().as_bytes())?;
        if status != 200 {
            return Err(Failure::last(anyhow!(
                "sample {i}: the server answers {status}: {}",
                String::from_utf8_lossy(&body)
            )));
        }
        let answered: Value = serde_json::from_slice(&body).context("the server's answer")?;
        compare(i, &answered, answer).map_err(Failure::last)?;
        kept += &format!("{}\n", json!({ "path": path, "request": request, "logits": answer["logits"] }));
        if i == 0 {
            fail::at(Stage::Check, Moment::Work);
        }
    }
    server.end();
    let path = place.work.join("answers.jsonl");
    std::fs::write(&path, kept).with_context(|| format!("write {}", path.display()))?;
    let blob = place.workspace.keep(&path, "answers.jsonl", true)?;
    let artifact = Artifact::new(Kind::Answers, json!({ "requests": answers.len() }), vec![blob]);
    let words = format!("{} samples, each answered with the same bits", answers.len());
    Ok(Made { outputs: vec![("answers".into(), artifact)], words, ..Made::default() })
}

/// Samples with the logits that `elastic evaluate` computes of them.
fn offline(place: &Place, bundle: &Path) -> Result<Vec<Value>, Failure> {
    let samples = samples(place, bundle)?;
    let out = place.work.join("offline.jsonl");
    let (bundle, data, out) = (text(bundle), text(&samples), text(&out));
    place.elastic("evaluate", &["evaluate", &bundle, "--data", &data, "--answers", &out, "--json"])?;
    let lines = std::fs::read_to_string(&out).with_context(|| format!("read {out}"))?;
    let most = place.asked.spec.check.requests as usize;
    let answers: Result<Vec<Value>, _> = lines.lines().take(most).map(serde_json::from_str).collect();
    let answers = answers.with_context(|| format!("read {out}"))?;
    match answers.is_empty() {
        true => Err(Failure::last(anyhow!("evaluation has no sample to ask the server about"))),
        false => Ok(answers),
    }
}

/// As much of what was kept for evaluation as is asked about.
fn samples(place: &Place, bundle: &Path) -> Result<PathBuf> {
    let examples = place.artifact("examples")?;
    let is_text = examples.blob("evaluation.txt").is_some();
    let name = if is_text { "evaluation.txt" } else { "evaluation.csv" };
    let path = place.fetched_one("examples", name)?;
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let requests = place.asked.spec.check.requests as usize;
    let end = match is_text {
        true => {
            // A token takes some bytes, and a sample as many tokens as the model looks back.
            let context = model_json(bundle)?["data"]["context"].as_u64().unwrap_or(1) as usize;
            let wanted = context.saturating_mul(requests).saturating_add(1).saturating_mul(8);
            let line_end = bytes.iter().skip(wanted).position(|byte| *byte == b'\n').map(|at| wanted + at + 1);
            line_end.unwrap_or(bytes.len())
        }
        false => {
            let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
            ends.take(requests).last().unwrap_or(bytes.len())
        }
    };
    let samples = place.work.join(format!("samples-{name}"));
    std::fs::write(&samples, &bytes[..end.min(bytes.len())]).with_context(|| format!("write {}", samples.display()))?;
    Ok(samples)
}

fn model_json(bundle: &Path) -> Result<Value> {
    let path = bundle.join("model.json");
    let json = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&json).with_context(|| format!("read {}", path.display()))
}

/// What a bundle reads.
struct Face {
    model: String,
    input: String,
    datatype: String,
    /// -1: any.
    shape: Vec<i64>,
}

impl Face {
    fn of(bundle: &Path) -> Result<Face> {
        let path = bundle.join("signature.json");
        let json = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let signature: Value = serde_json::from_slice(&json).with_context(|| format!("read {}", path.display()))?;
        let input = &signature["inputs"][0];
        let text = |value: &Value| value.as_str().map(str::to_string).context("signature.json: a text is missing");
        let shape = input["shape"].as_array().context("signature.json: a shape is missing")?;
        Ok(Face {
            model: text(&model_json(bundle)?["name"])?,
            input: text(&input["name"])?,
            datatype: text(&input["datatype"])?,
            shape: shape.iter().map(|side| side.as_i64().unwrap_or(-1)).collect(),
        })
    }

    fn request(&self, answer: &Value) -> Result<Value> {
        let data = answer.get(self.input.as_str()).and_then(Value::as_array);
        let data = data.with_context(|| format!("an answer has no {}", self.input))?;
        let mut shape = vec![1];
        shape.extend(self.shape[1..].iter().map(|side| if *side < 0 { data.len() as i64 } else { *side }));
        Ok(json!({
            "inputs": [{ "name": self.input, "shape": shape, "datatype": self.datatype, "data": data }],
            "outputs": [{ "name": "logits" }],
        }))
    }
}

/// Who waits for an answer until the stage's time is over is late.
fn ask(place: &Place, at: SocketAddr, (method, path): (&str, &str), body: &[u8]) -> Result<(u16, Vec<u8>), Failure> {
    http::ask(at, method, path, body, place.left()).or_else(|error| {
        place.in_time()?;
        Err(Failure::passing(error))
    })
}

/// Waits until the server says that it is ready.
fn ready(place: &Place, server: &mut Running) -> Result<SocketAddr, Failure> {
    loop {
        if let Some(status) = server.wait(Some(Duration::ZERO)) {
            return Err(Failure::passing(anyhow!("the server ended with {status}: {}", server.said())));
        }
        place.in_time().map_err(|late| Failure {
            error: late.error.context(format!("the server is not ready (what it said is in {})", server.log.display())),
            ..late
        })?;
        let address = std::fs::read_to_string(&server.log).ok().as_deref().and_then(address);
        if let Some(at) = address
            && let Ok((200, _)) = ask(place, at, ("GET", "/v2/health/ready"), b"")
        {
            return Ok(at);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Where the server says that it listens.
fn address(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once("127.0.0.1:")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    // A line may be half written.
    rest.chars().nth(digits.len())?;
    format!("127.0.0.1:{digits}").parse().ok()
}

fn compare(sample: usize, answered: &Value, offline: &Value) -> Result<()> {
    let outputs = answered["outputs"].as_array().context("the server's answer has no outputs")?;
    let served =
        outputs.iter().find(|output| output["name"] == "logits").context("the server's answer has no logits")?;
    let (served, offline) = (floats(&served["data"])?, floats(&offline["logits"])?);
    if served.len() != offline.len() {
        bail!("sample {sample}: the server answers {} logits, offline there are {}", served.len(), offline.len());
    }
    match (0..served.len()).find(|i| served[*i].to_bits() != offline[*i].to_bits()) {
        Some(i) => bail!("sample {sample}, logit {i}: the server answers {}, offline it is {}", served[i], offline[i]),
        None => Ok(()),
    }
}

fn floats(value: &Value) -> Result<Vec<f32>> {
    let items = value.as_array().context("logits are a list")?;
    // By its text, which is the shortest that reads back as the same f32.
    items.iter().map(|item| item.to_string().parse::<f32>().with_context(|| format!("{item} is no number"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_is_a_difference() {
        let offline = json!({"logits": [0.1f32, 2.0]});
        let answer = |logits: Vec<f32>| json!({"outputs": [{"name": "logits", "data": logits}]});
        assert!(compare(0, &answer(vec![0.1, 2.0]), &offline).is_ok());
        let next = f32::from_bits(0.1f32.to_bits() + 1);
        let told = compare(3, &answer(vec![next, 2.0]), &offline).unwrap_err().to_string();
        assert!(told.starts_with("sample 3, logit 0: the server answers 0.1"), "{told}");
        assert!(compare(0, &answer(vec![0.1]), &offline).is_err());
    }

    #[test]
    fn the_address_is_read_once_it_is_whole() {
        assert_eq!(address("INFO server starts http=127.0.0.1:4711 grpc=off").unwrap().port(), 4711);
        assert_eq!(address("INFO server starts http=127.0.0.1:47"), None);
    }
}
