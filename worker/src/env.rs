//! What the agent that starts a worker tells it: read once, here and nowhere else.

use anyhow::{Context, Result, bail};
use elastic_spec::{JobId, WorkerId};
use std::path::PathBuf;

/// The environment of a worker process.
#[derive(Clone, Debug)]
pub struct Env {
    pub agent_socket: PathBuf,
    /// Proves to the agent that this is the process it started.
    pub token: String,
    pub worker: WorkerId,
    pub job: JobId,
    /// JSON of [`elastic_spec::facts::Launch`].
    pub launch: PathBuf,
    pub slot: u16,
    /// The host to listen on for peers, and the one by which they reach it.
    pub bind: String,
    pub advertise: String,
    /// Where the processes of a command meet, if their rank 0 is here; None: as `advertise`.
    pub meet_at: Option<String>,
    /// Ports that peers may be given; None: any free one.
    pub ports: Option<(u16, u16)>,
    /// Inputs that travelled with the job, by digest.
    pub blobs: PathBuf,
    /// Threads to compute with; 0: one for each core.
    pub threads: usize,
    pub tls_dir: Option<PathBuf>,
    /// Peers' traffic may be readable on the network.
    pub insecure: bool,
    /// Fail points, for tests only: see `docs/fail-points.md`.
    pub fail: Option<String>,
    pub fail_once: Option<PathBuf>,
}

impl Env {
    /// Reads the process's environment; an error names the variable.
    pub fn read() -> Result<Env> {
        Env::from(|name| std::env::var(name).ok())
    }

    fn from(get: impl Fn(&str) -> Option<String>) -> Result<Env> {
        let optional = |name: &str| get(name).filter(|text| !text.is_empty());
        let needed = |name: &str| {
            optional(name).with_context(|| {
                format!("{name} is not set: a worker is started by an agent (use `elastic submit`), not by hand")
            })
        };
        let id = needed("ELASTIC_WORKER_ID")?;
        Ok(Env {
            agent_socket: needed("ELASTIC_AGENT_SOCKET")?.into(),
            token: needed("ELASTIC_WORKER_TOKEN")?,
            worker: WorkerId(u64::from_str_radix(&id, 16).with_context(|| format!("ELASTIC_WORKER_ID \"{id}\""))?),
            job: JobId::parse(&needed("ELASTIC_JOB")?).context("ELASTIC_JOB")?,
            launch: needed("ELASTIC_LAUNCH")?.into(),
            slot: number("ELASTIC_SLOT", optional("ELASTIC_SLOT"))?.unwrap_or(0),
            bind: optional("ELASTIC_BIND").unwrap_or_else(|| "127.0.0.1".into()),
            advertise: optional("ELASTIC_ADVERTISE").unwrap_or_else(|| "127.0.0.1".into()),
            meet_at: optional("ELASTIC_MEET_AT"),
            ports: optional("ELASTIC_PORTS").map(|text| ports(&text)).transpose()?,
            blobs: optional("ELASTIC_BLOBS").unwrap_or_default().into(),
            threads: number("ELASTIC_THREADS", optional("ELASTIC_THREADS"))?.unwrap_or(0),
            tls_dir: optional("ELASTIC_TLS_DIR").map(PathBuf::from),
            insecure: optional("ELASTIC_INSECURE").is_some_and(|text| text == "1"),
            fail: optional("ELASTIC_FAIL"),
            fail_once: optional("ELASTIC_FAIL_ONCE").map(PathBuf::from),
        })
    }
}

fn number<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    name: &str,
    text: Option<String>,
) -> Result<Option<T>> {
    text.map(|text| text.parse().with_context(|| format!("{name} \"{text}\" is not a number"))).transpose()
}

fn ports(text: &str) -> Result<(u16, u16)> {
    let range = text.split_once('-').and_then(|(lo, hi)| Some((lo.parse().ok()?, hi.parse().ok()?)));
    match range {
        Some((lo, hi)) if lo <= hi && lo > 0 => Ok((lo, hi)),
        _ => bail!("ELASTIC_PORTS \"{text}\" is not a range like 7000-7100"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(name: &str) -> Option<String> {
        let value = match name {
            "ELASTIC_AGENT_SOCKET" => "/tmp/a.sock",
            "ELASTIC_WORKER_TOKEN" => "t",
            "ELASTIC_WORKER_ID" => "00ff",
            "ELASTIC_JOB" => "digits-1",
            "ELASTIC_LAUNCH" => "/tmp/launch.json",
            "ELASTIC_PORTS" => "7000-7010",
            "ELASTIC_THREADS" => "2",
            _ => return None,
        };
        Some(value.into())
    }

    #[test]
    fn a_whole_environment_is_read() {
        let env = Env::from(given).unwrap();
        assert_eq!((env.worker, env.ports, env.threads), (WorkerId(255), Some((7000, 7010)), 2));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, bad, says) in [
            ("ELASTIC_JOB", "../x", "ELASTIC_JOB"),
            ("ELASTIC_WORKER_ID", "zz", "ELASTIC_WORKER_ID \"zz\""),
            ("ELASTIC_PORTS", "9-3", "is not a range"),
            ("ELASTIC_THREADS", "many", "ELASTIC_THREADS \"many\""),
            ("ELASTIC_LAUNCH", "", "ELASTIC_LAUNCH is not set"),
        ] {
            let error = Env::from(|n| if n == name { Some(bad.into()) } else { given(n) }).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{error:#}");
        }
    }
}
