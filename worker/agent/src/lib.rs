//! The agent: on each node it starts, watches and reaps worker processes, and carries facts up and wanted
//! state down.
//!
//! It decides nothing about jobs and never touches a device. `converge` turns wanted against running into
//! actions (pure); `node` is the loop around it; `process` starts and clears away, `desk` talks to
//! workers, `link` to the coordinator, `inputs` brings what workers need, `logs` keeps what they print, `metrics` tells of it.
//! If the agent dies, its workers see the end of their connection to it and end, too.

mod backoff;
mod converge;
mod desk;
mod identity;
mod inputs;
mod launch;
mod link;
mod log_service;
pub mod logs;
mod metrics;
mod node;
mod notice;
mod process;
mod strays;

pub use notice::Notices;

use anyhow::{Context, Result};
use elastic_proto::{Access, Credentials, Ring};
use elastic_spec::NodeId;
use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// All that an agent is told when it starts.
#[derive(Clone)]
pub struct AgentConfig {
    /// None: the name kept in the state directory, made from the host's at the first start.
    pub name: Option<NodeId>,
    /// Name, inputs, launches, the workers' socket and logs; one agent at a time.
    pub state_dir: PathBuf,
    /// Workers that may run here at once.
    pub slots: u16,
    /// "host:port" or URLs of coordinators; the one that leads is found among them.
    pub coordinators: Vec<String>,
    pub credentials: Credentials,
    /// The host that workers and the log service listen on, and the one by which others reach them.
    pub bind: String,
    pub advertise: String,
    /// Where the processes of commands meet, if their rank 0 is here; None: as `advertise`.
    pub meet_at: Option<String>,
    /// Ports for the workers' data plane; None: any free one.
    pub ports: Option<(u16, u16)>,
    /// Certificates of the workers' data plane.
    pub tls_dir: Option<PathBuf>,
    /// How the log service is protected. Its token is drawn when the agent starts, and told to the coordinator alone.
    pub access: Access,
    /// The command line of a worker.
    pub worker: Vec<OsString>,
    /// Whether jobs may name programs and commands of their own to be started.
    pub allow_programs: bool,
    pub logs: LogsIn,
    pub log_bounds: logs::Bounds,
    /// A drain that takes longer ends with SIGTERM to the workers.
    pub drain_within: Duration,
    /// Where the cloud says that it will take this machine back.
    pub notices: Option<Notices>,
    /// host:port for metrics over HTTP.
    pub http: Option<String>,
    /// What readers of the metrics must show, where it is not what this agent shows.
    pub http_token: Option<String>,
}

/// Where logs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogsIn {
    /// `<state dir>/logs/<job>`: several nodes may see the same run directory.
    State,
    /// `<run dir>/logs`: one box, one agent.
    Run,
}

impl AgentConfig {
    /// One agent for this box alone: everything on the loopback, plain text.
    pub fn local(state_dir: PathBuf, coordinator: String, worker: Vec<OsString>) -> AgentConfig {
        AgentConfig {
            name: None,
            state_dir,
            slots: 1,
            coordinators: vec![coordinator],
            credentials: Credentials::default(),
            bind: "127.0.0.1".into(),
            advertise: "127.0.0.1".into(),
            meet_at: None,
            ports: None,
            tls_dir: None,
            access: Access::default(),
            worker,
            allow_programs: false,
            logs: LogsIn::State,
            log_bounds: logs::Bounds::default(),
            drain_within: Duration::from_secs(60),
            notices: None,
            http: None,
            http_token: None,
        }
    }
}

/// Runs this node's agent until `shutdown`, or until the cloud takes the machine back; then drains: reports that it leaves, and ends when its
/// workers have handed over, or after the bound.
pub fn run(config: AgentConfig, shutdown: impl Future<Output = ()> + Send + 'static) -> Waits<Result<()>> {
    // Boxed, so that it is compiled here, and not again in each program that has an agent.
    Box::pin(run_until(config, Box::pin(shutdown)))
}

type Waits<T> = Pin<Box<dyn Future<Output = T> + Send>>;

