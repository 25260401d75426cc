//! `elastic run`: any command on any number of nodes, with the flags and the variables of PyTorch's `torchrun`.
//!
//! Without a coordinator a cluster of one node runs inside this process, as for `elastic submit`. What the processes
//! print is printed here, and the exit code is the one that the root cause of a failure ended with.

mod hand_up;

use crate::args::Reach;
use crate::cluster::{Inside, NodePlan, Place, Plan, random};
use crate::exit::{Exit, Outcome, mistake};
use crate::reach::Cluster;
use crate::{logging, show};
use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueHint};
use elastic_agent::LogsIn;
use elastic_proto::Refusal;
use elastic_proto::client::Coordinator;
use elastic_spec::JobId;
use elastic_spec::api::{JobState, JobStatus, LogPiece, LogsQuery, Submit};
use elastic_spec::job::{CommandSpec, ElasticSpec, JobSpec, Reduce};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_stream::StreamExt;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic run --nproc-per-node 2 train.py --lr 0.1            two processes here
  elastic run --nnodes 1:4 --nproc-per-node 2 train.py        on a cluster's nodes, as they come and go
  elastic run --nproc-per-node 2 -- python3 -u train.py       the same, with the program named
  elastic run -m package.train --epochs 3                     a module of Python
  elastic run --no-python ./train.sh
  elastic run --nnodes 2 --detach train.py && elastic logs -f JOB

A first word that ends in .py is started as `python3 -u SCRIPT` (PYTHON_EXEC names
another Python), any other word as the program that it is. Arguments are handed on
as they are. Dashes and underscores in the names of flags are the same.

Where no coordinator is named, one node runs inside this process. A cluster takes
commands if its coordinator has --allow-commands and its agents --allow-programs.

Exit codes: 0 all processes ended with 0; else the code of the process that failed
first, 128 and the number of a signal that killed it; 1 no process was the cause;
2 mistakes on the command line; 3 coordinator not reached; 4 cancelled; 130 and
143 interrupted by SIGINT and SIGTERM.")]
pub struct Run {
    /// Nodes: N, or MIN:MAX for a job that goes on while nodes come and go
    #[arg(long, value_name = "N|MIN:MAX", env = "PET_NNODES", default_value = "1:1")]
    pub nnodes: String,
    /// Processes on each node: a number, gpu (one for each of this machine's), cpu, or auto
    #[arg(long, alias = "nproc_per_node", value_name = "N", env = "PET_NPROC_PER_NODE", default_value = "1")]
    pub nproc_per_node: String,
    /// Failures of processes after which a new generation begins; nodes that come and go cost nothing
    #[arg(long, alias = "max_restarts", value_name = "N", env = "PET_MAX_RESTARTS", default_value_t = 0)]
    pub max_restarts: u32,
    /// Run here even if a coordinator is configured
    #[arg(long)]
    pub standalone: bool,
    /// The first word is a module of Python
    #[arg(short, long, conflicts_with = "no_python")]
    pub module: bool,
    /// The first word is a program, whatever it is called
    #[arg(long, alias = "no_python")]
    pub no_python: bool,
    /// Keep stdout, stderr and error file of each process here, by generation and rank
    #[arg(long, alias = "log_dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub log_dir: Option<PathBuf>,
    /// Give the processes a variable (repeatable)
    #[arg(long = "env", value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// From SIGTERM to SIGKILL when a generation ends, in seconds
    #[arg(long, alias = "shutdown_timeout", value_name = "SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub shutdown_timeout: u32,
    /// What the job is called [default: as the script]
    #[arg(long)]
    pub name: Option<String>,
    /// Return once the job is submitted
    #[arg(long)]
    pub detach: bool,
    /// End with one line of JSON on stdout
    #[arg(long)]
    pub json: bool,
    /// Directory of the runs, where the logs are kept when it runs here
    #[arg(long, value_name = "DIR", default_value = "runs", value_hint = ValueHint::DirPath)]
    pub runs: PathBuf,
    #[command(flatten)]
    pub reach: Reach,
    #[command(flatten)]
    pub torch: TorchFlags,
    /// The script or program, and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Flags of torchrun that mean nothing here: nodes meet through the coordinator.
#[derive(Debug, Default, Args)]
pub struct TorchFlags {
    #[arg(long, alias = "rdzv_backend", hide = true)]
    rdzv_backend: Option<String>,
    #[arg(long, alias = "rdzv_endpoint", hide = true)]
    rdzv_endpoint: Option<String>,
    #[arg(long, alias = "rdzv_id", hide = true)]
    rdzv_id: Option<String>,
    #[arg(long, alias = "rdzv_conf", hide = true)]
    rdzv_conf: Option<String>,
    #[arg(long, alias = "node_rank", hide = true)]
    node_rank: Option<String>,
    #[arg(long, alias = "master_addr", hide = true)]
    master_addr: Option<String>,
    #[arg(long, alias = "master_port", hide = true)]
    master_port: Option<String>,
    #[arg(long, alias = "monitor_interval", hide = true)]
    monitor_interval: Option<String>,
    #[arg(long, alias = "start_method", hide = true)]
    start_method: Option<String>,
    #[arg(long, hide = true)]
    role: Option<String>,
    #[arg(short, long, hide = true)]
    redirects: Option<String>,
    #[arg(short, long, hide = true)]
    tee: Option<String>,
}

impl TorchFlags {
    fn given(&self) -> Vec<&'static str> {
        let all = [
            ("--rdzv-backend", &self.rdzv_backend),
            ("--rdzv-endpoint", &self.rdzv_endpoint),
            ("--rdzv-id", &self.rdzv_id),
            ("--rdzv-conf", &self.rdzv_conf),
            ("--node-rank", &self.node_rank),
            ("--master-addr", &self.master_addr),
            ("--master-port", &self.master_port),
            ("--monitor-interval", &self.monitor_interval),
            ("--start-method", &self.start_method),
            ("--role", &self.role),
            ("--redirects", &self.redirects),
            ("--tee", &self.tee),
        ];
        all.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| *name).collect()
    }
}

