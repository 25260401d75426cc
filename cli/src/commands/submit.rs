//! `elastic submit`: from a job file to trained weights, here or on a cluster.

use crate::args;
use crate::cluster::{Inside, NodePlan, Place, Plan, random};
use crate::exit::{Exit, Outcome, mistake};
use crate::follow::Follow;
use crate::job_file::{self, JobFile, Read};
use crate::reach::Cluster;
use crate::result::{Ending, short};
use crate::{inputs, logging, show, signals};
use anyhow::{Context, Result, anyhow};
use elastic_agent::LogsIn;
use elastic_checkpoint::list_in;
use elastic_proto::Refusal;
use elastic_proto::client::Coordinator;
use elastic_spec::api::{JobState, JobStatus, Submit};
use elastic_spec::job::{JobSpec, ModelKind};
use elastic_spec::{JobId, NodeId};
use elastic_worker::bucket::{Bucket, is_bucket};
use elastic_worker::memory::{self, Memory};
use elastic_worker::planned::{self, Planned};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The node of a cluster that runs inside this process.
const LOCAL_NODE: &str = "local";
/// Ctrl-C waits so long for the checkpoint of the step in hand.
const HOLD: Duration = Duration::from_secs(10);

pub async fn run(args: args::Submit) -> Outcome {
    let since = Instant::now();
    let file = match job_file::read(&args.file, &args.set, args.workers)? {
        Read::Good(file) => *file,
        Read::Bad(mistakes) => {
            mistakes.iter().for_each(|mistake| eprintln!("{mistake}"));
            let count = show::plural(mistakes.len() as u64, "mistake");
            eprintln!("{} has {count}; nothing was submitted", args.file.display());
            if args.json {
                show::out(&format!("{}\n", job_file::as_json(&mistakes)))?;
            }
            return Ok(Exit::Mistake);
        }
    };
    file.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    if args.dry_run {
        match args.json {
            true => show::out(&format!("{}\n", file.spec.canonical_json()))?,
            false => show::out(&file.spec.to_toml_resolved())?,
        }
        // The inputs of a job for a cluster need not be here; then nothing is known of its size.
        match planned(&file.spec) {
            Ok(Some(planned)) => {
                eprintln!("{}", memory_of_each(&planned.memory));
                check_names(&planned)?;
            }
            Ok(None) => {}
            Err(why) => eprintln!("planned memory is not known: {why:#}"),
        }
        return Ok(Exit::Ok);
    }
    let resume = args.resume.as_deref().map(run_name).transpose()?;
    let cluster = if args.local { None } else { Cluster::find(&args.reach)? };
    match cluster {
        Some(cluster) => on_cluster(&args, file, resume, cluster, since).await,
        None => here(&args, file, resume, since).await,
    }
}

/// A run is named, or pointed to by its directory.
fn run_name(text: &str) -> Result<JobId> {
    let name = Path::new(text).file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    JobId::parse(&name).context("--resume").map_err(mistake)
}

async fn here(args: &args::Submit, mut file: JobFile, resume: Option<JobId>, since: Instant) -> Outcome {
    if args.detach {
        let why =
            "--detach needs a cluster that stays: name one with --coordinator URL, or start one with `elastic dev`";
        return Err(mistake(anyhow!(why)).into());
    }
    elastic_worker::device::check(file.spec.resources.device).map_err(|why| mistake(anyhow!(why)))?;
    inputs::find_here(&mut file.spec)?;
    // What is wrong with model and data together, a worker tells.
    if let Ok(Some(planned)) = planned(&file.spec) {
        check_names(&planned)?;
        let memory = planned.memory;
        let fits = memory.check(slots(args, &file.spec), memory::room(), &file.spec);
        fits.map_err(|why| mistake(anyhow!(why)).context("not enough memory"))?;
        eprintln!("{}", memory_of_each(&memory));
    }
    let _lock =
        resume.as_ref().map(|run| take_run(&args.runs, run, file.spec.checkpoint.dir.as_deref())).transpose()?;
    let place = Place::make(&args.runs)?;
    logging::to_file(&place.path().join("elastic.log"))?;
    let outcome = in_place(args, &file, resume, since, &place).await;
    place.remove();
    Ok(outcome?)
}

