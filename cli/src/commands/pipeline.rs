//! `elastic pipeline`: from a raw file to a published model.

use crate::args::Reach;
use crate::exit::{Exit, Outcome, mistake};
use crate::workspace::{self, look, quoted};
use crate::{job_file, show};
use anyhow::{Context, Result, anyhow};
use clap::{Subcommand, ValueHint};
use elastic_pipeline::cache::{Verdict, Why};
use elastic_pipeline::child::Program;
use elastic_pipeline::lineage::{ExecutionRow, RunRow};
use elastic_pipeline::registry::{Moved, Registry};
use elastic_pipeline::{Asked, Flags, Note};
use elastic_spec::pipeline::{LIVE_LABEL, Stage};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  elastic pipeline run pipeline.toml                   from raw file to published model
  elastic pipeline status pipeline.toml                the newest run, stage by stage
  elastic pipeline rollback registry digits            the version before answers again")]
pub struct Args {
    #[command(subcommand)]
    pub act: Act,
}

#[derive(Debug, Subcommand)]
pub enum Act {
    /// Do what a pipeline file says; what was done before is not done again
    Run(Run),
    /// Show one run of a workspace, stage by stage
    Status(Status),
    /// Show all runs of a workspace
    List(List),
    /// Move a label of a registry to a version
    Label(Label),
    /// Move a label of a registry back: of `live`, the version before answers again
    Rollback(Rollback),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  elastic pipeline run pipeline.toml
  elastic pipeline run pipeline.toml --set push.label=canary
  elastic pipeline run pipeline.toml --explain-cache   what would be done, and why
  elastic pipeline run pipeline.toml --from evaluate   do this stage and those behind it once more

A run that was cut off, also by kill -9, goes on when the same is asked again:
finished stages are not repeated, and training goes on from its newest
checkpoint.

Exit codes: 0 done, 1 a stage failed or the model was not blessed, 2 mistakes in
the pipeline file, in the job file or on the command line (nothing was done).")]
pub struct Run {
    /// The pipeline file
    #[arg(value_name = "PIPELINE_FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Overrule a key of the pipeline file, e.g. push.label=canary (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Take nothing from earlier runs
    #[arg(long)]
    pub no_cache: bool,
    /// Take nothing of this stage, and of those behind it, from earlier runs
    #[arg(long, value_name = "STAGE", value_parser = stage)]
    pub from: Option<Stage>,
    /// Say what would be done and why; do nothing
    #[arg(long)]
    pub explain_cache: bool,
    /// End with one line of JSON on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  elastic pipeline status                                     of the pipeline in this folder
  elastic pipeline status examples/pipeline/digits            the newest run there
  elastic pipeline status digits-3 --json --workspace examples/pipeline/digits

A pipeline's workspace lies beside its file, unless store.workspace says
otherwise. `elastic pipeline run` ends with the command that shows it.")]
pub struct Status {
    /// The run, as `elastic pipeline list` shows it [default: the newest]; or a pipeline file, or its folder
    #[arg(value_name = "RUN|PIPELINE")]
    pub what: Option<String>,
    /// The pipeline file, its folder, or the workspace [default: that of this folder]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub workspace: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  elastic pipeline list
  elastic pipeline list examples/pipeline/digits
  elastic pipeline list --workspace work --json")]
pub struct List {
    /// The pipeline file, or its folder [default: this folder]
    #[arg(value_name = "PIPELINE", value_hint = ValueHint::AnyPath, conflicts_with = "workspace")]
    pub pipeline: Option<PathBuf>,
    /// The same, or the workspace
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub workspace: Option<PathBuf>,
    /// One JSON array on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  elastic pipeline label registry digits live 3")]
pub struct Label {
    /// A folder, or s3://bucket/prefix
    #[arg(value_hint = ValueHint::DirPath)]
    pub registry: String,
    pub model: String,
    pub label: String,
    pub version: u64,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  elastic pipeline rollback registry digits                   to where the label was before
  elastic pipeline rollback registry digits --to 1
  elastic pipeline rollback registry digits --label canary

The version that the label `live` names answers who names neither a version nor
a label. A server on the registry follows within its --poll-ms, and no request
fails. Without --to the label goes to where it was before, never to a version
that it was rolled back from. Later runs of a pipeline do not undo it, unless
they push another model.")]
pub struct Rollback {
    /// A folder, or s3://bucket/prefix
    #[arg(value_hint = ValueHint::DirPath)]
    pub registry: String,
    pub model: String,
    /// Which label
    #[arg(long, value_name = "LABEL", default_value = LIVE_LABEL)]
    pub label: String,
    /// The version to go back to [default: where the label was before]
    #[arg(long, value_name = "VERSION")]
    pub to: Option<u64>,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

fn stage(word: &str) -> Result<Stage, String> {
    let words: Vec<&str> = Stage::ALL.iter().map(|stage| stage.word()).collect();
    Stage::parse(word).ok_or_else(|| format!("there are {}", words.join(", ")))
}

pub fn run(args: Args) -> Outcome {
    match args.act {
        Act::Run(args) => run_pipeline(args),
        Act::Status(args) => status(&args),
        Act::List(args) => list(&args),
        Act::Label(args) => {
            moved(Registry::open(&args.registry)?.label(&args.model, &args.label, args.version)?, args.json)
        }
        Act::Rollback(args) => {
            moved(Registry::open(&args.registry)?.rollback(&args.model, &args.label, args.to)?, args.json)
        }
    }
}

fn run_pipeline(args: Run) -> Outcome {
    let asked = match elastic_pipeline::read(&args.file, &args.set).map_err(mistake)? {
        Ok(asked) => asked,
        Err(mistakes) => {
            mistakes.iter().for_each(|mistake| eprintln!("{mistake}"));
            eprintln!("{}; nothing was done", show::plural(mistakes.len() as u64, "mistake"));
            if args.json {
                show::out(&format!("{}\n", job_file::as_json(&mistakes)))?;
            }
            return Ok(Exit::Mistake);
        }
    };
    asked.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    let flags = Flags { no_cache: args.no_cache, from: args.from };
    if args.explain_cache {
        return explain(&asked, &flags, args.json);
    }
    let elastic = std::env::current_exe().context("find this program, to start stages with")?;
    let program = Program { elastic, reach: reach(&args.reach) };
    let ended = elastic_pipeline::run(&asked, &flags, &program, &mut |note| eprintln!("{}", words(&note)))?;
    let failed = ended.reason.is_some();
    if args.json {
        show::out(&format!("{}\n", serde_json::to_string(&ended).context("the result as JSON")?))?;
    } else if !failed {
        show::out(&ended_words(&asked, &ended))?;
    }
    if let Some(reason) = &ended.reason {
        eprintln!("{} failed: {reason}", ended.run);
        eprintln!("what was done: elastic pipeline status{}", workspace::flag(&asked.spec.store.workspace));
        return Ok(Exit::Failed);
    }
    Ok(Exit::Ok)
}

fn ended_words(asked: &Asked, ended: &elastic_pipeline::Ended) -> String {
    let mut lines = vec![format!("{} is done", ended.run), String::new()];
    lines.extend(ended.content_sha256.as_ref().map(|content| format!("  content SHA-256  {content}")));
    if let (Some(push), Some(pushed)) = (&asked.spec.push, &ended.pushed) {
        lines.push(format!("  published        {}/{}/{}", push.registry, push.model, pushed["version"]));
    }
    let flag = workspace::flag(&asked.spec.store.workspace);
    lines.push(format!("\nLook at it:\n  elastic pipeline status{flag}\n  elastic lineage bundle{flag}"));
    if let Some(push) = &asked.spec.push {
        lines.push(format!("\nServe it:\n  elastic serve {}", quoted(&crate::result::short(&push.registry))));
    }
    lines.join("\n") + "\n"
}

/// Flags for those that are started.
fn reach(reach: &Reach) -> Vec<String> {
    let mut flags = Vec::new();
    let urls: Vec<&str> = reach.coordinator.iter().map(String::as_str).filter(|url| !url.is_empty()).collect();
    if !urls.is_empty() {
        flags.extend(["--coordinator".to_string(), urls.join(",")]);
    }
    let files = [("--token-file", &reach.token_file), ("--tls-ca", &reach.tls_ca)];
    for (flag, file) in files.iter().filter_map(|(flag, file)| Some((flag, file.as_ref()?))) {
        flags.extend([flag.to_string(), file.display().to_string()]);
    }
    flags
}

fn words(note: &Note) -> String {
    match note {
        Note::Begins { run, goes_on: true } => format!("{run} goes on where it was cut off"),
        Note::Begins { run, goes_on: false } => format!("{run} begins"),
        Note::Stage { stage, why } => format!("{stage:<9} runs: {}", reason(why)),
        Note::Reused { stage, run } => format!("{stage:<9} is done already, by {run}"),
        Note::Done { stage, seconds, words } => format!("{stage:<9} {words} ({})", show::span((seconds * 1e3) as u64)),
        Note::Said { stage, words } => format!("{stage:<9} {words}"),
        Note::Retry { stage, error, wait_ms } => {
            format!("{stage:<9} failed, tried again in {}: {error}", show::span(*wait_ms))
        }
    }
}

/// Most differences that are shown of one stage.
const DIFFERENCES_MAX: usize = 5;

fn reason(why: &Why) -> String {
    match why {
        Why::First => "it was never done here".into(),
        Why::Forced(flag) => format!("{flag} asks for it"),
        Why::Lost { run, what } => format!("what {run} made is not whole: {what}"),
        Why::Differs { run, differences } => {
            let shown = differences.iter().take(DIFFERENCES_MAX).cloned().collect::<Vec<_>>().join("; ");
            let more = differences.len().saturating_sub(DIFFERENCES_MAX);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            format!("unlike {run}: {shown}{more}")
        }
    }
}

fn explain(asked: &Asked, flags: &Flags, json: bool) -> Outcome {
    let explained = elastic_pipeline::explain(asked, flags)?;
    let told = |verdict: &Option<Verdict>| match verdict {
        None => ("unknown", "its inputs are made by stages that run".to_string()),
        Some(Verdict::Reuse { run, .. }) => ("cached", format!("done by {run}")),
        Some(Verdict::Run(why)) => ("runs", reason(why)),
    };
    if json {
        let one = |(stage, (verdict, why)): (Stage, (&str, String))| json!({ "stage": stage, "verdict": verdict, "why": why });
        let all: Vec<_> = explained.iter().map(|one| (one.stage, told(&one.verdict))).map(one).collect();
        show::out(&format!("{}\n", json!(all)))?;
        return Ok(Exit::Ok);
    }
    let row = |one: &elastic_pipeline::Explained| {
        let (verdict, why) = told(&one.verdict);
        vec![one.stage.to_string(), verdict.into(), why]
    };
    show::out(&show::table(&["STAGE", "CACHE", "BECAUSE"], &explained.iter().map(row).collect::<Vec<_>>()))?;
    Ok(Exit::Ok)
}

fn status(args: &Status) -> Outcome {
    let (place, name) = match &args.what {
        Some(what) if args.workspace.is_none() && workspace::is_place(what) => (Some(PathBuf::from(what)), None),
        what => (args.workspace.clone(), what.as_ref()),
    };
    let (lineage, dir) = look(place.as_deref())?;
    let runs = lineage.runs()?;
    let found = match name {
        Some(name) => runs.iter().find(|run| run.run == *name),
        None => runs.first(),
    };
    let run = found.ok_or_else(|| {
        let which = name.cloned().unwrap_or_else(|| "run".into());
        let flag = workspace::flag(&dir.display().to_string());
        mistake(anyhow!("there is no {which} in {}; `elastic pipeline list{flag}` shows all", dir.display()))
    })?;
    let executions = lineage.executions_in(&run.run)?;
    if args.json {
        let outputs = |one: &ExecutionRow| -> Result<serde_json::Value> {
            let mut value = serde_json::to_value(one).context("an execution as JSON")?;
            let outputs = lineage.outputs(one.execution)?;
            value["outputs"] = outputs.into_iter().map(|(name, row)| (name, json!(row.digest))).collect();
            value["events"] = json!(lineage.events(one.execution)?);
            Ok(value)
        };
        let mut value = serde_json::to_value(run).context("a run as JSON")?;
        value["executions"] = executions.iter().map(outputs).collect::<Result<Vec<_>>>()?.into();
        show::out(&format!("{value}\n"))?;
        return Ok(Exit::Ok);
    }
    let row = |one: &ExecutionRow| {
        let took = one.ended_unix_ms.map(|end| show::span((end - one.started_unix_ms).max(0) as u64));
        vec![one.stage.clone(), one.state.clone(), one.attempt.to_string(), took.unwrap_or_default(), one.error.clone()]
    };
    let because = if run.reason.is_empty() { String::new() } else { format!(": {}", run.reason) };
    show::out(&format!("{} {}{because}\n\n", run.run, run.state))?;
    show::out(&show::table(
        &["STAGE", "STATE", "ATTEMPT", "TOOK", "ERROR"],
        &executions.iter().map(row).collect::<Vec<_>>(),
    ))?;
    Ok(Exit::Ok)
}

fn list(args: &List) -> Outcome {
    let (lineage, _) = look(args.pipeline.as_deref().or(args.workspace.as_deref()))?;
    let runs = lineage.runs()?;
    if args.json {
        show::out(&format!("{}\n", json!(runs)))?;
        return Ok(Exit::Ok);
    }
    let row = |run: &RunRow| {
        let ago = show::ago(run.started_unix_ms.max(0) as u64);
        vec![run.run.clone(), run.pipeline.clone(), run.state.clone(), ago, run.reason.clone()]
    };
    let rows: Vec<_> = runs.iter().map(row).collect();
    show::out(&show::table(&["RUN", "PIPELINE", "STATE", "BEGAN", "BECAUSE"], &rows))?;
    Ok(Exit::Ok)
}

fn moved(moved: Moved, json: bool) -> Outcome {
    let Moved { model, label, from, to } = &moved;
    match (json, from) {
        (true, _) => show::out(&format!("{}\n", json!(moved)))?,
        (false, Some(from)) => show::out(&format!("{label} of {model}: version {from} -> {to}\n"))?,
        (false, None) => show::out(&format!("{label} of {model}: version {to}\n"))?,
    }
    Ok(Exit::Ok)
}
