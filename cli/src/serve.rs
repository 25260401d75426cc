//! `elastic serve MODELS`: answers requests with bundles until Ctrl-C or SIGTERM.

use crate::args::{Device, Listening};
use crate::commands::coordinator::access;
use crate::exit::{Exit, Outcome, mistake};
use crate::{logging, signals};
use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueHint};
use elastic_proto::{Access, OpenBind};
use elastic_serve::repository::bundles;
use elastic_serve::repository::mirror::{Mirror, is_address};
use elastic_serve::{Config, Door, Keys, Listeners, Server, Tell, Tls, bind};
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic serve digits                             a bundle, to this machine, at ports 8000 and 8001
  elastic serve registry --http 0.0.0.0:8000 --tls-dir certs/serving --api-key-file keys
  elastic serve registry --max-batch 128 --batch-delay-us 500 --threads 4
  elastic serve s3://bucket/registry --cache /var/cache/registry
  elastic serve registry --device cuda --instances 2
  curl localhost:8000/v2/models/digits
  curl localhost:8000/v1/models/digits:predict -d '{\"instances\": [[0, 0, 5, …]]}'
  curl localhost:8000/v1/completions -d '{\"model\": \"gpt\", \"prompt\": \"one and \"}'
  curl localhost:8000/metrics

MODELS is a bundle, or a directory of models: NAME/1, NAME/2, … are versions,
and NAME/labels.json gives names to some ({\"live\": 1, \"canary\": 2}). Who names
neither a version nor a label gets the version named live, where there is one,
else the newest.
New versions are loaded aside, answer when they are warm, and leave no gap.
MODELS may be s3://bucket/prefix: what is served is copied here and followed
(credentials: docs/storage.md).

Addresses like :8000 are this machine's only. Others need a certificate and
keys, or --insecure. A line of --api-key-file is a key, which may ask, or
\"admin KEY\": that one may load and unload models, too. Certificate and keys
are read again when their files change.

Exit codes: 0 drained, 1 a bundle cannot be served or requests were cut off at
the end, 2 mistakes on the command line.")]
pub struct Serve {
    /// A bundle, or a directory of models; s3://bucket/prefix for one in a bucket
    #[arg(value_name = "MODELS", value_hint = ValueHint::DirPath)]
    pub models: String,
    /// Where copies from a bucket are kept [default: a temporary directory, gone at the end]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cache: Option<PathBuf>,
    /// Address for HTTP
    #[arg(long, value_name = "HOST:PORT", default_value = ":8000")]
    pub http: String,
    /// Address for gRPC; "off" for none
    #[arg(long, value_name = "HOST:PORT", default_value = ":8001")]
    pub grpc: String,
    /// What computes
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub device: Device,
    /// Threads that compute, of each instance [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Threads that read requests and write answers
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub io_threads: u16,
    /// Batches of one model that are computed at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub instances: u16,
    /// Most rows that are computed in one go
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub max_batch: u32,
    /// How long a batch that is not full waits for more, in µs
    #[arg(long, value_name = "US", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=10_000_000))]
    pub batch_delay_us: u64,
    /// Most requests that wait for one model, and most texts
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub queue: u32,
    /// Texts of one model that go on at the same time; 0: none are served
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(..=4096))]
    pub sequences: u16,
    /// What a model's texts may take: its packed weights, their keys and values, a step; in MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub text_memory_mib: u32,
    /// Time of a request for texts that asks for none of its own, in ms
    #[arg(long, value_name = "MS", default_value_t = 600_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub text_timeout_ms: u64,
    /// Time of a request that asks for none of its own, in ms
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub timeout_ms: u64,
    /// Newest versions of a model that are loaded; those with a label are besides
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub keep: u16,
    /// How often the directory or the bucket is looked at, in ms; 0 is only when a client asks for a load
    #[arg(long, value_name = "MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(..=86_400_000))]
    pub poll_ms: u64,
    /// Most connections at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// After SIGTERM: how long requests are still taken while readiness says no, in ms
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=600_000))]
    pub drain_delay_ms: u64,
    /// And how long those that were taken may last then, in ms
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(..=3_600_000))]
    pub drain_ms: u64,
    /// File with keys, one a line, of which callers must show one; "admin" before a key lets it load and unload
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub api_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub listening: Listening,
}

pub fn run(args: Serve) -> Outcome {
    logging::to_stderr("info");
    let access = access(&args.listening)?;
    let config = config(&args, &access)?;
    elastic_worker::device::take_to_ask(args.device.into()).map_err(|why| mistake(anyhow!(why)))?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // A thread's own queue has 256 places; what is beyond them waits in a common one, of which a busy thread takes a few in a
    // hundred by itself. Every second: with 960 requests at once the slowest hundredth then waits for 30 ms, not for 158.
    runtime.global_queue_interval(2);
    let runtime = runtime.worker_threads(args.io_threads.into()).thread_name("io").enable_all().build();
    let mirror = config.mirror.clone();
    let outcome = runtime.context("start the runtime")?.block_on(serve(args, config, access));
    if let Some(mirror) = mirror {
        mirror.end();
    }
    // A load that is under way is not waited for: the process ends.
    outcome
}