/// What a worker will hold; None of a model of the user's own, which only its program knows.
fn planned(spec: &JobSpec) -> Result<Option<Planned>> {
    planned::planned(spec, &|path| PathBuf::from(path))
}

fn check_names(planned: &Planned) -> Result<()> {
    planned.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    planned.names.clone().map_err(|why| mistake(anyhow!(why)))
}

fn memory_of_each(memory: &Memory) -> String {
    format!("planned memory of a worker, besides the data: {}", memory.words())
}

/// A run to go on with: nobody else trains it as long as the returned file is open.
///
/// One whose checkpoints lie in a bucket may have been trained elsewhere.
fn take_run(runs: &Path, run: &JobId, checkpoints: Option<&str>) -> Result<File> {
    let dir = runs.join(run.as_str());
    if let Some(place) = checkpoints.filter(|place| is_bucket(place) && !dir.is_dir()) {
        let address = format!("{place}/{run}");
        let (bucket, path) = Bucket::open(&address).map_err(|error| mistake(anyhow::Error::new(error)))?;
        if list_in(&bucket, &path).context("--resume")?.is_empty() {
            return Err(mistake(anyhow!(
                "--resume {run}: there is no checkpoint at {address}, and no {}",
                dir.display()
            )));
        }
        std::fs::create_dir_all(&dir).with_context(|| format!("make the run directory {}", dir.display()))?;
    }
    if !dir.is_dir() {
        return Err(mistake(anyhow!("--resume {run}: there is no {}", dir.display())));
    }
    let lock = lock(&dir)?;
    lock.ok_or_else(|| mistake(anyhow!("--resume {run}: another process trains this run; wait for it, or stop it")))
}

/// Two clusters on one run would write the same files. The directory itself is locked, so nothing is left behind.
/// None: another process has it.
fn lock(run_dir: &Path) -> Result<Option<File>> {
    let dir = File::open(run_dir).with_context(|| format!("open {}", run_dir.display()))?;
    match dir.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(None),
        // Some file systems have no locks; a run on one is as it was without.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(dir)),
    }
}

async fn in_place(
    args: &args::Submit,
    file: &JobFile,
    resume: Option<JobId>,
    since: Instant,
    place: &Place,
) -> Result<Exit> {
    let plan = Plan {
        listen: "127.0.0.1:0".into(),
        http: None,
        dir: place.path().to_path_buf(),
        runs: args.runs.clone(),
        nodes: vec![NodePlan { name: LOCAL_NODE.into(), slots: slots(args, &file.spec), meet_at: None }],
        logs: LogsIn::Run,
        token: Some(format!("{:016x}{:016x}", random()?, random()?)),
    };
    let mut inside = Inside::start(plan).await?;
    let cluster = Cluster { urls: vec![inside.url.clone()], credentials: inside.credentials.clone() };
    let interrupted = signals::interrupted();
    tokio::pin!(interrupted);
    let coordinator = tokio::select! {
        coordinator = cluster.connect_when_up() => coordinator?,
        error = inside.broke() => return Err(error),
    };
    let submit = Submit { spec_json: file.spec.canonical_json(), blobs: vec![], resume };
    let job = coordinator.submit(submit).await.context("submit")?;
    let mut follow = Follow::new(cluster, job.clone(), since);
    let run_dir = PathBuf::from(coordinator.status(&job).await?.run_dir);
    keep_job_file(&run_dir, file)?;
    // That of a run that is resumed is locked already.
    let _lock = lock(&run_dir)?;
    let mut was_interrupted = false;
    let status = tokio::select! {
        status = follow.until_end(&coordinator) => status?,
        error = inside.broke() => return Err(error),
        () = &mut interrupted => {
            was_interrupted = true;
            follow.progress.say("stopping (Ctrl-C again stops at once) …");
            // A second one must not wait for anything.
            tokio::spawn(async { signals::interrupted().await; std::process::exit(Exit::Interrupted.code().into()) });
            publish_what_is_held(&coordinator, &job).await;
            cancel(&coordinator, &job, &mut follow).await?
        }
    };
    inside.stop().await;
    keep_log(place, &run_dir);
    let ending =
        Ending { status: &status, took_ms: since.elapsed().as_millis() as u64, first_step_ms: follow.first_step_ms };
    ending.keep();
    tell(args, &ending)?;
    export_asked(args, &status)?;
    if status.state != JobState::Succeeded {
        eprintln!("{}", how_to_go_on(args, &status));
    }
    Ok(if was_interrupted { Exit::Interrupted } else { ending.exit() })
}

