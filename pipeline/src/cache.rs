//! Whether a stage's work was done before: pure decisions on what the lineage knows.
//!
//! The key of an execution is the digest of its parts: the stage, its parameters, the digests of its inputs, the program's
//! version. Equal keys promise equal results, but a result counts only if every blob of it is still there.

use elastic_spec::Digest;
use serde_json::Value;
use std::collections::BTreeMap;

/// What decides a stage's result, by name.
pub type Parts = BTreeMap<String, Value>;

pub fn key(parts: &Parts) -> Digest {
    Digest::of(serde_json::to_string(parts).expect("parts are plain data").as_bytes())
}

/// A finished execution of the same stage, as the lineage knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Earlier {
    pub execution: i64,
    pub run: String,
    pub parts: Parts,
    /// Why its outputs cannot be used any more.
    pub lost: Option<String>,
}

/// What is not to be taken from earlier runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Force {
    Nothing,
    /// The flag that says so.
    Because(String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Reuse { execution: i64, run: String },
    Run(Why),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    First,
    Forced(String),
    Lost {
        run: String,
        what: String,
    },
    /// From the nearest earlier execution.
    Differs {
        run: String,
        differences: Vec<String>,
    },
}

/// `earlier` begins with the newest. What this very `run` has finished always counts: it was made under the same flags.
pub fn decide(parts: &Parts, earlier: &[Earlier], run: &str, force: &Force) -> Verdict {
    let same: Vec<&Earlier> = earlier.iter().filter(|one| one.parts == *parts).collect();
    let usable = |one: &&&Earlier| one.lost.is_none() && (one.run == run || *force == Force::Nothing);
    if let Some(one) = same.iter().find(usable) {
        return Verdict::Reuse { execution: one.execution, run: one.run.clone() };
    }
    Verdict::Run(match (force, same.first()) {
        (Force::Because(flag), _) => Why::Forced(flag.clone()),
        (Force::Nothing, Some(one)) => {
            let what = one.lost.clone().expect("what is whole would have been taken");
            Why::Lost { run: one.run.clone(), what }
        }
        (Force::Nothing, None) => match nearest(parts, earlier) {
            Some((run, differences)) => Why::Differs { run, differences },
            None => Why::First,
        },
    })
}

fn nearest(parts: &Parts, earlier: &[Earlier]) -> Option<(String, Vec<String>)> {
    let all = earlier.iter().map(|one| (one.run.clone(), differences(parts, &one.parts)));
    // The first of the fewest: the newest.
    all.min_by_key(|(_, differences)| differences.len())
}

/// `params.seed: 1, was 0`.
pub fn differences(now: &Parts, was: &Parts) -> Vec<String> {
    let (now, was) = (leaves(now), leaves(was));
    let mut names: Vec<&String> = now.keys().chain(was.keys()).collect();
    names.sort();
    names.dedup();
    let shown = |value: Option<&String>| value.cloned().unwrap_or_else(|| "nothing".into());
    let differ = names.into_iter().filter(|name| now.get(*name) != was.get(*name));
    differ.map(|name| format!("{name}: {}, was {}", shown(now.get(name)), shown(was.get(name)))).collect()
}

fn leaves(parts: &Parts) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    parts.iter().for_each(|(name, value)| add_leaves(name, value, &mut out));
    out
}

fn add_leaves(name: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            object.iter().for_each(|(key, value)| add_leaves(&format!("{name}.{key}"), value, out));
        }
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(i, value)| add_leaves(&format!("{name}[{i}]"), value, out));
        }
        Value::String(text) if text.len() == 64 => drop(out.insert(name.into(), text[..12].into())),
        other => drop(out.insert(name.into(), other.to_string())),
    }
}

/// A run of a pipeline, as the lineage knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastRun {
    pub run: String,
    pub is_running: bool,
    /// Of the pipeline and the flags.
    pub asked: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It was cut off: the same is asked again, so it goes on.
    GoOn(String),
    /// A run that was cut off, and that something else is asked in place of.
    Instead(String),
    New,
}