/// The node of a cluster that runs inside this process.
const LOCAL_NODE: &str = "local";
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A coordinator that is away is asked again after.
const AGAIN_EVERY: Duration = Duration::from_millis(500);
/// A job that does not start says why after this.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the processes print last may take so long to arrive.
const LAST_LINES: Duration = Duration::from_secs(12);

pub async fn run(args: Run) -> Outcome {
    let spec = spec(&args).map_err(mistake)?;
    let cluster = if args.standalone { None } else { Cluster::find(&args.reach)? };
    let ignored = args.torch.given();
    if !ignored.is_empty() {
        eprintln!("elastic: {} mean nothing here: nodes meet through the coordinator", ignored.join(", "));
    }
    match cluster {
        Some(cluster) => on_cluster(&args, spec, cluster).await,
        None => here(&args, spec).await,
    }
}

fn spec(args: &Run) -> Result<JobSpec> {
    let (min_workers, max_workers) = nodes(&args.nnodes)?;
    let folder = std::env::current_dir().context("find the current folder")?;
    let whole = |path: &Path| {
        let path = std::path::absolute(path).with_context(|| format!("find {}", path.display()))?;
        path.into_os_string().into_string().map_err(|path| anyhow!("{} is no UTF-8", path.display()))
    };
    let command = CommandSpec {
        run: words(args),
        processes: processes(&args.nproc_per_node)?,
        folder: whole(&folder)?,
        env: args.env.iter().map(|text| variable(text)).collect::<Result<BTreeMap<_, _>>>()?,
        grace_s: args.shutdown_timeout,
        log_dir: args.log_dir.as_deref().map(whole).transpose()?,
    };
    let elastic = ElasticSpec { min_workers, max_workers, reduce: Reduce::Exact, restarts: args.max_restarts };
    let name = args.name.clone().unwrap_or_else(|| name_of(&args.command));
    let spec = JobSpec::of_command(name, command, elastic);
    // The same door as a job file's.
    JobSpec::from_json(&spec.canonical_json()).map_err(anyhow::Error::msg)
}

/// `3`, or `1:4`.
fn nodes(text: &str) -> Result<(u16, u16)> {
    let (min, max) = text.split_once(':').unwrap_or((text, text));
    match (min.parse(), max.parse()) {
        (Ok(min), Ok(max)) if 1 <= min && min <= max => Ok((min, max)),
        _ => bail!("--nnodes {text}: a number of nodes, or MIN:MAX, is meant"),
    }
}

