//! Train: an elastic job, started as a person would start it. A training that was cut off is gone on with: the same run,
//! from its newest checkpoint.

use super::states::{self, States};
use super::{Failure, Made, Place, text};
use crate::artifact::{Artifact, Kind};
use crate::fail::{self, Moment};
use crate::ingest::Dataset;
use crate::job::job_of;
use crate::plan;
use anyhow::{Context, Result, anyhow};
use elastic_spec::Digest;
use elastic_spec::job::JobSpec;
use elastic_spec::pipeline::Stage;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files that the job reads beside its data, each with its key: of a folder every file.
pub fn files(job: &JobSpec) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for input in job.inputs().into_iter().filter(|input| input.key != "path") {
        if !Path::new(input.path).is_dir() {
            files.push((input.key.to_string(), input.path.to_string()));
            continue;
        }
        for name in super::files_below(Path::new(input.path))? {
            files.push((format!("{}/{name}", input.key), format!("{}/{name}", input.path)));
        }
    }
    Ok(files)
}

pub fn run(place: &Place) -> Result<Made, Failure> {
    let examples = place.artifact("examples")?;
    let dataset: Dataset = serde_json::from_value(examples.facts.clone()).context("the facts of examples")?;
    let file = if dataset.classes == 0 { "train.txt" } else { "train.csv" };
    let data = std::path::absolute(place.fetched_one("examples", file)?).context("find the examples")?;
    let spec = match job_of(&place.asked.spec, &place.asked.job_text, &dataset, &data)? {
        Ok(spec) => spec,
        Err(mistakes) => {
            let told: Vec<String> = mistakes.iter().map(|mistake| mistake.to_string()).collect();
            return Err(Failure::last(anyhow!(told.join("; "))));
        }
    };
    let job_file = place.work.join("job.toml");
    std::fs::write(&job_file, spec.to_toml_resolved()).with_context(|| format!("write {}", job_file.display()))?;
    let name = run_name(&spec.name, place.work);
    let runs = place.folder("runs")?;
    // The run has its name before it begins, so that whoever goes on finds it.
    place.folder(&format!("runs/{name}"))?;
    let (job_file, runs) = (text(&job_file), text(&runs));
    let workers = place.asked.spec.train.workers.map(|workers| workers.to_string());
    let mut args = vec!["submit", &job_file, "--json", "--runs", &runs, "--resume", &name];
    if let Some(workers) = &workers {
        args.extend(["--workers", workers]);
    }
    args.extend(place.program.reach.iter().map(String::as_str));
    let result = submit(place, &args)?;
    fail::at(Stage::Train, Moment::Work);
    let run_dir = PathBuf::from(result["run_dir"].as_str().context("submit tells the run's directory")?);
    let model = model(place, &spec, &run_dir).map_err(Failure::passing)?;
    let validation = match result["validation"]["accuracy"].as_f64() {
        Some(accuracy) => format!(", validation accuracy {:.2} %", accuracy * 100.0),
        None => String::new(),
    };
    let words = format!("{} steps of {name}{validation}", result["steps"]);
    Ok(Made { outputs: vec![("model".into(), model)], words, ..Made::default() })
}

/// What a run that another process still trains says of itself, and what a cluster says of one that a job trains.
const BUSY: &str = "another process trains this run";
const BUSY_ON_CLUSTER: &str = "is in use by job ";
/// What a job says that waits for room on a disk: nobody sees its own output.
const UNWRITTEN: &str = "a checkpoint could not be written";
const BUSY_TRIES: u32 = 120;
const BUSY_WAIT: Duration = Duration::from_millis(250);

/// The submit of a pipeline that was killed ends by itself, and may need some moments to write its last checkpoint. On a
/// cluster its job goes on: it is waited for, and the submit after it finds all done.
fn submit(place: &Place, args: &[&str]) -> Result<Value, Failure> {
    let mut tries = 0;
    loop {
        let hears = |line: &str| {
            if line.starts_with(UNWRITTEN) {
                (place.tell)(line.to_string());
            }
        };
        let error = match place.elastic_heard("submit", args, &hears) {
            Ok(result) => return Ok(result),
            Err(error) => error,
        };
        let said = error.said();
        let job = said.split_once(BUSY_ON_CLUSTER).and_then(|(_, rest)| rest.split([':', ' ']).next());
        match job {
            Some(job) => until_over(place, job)?,
            None if said.contains(BUSY) && tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(BUSY_WAIT);
            }
            None => return Err(error.into()),
        }
        place.in_time()?;
    }
}

fn until_over(place: &Place, job: &str) -> Result<(), Failure> {
    let mut args = vec!["status", job, "--json"];
    args.extend(place.program.reach.iter().map(String::as_str));
    loop {
        let status = place.elastic("status", &args)?;
        if ["succeeded", "failed", "cancelled"].contains(&status["state"].as_str().unwrap_or_default()) {
            return Ok(());
        }
        place.in_time()?;
        std::thread::sleep(BUSY_WAIT);
    }
}

/// The same for the same work.
fn run_name(job: &str, work: &Path) -> String {
    let work = work.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let digest = Digest::of(work.as_bytes()).to_string();
    format!("{}-{}", job, &digest[..8])
}

/// Of a run its last checkpoint and what an export reads besides.
fn model(place: &Place, spec: &JobSpec, run_dir: &Path) -> Result<Artifact> {
    let States { dir, checkpoint } = states::find(place, spec, run_dir)?;
    let reading = || format!("read the checkpoint {}", checkpoint.display());
    let manifest = std::fs::read(checkpoint.join("manifest.json")).with_context(reading)?;
    let manifest: Value = serde_json::from_slice(&manifest).with_context(reading)?;
    let mut blobs = Vec::new();
    for name in super::files_below(&checkpoint).with_context(reading)? {
        // The manifest tells who published it.
        let counts = name != "manifest.json";
        blobs.push(place.workspace.keep(&checkpoint.join(&name), &format!("checkpoint/{name}"), counts)?);
    }
    for (name, counts) in states::BESIDE {
        let path = dir.join(name);
        if path.exists() {
            blobs.push(place.workspace.keep(&path, name, counts)?);
        }
    }
    let facts = json!({
        "job": plan::essence(spec),
        "step": manifest["step"],
        "weights_sha256": manifest["weights_sha256"],
        "state_sha256": manifest["state_sha256"],
    });
    let mut model = Artifact::new(Kind::Model, facts, blobs);
    let name = checkpoint.file_name().map(|name| name.to_string_lossy().into_owned());
    model.notes = json!({ "checkpoint": name, "run": run_dir.file_name().map(|name| name.to_string_lossy()) });
    Ok(model)
}