pub fn begin(last: Option<&LastRun>, asked: Digest) -> Begin {
    match last {
        Some(last) if last.is_running && last.asked == asked => Begin::GoOn(last.run.clone()),
        Some(last) if last.is_running => Begin::Instead(last.run.clone()),
        _ => Begin::New,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parts(seed: u64, input: &str) -> Parts {
        [("params".to_string(), json!({"seed": seed, "labels": ["a"]})), ("inputs".into(), json!({"file": input}))]
            .into()
    }

    fn earlier(execution: i64, run: &str, parts: Parts) -> Earlier {
        Earlier { execution, run: run.into(), parts, lost: None }
    }

    #[test]
    fn the_same_parts_are_not_worked_on_twice() {
        let known = [earlier(2, "r2", parts(1, "x")), earlier(1, "r1", parts(0, "x"))];
        let verdict = decide(&parts(0, "x"), &known, "r3", &Force::Nothing);
        assert_eq!(verdict, Verdict::Reuse { execution: 1, run: "r1".into() });
        assert_eq!(decide(&parts(0, "x"), &[], "r3", &Force::Nothing), Verdict::Run(Why::First));
    }

    #[test]
    fn what_lost_a_blob_is_made_again_unless_another_has_all() {
        let mut known = vec![Earlier { lost: Some("blob x".into()), ..earlier(2, "r2", parts(0, "x")) }];
        let lost = Why::Lost { run: "r2".into(), what: "blob x".into() };
        assert_eq!(decide(&parts(0, "x"), &known, "r3", &Force::Nothing), Verdict::Run(lost));
        known.push(earlier(1, "r1", parts(0, "x")));
        let verdict = decide(&parts(0, "x"), &known, "r3", &Force::Nothing);
        assert_eq!(verdict, Verdict::Reuse { execution: 1, run: "r1".into() });
    }

    #[test]
    fn a_flag_makes_a_run_do_it_once() {
        let force = Force::Because("--no-cache".into());
        let known = [earlier(1, "r1", parts(0, "x"))];
        assert_eq!(decide(&parts(0, "x"), &known, "r2", &force), Verdict::Run(Why::Forced("--no-cache".into())));
        let verdict = decide(&parts(0, "x"), &known, "r1", &force);
        assert_eq!(verdict, Verdict::Reuse { execution: 1, run: "r1".into() }, "the same run goes on");
    }

    #[test]
    fn what_differs_is_told_from_the_nearest() {
        let known = [earlier(2, "r2", parts(5, "y")), earlier(1, "r1", parts(0, "x"))];
        let Verdict::Run(Why::Differs { run, differences }) = decide(&parts(1, "x"), &known, "r3", &Force::Nothing)
        else {
            panic!("it is new")
        };
        assert_eq!((run.as_str(), differences), ("r1", vec!["params.seed: 1, was 0".to_string()]));
        let more = differences_of(json!({"a": []}), json!({"b": 1}));
        assert_eq!(more, ["p.a: [], was nothing", "p.b: nothing, was 1"]);
    }

    fn differences_of(now: Value, was: Value) -> Vec<String> {
        differences(&[("p".to_string(), now)].into(), &[("p".to_string(), was)].into())
    }

    #[test]
    fn a_run_that_was_cut_off_goes_on_if_the_same_is_asked() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let last = |is_running| LastRun { run: "r1".into(), is_running, asked: a };
        assert_eq!(begin(Some(&last(true)), a), Begin::GoOn("r1".into()));
        assert_eq!(begin(Some(&last(true)), b), Begin::Instead("r1".into()));
        assert_eq!(begin(Some(&last(false)), a), Begin::New);
        assert_eq!(begin(None, a), Begin::New);
    }
}
