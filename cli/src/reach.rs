//! Finds the cluster: flags, then the environment, then `~/.config/elastic/config.toml`.

use crate::args::Reach;
use crate::exit::mistake;
use anyhow::{Context, Result, anyhow, bail};
use elastic_proto::Credentials;
use elastic_proto::client::Coordinator;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use toml::de::{DeTable, DeValue};

const START_WITHIN: Duration = Duration::from_secs(10);

/// The user's own settings: `coordinator = "URL"` or a list of them, `token_file` and `tls_ca`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Config {
    coordinator: Vec<String>,
    token_file: Option<PathBuf>,
    tls_ca: Option<PathBuf>,
}

/// A cluster that was named, and how to speak to it.
#[derive(Clone)]
pub struct Cluster {
    pub urls: Vec<String>,
    pub credentials: Credentials,
}

impl Cluster {
    /// None: nobody named one.
    pub fn find(reach: &Reach) -> Result<Option<Cluster>> {
        let config = read_config().map_err(mistake)?;
        let named = |urls: Vec<String>| urls.into_iter().filter(|url| !url.is_empty()).collect::<Vec<_>>();
        let urls = match named(reach.coordinator.clone()) {
            urls if urls.is_empty() => named(config.coordinator),
            urls => urls,
        };
        if urls.is_empty() {
            return Ok(None);
        }
        let token_file = reach.token_file.as_ref().or(config.token_file.as_ref());
        let token = token(token_file.map(PathBuf::as_path), reach.token.as_deref())?;
        let authority = reach.tls_ca.as_ref().or(config.tls_ca.as_ref());
        let authority_pem = authority.map(|path| read_text(path)).transpose()?;
        // A file is read again for each connection; that it can be read was seen here.
        let token_file = token_file.cloned();
        Ok(Some(Cluster {
            urls,
            credentials: Credentials { token, token_file, authority_pem, ..Credentials::default() },
        }))
    }

    /// For commands that make no sense without one.
    pub fn needed(reach: &Reach) -> Result<Cluster> {
        Cluster::find(reach)?.ok_or_else(|| {
            mistake(anyhow!(
                "no coordinator is named: use --coordinator URL, set ELASTIC_COORDINATOR, or write \
                 `coordinator = \"URL\"` into {}",
                config_path().map_or("~/.config/elastic/config.toml".into(), |path| path.display().to_string())
            ))
        })
    }

    /// One that is just being started: waits until it leads.
    pub async fn connect_when_up(&self) -> Result<Coordinator> {
        let until = Instant::now() + START_WITHIN;
        loop {
            match self.connect().await {
                Err(_) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(2)).await,
                found => return found,
            }
        }
    }

    /// The one that leads.
    pub async fn connect(&self) -> Result<Coordinator> {
        let found = Coordinator::connect_leader(&self.urls, &self.credentials).await;
        found.with_context(|| format!("reach the coordinator at {}", self.urls.join(", ")))
    }
}

/// Finds the cluster and connects.
pub async fn connect(reach: &Reach) -> Result<Coordinator> {
    Cluster::needed(reach)?.connect().await
}

/// A token from a file, else the given one.
pub fn token(file: Option<&Path>, given: Option<&str>) -> Result<Option<String>> {
    let token = match file {
        Some(file) => Some(read_text(file)?.trim().to_string()),
        None => given.map(str::to_string),
    };
    Ok(token.filter(|token| !token.is_empty()))
}

/// A file that the user named.
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display())).map_err(mistake)
}

fn config_path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
    Some(base.join("elastic/config.toml"))
}

fn read_config() -> Result<Config> {
    let Some(path) = config_path() else { return Ok(Config::default()) };
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Config::default()),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
    parse_config(&text).with_context(|| format!("read {}", path.display()))
}

fn parse_config(text: &str) -> Result<Config> {
    let mut config = Config::default();
    for (key, value) in DeTable::parse(text)?.into_inner() {
        let (key, value) = (key.into_inner(), value.into_inner());
        let one = |value: &DeValue<'_>| value.as_str().map(str::to_string);
        let list = || value.as_array().and_then(|list| list.iter().map(|item| one(item.get_ref())).collect());
        match (key.as_ref(), one(&value)) {
            ("coordinator", Some(url)) => config.coordinator = vec![url],
            ("coordinator", None) => {
                config.coordinator = list().context("coordinator: a URL or a list of URLs is meant")?
            }
            ("token_file", Some(path)) => config.token_file = Some(path.into()),
            ("tls_ca", Some(path)) => config.tls_ca = Some(path.into()),
            ("token_file" | "tls_ca", None) => bail!("{key}: a path is meant"),
            _ => bail!("{key}: unknown key; allowed are coordinator, token_file and tls_ca"),
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_names_one_coordinator_or_several() {
        let one = parse_config("coordinator = \"http://a:1\"").unwrap();
        assert_eq!(one.coordinator, ["http://a:1"]);
        let many = parse_config("coordinator = [\"a:1\", \"b:1\"]\ntls_ca = \"ca.pem\"").unwrap();
        assert_eq!((many.coordinator.len(), many.tls_ca), (2, Some("ca.pem".into())));
    }

    #[test]
    fn a_wrong_config_is_refused_with_what_is_allowed() {
        for (text, says) in [
            ("cordinator = \"a:1\"", "allowed are coordinator"),
            ("coordinator = 7", "a URL or a list of URLs"),
            ("tls_ca = [1]", "a path is meant"),
            ("coordinator = ", ""),
        ] {
            let error = format!("{:#}", parse_config(text).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