fn processes(text: &str) -> Result<u16> {
    let cpus = || std::thread::available_parallelism().map_or(1, |n| n.get()) as u16;
    match (text, text.parse::<u16>()) {
        (_, Ok(count)) if count > 0 => Ok(count),
        ("cpu", _) => Ok(cpus()),
        ("gpu", _) if gpus() == 0 => bail!("--nproc-per-node gpu: this machine has none; `elastic devices` says why"),
        ("gpu", _) => Ok(gpus()),
        ("auto", _) => Ok(if gpus() > 0 { gpus() } else { cpus() }),
        _ => bail!("--nproc-per-node {text}: allowed are a number from 1 up, gpu, cpu and auto"),
    }
}

fn gpus() -> u16 {
    let libraries = elastic_cuda::libs::Libraries::open();
    let gpus = libraries.driver.as_ref().ok().and_then(|driver| elastic_cuda::device::all(driver).ok());
    gpus.map_or(0, |gpus| gpus.len() as u16)
}

fn variable(text: &str) -> Result<(String, String)> {
    let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = parts.with_context(|| format!("--env {text}: KEY=VALUE is meant"))?;
    Ok((name.to_string(), value.to_string()))
}

/// What is started: Python for scripts and modules.
fn words(args: &Run) -> Vec<String> {
    let is_script = args.command.first().is_some_and(|first| first.ends_with(".py"));
    let python = std::env::var("PYTHON_EXEC").ok().filter(|python| !python.is_empty());
    let mut words = Vec::new();
    if args.module || (is_script && !args.no_python) {
        words.extend([python.unwrap_or_else(|| "python3".into()), "-u".into()]);
        words.extend(args.module.then(|| "-m".into()));
    }
    words.extend(args.command.iter().cloned());
    words
}

/// As the script is called, in the letters that a job may have: the first word that names a file of Python, else the program.
fn name_of(command: &[String]) -> String {
    let script = command.iter().find(|word| word.ends_with(".py")).or(command.first());
    let stem = script.and_then(|word| Path::new(word).file_stem()).map(|stem| stem.to_string_lossy().to_lowercase());
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let name: String = stem.unwrap_or_default().chars().map(plain).take(40).collect();
    match name.trim_matches('-') {
        "" => "command".to_string(),
        name => name.to_string(),
    }
}

async fn here(args: &Run, mut spec: JobSpec) -> Outcome {
    if args.detach {
        let why =
            "--detach needs a cluster that stays: name one with --coordinator URL, or start one with `elastic dev`";
        return Err(mistake(anyhow!(why)).into());
    }
    if spec.elastic.min_workers > 1 {
        let why = "needs several nodes, and here is one: name a cluster with --coordinator URL";
        return Err(mistake(anyhow!("--nnodes {}: {why}", args.nnodes)).into());
    }
    spec.elastic.max_workers = 1;
    let place = Place::make(&args.runs)?;
    logging::to_file(&place.path().join("elastic.log"))?;
    let ended = in_place(args, &spec, &place).await;
    place.remove();
    Ok(ended?)
}

async fn in_place(args: &Run, spec: &JobSpec, place: &Place) -> Result<Exit> {
    let mut stops = Stops::new()?;
    let plan = Plan {
        listen: "127.0.0.1:0".into(),
        http: None,
        dir: place.path().to_path_buf(),
        runs: args.runs.clone(),
        nodes: vec![NodePlan { name: LOCAL_NODE.into(), slots: 1 }],
        logs: LogsIn::Run,
        token: Some(format!("{:016x}{:016x}", random()?, random()?)),
    };
    let mut inside = Inside::start(plan).await?;
    let cluster = Cluster { urls: vec![inside.url.clone()], credentials: inside.credentials.clone() };
    let coordinator = cluster.connect_when_up().await?;
    let job = submit(&coordinator, spec).await?;
    let mut watch = Watch::start(cluster, &coordinator, job.clone()).await?;
    let mut stopped = None;
    let status = tokio::select! {
        status = watch.until_end(&coordinator) => status?,
        error = inside.broke() => return Err(error),
        exit = stops.next() => {
            stopped = Some(exit);
            match coordinator.cancel(&job).await {
                // It was over before.
                Err(Refusal::NotNow(_)) | Ok(()) => {}
                Err(refusal) => return Err(refusal).context("cancel the job"),
            }
            // A second signal waits for nothing: the workers end when this process has.
            tokio::spawn(async move { std::process::exit(stops.next().await.code().into()) });
            watch.until_end(&coordinator).await?
        }
    };
    watch.last_lines().await;
    inside.stop().await;
    tell(args, &status)?;
    Ok(stopped.unwrap_or_else(|| exit_of(&status)))
}

