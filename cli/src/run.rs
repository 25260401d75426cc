//! `elastic run`: any command on any number of nodes, with the flags and the variables of PyTorch's `torchrun`.
//!
//! Without a coordinator a cluster of one node runs inside this process, as for `elastic submit`. What the processes
//! print is printed here, and the exit code is the one that the root cause of a failure ended with.

mod hand_up;
mod stops;
mod torchrun;

use crate::args::Reach;
use crate::cluster::{Inside, NodePlan, Place, Plan, random};
use crate::exit::{Exit, Outcome, mistake};
use crate::reach::Cluster;
use crate::{logging, show};
use anyhow::{Context, Result, anyhow, bail};
use clap::builder::FalseyValueParser;
use clap::{Args, ValueHint};
use elastic_agent::LogsIn;
use elastic_proto::Refusal;
use elastic_proto::client::Coordinator;
use elastic_spec::JobId;
use elastic_spec::api::{JobState, JobStatus, LogPiece, LogsQuery, Submit};
use elastic_spec::job::{CommandSpec, ElasticSpec, JobSpec, ROLE, Redirects, Reduce};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use stops::Stops;
use tokio_stream::StreamExt;
use torchrun::TorchFlags;

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
as they are. Dashes and underscores in the names of flags are the same. A flag of
torchrun can be given as a variable, too: PET_NNODES=1:4. Those that change
nothing here are taken and say why.

Where no coordinator is named, one node runs inside this process. A cluster takes
commands if its coordinator has --allow-commands and its agents --allow-programs.

Exit codes: 0 all processes ended with 0; else the code of the process that failed
first, 128 and the number of a signal that killed it; 1 no process was the cause;
2 mistakes on the command line; 3 coordinator not reached; 4 cancelled; 127 not
started; 129, 130, 131 and 143 interrupted by SIGHUP, SIGINT, SIGQUIT and SIGTERM.")]
pub struct Run {
    /// Nodes: N, or MIN:MAX for a job that goes on while nodes come and go
    #[arg(long, value_name = "N|MIN:MAX", env = "PET_NNODES", hide_env = true, default_value = "1:1")]
    pub nnodes: String,
    /// Processes on each node: a number, gpu (one for each of this machine's), cpu, or auto
    #[arg(long, alias = "nproc_per_node", value_name = "N", env = "PET_NPROC_PER_NODE", hide_env = true)]
    #[arg(default_value = "1")]
    pub nproc_per_node: String,
    /// Failures of processes after which a new generation begins; nodes that come and go cost nothing
    #[arg(long, alias = "max_restarts", value_name = "N", env = "PET_MAX_RESTARTS", hide_env = true)]
    #[arg(default_value_t = 0)]
    pub max_restarts: u32,
    /// Run here even if a coordinator is configured
    #[arg(long, env = "PET_STANDALONE", hide_env = true, value_parser = FalseyValueParser::new())]
    pub standalone: bool,
    /// The first word is a module of Python
    #[arg(short, long, env = "PET_MODULE", hide_env = true, value_parser = FalseyValueParser::new())]
    pub module: bool,
    /// The first word is a program, whatever it is called
    #[arg(long, alias = "no_python", env = "PET_NO_PYTHON", hide_env = true, value_parser = FalseyValueParser::new())]
    pub no_python: bool,
    /// The first word is a script of Python, whatever it is called; it is run with runpy.run_path
    #[arg(long, alias = "run_path", env = "PET_RUN_PATH", hide_env = true, value_parser = FalseyValueParser::new())]
    pub run_path: bool,
    /// ROLE_NAME of the processes
    #[arg(long, env = "PET_ROLE", hide_env = true, default_value = ROLE)]
    pub role: String,
    /// LOCAL_RANK is 0 for all, and CUDA_VISIBLE_DEVICES of each process holds one device
    #[arg(long, alias = "virtual_local_rank", env = "PET_VIRTUAL_LOCAL_RANK", hide_env = true)]
    #[arg(value_parser = FalseyValueParser::new())]
    pub virtual_local_rank: bool,
    /// Keep stdout, stderr and error file of each process here, by generation and rank
    #[arg(long, alias = "log_dir", value_name = "DIR", env = "PET_LOG_DIR", hide_env = true)]
    #[arg(value_hint = ValueHint::DirPath)]
    pub log_dir: Option<PathBuf>,
    /// Keep streams in the log directory and do not show them: 1 stdout, 2 stderr, 3 both, or LOCAL_RANK:STREAMS,…
    #[arg(short, long, value_name = "STREAMS", env = "PET_REDIRECTS", hide_env = true, default_value = "0")]
    pub redirects: Redirects,
    /// Keep streams in the log directory and show them; with --log-dir all are kept anyway
    #[arg(short, long, value_name = "STREAMS", env = "PET_TEE", hide_env = true, default_value = "0")]
    pub tee: Redirects,
    /// What stands before each line, with ${role_name}, ${local_rank}, ${rank} and ${hostname} [default: the rank]
    #[arg(long, alias = "log_line_prefix_template", value_name = "TEXT", env = "PET_LOG_LINE_PREFIX_TEMPLATE")]
    #[arg(hide_env = true)]
    pub log_line_prefix_template: Option<String>,
    /// Show only the processes with these local ranks, e.g. 0,1
    #[arg(long, alias = "local_ranks_filter", value_name = "R,…", env = "PET_LOCAL_RANKS_FILTER", hide_env = true)]
    #[arg(value_delimiter = ',')]
    pub local_ranks_filter: Vec<u16>,
    /// Where processes on this machine meet: its MASTER_ADDR, when it runs here
    #[arg(long, alias = "local_addr", value_name = "HOST", env = "PET_LOCAL_ADDR", hide_env = true)]
    pub local_addr: Option<String>,
    /// Give the processes a variable (repeatable)
    #[arg(long = "env", value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// From SIGTERM to SIGKILL when a generation ends, in seconds [default: 8]
    #[arg(long, alias = "shutdown_timeout", value_name = "SECONDS", env = "PET_SHUTDOWN_TIMEOUT", hide_env = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=600))]
    pub shutdown_timeout: Option<u32>,
    /// Signals upon which all of it ends in order; the processes hear SIGTERM
    #[arg(long, alias = "signals_to_handle", value_name = "NAME,…", env = "PET_SIGNALS_TO_HANDLE", hide_env = true)]
    #[arg(default_value = stops::USUAL)]
    pub signals_to_handle: String,
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
    // Without allow_hyphen_values: a flag that is not known is no command.
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub command: Vec<String>,
}

