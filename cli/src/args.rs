//! The command line: what may be said, with an example for each. Nothing is decided here.

use crate::certs::Certs;
use crate::commands::{evaluate, export, generate};
use crate::exit::EXIT_CODES;
use crate::token::Token;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueHint};
use std::path::PathBuf;

#[derive(Debug, Parser)]
#[command(name = "elastic", version, about, after_help = EXIT_CODES, disable_help_subcommand = true)]
/// Trains a model on whatever machines there are, and ends with the same bits for every membership
pub struct Cli {
    /// End when the process of this number ends: who starts others for a while says so
    #[arg(long, global = true, hide = true, value_name = "PID")]
    pub dies_with: Option<u32>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train what a job file says: on this machine, or on a cluster
    Submit(Submit),
    /// Run any command, like torchrun: on this machine, or on a cluster
    Run(Box<crate::run::Run>),
    /// Show where the time of a job's step goes, op by op, on this machine
    Profile(Profile),
    /// Show what this machine can compute on: GPUs, their libraries, and what is missing
    Devices(Devices),
    /// Show all jobs of a cluster
    Jobs(Jobs),
    /// Show one job: view, members, step, loss, throughput, restarts, last fault
    Status(Status),
    /// Show what a job's workers print
    Logs(Logs),
    /// Show the nodes of a cluster
    Nodes(Nodes),
    /// Change how many workers a job may have
    Scale(Scale),
    /// Move all work away from a node, and give it no more
    Drain(Drain),
    /// Stop a job for good
    Cancel(Cancel),
    /// Make certificates: an authority, coordinator and nodes, for TLS between all parts
    Certs(Certs),
    /// Make, list and revoke tokens: who may take part, look, submit or rule
    Token(Token),
    /// Make a model of a run: a bundle that can be served, or the files of others
    Export(export::Args),
    /// Ask a model about samples whose answers are known
    Evaluate(evaluate::Args),
    /// Let a model go on with a text
    Generate(generate::Args),
    /// Look at checkpoints, without a cluster
    Checkpoint(Checkpoint),
    /// Answer requests with a bundle, or with a directory of models
    Serve(crate::serve::Serve),
    /// From a raw file to a published model, as a pipeline file says
    Pipeline(crate::commands::pipeline::Args),
    /// Show what an artifact of a pipeline was made of, and what was made of it
    Lineage(crate::commands::lineage::Args),
    /// Run a coordinator: the control plane of a cluster
    Coordinator(Coordinator),
    /// Run an agent: makes this machine a node of a cluster
    Agent(Agent),
    /// Run a whole cluster on this machine until Ctrl-C
    Dev(Dev),
    /// Print the completion script of a shell
    Completions(Completions),
    /// One rank of a job; started by an agent
    #[command(hide = true)]
    Worker,
}

/// How a cluster is reached.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct Reach {
    /// Address of the coordinator, or several with commas between
    #[arg(long, env = "ELASTIC_COORDINATOR", value_name = "URL", value_delimiter = ',')]
    pub coordinator: Vec<String>,
    /// File with your token, as `elastic token create` gave it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// The same, from the environment
    #[arg(long, env = "ELASTIC_TOKEN", hide = true, hide_env_values = true)]
    pub token: Option<String>,
    /// Certificate of the authority that signed the coordinator's (PEM)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub tls_ca: Option<PathBuf>,
}

/// How a listener is protected.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Security")]
pub struct Listening {
    /// Certificate chain to serve with (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key", value_hint = ValueHint::FilePath)]
    pub tls_cert: Option<PathBuf>,
    /// Key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_hint = ValueHint::FilePath)]
    pub tls_key: Option<PathBuf>,
    /// Directory with ca.pem, cert.pem and key.pem, as `elastic certs` makes it, for all that this process
    /// speaks; what a flag names besides goes first
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub tls_dir: Option<PathBuf>,
    /// Allow plain text, and callers that prove nothing, on addresses that other machines can reach
    #[arg(long)]
    pub insecure: bool,
}

