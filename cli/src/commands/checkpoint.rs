//! `elastic checkpoint list|inspect|verify`: looks at files, asks no cluster.

use crate::args;
use crate::exit::{Exit, Outcome, mistake};
use crate::show;
use anyhow::{Context, Result, anyhow};
use elastic_checkpoint::{
    InspectError, Inspection, Listed, Verification, inspect, inspect_in, list, list_in, verify, verify_in,
};
use elastic_worker::bucket::{Bucket, is_bucket};
use serde::Serialize;
use std::path::PathBuf;

pub fn run(args: args::Checkpoint) -> Outcome {
    match args.act {
        args::CheckpointAct::List(at) => list_at(&at),
        args::CheckpointAct::Inspect(at) => inspect_at(&at),
        args::CheckpointAct::Verify(at) => verify_at(&at),
    }
}

fn list_at(at: &args::CheckpointPath) -> Outcome {
    let listed = match bucket(at)? {
        Some((bucket, path)) => list_in(&bucket, &path),
        None => list(&at.path),
    };
    let listed = listed.with_context(|| format!("list {}", at.path.display()))?;
    some(&listed, at)?;
    tell(at.json, &listed, || {
        let row = |one: &Listed| {
            let state = match (&one.refused, one.weights_sha256) {
                (Some(why), _) => format!("damaged: {why}"),
                (None, digest) => digest.map_or("-".into(), |digest| digest.to_string()),
            };
            let size = one.bytes.map_or("-".into(), show::bytes);
            vec![
                one.step.to_string(),
                format!("{}.{}", one.term, one.gen_),
                size,
                state,
                one.path.display().to_string(),
            ]
        };
        let rows: Vec<_> = listed.iter().map(row).collect();
        show::table(&["STEP", "VIEW", "SIZE", "WEIGHTS SHA-256", "PATH"], &rows)
    })
}

fn inspect_at(at: &args::CheckpointPath) -> Outcome {
    let found: Result<Inspection, InspectError> = match bucket(at)? {
        Some((bucket, path)) => inspect_in(&bucket, &path),
        None => inspect(&at.path),
    };
    let found = found.with_context(|| format!("inspect {}", at.path.display()))?;
    tell(at.json, &found, || inspection(&found))
}

fn verify_at(at: &args::CheckpointPath) -> Outcome {
    let read = match bucket(at)? {
        Some((bucket, path)) => verify_in(&bucket, &path),
        None => verify(&at.path),
    };
    let read = read.with_context(|| format!("verify {}", at.path.display()))?;
    some(&read, at)?;
    tell(at.json, &read, || read.iter().map(verdict).collect())?;
    Ok(if read.iter().all(|one| one.whole) { Exit::Ok } else { Exit::Failed })
}

/// None: the path is one of this machine.
fn bucket(at: &args::CheckpointPath) -> Result<Option<(Bucket, PathBuf)>> {
    match at.path.to_str().filter(|text| is_bucket(text)) {
        Some(text) => Bucket::open(text).map(Some).map_err(|error| mistake(anyhow::Error::new(error))),
        None => Ok(None),
    }
}

fn some<T>(found: &[T], at: &args::CheckpointPath) -> Result<()> {
    match found.is_empty() {
        true => Err(mistake(anyhow!("there is no checkpoint at {}", at.path.display()))),
        false => Ok(()),
    }
}

fn verdict(one: &Verification) -> String {
    let digest = one.weights_sha256.map(|digest| digest.to_string()).unwrap_or_default();
    match &one.refused {
        None => format!("whole    {}  weights {digest}\n", one.path.display()),
        Some(why) => format!("DAMAGED  {}: {why}\n", one.path.display()),
    }
}

fn inspection(found: &Inspection) -> String {
    let mut text = String::new();
    let mut say = |name: &str, value: String| text += &format!("{name:<24}{value}\n");
    say("path", found.path.display().to_string());
    say("format", format!("version {}", found.format_version));
    say("job", found.job.clone());
    say("step", format!("{} (round {})", found.step, found.round));
    say("published in view", format!("{}.{} of cluster {}", found.term, found.gen_, found.cluster));
    say("config SHA-256", found.config_sha256.to_string());
    say("weights SHA-256", found.weights_sha256.to_string());
    say("state SHA-256", found.state_sha256.to_string());
    found.meta.iter().for_each(|(key, value)| say(key, value.clone()));
    found.files.iter().for_each(|file| say(file.name, show::bytes(file.bytes)));
    let weights = found.weights.iter().map(|tensor| ("weights", tensor));
    let optimizer = found.optimizer.iter().map(|tensor| ("optimizer", tensor));
    let rows: Vec<_> = weights
        .chain(optimizer)
        .map(|(of, tensor)| {
            let shape = format!("{:?}", tensor.shape);
            vec![of.to_string(), tensor.name.clone(), tensor.dtype.clone(), shape, show::bytes(tensor.bytes)]
        })
        .collect();
    text + "\n" + &show::table(&["OF", "TENSOR", "TYPE", "SHAPE", "SIZE"], &rows)
}

fn tell(json: bool, value: &impl Serialize, words: impl FnOnce() -> String) -> Outcome {
    match json {
        true => show::out(&format!("{}\n", serde_json::to_string(value).context("write JSON")?))?,
        false => show::out(&words())?,
    }
    Ok(Exit::Ok)
}