/// Drains the one node, so that no step is lost: the workers stop where they are and a checkpoint is written.
/// What does not come to its end in time is given up; older checkpoints are there.
async fn publish_what_is_held(coordinator: &Coordinator, job: &JobId) {
    let until = tokio::time::Instant::now() + HOLD;
    let Ok(local) = NodeId::parse(LOCAL_NODE) else { return };
    if coordinator.drain(&local).await.is_err() {
        return;
    }
    while tokio::time::Instant::now() < until {
        match coordinator.status(job).await {
            Ok(status) if status.state.is_over() || status.members.is_empty() => return,
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(_) => return,
        }
    }
}

async fn cancel(coordinator: &Coordinator, job: &JobId, follow: &mut Follow) -> Result<JobStatus> {
    match coordinator.cancel(job).await {
        // It was over before.
        Err(Refusal::NotNow(_)) | Ok(()) => {}
        Err(refusal) => return Err(refusal).context("cancel the job"),
    }
    follow.until_end(coordinator).await
}

/// Worker processes on this machine: as asked, else as many as the job may have and there are cores.
fn slots(args: &args::Submit, spec: &JobSpec) -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get()) as u16;
    args.workers.unwrap_or_else(|| spec.elastic.max_workers.min(cores).max(spec.elastic.min_workers))
}

/// What was asked for stays beside what came of it.
fn keep_job_file(run_dir: &Path, file: &JobFile) -> Result<()> {
    std::fs::create_dir_all(run_dir).with_context(|| format!("make the run directory {}", run_dir.display()))?;
    let kept = [("job.toml", &file.text), ("resolved.toml", &file.spec.to_toml_resolved())];
    kept.iter().try_for_each(|(name, text)| {
        let path = run_dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    })
}

fn keep_log(place: &Place, run_dir: &Path) {
    let logs = run_dir.join("logs");
    let _ = std::fs::create_dir_all(&logs);
    let _ = std::fs::copy(place.path().join("elastic.log"), logs.join("elastic.log"));
}

fn how_to_go_on(args: &args::Submit, status: &JobStatus) -> String {
    let logs = short(&Path::new(&status.run_dir).join("logs").display().to_string());
    let again = command_to_resume(args, status);
    match (&status.state, &status.published) {
        (JobState::Failed, _) => {
            format!("\nWhat the workers printed is in {logs}. When the cause is mended:\n  {again}")
        }
        (_, Some(published)) => format!("\nGo on from the checkpoint of step {}:\n  {again}", published.step),
        (_, None) => format!("\nNo checkpoint was written yet, so this begins anew in the same directory:\n  {again}"),
    }
}