async fn serve(args: Serve, config: Config, access: Access) -> Outcome {
    let http = listen(&args.http, &access, &config.keys).await.context("--http").map_err(mistake)?;
    let grpc = match args.grpc.as_str() {
        "off" => None,
        address => Some(listen(address, &access, &config.keys).await.context("--grpc").map_err(mistake)?),
    };
    let local = |listener: &TcpListener| listener.local_addr().map_or_else(|_| "?".into(), |a| a.to_string());
    let (at_http, at_grpc) = (local(&http), grpc.as_ref().map_or("off".into(), local));
    tracing::info!(http = %at_http, grpc = %at_grpc, models = %args.models, "server starts");
    let is_bundle = config.models.join("manifest.json").exists();
    let server = Server::start(config, Listeners { http, grpc }, bundles())?;
    let interrupted = signals::interrupted();
    tokio::pin!(interrupted);
    tokio::select! {
        () = server.settled() => {}
        () = &mut interrupted => return Ok(Exit::Interrupted),
    }
    match server.shared.readiness() {
        Ok(()) => tracing::info!("ready"),
        Err(_) if is_bundle => {
            let reasons: Vec<String> = server.shared.index().into_iter().map(|row| row.reason).collect();
            return Err(anyhow!("{}", reasons.join("; ")).into());
        }
        Err(why) => tracing::warn!(%why, "not ready yet"),
    }
    match server.until(interrupted).await {
        true => Ok(Exit::Ok),
        false => Ok(Exit::Failed),
    }
}

/// Outside the loopback nothing is served in plain text, and nobody is served without a key, unless that is wanted.
async fn listen(address: &str, access: &Access, keys: &Keys) -> Result<TcpListener> {
    let listener = bind(address).await?;
    let bound = listener.local_addr().context("the listener's address")?;
    match access.check(bound) {
        // Who may ask is the business of the server's keys, not of a cluster's tokens.
        Err(OpenBind::Unguarded(_)) if !keys.is_empty() => Ok(listener),
        Err(OpenBind::Unguarded(_)) => Err(anyhow!(
            "{bound} can be reached from other machines, and whoever reaches it could ask, load and unload: name a \
             file of keys with --api-key-file, or say --insecure if the network is trusted"
        )),
        Err(open @ OpenBind::Plain(_)) => Err(open.into()),
        Ok(()) => Ok(listener),
    }
}

/// What the server is told of TLS and tells of who is turned away: as coordinator and agents do it.
fn door(access: &Access) -> Result<Door> {
    let tls = |protocol: &[u8]| access.server_config(protocol).map_err(mistake);
    let tls = tls(b"http/1.1")?.zip(tls(b"h2")?).map(|(http, grpc)| Tls { http, grpc });
    Ok(Door { tls, tell: Some(Arc::new(Log(access.clone()))) })
}

/// The program's log, at a pace that fills no disk.
struct Log(Access);

impl Tell for Log {
    fn refused(&self, peer: Option<SocketAddr>, what: &str, why: &dyn Display) {
        self.0.tell_refused(peer, what, why);
    }

    fn handshake(&self, peer: SocketAddr, error: &io::Error) {
        self.0.tell_handshake(peer, error);
    }
}

fn config(args: &Serve, access: &Access) -> Result<Config> {
    let mut config = match is_address(&args.models) {
        true => {
            let mirror = Mirror::open(&args.models, args.cache.clone()).map_err(|why| mistake(anyhow!("{why}")))?;
            let mut config = Config::new(mirror.root().to_path_buf());
            config.mirror = Some(mirror);
            config
        }
        false if args.cache.is_some() => {
            return Err(mistake(anyhow!("--cache is for models in a bucket; {} is none", args.models)));
        }
        false => Config::new(directory(&args.models)?),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    config.policy.rows_max = args.max_batch as usize;
    config.policy.delay = Duration::from_micros(args.batch_delay_us);
    config.policy.requests_max = args.queue as usize;
    config.hands.instances = args.instances.into();
    config.hands.threads = args.threads.map_or(cores, usize::from);
    config.text.sequences = args.sequences.into();
    config.text.memory_max = u64::from(args.text_memory_mib) << 20;
    config.text.waiting_max = args.queue as usize;
    config.text.timeout = Duration::from_millis(args.text_timeout_ms);
    config.keep = args.keep.into();
    config.poll = (args.poll_ms > 0).then(|| Duration::from_millis(args.poll_ms));
    config.timeout = Duration::from_millis(args.timeout_ms);
    config.connections = args.connections as usize;
    config.drain_delay = Duration::from_millis(args.drain_delay_ms);
    config.drain = Duration::from_millis(args.drain_ms);
    if let Some(path) = &args.api_key_file {
        config.keys = Keys::open(path).map_err(|why| mistake(anyhow!("--api-key-file: {why}")))?;
    }
    config.door = door(access)?;
    Ok(config)
}

/// A folder as it is, or as file:///folder.
fn directory(models: &str) -> Result<PathBuf> {
    let models = Path::new(models.strip_prefix("file://").unwrap_or(models));
    if !models.is_dir() {
        return Err(mistake(anyhow!(
            "{}: there is no such directory; `elastic export` makes a bundle",
            models.display()
        )));
    }
    if models.join("model.json").exists() && !models.join("manifest.json").exists() {
        let why = "there is no manifest.json: it is not a whole bundle yet";
        return Err(mistake(anyhow!("{}: {why}", models.display())));
    }
    Ok(models.to_path_buf())
}
