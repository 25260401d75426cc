//! What a process of a command is told: the variables that `torchrun` sets, and a few of ours.
//!
//! `TORCHELASTIC_USE_AGENT_STORE` is "False": rank 0 itself listens where all meet, so a stock `init_process_group`
//! needs nothing of ours.

use crate::boot::Order;
use crate::env::Env;
use elastic_spec::job::CommandSpec;
use elastic_spec::view::View;
use elastic_spec::{Epoch, Rank};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A node's place in a generation.
pub struct Place {
    pub epoch: Epoch,
    node: u32,
    nodes: u32,
    processes: u32,
    master: (String, String),
    job: String,
    restarts: u32,
    restarts_max: u32,
    env: Vec<(String, String)>,
    /// Where error files lie, and where output is kept besides if the job says so.
    dir: PathBuf,
    is_kept: bool,
}

impl Place {
    pub fn new(env: &Env, order: &Order, command: &CommandSpec, view: &View, rank: Rank, restarts: u32) -> Place {
        let address = view.members.first().map(|m| m.address.as_str()).unwrap_or_default();
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
        let generation = format!("generation_{}", view.epoch.gen_);
        let dir = match &command.log_dir {
            Some(dir) => Path::new(dir).join(env.job.as_str()).join(generation),
            None => {
                let own = env.launch.parent().unwrap_or(Path::new("/tmp"));
                own.join("errors").join(format!("{:016x}", env.worker.0)).join(generation)
            }
        };
        Place {
            epoch: view.epoch,
            node: rank.0.into(),
            nodes: view.world_size().into(),
            processes: command.processes.into(),
            master: (host.trim_matches(['[', ']']).to_string(), port.to_string()),
            job: env.job.to_string(),
            restarts,
            restarts_max: order.spec.elastic.restarts,
            env: command.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            dir,
            is_kept: command.log_dir.is_some(),
        }
    }

    pub fn rank(&self, local: u16) -> u32 {
        self.node * self.processes + u32::from(local)
    }

    pub fn world_size(&self) -> u32 {
        self.nodes * self.processes
    }

    /// The directory of one process.
    pub fn dir(&self, local: u16) -> PathBuf {
        self.dir.join(format!("rank_{}", self.rank(local)))
    }

    pub fn error_file(&self, local: u16) -> PathBuf {
        self.dir(local).join("error.json")
    }

    /// Error files of older generations were read; where the job keeps its files they stay.
    pub fn forget_older(&self) {
        if let Some(all) = self.dir.parent().filter(|_| !self.is_kept) {
            // What is left is in nobody's way.
            let _ = std::fs::remove_dir_all(all);
        }
    }

    pub fn keeps_output(&self, dir: &Path) -> Option<PathBuf> {
        self.is_kept.then(|| dir.to_path_buf())
    }

    /// Tells process number `local` of this node.
    pub fn tell(&self, process: &mut Command, local: u16) {
        // Only this worker speaks with the agent.
        let own = ["ELASTIC_WORKER_TOKEN", "ELASTIC_AGENT_SOCKET", "ELASTIC_LAUNCH", "ELASTIC_BLOBS", "ELASTIC_TOKEN"];
        for name in own {
            process.env_remove(name);
        }
        let unset = |name: &str| std::env::var_os(name).is_none();
        // A thread for each core in every one of several processes would only make them wait for each other.
        if self.processes > 1 && unset("OMP_NUM_THREADS") {
            process.env("OMP_NUM_THREADS", "1");
        }
        if unset("TORCH_NCCL_ASYNC_ERROR_HANDLING") {
            process.env("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1");
        }
        process.envs(self.env.iter().map(|(name, value)| (name, value)));
        process.envs(self.contract(local));
        process.env("TORCHELASTIC_ERROR_FILE", self.error_file(local));
    }

    fn contract(&self, local: u16) -> Vec<(&'static str, String)> {
        let (rank, world) = (self.rank(local).to_string(), self.world_size().to_string());
        vec![
            ("RANK", rank.clone()),
            ("WORLD_SIZE", world.clone()),
            ("LOCAL_RANK", local.to_string()),
            ("LOCAL_WORLD_SIZE", self.processes.to_string()),
            ("GROUP_RANK", self.node.to_string()),
            ("GROUP_WORLD_SIZE", self.nodes.to_string()),
            ("ROLE_RANK", rank),
            ("ROLE_WORLD_SIZE", world),
            ("ROLE_NAME", "default".to_string()),
            ("MASTER_ADDR", self.master.0.clone()),
            ("MASTER_PORT", self.master.1.clone()),
            ("TORCHELASTIC_RESTART_COUNT", self.restarts.to_string()),
            ("TORCHELASTIC_MAX_RESTARTS", self.restarts_max.to_string()),
            ("TORCHELASTIC_RUN_ID", self.job.clone()),
            ("TORCHELASTIC_USE_AGENT_STORE", "False".to_string()),
            ("ELASTIC_GENERATION", self.epoch.gen_.to_string()),
        ]
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.rank(0), self.rank(0) + self.processes - 1);
        let (world, (host, port)) = (self.world_size(), &self.master);
        write!(f, "ranks {first} to {last} of {world}, rank 0 at {host}:{port}")
    }
}
