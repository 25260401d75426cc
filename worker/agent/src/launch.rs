//! Puts together the command line and the environment of a worker process.
//!
//! Everything that a worker is told before it speaks to its agent goes through here and nowhere else;
//! the names are read by `elastic_worker::env`.

use crate::converge::Place;
use crate::inputs::Files;
use crate::process::Program;
use crate::{AgentConfig, LogsIn};
use anyhow::{Context, Result, bail};
use elastic_spec::facts::Launch;
use elastic_spec::job::JobSpec;
use elastic_spec::{JobId, WorkerId};
use std::path::{Path, PathBuf};

/// One start of one worker.
pub struct Start<'a> {
    pub worker: WorkerId,
    pub place: &'a Place,
    pub token: &'a str,
    pub files: &'a Files,
}

pub fn program(config: &AgentConfig, socket: &Path, start: &Start<'_>) -> Result<Program> {
    let spec = JobSpec::from_json(&start.files.launch.spec_json).map_err(anyhow::Error::msg)?;
    let is_command = spec.command().is_some();
    if is_command && !config.allow_programs {
        bail!("the job runs a command, which this agent does only with --allow-programs");
    }
    let argv = match &start.files.launch.program {
        None => config.worker.clone(),
        Some(program) if config.allow_programs => vec![program.into()],
        Some(program) => {
            bail!("the job wants the program {program} started, which this agent does only with --allow-programs")
        }
    };
    // Absolute: the worker's working directory is its own business.
    let whole = |path: &Path| std::path::absolute(path).with_context(|| format!("find {}", path.display()));
    let mut env = vec![
        ("ELASTIC_AGENT_SOCKET", whole(socket)?.into_os_string()),
        ("ELASTIC_WORKER_TOKEN", start.token.into()),
        ("ELASTIC_WORKER_ID", format!("{:016x}", start.worker.0).into()),
        ("ELASTIC_JOB", start.place.0.as_str().into()),
        ("ELASTIC_SLOT", start.place.1.to_string().into()),
        ("ELASTIC_LAUNCH", whole(&start.files.launch_path)?.into_os_string()),
        ("ELASTIC_BLOBS", whole(&start.files.blobs)?.into_os_string()),
        ("ELASTIC_BIND", config.bind.as_str().into()),
        ("ELASTIC_ADVERTISE", config.advertise.as_str().into()),
        ("ELASTIC_THREADS", threads(spec.resources.threads, config.slots).to_string().into()),
        // Empty is none: an agent that was itself started by one must not pass its own on.
        ("ELASTIC_MEET_AT", config.meet_at.clone().unwrap_or_default().into()),
        ("ELASTIC_PORTS", config.ports.map(|(lo, hi)| format!("{lo}-{hi}")).unwrap_or_default().into()),
    ];
    env.push(("ELASTIC_INSECURE", if config.access.insecure { "1" } else { "" }.into()));
    let tls = config.tls_dir.as_deref().map(whole).transpose()?.unwrap_or_default();
    env.push(("ELASTIC_TLS_DIR", tls.into_os_string()));
    Ok(Program { argv, env, keeps: is_command.then_some(start.worker) })
}

/// Where the logs of a job are kept on this node.
pub fn log_dir(config: &AgentConfig, job: &JobId, launch: &Launch) -> PathBuf {
    match config.logs {
        LogsIn::State => state_log_dir(&config.state_dir, job),
        LogsIn::Run => Path::new(&launch.run_dir).join("logs"),
    }
}

pub fn state_log_dir(state_dir: &Path, job: &JobId) -> PathBuf {
    state_dir.join("logs").join(job.as_str())
}

/// As many as the job asks for, or this slot's share of the cores.
fn threads(asked: u16, slots: u16) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    match asked {
        0 => (cores / usize::from(slots.max(1))).max(1),
        asked => asked.into(),
    }
}
