//! `elastic coordinator`: the control plane as a process of its own.

use crate::args;
use crate::exit::{Exit, Outcome, mistake};
use crate::reach::{read_text, token};
use crate::{logging, page, signals};
use anyhow::{Context, Result, anyhow};
use elastic_coordinator::store::{Embedded, Etcd, EtcdTls, Memory, Store};
use elastic_proto::{Access, Credentials, OwnCertificate};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;

pub async fn run(args: args::Coordinator) -> Outcome {
    logging::to_stderr("info");
    let token = token(args.token_file.as_deref(), args.token.as_deref())?;
    let agent_authority_pem = args.agent_tls_ca.as_deref().map(read_text).transpose()?;
    let access = Access { token, agent_authority_pem, ..access(&args.listening)? };
    let credentials = Credentials {
        authority_pem: authority(args.tls_ca.as_deref(), &args.listening)?,
        server_name: args.agent_tls_name,
        ..Credentials::default()
    };
    let listener = TcpListener::bind(&args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    let bound = listener.local_addr().context("the listener's address")?;
    access.check(bound).map_err(mistake)?;
    let http = page::listen(args.http.as_deref(), &access).await?;
    let shown = http.as_ref().and_then(|http| page::url(http, &access));
    let store = open(args.store.as_deref(), &args.data_dir, args.etcd_tls_dir.as_deref()).await?;
    let mut config = elastic_coordinator::Config {
        advertise: args.advertise.unwrap_or_else(|| bound.to_string()),
        runs: std::path::absolute(&args.runs).context("find the directory of runs")?,
        access,
        credentials,
        control: Default::default(),
    };
    config.control.allow_commands = args.allow_commands;
    tracing::info!(listen = %bound, advertise = config.advertise, page = shown, "coordinator starts");
    let listeners = elastic_coordinator::Listeners { grpc: listener, http };
    elastic_coordinator::serve(listeners, store, config, signals::interrupted()).await.context("coordinator")?;
    Ok(Exit::Ok)
}

/// How a listener is protected, from the flags.
pub fn access(listening: &args::Listening) -> Result<Access> {
    let certificate =
        listening.pair().map(|(chain, key)| OwnCertificate::from_files(chain, key)).transpose().map_err(mistake)?;
    Ok(Access { certificate, insecure: listening.insecure, ..Access::default() })
}

/// Whom to trust: the authority that was named, or that of the directory.
pub fn authority(named: Option<&Path>, listening: &args::Listening) -> Result<Option<String>> {
    let in_dir = listening.tls_dir.as_ref().map(|dir| dir.join("ca.pem"));
    named.map(Path::to_path_buf).or(in_dir).as_deref().map(read_text).transpose()
}

/// Where records are kept.
#[derive(Debug, PartialEq, Eq)]
enum Kept {
    Memory,
    Embedded(PathBuf),
    Etcd { hosts: Vec<String>, prefix: String },
}

async fn open(said: Option<&str>, data_dir: &Path, etcd_tls_dir: Option<&Path>) -> Result<Arc<dyn Store>> {
    let etcd_tls = etcd_tls_dir.map(etcd_tls).transpose()?;
    Ok(match kept(said, data_dir).map_err(mistake)? {
        Kept::Memory => Arc::new(Memory::new()),
        Kept::Embedded(dir) => Arc::new(Embedded::open(&dir)?),
        Kept::Etcd { hosts, prefix } => {
            let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
            Arc::new(
                Etcd::connect(&hosts, &prefix, etcd_tls.as_ref())
                    .await
                    .with_context(|| format!("reach etcd at {}", hosts.join(", ")))?,
            )
        }
    })
}

/// What is shown to etcd, and whom to trust there.
fn etcd_tls(dir: &Path) -> Result<EtcdTls> {
    let read = |name: &str| read_text(&dir.join(name));
    Ok(EtcdTls { authority_pem: read("ca.pem")?, chain_pem: read("cert.pem")?, key_pem: read("key.pem")? })
}

fn kept(said: Option<&str>, data_dir: &Path) -> Result<Kept> {
    let bad = |text: &str| {
        anyhow!("--store {text}: allowed are memory, redb:PATH and etcd://HOST:PORT[,HOST:PORT…][/PREFIX]")
    };
    match said {
        None => Ok(Kept::Embedded(data_dir.to_path_buf())),
        Some("memory") => Ok(Kept::Memory),
        Some(text) => match (text.strip_prefix("redb:"), text.strip_prefix("etcd://")) {
            (Some(path), _) if !path.is_empty() => Ok(Kept::Embedded(path.into())),
            (_, Some(rest)) => {
                let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let hosts: Vec<String> = hosts.split(',').map(str::to_string).collect();
                let prefix = if prefix.is_empty() { "elastic" } else { prefix }.to_string();
                match hosts.iter().all(|host| !host.is_empty()) {
                    true => Ok(Kept::Etcd { hosts, prefix }),
                    false => Err(bad(text)),
                }
            }
            _ => Err(bad(text)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_named_in_one_of_four_ways() {
        let etcd = |hosts: &[&str], prefix: &str| Kept::Etcd {
            hosts: hosts.iter().map(|h| h.to_string()).collect(),
            prefix: prefix.into(),
        };
        for (said, expected) in [
            (None, Kept::Embedded("data".into())),
            (Some("memory"), Kept::Memory),
            (Some("redb:/x/y"), Kept::Embedded("/x/y".into())),
            (Some("etcd://a:1,b:2"), etcd(&["a:1", "b:2"], "elastic")),
            (Some("etcd://a:1/team"), etcd(&["a:1"], "team")),
        ] {
            assert_eq!(kept(said, Path::new("data")).unwrap(), expected);
        }
        for bad in ["redb:", "etcd://", "etcd://a:1,,b:2", "postgres://x", ""] {
            assert!(kept(Some(bad), Path::new("data")).unwrap_err().to_string().contains("redb:PATH"), "{bad}");
        }
    }
}