impl Listening {
    /// Files of the certificate and its key: those named, else those of the directory.
    pub fn pair(&self) -> Option<(PathBuf, PathBuf)> {
        let named = self.tls_cert.clone().zip(self.tls_key.clone());
        named.or_else(|| self.tls_dir.as_ref().map(|dir| (dir.join("cert.pem"), dir.join("key.pem"))))
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic submit job.toml                          train here, in the foreground
  elastic submit job.toml --workers 4              with four worker processes; the same bits
  elastic submit job.toml --set train.lr=0.01      with another learning rate
  elastic submit job.toml --dry-run                show what was understood, or every mistake
  elastic submit job.toml --export models          and export it, for `elastic serve models`
  elastic submit job.toml --resume digits-3f2a     go on from that run's newest checkpoint
  elastic submit job.toml --coordinator http://10.0.0.1:7070 --detach

Where no coordinator is named (by flag, by ELASTIC_COORDINATOR, or as
`coordinator` in ~/.config/elastic/config.toml), a cluster runs inside this
process, with workers as processes of their own. Ctrl-C stops it, and the run
can be resumed.

Exit codes: 0 succeeded, 1 failed, 2 mistakes in the job file or on the command
line (nothing was submitted), 3 coordinator not reached, 4 cancelled, 130
interrupted.")]
pub struct Submit {
    /// The job file
    #[arg(value_name = "JOB_FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Most workers at once, in place of elastic.max_workers; here: how many are started
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub workers: Option<u16>,
    /// Overrule a key of the job file, e.g. train.lr=0.01 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Go on from the newest checkpoint of this run
    #[arg(long, value_name = "RUN")]
    pub resume: Option<String>,
    /// Show the job with all defaults filled in; submit nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Return once the job is submitted
    #[arg(long)]
    pub detach: bool,
    /// Train on this machine even if a coordinator is configured
    #[arg(long)]
    pub local: bool,
    /// Directory of the runs, for training on this machine
    #[arg(long, value_name = "DIR", default_value = "runs", value_hint = ValueHint::DirPath)]
    pub runs: PathBuf,
    /// Publish the result as the next version of its model, to be served: REGISTRY/NAME/VERSION, in a folder or a bucket.
    /// It answers who names no version, unless the model has the label `live`
    #[arg(long, value_name = "REGISTRY", conflicts_with = "detach", value_hint = ValueHint::DirPath)]
    pub export: Option<String>,
    /// End with one line of JSON on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic profile job.toml                         the slowest ops, phases, planned memory
  elastic profile job.toml --threads 1 --top 50
  elastic profile job.toml --trace step.json       to be opened in ui.perfetto.dev or chrome://tracing
  elastic profile job.toml --json | jq '.rows | sort_by(-.us)[:3]'

Runs some steps of the job in this process, without a cluster: all its shards,
their sum, the update. Nothing is sent, kept or resumed.

Exit codes: 0 done, 2 mistakes in the job file, in its data or on the command
line.")]
pub struct Profile {
    /// The job file
    #[arg(value_name = "JOB_FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Overrule a key of the job file, e.g. train.global_batch=64 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Threads to compute with [default: resources.threads, else one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Steps to measure
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    pub steps: u16,
    /// Ops to show, the slowest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub top: usize,
    /// Write each call of each op to a file, for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub trace: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic devices
  elastic devices --json | jq '.gpus[].name'
  elastic devices --need-gpu && elastic submit job.toml
  ELASTIC_CUDA_LIBS=/opt/cuda/lib elastic devices      look there for CUDA's libraries, too
  ELASTIC_CUDA_LIBS=/opt/cuda/lib:- elastic devices    and nowhere else

Nothing is installed, changed or allocated. What is missing is named with the way
to get it.

Exit codes: 0 shown, 1 with --need-gpu where no GPU can be used, 2 mistakes on the
command line.")]
pub struct Devices {
    /// End with code 1 if no GPU can be used
    #[arg(long)]
    pub need_gpu: bool,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  elastic jobs\n  elastic jobs --json | jq '.[].job'")]
pub struct Jobs {
    /// One JSON array on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic status digits-3f2a
  elastic status digits-3f2a --json | jq .step
  elastic status digits-3f2a --watch               until the job is over
  elastic status digits-3f2a --watch --json        an object a line, each time something changes

With --watch it ends with the job's exit code: 0 succeeded, 1 failed, 4 cancelled;
3 where the coordinator is not reached at first, 130 on Ctrl-C.")]
pub struct Status {
    /// The job's id, as `elastic jobs` shows it
    pub job: String,
    /// Go on until the job is over: redrawn in place on a terminal, else a line for each change
    #[arg(short, long)]
    pub watch: bool,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic logs digits-3f2a -f             all ranks, as they print
  elastic logs digits-3f2a --rank 0       what rank 0 printed, whoever was rank 0
  elastic logs digits-3f2a --gen 7        what was printed in view 7")]
pub struct Logs {
    /// The job's id
    pub job: String,
    /// Go on as the logs grow
    #[arg(short, long)]
    pub follow: bool,
    /// Only this rank's
    #[arg(long, value_name = "R")]
    pub rank: Option<u16>,
    /// Only those of this generation (the number behind the dot of a view)
    #[arg(long = "gen", value_name = "G")]
    pub gen_: Option<u64>,
    /// One JSON object a line on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  elastic nodes\n  elastic nodes --json | jq '.[] | select(.draining)'")]
pub struct Nodes {
    /// One JSON array on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("bounds").args(["min", "max"]).required(true).multiple(true))]
#[command(after_help = "Examples:\n  elastic scale digits-3f2a --min 2 --max 8\n  elastic scale digits-3f2a --max 1")]
pub struct Scale {
    /// The job's id
    pub job: String,
    /// With fewer workers the job pauses; left out: as it is
    #[arg(long, value_name = "A", value_parser = clap::value_parser!(u16).range(1..))]
    pub min: Option<u16>,
    /// Most workers at once; left out: as it is
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u16).range(1..))]
    pub max: Option<u16>,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  elastic drain node-7")]
pub struct Drain {
    /// The node's name, as `elastic nodes` shows it
    pub node: String,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  elastic cancel digits-3f2a")]
pub struct Cancel {
    /// The job's id
    pub job: String,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic checkpoint list runs/digits-3f2a
  elastic checkpoint inspect runs/digits-3f2a          the newest of the run
  elastic checkpoint verify runs/digits-3f2a           reads every byte of all; exit code 1 if one is damaged")]
pub struct Checkpoint {
    #[command(subcommand)]
    pub act: CheckpointAct,
}

#[derive(Debug, Subcommand)]
pub enum CheckpointAct {
    /// The checkpoints at a path, newest first
    #[command(after_help = "Example:\n  elastic checkpoint list runs/digits-3f2a --json | jq '.[0].step'")]
    List(CheckpointPath),
    /// What the newest checkpoint at a path holds
    #[command(after_help = "Example:\n  elastic checkpoint inspect s3://bucket/prefix/digits-3f2a")]
    Inspect(CheckpointPath),
    /// Read every byte of all checkpoints at a path and compare with the checksums
    #[command(after_help = "Example:\n  elastic checkpoint verify runs/digits-3f2a && echo whole")]
    Verify(CheckpointPath),
}

#[derive(Debug, Args)]
pub struct CheckpointPath {
    /// A run's directory, a directory of checkpoints, or one checkpoint; s3://bucket/prefix/RUN of one in a bucket
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    /// JSON on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic coordinator
  elastic coordinator --listen 10.0.0.1:7070 --tls-dir certs/coordinator --token-file certs/token
  elastic coordinator --listen 10.0.0.1:7070 --insecure --store etcd://10.0.0.5:2379,10.0.0.6:2379
  elastic coordinator --http 10.0.0.1:7071 --insecure    the page for others, too

Kill it and start it again on the same store: no job and no step is lost, and
workers train on meanwhile.")]
pub struct Coordinator {
    /// Address to listen on
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070")]
    pub listen: String,
    /// Address by which others reach it [default: as --listen]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Address of the page, its JSON and /metrics, or off [default: 127.0.0.1:7071 where that is free]
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// Where records are kept: memory, redb:PATH, or etcd://HOST:PORT[,HOST:PORT…] [default: redb in --data-dir]
    #[arg(long, value_name = "STORE")]
    pub store: Option<String>,
    /// Directory with ca.pem, cert.pem and key.pem to speak TLS with etcd
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub etcd_tls_dir: Option<PathBuf>,
    /// Records of the embedded store and uploaded inputs
    #[arg(long, value_name = "DIR", default_value = "elastic-data", value_hint = ValueHint::DirPath)]
    pub data_dir: PathBuf,
    /// Directory of the runs, as the nodes see it
    #[arg(long, value_name = "DIR", default_value = "runs", value_hint = ValueHint::DirPath)]
    pub runs: PathBuf,
    /// File with the coordinator's own token, which may do everything; agents and people get tokens of their own
    /// (`elastic token create`)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// The same, from the environment
    #[arg(long, env = "ELASTIC_TOKEN", hide = true, hide_env_values = true)]
    pub token: Option<String>,
    /// Take jobs that run commands of their own; agents must allow them, too
    #[arg(long)]
    pub allow_commands: bool,
    /// Authority of the agents' certificates, to read logs from them (PEM)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub tls_ca: Option<PathBuf>,
    /// Name that the agents' certificates carry [default: the address of each]
    #[arg(long, value_name = "NAME")]
    pub agent_tls_name: Option<String>,
    /// Let only those take part as agents who show a certificate of this authority (PEM)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub agent_tls_ca: Option<PathBuf>,
    #[command(flatten)]
    pub listening: Listening,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic agent --coordinator http://10.0.0.1:7070 --advertise 10.0.0.2 --bind 10.0.0.2 --insecure
  elastic agent --coordinator https://10.0.0.1:7070 --advertise 10.0.0.2 --bind 10.0.0.2 \\
      --tls-dir certs/node-2 --token-file agent.token --slots 4 --ports 7100-7199

SIGTERM drains: the workers hand over and leave, then the agent ends. If it is
killed, its workers end at once.")]
pub struct Agent {
    /// Workers that may run here at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub slots: u16,
    /// Name of this node [default: made from the host's and kept in --state-dir]
    #[arg(long)]
    pub name: Option<String>,
    /// Name, inputs and logs of this node [default: ~/.local/state/elastic/agent]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state_dir: Option<PathBuf>,
    /// Host that workers listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub bind: String,
    /// Host by which other nodes reach this one [default: as --bind]
    #[arg(long, value_name = "HOST")]
    pub advertise: Option<String>,
    /// Ports for the workers' data plane, e.g. 7100-7199 [default: any free one]
    #[arg(long, value_name = "LO-HI")]
    pub ports: Option<String>,
    /// Let jobs start programs of their own (model.program, commands) on this machine
    #[arg(long)]
    pub allow_programs: bool,
    /// A drain that takes longer stops the workers
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub drain_within: u64,
    /// Drain when the cloud takes this machine back: aws, gcp, azure, or the URL where it says so
    #[arg(long, value_name = "URL")]
    pub preemption_url: Option<String>,
    /// Address to serve /metrics, /healthz and /readyz on, over HTTP [default: none]
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// File with a token that readers of /metrics must show [default: as --token-file]
    #[arg(long, value_name = "FILE", requires = "http", value_hint = ValueHint::FilePath)]
    pub http_token_file: Option<PathBuf>,
    #[command(flatten)]
    pub reach: Reach,
    #[command(flatten)]
    pub listening: Listening,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic dev --nodes 3
  elastic submit job.toml --coordinator http://127.0.0.1:7070     (elsewhere)")]
pub struct Dev {
    /// Nodes to run
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub nodes: u16,
    /// Workers that may run on each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub slots: u16,
    /// Address of the coordinator; port 0: any free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070")]
    pub listen: String,
    /// Address of the page, or off [default: 127.0.0.1:7071 where that is free]
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// Records, inputs and logs of this cluster
    #[arg(long, value_name = "DIR", default_value = "elastic-dev", value_hint = ValueHint::DirPath)]
    pub data_dir: PathBuf,
    /// Directory of the runs
    #[arg(long, value_name = "DIR", default_value = "runs", value_hint = ValueHint::DirPath)]
    pub runs: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  elastic completions bash > ~/.local/share/bash-completion/completions/elastic")]
pub struct Completions {
    pub shell: clap_complete::Shell,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    /// The processor
    Cpu,
    /// A GPU, and an error where none can be used
    Cuda,
    /// A GPU where there is one that has the processor's bits, else the processor
    Auto,
}

impl From<Device> for elastic_spec::job::Device {
    fn from(device: Device) -> elastic_spec::job::Device {
        match device {
            Device::Cpu => elastic_spec::job::Device::Cpu,
            Device::Cuda => elastic_spec::job::Device::Cuda,
            Device::Auto => elastic_spec::job::Device::Auto,
        }
    }
}