async fn on_cluster(args: &Run, spec: JobSpec, cluster: Cluster) -> Outcome {
    let mut stops = Stops::new()?;
    let coordinator = cluster.connect().await?;
    let job = submit(&coordinator, &spec).await?;
    if args.detach {
        match args.json {
            true => show::out(&format!("{}\n", serde_json::json!({ "job": job })))?,
            false => show::out(&format!("{job}\n"))?,
        }
        return Ok(Exit::Ok);
    }
    eprintln!("elastic: submitted as {job}");
    let mut watch = Watch::start(cluster, &coordinator, job.clone()).await?;
    let status = tokio::select! {
        status = watch.until_end(&coordinator) => status?,
        exit = stops.next() => {
            eprintln!("\nelastic: {job} goes on. `elastic logs -f {job}` shows it, `elastic cancel {job}` stops it.");
            return Ok(exit);
        }
    };
    watch.last_lines().await;
    tell(args, &status)?;
    Ok(exit_of(&status))
}

async fn submit(coordinator: &Coordinator, spec: &JobSpec) -> Result<JobId> {
    let submit = Submit { spec_json: spec.canonical_json(), blobs: vec![], resume: None };
    coordinator.submit(submit).await.context("submit")
}

pub fn exit_of(status: &JobStatus) -> Exit {
    match (status.state, status.exit_code) {
        (JobState::Succeeded, _) => Exit::Ok,
        (JobState::Cancelled, _) => Exit::Cancelled,
        (_, Some(code)) => Exit::Of(code),
        (_, None) => Exit::Failed,
    }
}

fn tell(args: &Run, status: &JobStatus) -> Result<()> {
    let (job, state, reason) = (&status.job, status.state.as_str(), &status.reason);
    eprintln!("elastic: {job} {state}: {reason}");
    if status.state == JobState::Failed {
        let logs = Path::new(&status.run_dir).join("logs");
        match logs.is_dir() {
            true => eprintln!("elastic: all that was printed: {}", crate::result::short(&logs.display().to_string())),
            false => eprintln!("elastic: all that was printed: elastic logs {job}"),
        }
        hand_up::error_file(status, exit_of(status).code());
    }
    if args.json {
        let line = serde_json::json!({
            "job": job,
            "state": state,
            "exit_code": exit_of(status).code(),
            "reason": reason,
            "generations": status.views,
            "restarts": status.restarts,
            "run_dir": status.run_dir,
        });
        show::out(&format!("{line}\n"))?;
    }
    Ok(())
}

/// SIGINT and SIGTERM.
struct Stops {
    interrupt: Signal,
    terminate: Signal,
}

impl Stops {
    fn new() -> Result<Stops> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Stops { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// The next of them, and what to end with.
    async fn next(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Of(143),
        }
    }
}

/// Follows a job: what it prints, and what becomes of it.
struct Watch {
    cluster: Cluster,
    job: JobId,
    lines: tokio::task::JoinHandle<()>,
    since: Instant,
    said: (String, Option<elastic_spec::api::Fault>),
}

impl Watch {
    async fn start(cluster: Cluster, coordinator: &Coordinator, job: JobId) -> Result<Watch> {
        let lines = tokio::spawn(print(cluster.clone(), coordinator.clone(), job.clone()));
        Ok(Watch { cluster, job, lines, since: Instant::now(), said: Default::default() })
    }