/// The same command with `--resume`: what was laid over the job file is part of the job.
fn command_to_resume(args: &args::Submit, status: &JobStatus) -> String {
    let run = Path::new(&status.run_dir).file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let mut words = vec!["elastic".to_string(), "submit".into(), args.file.display().to_string()];
    args.set.iter().for_each(|set| words.extend(["--set".into(), set.clone()]));
    words.extend(args.workers.iter().flat_map(|workers| ["--workers".to_string(), workers.to_string()]));
    if args.runs != Path::new("runs") {
        words.extend(["--runs".into(), args.runs.display().to_string()]);
    }
    words.extend(["--resume".into(), run.into_owned()]);
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// As a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// `--export`: what succeeded becomes the next version of its model.
fn export_asked(args: &args::Submit, status: &JobStatus) -> Result<()> {
    let Some(registry) = args.export.as_ref().filter(|_| status.state == JobState::Succeeded) else { return Ok(()) };
    // What lies in a bucket is read there: nodes need not share the directory.
    let published = status.published.as_ref().map(|published| published.path.as_str());
    let run = Path::new(published.filter(|path| is_bucket(path)).unwrap_or(&status.run_dir));
    if !run.is_dir() && !run.to_str().is_some_and(is_bucket) {
        let why = "is not on this machine; run `elastic export` where it is";
        return Err(anyhow!("--export: the run directory {} {why}", run.display()));
    }
    super::export::as_next_version(run, registry)
}

fn tell(args: &args::Submit, ending: &Ending<'_>) -> Result<()> {
    match args.json {
        true => {
            show::out(&format!("{}\n", serde_json::to_string(&ending.line()).context("write the result as JSON")?))?
        }
        false => show::out(&ending.words())?,
    }
    Ok(())
}

async fn on_cluster(
    args: &args::Submit,
    file: JobFile,
    resume: Option<JobId>,
    cluster: Cluster,
    since: Instant,
) -> Outcome {
    let mut spec = file.spec;
    let found = inputs::find(&spec)?;
    inputs::fix_digest(&mut spec, &found)?;
    // What is only on the nodes cannot be asked about here.
    if let (true, Ok(Some(planned))) = (found.iter().all(|input| input.bytes.is_some()), planned(&spec)) {
        check_names(&planned)?;
        eprintln!("{}", memory_of_each(&planned.memory));
    }
    let coordinator = cluster.connect().await?;
    let blobs = inputs::upload(&coordinator, found, |line| eprintln!("{line}")).await?;
    if let ModelKind::Own { program, .. } = &spec.model.kind {
        eprintln!("model.program: {program} is started on the nodes: it must be there, and agents must allow programs");
    }
    if let Some(run) = &resume
        && let Err(Refusal::NotFound(_)) = coordinator.status(run).await
    {
        // The coordinator may be a new one, and need not see the directory: only the nodes can tell.
        eprintln!("warning: --resume {run}: no such job is known here; without a checkpoint of it the run begins anew");
    }
    let submit = Submit { spec_json: spec.canonical_json(), blobs, resume };
    let job = coordinator.submit(submit).await.context("submit")?;
    if args.detach {
        match args.json {
            true => show::out(&format!("{}\n", serde_json::json!({ "job": job })))?,
            false => show::out(&format!("{job}\n"))?,
        }
        return Ok(Exit::Ok);
    }
    let mut follow = Follow::new(cluster, job.clone(), since);
    follow.progress.say(&format!("submitted as {job}"));
    let status = tokio::select! {
        status = follow.until_end(&coordinator) => status?,
        () = signals::interrupted() => {
            follow.progress.finish();
            eprintln!("{job} goes on. `elastic status {job}` shows it, `elastic cancel {job}` stops it.");
            return Ok(Exit::Interrupted);
        }
    };
    let ending =
        Ending { status: &status, took_ms: since.elapsed().as_millis() as u64, first_step_ms: follow.first_step_ms };
    tell(args, &ending)?;
    export_asked(args, &status)?;
    if status.state == JobState::Failed {
        eprintln!("\nWhat the workers printed: elastic logs {job}");
    }
    Ok(ending.exit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_where_a_shell_would_change_it() {
        for (word, expected) in [("train.lr=0.1", "train.lr=0.1"), ("a b", "'a b'"), ("it's", "'it'\\''s'"), ("", "''")]
        {
            assert_eq!(quoted(word), expected);
        }
    }

    #[test]
    fn a_run_that_is_being_trained_is_not_taken_by_another() {
        let runs = tempfile::tempdir().unwrap();
        let run = JobId::parse("digits-1").unwrap();
        assert!(take_run(runs.path(), &run, None).is_err(), "there is none yet");
        std::fs::create_dir(runs.path().join("digits-1")).unwrap();
        let first = take_run(runs.path(), &run, None).unwrap();
        let refused = take_run(runs.path(), &run, None).unwrap_err();
        assert!(refused.to_string().contains("another process trains this run"), "{refused}");
        drop(first);
        assert!(take_run(runs.path(), &run, None).is_ok());
    }

    #[test]
    fn a_run_is_named_or_pointed_to() {
        assert_eq!(run_name("digits-1").unwrap(), run_name("runs/digits-1/").unwrap());
        assert!(run_name("..").is_err());
    }
}
