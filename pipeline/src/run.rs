//! The driver: stage after stage, each reused, gone on with or run, and every step recorded before the next.

use crate::artifact::{Artifact, Kind};
use crate::cache::{self, Begin, Earlier, Force, Parts, Verdict, Why};
use crate::child::Program;
use crate::fail::{self, Moment, Point};
use crate::job::Asked;
use crate::lineage::{COMPLETE, FAILED, Lived};
use crate::plan::{Node, params, parts, plan};
use crate::registry;
use crate::stages::{self, Failure, Place};
use crate::workspace::{self, Workspace, digest_of};
use anyhow::{Context, Result};
use elastic_spec::Digest;
use elastic_spec::pipeline::{Patience, PipelineSpec, Stage};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// What may be asked beside the file.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub no_cache: bool,
    pub from: Option<Stage>,
}

/// What happens, as it happens.
#[derive(Clone, Debug)]
pub enum Note {
    Begins { run: String, goes_on: bool },
    Stage { stage: Stage, why: Why },
    Reused { stage: Stage, run: String },
    Done { stage: Stage, seconds: f64, words: String },
    Said { stage: Stage, words: String },
    Retry { stage: Stage, error: String, wait_ms: u64 },
}

/// How it ended.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Ended {
    pub run: String,
    pub pipeline: String,
    pub state: String,
    /// Why it failed.
    pub reason: Option<String>,
    pub stages: Vec<EndedStage>,
    pub content_sha256: Option<String>,
    /// Where the model was published, if it was.
    pub pushed: Option<Value>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct EndedStage {
    pub stage: Stage,
    pub cached: bool,
    /// Outputs by name, each with its digest.
    pub artifacts: BTreeMap<String, String>,
}

/// What one stage of a plan would do.
#[derive(Clone, Debug)]
pub struct Explained {
    pub stage: Stage,
    /// None: its inputs are not known before those ahead of it have run.
    pub verdict: Option<Verdict>,
}

/// The version that results depend on.
fn program() -> String {
    format!("elastic {}", env!("CARGO_PKG_VERSION"))
}

struct Driver<'a> {
    asked: &'a Asked,
    flags: &'a Flags,
    workspace: Workspace,
    run: String,
    /// Artifacts made or found so far.
    known: BTreeMap<String, (i64, Artifact)>,
    tell: RefCell<&'a mut dyn FnMut(Note)>,
}

/// Runs the pipeline to its end, from wherever it was left.
pub fn run(asked: &Asked, flags: &Flags, program: &Program, tell: &mut dyn FnMut(Note)) -> Result<Ended> {
    let spec = &asked.spec;
    let mut workspace = take(spec)?;
    let wanted = digest_of_asked(asked, flags);
    let last = workspace.lineage.last_run(&spec.name)?;
    let new_run = |workspace: &mut Workspace| workspace.lineage.new_run(&spec.name, wanted, &json!(spec));
    let (run, goes_on) = match cache::begin(last.as_ref(), wanted) {
        Begin::GoOn(run) => (run, true),
        Begin::Instead(cut_off) => {
            workspace.lineage.end_run(&cut_off, FAILED, "it was cut off, and something else was asked then")?;
            (new_run(&mut workspace)?, false)
        }
        Begin::New => (new_run(&mut workspace)?, false),
    };
    fail::point(Point::RunBegun);
    tell(Note::Begins { run: run.clone(), goes_on });
    let mut driver =
        Driver { asked, flags, workspace, run: run.clone(), known: BTreeMap::new(), tell: RefCell::new(tell) };
    let mut ended = Vec::new();
    let mut reason = None;
    for node in plan(spec) {
        match driver.stage(&node, program, goes_on)? {
            Ok(done) => ended.push(done),
            Err(why) => {
                reason = Some(format!("{}: {why}", node.stage));
                break;
            }
        }
    }
    fail::point(Point::RunOver);
    let state = if reason.is_none() { COMPLETE } else { FAILED };
    driver.workspace.lineage.end_run(&run, state, reason.as_deref().unwrap_or_default())?;
    let fact =
        |name: &str, key: &str| driver.known.get(name).and_then(|(_, artifact)| artifact.facts.get(key).cloned());
    let content_sha256 = fact("bundle", "content_sha256").and_then(|value| value.as_str().map(str::to_string));
    let pushed = driver.known.get("pushed").map(|(_, artifact)| artifact.facts.clone());
    Ok(Ended { run, pipeline: spec.name.clone(), state: state.into(), reason, stages: ended, content_sha256, pushed })
}