async fn run_until(mut config: AgentConfig, shutdown: Waits<()>) -> Result<()> {
    let token = config.http_token.take().map_or_else(|| config.credentials.now(), |token| Ok(Some(token)))?;
    let shown_to = Access { token, ..config.access.clone() };
    config.access.token = Some(format!("{:016x}{:016x}", random()?, random()?));
    config.access.ring = Ring::default();
    config.access.ring.replace(Vec::new());
    let notices = config.notices.take();
    let shutdown = async move {
        let Some(notices) = notices else { return shutdown.await };
        tokio::select! {
            () = shutdown => {}
            () = notices.given() => {}
        }
    };
    let identity = identity::Identity::take(&config.state_dir, config.name.as_ref())?;
    tracing::info!(node = %identity.node, slots = config.slots, "agent starts");
    let listener = TcpListener::bind((config.bind.as_str(), 0))
        .await
        .with_context(|| format!("listen on {} for readers of logs", config.bind))?;
    let bound = listener.local_addr().context("the log service's address")?;
    config.access.check(bound).context("agent")?;
    let log_address = match config.advertise.contains(':') {
        true => format!("[{}]:{}", config.advertise, bound.port()),
        false => format!("{}:{}", config.advertise, bound.port()),
    };

    let shelf = logs::Shelf::default();
    let service = Arc::new(log_service::LogService { state_dir: config.state_dir.clone(), shelf: shelf.clone() });
    let (stop_logs, stopped) = watch::channel(());
    let access = config.access.clone();
    let logs = tokio::spawn(async move {
        let mut stopped = stopped;
        let shutdown = async move {
            let _ = stopped.changed().await;
        };
        if let Err(error) = elastic_proto::server::serve_logs(listener, service, &access, shutdown).await {
            tracing::warn!(%error, "logs are no longer served");
        }
    });

    let http = match &config.http {
        Some(at) => {
            let http = TcpListener::bind(at).await.with_context(|| format!("listen on {at} for HTTP"))?;
            shown_to.check(http.local_addr().context("the address of HTTP")?).context("--http")?;
            Some(http)
        }
        None => None,
    };

    let (said, from_workers) = mpsc::channel(QUEUE);
    let desk = desk::Desk::open(&config.state_dir, said)?;
    let (urls, credentials) = (config.coordinators.clone(), config.credentials.clone());
    let meters = Arc::<metrics::Meters>::default();
    let node = node::Node::new(config, identity, desk, shelf.clone(), log_address, meters.clone());
    let (report, reports) = watch::channel(node.report());
    let seen = metrics::Seen { meters, shelf, reports: reports.clone() };
    let shown = http.map(|http| tokio::spawn(show(http, seen, shown_to)));
    let (above, from_above) = mpsc::channel(QUEUE);
    let link = tokio::spawn(link::keep(urls, credentials, reports, above));

    node.run(node::Lines { above: from_above, said: from_workers, report }, shutdown).await;

    // The reports have ended with the node; the last one, which says that nothing runs, still travels.
    let link_stop = link.abort_handle();
    if tokio::time::timeout(LAST_REPORT_WITHIN, link).await.is_err() {
        link_stop.abort();
    }
    if let Some(shown) = shown {
        shown.abort();
    }
    drop(stop_logs);
    let logs_stop = logs.abort_handle();
    if tokio::time::timeout(LAST_REPORT_WITHIN, logs).await.is_err() {
        logs_stop.abort();
    }
    tracing::info!("agent ends");
    Ok(())
}

/// Serves metrics until it is aborted.
async fn show(http: TcpListener, seen: metrics::Seen, access: Access) {
    if let Err(error) = elastic_web::serve(http, seen.routes(), &access, std::future::pending()).await {
        tracing::warn!(%error, "metrics are not served");
    }
}

/// Messages of workers, or of the coordinator, that wait for the node's loop.
const QUEUE: usize = 64;
const LAST_REPORT_WITHIN: Duration = Duration::from_millis(500);

/// From the kernel: names must not repeat over processes and machines.
fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.context("read /dev/urandom")?;
    Ok(u64::from_le_bytes(bytes))
}
