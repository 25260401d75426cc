//! A cluster inside this process: a coordinator on the embedded store, and agents; workers are processes.

use crate::reach::Cluster;
use anyhow::{Context, Result, bail};
use elastic_agent::{AgentConfig, LogsIn};
use elastic_coordinator::store::Embedded;
use elastic_proto::{Access, Credentials};
use elastic_spec::NodeId;
use rustix::fs::{FlockOperation, flock};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub struct Plan {
    pub listen: String,
    /// For the page.
    pub http: Option<TcpListener>,
    /// Records, and a directory for each node.
    pub dir: PathBuf,
    pub runs: PathBuf,
    pub nodes: Vec<NodePlan>,
    pub logs: LogsIn,
    /// None: whoever reaches the port may use the cluster.
    pub token: Option<String>,
}

pub struct NodePlan {
    pub name: String,
    pub slots: u16,
    /// Where processes of commands meet on this node; None: at the loopback's address.
    pub meet_at: Option<String>,
}

/// Ends with [`Inside::stop`]; dropped, it is as if it were killed.
pub struct Inside {
    pub url: String,
    pub credentials: Credentials,
    stop_agents: watch::Sender<bool>,
    stop_coordinator: watch::Sender<bool>,
    agents: JoinSet<Result<()>>,
    coordinator: JoinSet<Result<()>>,
}

impl Inside {
    pub async fn start(plan: Plan) -> Result<Inside> {
        let listener = TcpListener::bind(&plan.listen).await.with_context(|| format!("listen on {}", plan.listen))?;
        let address = listener.local_addr().context("the coordinator's address")?;
        let url = format!("http://{address}");
        let store = Arc::new(Embedded::open(&plan.dir.join("store"))?);
        let credentials = Credentials { token: plan.token.clone(), ..Credentials::default() };
        let access = Access { token: plan.token.clone(), ..Access::default() };
        let mut config = elastic_coordinator::Config {
            advertise: url.clone(),
            runs: std::path::absolute(&plan.runs).context("find the directory of runs")?,
            access: access.clone(),
            credentials: credentials.clone(),
            control: Default::default(),
        };
        // Whoever runs the cluster here is who submits to it here.
        config.control.allow_commands = true;
        let (stop_coordinator, stopped) = watch::channel(false);
        let mut coordinator = JoinSet::new();
        let listeners = elastic_coordinator::Listeners { grpc: listener, http: plan.http };
        coordinator.spawn(elastic_coordinator::serve(listeners, store, config, on(stopped)));
        // Agents that come too early would wait a little longer each time they are turned away.
        let cluster = Cluster { urls: vec![url.clone()], credentials: credentials.clone() };
        tokio::select! {
            found = cluster.connect_when_up() => drop(found?),
            Some(ended) = coordinator.join_next() => {
                ended.context("the coordinator in this process")??;
                bail!("the coordinator ended by itself");
            }
        }

        let (stop_agents, stopped) = watch::channel(false);
        let mut agents = JoinSet::new();
        for node in &plan.nodes {
            let dir = plan.dir.join(&node.name);
            let config = AgentConfig {
                name: Some(NodeId::parse(&node.name)?),
                slots: node.slots,
                meet_at: node.meet_at.clone(),
                credentials: credentials.clone(),
                access: access.clone(),
                // Whoever runs the cluster here is who submits to it here.
                allow_programs: true,
                logs: plan.logs,
                ..AgentConfig::local(dir, url.clone(), worker_command()?)
            };
            agents.spawn(elastic_agent::run(config, on(stopped.clone())));
        }
        Ok(Inside { url, credentials, stop_agents, stop_coordinator, agents, coordinator })
    }

    /// Returns when a part ends by itself, which none should: with the reason.
    pub async fn broke(&mut self) -> anyhow::Error {
        let (part, ended) = tokio::select! {
            Some(ended) = self.agents.join_next() => ("agent", ended),
            Some(ended) = self.coordinator.join_next() => ("coordinator", ended),
            else => return anyhow::anyhow!("the cluster in this process has ended"),
        };
        match ended {
            Ok(Ok(())) => anyhow::anyhow!("the {part} ended by itself"),
            Ok(Err(error)) => error.context(format!("the {part} in this process")),
            Err(error) => anyhow::Error::new(error).context(format!("the {part} in this process")),
        }
    }

    /// Agents first: they drain while the coordinator still answers.
    pub async fn stop(mut self) {
        self.stop_agents.send_replace(true);
        while self.agents.join_next().await.is_some() {}
        self.stop_coordinator.send_replace(true);
        while self.coordinator.join_next().await.is_some() {}
    }
}

async fn on(mut switch: watch::Receiver<bool>) {
    let _ = switch.wait_for(|on| *on).await;
}

/// This very program, as a worker.
pub fn worker_command() -> Result<Vec<OsString>> {
    let me = std::env::current_exe().context("find this program, to start workers with")?;
    Ok(vec![me.into(), "worker".into()])
}

/// From the kernel.
pub fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.context("read /dev/urandom")?;
    Ok(u64::from_le_bytes(bytes))
}

/// A directory for one cluster under `<runs>/.cluster`, locked while this process lives. What a killed
/// process left there is removed by the next; process numbers would not do, since machines and containers
/// may share the directory of runs.
pub struct Place {
    dir: PathBuf,
    _lock: File,
}

impl Place {
    pub fn make(runs: &Path) -> Result<Place> {
        let all = runs.join(".cluster");
        for left in std::fs::read_dir(&all).into_iter().flatten().flatten() {
            if lock(&left.path()).is_ok() {
                let _ = std::fs::remove_dir_all(left.path());
            }
        }
        let dir = all.join(format!("{:016x}", random()?));
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        // Between the two lines another process may take it for a leftover: then this start fails, and says so.
        let lock = lock(&dir).with_context(|| format!("lock {}", dir.display()))?;
        Ok(Place { dir, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn lock(dir: &Path) -> std::io::Result<File> {
    let file = File::create(dir.join("lock"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}
