//! What a process of a command is told: the variables that `torchrun` sets, and a few of ours.
//!
//! `TORCHELASTIC_USE_AGENT_STORE` is "False": rank 0 itself listens where all meet, so a stock `init_process_group`
//! needs nothing of ours.

use super::output::Shown;
use super::prefix;
use crate::boot::Order;
use crate::env::Env;
use elastic_spec::job::{CommandSpec, Stream};
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
    role: String,
    /// Each process sees one device alone.
    is_virtual: bool,
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
            role: command.role.clone(),
            is_virtual: command.virtual_local_rank,
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

    /// What is shown of a process whose files lie in `dir`.
    pub fn shown(&self, command: &CommandSpec, local: u16, dir: &Path) -> Shown {
        let (rank, hostname) = (self.rank(local), prefix::hostname());
        let names = prefix::Names { role: &self.role, local_rank: local, rank, hostname: &hostname };
        let prefix = match &command.prefix {
            Some(template) => prefix::fill(template, &names),
            None if self.world_size() > 1 => format!("[rank {rank}] "),
            None => String::new(),
        };
        let shows = |stream| command.shows(local, stream);
        let dir = self.is_kept.then(|| dir.to_path_buf());
        Shown { prefix, stdout: shows(Stream::Stdout), stderr: shows(Stream::Stderr), dir }
    }

    /// Tells process number `local` of this node.
    pub fn tell(&self, process: &mut Command, local: u16) -> Result<(), String> {
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
        if self.is_virtual {
            // ROCm looks at its own variable first.
            let own = |name: &str| self.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            let set = |name: &str| own(name).or_else(|| std::env::var(name).ok());
            let hip = set("HIP_VISIBLE_DEVICES").filter(|all| !all.is_empty());
            let device = device(hip.clone().or_else(|| set("CUDA_VISIBLE_DEVICES")).as_deref(), local)?;
            process.env("CUDA_VISIBLE_DEVICES", &device);
            if hip.is_some() {
                process.env("HIP_VISIBLE_DEVICES", &device);
            }
        }
        Ok(())
    }

    fn contract(&self, local: u16) -> Vec<(&'static str, String)> {
        let (rank, world) = (self.rank(local).to_string(), self.world_size().to_string());
        vec![
            ("RANK", rank.clone()),
            ("WORLD_SIZE", world.clone()),
            ("LOCAL_RANK", if self.is_virtual { "0".to_string() } else { local.to_string() }),
            ("LOCAL_WORLD_SIZE", self.processes.to_string()),
            ("GROUP_RANK", self.node.to_string()),
            ("GROUP_WORLD_SIZE", self.nodes.to_string()),
            ("ROLE_RANK", rank),
            ("ROLE_WORLD_SIZE", world),
            ("ROLE_NAME", self.role.clone()),
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

/// The one device of a process, of those that its node was told to use.
fn device(all: Option<&str>, local: u16) -> Result<String, String> {
    let Some(all) = all else { return Ok(local.to_string()) };
    let found = all.split(',').nth(local.into()).map(|device| device.trim().to_string());
    found.ok_or_else(|| format!("process {local} of this node has no device among the visible ones, {all:?}"))
}

#[cfg(test)]
mod tests {
    use super::device;

    #[test]
    fn a_process_sees_the_device_of_its_place_among_the_visible_ones() {
        assert_eq!(device(None, 3).as_deref(), Ok("3"));
        assert_eq!(device(Some("4, 6"), 1).as_deref(), Ok("6"));
        assert!(device(Some("4, 6"), 2).unwrap_err().contains("process 2"));
    }
}
