//! `elastic agent`: makes this machine a node of a cluster.

use super::coordinator::{access, authority};
use crate::args;
use crate::cluster::worker_command;
use crate::exit::{Exit, Outcome, mistake};
use crate::reach::{self, Cluster};
use crate::{logging, signals};
use anyhow::{Context, Result, anyhow};
use elastic_agent::{AgentConfig, Notices};
use elastic_proto::Access;
use elastic_spec::NodeId;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub async fn run(args: args::Agent) -> Outcome {
    logging::to_stderr("info");
    let mut cluster = Cluster::needed(&args.reach)?;
    let first = cluster.urls[0].clone();
    let access = access(&args.listening)?;
    let trusted = &mut cluster.credentials;
    if trusted.authority_pem.is_none() {
        trusted.authority_pem = authority(None, &args.listening)?;
    }
    trusted.certificate = access.certificate.clone();
    if let Ok(bind) = args.bind.parse::<IpAddr>() {
        // The log service asks for a token that only the coordinator is told.
        let guarded = Access { token: Some(String::new()), ..access.clone() };
        guarded.check(SocketAddr::new(bind, 0)).context("--bind").map_err(mistake)?;
        if bind.is_unspecified() && args.advertise.is_none() {
            return Err(
                mistake(anyhow!("--bind {bind}: say with --advertise HOST where others reach this node")).into()
            );
        }
    }
    let config = AgentConfig {
        name: args.name.as_deref().map(NodeId::parse).transpose().context("--name").map_err(mistake)?,
        slots: args.slots,
        coordinators: cluster.urls,
        access,
        credentials: cluster.credentials,
        advertise: args.advertise.unwrap_or_else(|| args.bind.clone()),
        bind: args.bind,
        ports: args.ports.as_deref().map(ports).transpose().map_err(mistake)?,
        tls_dir: args.listening.tls_dir,
        allow_programs: args.allow_programs,
        drain_within: Duration::from_secs(args.drain_within),
        notices: args.preemption_url.as_deref().map(Notices::parse).transpose().map_err(preemption)?,
        http: args.http,
        http_token: reach::token(args.http_token_file.as_deref(), None)?,
        ..AgentConfig::local(state_dir(args.state_dir)?, first, worker_command()?)
    };
    elastic_agent::run(config, signals::interrupted()).await?;
    Ok(Exit::Ok)
}

fn preemption(wrong: String) -> anyhow::Error {
    mistake(anyhow!("--preemption-url {wrong}"))
}

fn state_dir(said: Option<PathBuf>) -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let usual = || set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    said.or_else(|| usual().map(|base| base.join("elastic/agent")))
        .ok_or_else(|| mistake(anyhow!("neither --state-dir nor HOME is set: say where this node keeps its state")))
}

fn ports(text: &str) -> Result<(u16, u16)> {
    let range = text.split_once('-').and_then(|(lo, hi)| Some((lo.parse().ok()?, hi.parse().ok()?)));
    match range {
        Some((lo, hi)) if 0 < lo && lo <= hi => Ok((lo, hi)),
        _ => Err(anyhow!("--ports {text}: a range like 7100-7199 is meant")),
    }
}