    /// A coordinator that is away is waited for.
    async fn until_end(&mut self, coordinator: &Coordinator) -> Result<JobStatus> {
        let mut coordinator = coordinator.clone();
        loop {
            match coordinator.status(&self.job).await {
                Ok(status) if status.state.is_over() => return Ok(status),
                Ok(status) => self.say(&status),
                Err(refusal) if refusal.is_passing() => {
                    if let Ok(found) = self.cluster.connect().await {
                        coordinator = found;
                    }
                    tokio::time::sleep(AGAIN_EVERY).await;
                }
                Err(refusal) => return Err(refusal).context("ask for the job"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Only changes, each once.
    fn say(&mut self, status: &JobStatus) {
        if status.last_fault != self.said.1 {
            self.said.1 = status.last_fault.clone();
            if let Some(fault) = &status.last_fault {
                eprintln!("elastic: {}: {}", fault.node, fault.cause);
            }
        }
        let waits = status.state != JobState::Running;
        let is_soon = status.state == JobState::Pending && self.since.elapsed() < PATIENCE;
        if waits && !is_soon && status.reason != self.said.0 {
            eprintln!("elastic: {}: {}", status.state.as_str(), status.reason);
        }
        self.said.0.clone_from(&status.reason);
    }

    async fn last_lines(&mut self) {
        if tokio::time::timeout(LAST_LINES, &mut self.lines).await.is_err() {
            self.lines.abort();
        }
    }
}

/// Prints what the processes print, as they print it.
async fn print(cluster: Cluster, coordinator: Coordinator, job: JobId) {
    let mut coordinator = coordinator;
    let mut skip: BTreeMap<(String, u16), u64> = BTreeMap::new();
    loop {
        match follow(&coordinator, &job, &mut skip).await {
            Ok(()) => return,
            // Away, or another leads: what was printed already is not printed again.
            Err(_) => tokio::time::sleep(AGAIN_EVERY).await,
        }
        if let Ok(found) = cluster.connect().await {
            coordinator = found;
        }
    }
}

/// Until the job is over. `printed` counts the bytes of each node's slot.
async fn follow(coordinator: &Coordinator, job: &JobId, printed: &mut BTreeMap<(String, u16), u64>) -> Result<()> {
    let query = LogsQuery { job: job.clone(), rank: None, gen_: None, follow: true };
    let mut pieces = coordinator.logs(query).await.context("ask for the logs")?;
    let mut open: BTreeMap<(String, u16), Vec<u8>> = BTreeMap::new();
    let mut again = printed.clone();
    while let Some(piece) = pieces.next().await {
        match piece.context("read the logs")? {
            LogPiece::Missing { node, why } => eprintln!("elastic: logs of {node} are missing: {why}"),
            LogPiece::Text { node, slot, text, .. } => {
                let place = (node.to_string(), slot);
                let known = again.entry(place.clone()).or_default();
                let old = (*known).min(text.len() as u64) as usize;
                *known -= old as u64;
                *printed.entry(place.clone()).or_default() += (text.len() - old) as u64;
                let line = open.entry(place).or_default();
                line.extend_from_slice(&text[old..]);
                let whole = line.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
                let lines: Vec<u8> = line.drain(..whole).collect();
                lines.split_inclusive(|b| *b == b'\n').for_each(put);
            }
        }
    }
    open.values().filter(|line| !line.is_empty()).for_each(|line| put(line));
    Ok(())
}

/// The processes' lines to stdout, our own to stderr.
fn put(line: &[u8]) {
    let written = match line.starts_with(b"elastic: ") || line.starts_with(b"worker: ") {
        true => std::io::stderr().write_all(line),
        false => std::io::stdout().lock().write_all(line).and_then(|()| std::io::stdout().flush()),
    };
    // `elastic run … | head` has seen enough; the job goes on to its end.
    let _ = written;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_a_number_or_a_range() {
        assert_eq!(nodes("3").unwrap(), (3, 3));
        assert_eq!(nodes("1:4").unwrap(), (1, 4));
        for bad in ["0", "4:1", "a", "1:", ""] {
            assert!(nodes(bad).unwrap_err().to_string().contains("MIN:MAX"), "{bad}");
        }
    }

    #[test]
    fn a_job_is_called_like_its_script() {
        let name = |words: &[&str]| name_of(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>());
        assert_eq!(name(&["python3", "-u", "dir/Train_DDP.py", "--x"]), "train-ddp");
        assert_eq!(name(&["./run.sh"]), "run");
        assert_eq!(name(&["--"]), "command");
    }
}