/// The node of a cluster that runs inside this process.
const LOCAL_NODE: &str = "local";
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A coordinator that is away is asked again after.
const AGAIN_EVERY: Duration = Duration::from_millis(500);
/// A job that does not start says why after this.
const PATIENCE: Duration = Duration::from_secs(2);
/// Runs the script in the interpreter that was started for it.
const RUN_PATH: &str = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')";
/// What the processes print last may take so long to arrive.
const LAST_LINES: Duration = Duration::from_secs(12);

pub async fn run(args: Run) -> Outcome {
    let spec = spec(&args).map_err(mistake)?;
    let cluster = if args.standalone { None } else { Cluster::find(&args.reach)? };
    args.torch.given().iter().for_each(|line| eprintln!("elastic: {line}"));
    if let (Some(addr), Some(_)) = (&args.local_addr, &cluster) {
        eprintln!(
            "elastic: --local-addr {addr} changes nothing: a cluster's agents say with --advertise where they are"
        );
    }
    if let (None, Some(dir)) = (&args.log_dir, spec.command().and_then(|command| command.log_dir.as_ref())) {
        eprintln!("elastic: without --log-dir, streams are kept in {dir}");
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
    let mut command = CommandSpec::of(words(args)?, whole(&folder)?);
    command.processes = processes(&args.nproc_per_node)?;
    command.env = args.env.iter().map(|text| variable(text)).collect::<Result<BTreeMap<_, _>>>()?;
    command.grace_s = grace_s(args.shutdown_timeout)?.unwrap_or(command.grace_s);
    command.log_dir = args.log_dir.as_deref().map(whole).transpose()?;
    if command.log_dir.is_none() && !(args.redirects.is_none() && args.tee.is_none()) {
        command.log_dir = Some(whole(&args.runs.join("streams"))?);
    }
    command.role.clone_from(&args.role);
    let template = args.log_line_prefix_template.clone().or_else(|| inherited("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"));
    command.prefix = template.filter(|template| !template.is_empty());
    command.redirects = args.redirects.clone();
    command.show = shown(&args.local_ranks_filter, command.processes)?;
    command.virtual_local_rank = args.virtual_local_rank;
    stops::parse(&args.signals_to_handle)?;
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

/// torchrun's own variable counts where there is no flag.
fn grace_s(said: Option<u32>) -> Result<Option<u32>> {
    const NAME: &str = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT";
    match (said, inherited(NAME)) {
        (None, Some(text)) => text.parse().map(Some).with_context(|| format!("{NAME}={text}: whole seconds are meant")),
        (said, _) => Ok(said),
    }
}

/// The local ranks that are shown; None: all.
fn shown(ranks: &[u16], processes: u16) -> Result<Option<Vec<u16>>> {
    match ranks.iter().find(|rank| **rank >= processes) {
        Some(rank) => bail!("--local-ranks-filter {rank}: the processes of a node are 0 to {}", processes - 1),
        None => Ok((!ranks.is_empty()).then(|| ranks.to_vec())),
    }
}

/// A variable that says something.
fn inherited(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
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
fn words(args: &Run) -> Result<Vec<String>> {
    if args.module && args.no_python && !args.run_path {
        bail!("--module and --no-python: the first word is one or the other");
    }
    let is_script = args.command.first().is_some_and(|first| first.ends_with(".py"));
    let mut words = Vec::new();
    if args.run_path || args.module || (is_script && !args.no_python) {
        words.extend([inherited("PYTHON_EXEC").unwrap_or_else(|| "python3".into()), "-u".into()]);
        if args.run_path {
            words.extend(["-c".into(), RUN_PATH.into()]);
        } else if args.module {
            words.push("-m".into());
        }
    }
    words.extend(args.command.iter().cloned());
    Ok(words)
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
    let mut stops = Stops::listen(&args.signals_to_handle)?;
    let plan = Plan {
        listen: "127.0.0.1:0".into(),
        http: None,
        dir: place.path().to_path_buf(),
        runs: args.runs.clone(),
        nodes: vec![NodePlan { name: LOCAL_NODE.into(), slots: 1, meet_at: args.local_addr.clone() }],
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
    let mut stops = Stops::listen(&args.signals_to_handle)?;
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