/// What a run would do now, stage by stage. Nothing is run.
pub fn explain(asked: &Asked, flags: &Flags) -> Result<Vec<Explained>> {
    let workspace = take(&asked.spec)?;
    let mut quiet = |_: Note| {};
    let mut driver =
        Driver { asked, flags, workspace, run: String::new(), known: BTreeMap::new(), tell: RefCell::new(&mut quiet) };
    let mut all = Vec::new();
    for node in plan(&asked.spec) {
        let stage = node.stage;
        if !node.needs.iter().all(|need| driver.known.contains_key(*need)) {
            all.push(Explained { stage, verdict: None });
            continue;
        }
        let inputs = driver.inputs(&node)?;
        let parts = driver.parts(&node, &inputs)?;
        let verdict = driver.decide(stage, &parts)?;
        if let Verdict::Reuse { execution, .. } = &verdict {
            driver.take_up(*execution)?;
        }
        all.push(Explained { stage, verdict: Some(verdict) });
    }
    Ok(all)
}

fn take(spec: &PipelineSpec) -> Result<Workspace> {
    Workspace::take(Path::new(&spec.store.workspace), spec.store.blobs.as_deref())
}

/// Two runs with the same digest are asked the same.
fn digest_of_asked(asked: &Asked, flags: &Flags) -> Digest {
    let all = json!([asked.spec, asked.job_text, flags.no_cache, flags.from]);
    Digest::of(all.to_string().as_bytes())
}

type Inputs = Vec<(String, i64, Artifact)>;

impl Driver<'_> {
    /// The inner error is told as the run's reason; the outer one is of the pipeline's own machinery.
    fn stage(&mut self, node: &Node, program: &Program, goes_on: bool) -> Result<Result<EndedStage, String>> {
        let stage = node.stage;
        let inputs = match self.inputs(node) {
            Ok(inputs) => inputs,
            Err(error) if stage == Stage::Ingest => return Ok(Err(format!("{error:#}"))),
            Err(error) => return Err(error),
        };
        let parts = match self.parts(node, &inputs) {
            Ok(parts) => parts,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        let cached = match self.decide(stage, &parts)? {
            Verdict::Reuse { execution, run } => {
                let ids: Vec<(String, i64)> = inputs.iter().map(|(name, id, _)| (name.clone(), *id)).collect();
                self.workspace.lineage.reuse(&self.run, stage, &parts, execution, &ids)?;
                self.take_up(execution)?;
                self.say(Note::Reused { stage, run });
                true
            }
            Verdict::Run(why) => {
                self.say(Note::Stage { stage, why });
                if let Err(why) = self.execute(node, &parts, &inputs, program, goes_on)? {
                    return Ok(Err(why));
                }
                false
            }
        };
        if let Some(why) = self.refused(stage) {
            return Ok(Err(why));
        }
        let names = stages::outputs(stage, &self.asked.spec);
        let digest = |name: String| Some((name.clone(), self.known.get(&name)?.1.digest().to_string()));
        Ok(Ok(EndedStage { stage, cached, artifacts: names.into_iter().filter_map(digest).collect() }))
    }

    /// An evaluation that was not passed ends the run, also when it is an old one.
    fn refused(&self, stage: Stage) -> Option<String> {
        let (_, evaluation) = self.known.get("evaluation").filter(|_| stage == Stage::Evaluate)?;
        let refusals = evaluation.facts.get("refusals")?.as_array()?;
        let words: Vec<&str> = refusals.iter().filter_map(Value::as_str).collect();
        (!words.is_empty()).then(|| format!("the model is not blessed: {}", words.join("; ")))
    }

    fn inputs(&mut self, node: &Node) -> Result<Inputs> {
        let mut inputs = Vec::new();
        for name in node.needs {
            let (id, artifact) = self.known.get(*name).with_context(|| format!("{} needs {name}", node.stage))?;
            inputs.push((name.to_string(), *id, artifact.clone()));
        }
        let files: Vec<(String, String)> = match node.stage {
            Stage::Ingest => {
                let files = self.asked.spec.ingest.source.files();
                files.into_iter().map(|(key, path)| (key.to_string(), path.to_string())).collect()
            }
            Stage::Train => stages::train::files(&self.asked.job)?,
            _ => Vec::new(),
        };
        for (key, path) in files {
            let (sha256, bytes) = digest_of(Path::new(&path)).with_context(|| format!("{}.{key}", node.stage))?;
            let facts = json!({ "sha256": sha256, "bytes": bytes });
            let mut artifact = Artifact::new(Kind::File, facts, vec![]);
            artifact.notes = json!({ "path": path });
            let id = self.workspace.lineage.source(&artifact)?;
            inputs.push((key, id, artifact));
        }
        Ok(inputs)
    }

    fn parts(&self, node: &Node, inputs: &Inputs) -> Result<Parts> {
        let digests: Vec<(String, Digest)> =
            inputs.iter().map(|(name, _, artifact)| (name.clone(), artifact.digest())).collect();
        let mut params = params(node.stage, &self.asked.spec, &self.asked.job);
        if node.stage == Stage::Train {
            let (_, examples) = self.known.get("examples").context("train needs examples")?;
            params["classes"] = examples.facts["classes"].clone();
        }
        if node.stage == Stage::Evaluate {
            let baseline = self.baseline()?;
            params["baseline"] = json!(baseline.map(|baseline| baseline.content_sha256));
        }
        Ok(parts(node.stage, params, &digests, &program()))
    }

    /// The model that a change is measured against.
    fn baseline(&self) -> Result<Option<registry::Baseline>> {
        let spec = &self.asked.spec;
        match (&spec.push, spec.evaluate.changes.is_empty()) {
            (Some(push), false) => {
                let (_, bundle) = self.known.get("bundle").context("evaluate needs a bundle")?;
                let candidate = bundle.facts["content_sha256"].as_str().unwrap_or_default();
                registry::Registry::open(&push.registry)?.baseline(&push.model, &push.label, candidate)
            }
            _ => Ok(None),
        }
    }

    fn decide(&mut self, stage: Stage, parts: &Parts) -> Result<Verdict> {
        let mut earlier = self.workspace.lineage.earlier(&self.asked.spec.name, stage)?;
        for one in earlier.iter_mut().filter(|one| one.parts == *parts) {
            one.lost = self.lost(stage, one)?;
            if one.lost.is_none() {
                break;
            }
        }
        Ok(cache::decide(parts, &earlier, &self.run, &force(self.flags, stage)))
    }

    /// Why the outputs of an execution cannot be used. What is in a registry must still be there.
    fn lost(&mut self, stage: Stage, earlier: &Earlier) -> Result<Option<String>> {
        for (name, row) in self.workspace.lineage.outputs(earlier.execution)? {
            let lost = match self.workspace.lost(&row.artifact)? {
                None if stage == Stage::Push => registry::lost(&row.artifact.facts)?,
                lost => lost,
            };
            if let Some(what) = lost {
                self.workspace.lineage.mark_deleted(row.id)?;
                return Ok(Some(format!("{name}: {what}")));
            }
        }
        Ok(None)
    }

    fn take_up(&mut self, execution: i64) -> Result<()> {
        for (name, row) in self.workspace.lineage.outputs(execution)? {
            self.known.insert(name, (row.id, row.artifact));
        }
        Ok(())
    }

    fn execute(
        &mut self,
        node: &Node,
        parts: &Parts,
        inputs: &Inputs,
        program: &Program,
        goes_on: bool,
    ) -> Result<Result<(), String>> {
        let stage = node.stage;
        let key = cache::key(parts);
        let work = self.workspace.work(stage.word(), key);
        // Training goes on where it was, unless it was asked to begin anew.
        let forced = force(self.flags, stage) != Force::Nothing;
        if stage != Stage::Train || (forced && !goes_on) {
            workspace::fresh(&work)?;
        }
        std::fs::create_dir_all(&work).with_context(|| format!("make {}", work.display()))?;
        let ids: Vec<(String, i64)> = inputs.iter().map(|(name, id, _)| (name.clone(), *id)).collect();
        let patience = self.asked.spec.patience(stage);
        let since = Instant::now();
        for attempt in 0.. {
            let execution = self.workspace.lineage.begin(&self.run, stage, parts, &ids)?;
            fail::at(stage, Moment::Begin);
            let error = match self.attempt(stage, &work, program, patience) {
                Ok(made) => {
                    fail::at(stage, Moment::Stored);
                    let model = self.known.get("model").map(|(id, _)| *id).unwrap_or_default();
                    let lived = Lived { model, views: &made.lived };
                    let ids = self.workspace.lineage.complete(execution, &made.outputs, &lived)?;
                    fail::at(stage, Moment::Recorded);
                    for ((name, artifact), (_, id)) in made.outputs.into_iter().zip(ids) {
                        self.known.insert(name, (id, artifact));
                    }
                    made.said.into_iter().for_each(|words| self.say(Note::Said { stage, words }));
                    let seconds = since.elapsed().as_secs_f64();
                    self.say(Note::Done { stage, seconds, words: made.words });
                    let _ = std::fs::remove_dir_all(&work);
                    return Ok(Ok(()));
                }
                Err(error) => error,
            };
            let mut words = format!("{:#}", error.error);
            if let (true, Some(seconds)) = (error.is_late, patience.timeout_s) {
                words += &format!("; {stage}.timeout is {seconds} s: raise it if that is too short");
            }
            self.workspace.lineage.fail(execution, &words)?;
            if error.is_final || attempt >= patience.retries {
                let tries = if attempt > 0 { format!(" (tried {} times)", attempt + 1) } else { String::new() };
                return Ok(Err(words + &tries));
            }
            let wait_ms = patience.backoff_ms.saturating_mul(1 << attempt.min(16)).min(BACKOFF_MS_MAX);
            self.say(Note::Retry { stage, error: words, wait_ms });
            std::thread::sleep(Duration::from_millis(wait_ms));
            if stage != Stage::Train {
                workspace::fresh(&work)?;
            }
        }
        unreachable!("the attempts end with a return")
    }

    fn say(&self, note: Note) {
        (self.tell.borrow_mut())(note);
    }

    fn attempt(
        &self,
        stage: Stage,
        work: &Path,
        program: &Program,
        patience: Patience,
    ) -> std::result::Result<stages::Made, Failure> {
        let place = Place {
            asked: self.asked,
            workspace: &self.workspace,
            known: &self.known,
            work,
            program,
            tell: &|words| self.say(Note::Said { stage, words }),
            until: patience.timeout_s.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
        };
        match stage {
            Stage::Ingest => stages::ingest::run(&place),
            Stage::Train => stages::train::run(&place),
            Stage::Export => stages::export::run(&place),
            Stage::Evaluate => stages::evaluate::run(&place, self.baseline().map_err(Failure::passing)?),
            Stage::Check => stages::check::run(&place),
            Stage::Push => stages::push::run(&place),
        }
    }
}

const BACKOFF_MS_MAX: u64 = 3_600_000;

fn force(flags: &Flags, stage: Stage) -> Force {
    match flags.from {
        _ if flags.no_cache => Force::Because("--no-cache".into()),
        Some(from) if stage >= from => Force::Because(format!("--from {from}")),
        _ => Force::Nothing,
    }
}
