//! `elastic certs`: an authority of one's own, and certificates for coordinator and nodes, as files.
//!
//! Each part gets a directory with ca.pem, cert.pem and key.pem, which its `--tls-dir` takes. Whoever has an authority
//! already brings such files instead.

use crate::exit::{Exit, Outcome, mistake};
use crate::{cluster, show};
use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand, ValueHint};
use elastic_spec::{Digest, NodeId};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic certs cluster certs --coordinator 10.0.0.1 --node n1=10.0.0.2 --node n2=10.0.0.3
  elastic certs cluster certs --kubernetes elastic && kubectl apply -f certs/secrets.yaml
  elastic certs node n3 --dir certs --san 10.0.0.4 --san n3.example.com
  elastic certs init certs

Copy to each machine the directory that bears its name, and nothing else:
ca-key.pem can sign certificates for anybody, and token opens everything.")]
pub struct Certs {
    #[command(subcommand)]
    pub act: Act,
}

#[derive(Debug, Subcommand)]
pub enum Act {
    /// Make an authority: ca.pem and ca-key.pem
    Init(Init),
    /// Make the certificate of one coordinator or node
    Node(Node),
    /// Make all that a cluster needs: authority, certificates, and the coordinator's token
    Cluster(Cluster),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  elastic certs init certs")]
pub struct Init {
    /// Where the authority shall lie
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic certs node n3 --san 10.0.0.4
  elastic certs node n3 --dir certs --san 10.0.0.4 --san n3.example.com --days 90")]
pub struct Node {
    /// Name of the part; its files go to a directory of that name
    pub name: String,
    /// Where the authority lies
    #[arg(long, value_name = "DIR", default_value = "certs", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Host name or address by which others reach it, besides its name (repeatable)
    #[arg(long, value_name = "HOST")]
    pub san: Vec<String>,
    /// Days that it is good for
    #[arg(long, value_name = "N", default_value_t = 825, value_parser = clap::value_parser!(u16).range(1..=3650))]
    pub days: u16,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic certs cluster certs --coordinator 10.0.0.1 --node n1=10.0.0.2 --node n2=10.0.0.3
  elastic certs cluster certs --kubernetes elastic && kubectl apply -f certs/secrets.yaml")]
pub struct Cluster {
    /// Where everything shall lie
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Host name or address of a coordinator (repeatable)
    #[arg(long, value_name = "HOST")]
    pub coordinator: Vec<String>,
    /// A node and the hosts by which others reach it (repeatable)
    #[arg(long, value_name = "NAME[=HOST,…]")]
    pub node: Vec<String>,
    /// Also write secrets.yaml for the manifests in deploy/, in this namespace
    #[arg(long, value_name = "NAMESPACE")]
    pub kubernetes: Option<String>,
    /// Days that the certificates are good for
    #[arg(long, value_name = "N", default_value_t = 825, value_parser = clap::value_parser!(u16).range(1..=3650))]
    pub days: u16,
}

pub fn run(args: Certs) -> Outcome {
    let said = match args.act {
        Act::Init(args) => {
            Authority::make(&args.dir)?;
            format!(
                "made {0}/ca.pem and {0}/ca-key.pem; keep the key where nobody else can read it\n",
                args.dir.display()
            )
        }
        Act::Node(args) => {
            let sans: Vec<String> = args.san;
            let part = Authority::open(&args.dir)?.issue(&args.dir, &args.name, &sans, args.days)?;
            format!("made {}: give it to {} as --tls-dir\n", part.display(), args.name)
        }
        Act::Cluster(args) => cluster(&args)?,
    };
    show::out(&said)?;
    Ok(Exit::Ok)
}

fn cluster(args: &Cluster) -> Result<String> {
    if args.coordinator.is_empty() && args.kubernetes.is_none() {
        return Err(mistake(anyhow!("say with --coordinator HOST where nodes and people reach the coordinator")));
    }
    let dir = &args.dir;
    let authority = Authority::make(dir)?;
    let mut hosts = args.coordinator.clone();
    let mut said = String::new();
    if let Some(namespace) = &args.kubernetes {
        NodeId::parse(namespace).map_err(|_| mistake(anyhow!("--kubernetes {namespace}: is no namespace's name")))?;
        hosts.extend(service_names("elastic-coordinator", namespace));
    }
    authority.issue(dir, "coordinator", &hosts, args.days)?;
    for node in &args.node {
        let (name, hosts) = node.split_once('=').unwrap_or((node, ""));
        let hosts: Vec<String> = hosts.split(',').filter(|h| !h.is_empty()).map(str::to_string).collect();
        authority.issue(dir, name, &hosts, args.days)?;
    }
    keep(&dir.join("token"), &drawn()?, OWNER)?;
    if let Some(namespace) = &args.kubernetes {
        // Pods come and go with new addresses: their certificate carries one name for all.
        let agent = authority.issue(dir, AGENT, &[], args.days)?;
        keep(&agent.join("peer-name"), &format!("{AGENT}\n"), EVERYBODY)?;
        authority.issue(dir, "etcd", &service_names("elastic-etcd", namespace), args.days)?;
        authority.issue(dir, "serving", &service_names("elastic-serving", namespace), args.days)?;
        keep(&dir.join("api-keys"), &drawn()?, OWNER)?;
        keep(&dir.join("metrics-token"), &drawn()?, OWNER)?;
        let yaml = secrets(dir, namespace)?;
        keep(&dir.join("secrets.yaml"), &yaml, OWNER)?;
        said.push_str(&format!("  kubectl apply -f {}/secrets.yaml\n", dir.display()));
    }
    let d = dir.display();
    Ok(format!(
        "made an authority, certificates and a token in {d}\n  \
         elastic coordinator --listen HOST:7070 --tls-dir {d}/coordinator --token-file {d}/token\n  \
         elastic jobs --coordinator https://HOST:7070 --tls-ca {d}/ca.pem --token-file {d}/token\n{said}"
    ))
}

/// A line that nobody guesses.
fn drawn() -> Result<String> {
    (0..4).map(|_| Ok(format!("{:016x}", cluster::random()?))).chain([Ok("\n".to_string())]).collect()
}

/// The one name that the certificate of all agents carries where their addresses change.
const AGENT: &str = "elastic-agent";

/// How pods and people of a Kubernetes cluster call a service and the pods behind it.
fn service_names(service: &str, namespace: &str) -> Vec<String> {
    let whole = [format!(".{namespace}"), format!(".{namespace}.svc"), format!(".{namespace}.svc.cluster.local")];
    let mut names = vec![service.to_string()];
    // A `*` before one label alone, as in `*.com`, is taken to mean nobody: pods are named one by one there.
    names.extend((0..PODS_NAMED).map(|i| format!("{service}-{i}.{service}")));
    names.extend(whole.iter().flat_map(|rest| [format!("{service}{rest}"), format!("*.{service}{rest}")]));
    names.extend(["localhost".to_string(), "127.0.0.1".to_string()]);
    names
}

/// The manifests have three of etcd and two coordinators.
const PODS_NAMED: usize = 7;

/// The Secrets that the manifests in deploy/ name.
fn secrets(dir: &Path, namespace: &str) -> Result<String> {
    let mut yaml = String::from("# Made by `elastic certs cluster`. Holds keys: do not commit it.\n");
    for (secret, part, files) in [
        ("elastic-coordinator-tls", "coordinator", &["ca.pem", "cert.pem", "key.pem"][..]),
        ("elastic-etcd-tls", "etcd", &["ca.pem", "cert.pem", "key.pem"]),
        ("elastic-agent-tls", AGENT, &["ca.pem", "cert.pem", "key.pem", "peer-name"]),
        ("elastic-serving-tls", "serving", &["ca.pem", "cert.pem", "key.pem"]),
        ("elastic-token", "", &["token"]),
        ("elastic-api-keys", "", &["api-keys"]),
        ("elastic-metrics", "", &["metrics-token"]),
    ] {
        yaml.push_str(&format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: {secret}\n  namespace: {namespace}\ntype: Opaque\nstringData:\n"
        ));
        for file in files {
            let path = dir.join(part).join(file);
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            yaml.push_str(&format!("  {file}: |\n"));
            text.trim_end().lines().for_each(|line| yaml.push_str(&format!("    {line}\n")));
        }
    }
    Ok(yaml)
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn make(dir: &Path) -> Result<Authority> {
        let key = KeyPair::generate().context("draw a key")?;
        let params = authority_params(&key)?;
        let pem = params.self_signed(&key).context("sign the authority's certificate")?.pem();
        keep(&dir.join("ca-key.pem"), &key.serialize_pem(), OWNER)?;
        keep(&dir.join("ca.pem"), &pem, EVERYBODY)?;
        Ok(Authority { pem, issuer: Issuer::new(params, key) })
    }

    fn open(dir: &Path) -> Result<Authority> {
        let read = |name: &str| {
            let path = dir.join(name);
            let cure = "`elastic certs init` makes an authority";
            std::fs::read_to_string(&path).with_context(|| format!("read {} ({cure})", path.display())).map_err(mistake)
        };
        let (pem, key) = (read("ca.pem")?, read("ca-key.pem")?);
        let key = KeyPair::from_pem(&key).with_context(|| format!("read {}/ca-key.pem", dir.display()))?;
        let params = authority_params(&key)?;
        Ok(Authority { pem, issuer: Issuer::new(params, key) })
    }

    /// Makes `dir/name` with the three files of one part.
    fn issue(&self, dir: &Path, name: &str, hosts: &[String], days: u16) -> Result<PathBuf> {
        NodeId::parse(name).map_err(mistake)?;
        let names: Vec<String> = std::iter::once(name.to_string()).chain(hosts.iter().cloned()).collect();
        let wrong = |e| mistake(anyhow!("{}: a host name or an address is meant: {e}", names.join(", ")));
        let mut params = CertificateParams::new(names.clone()).map_err(wrong)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Each part listens and dials.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        set_valid(&mut params, days.into());
        let key = KeyPair::generate().context("draw a key")?;
        let pem = params.signed_by(&key, &self.issuer).context("sign the certificate")?.pem();
        let part = dir.join(name);
        keep(&part.join("key.pem"), &key.serialize_pem(), OWNER)?;
        keep(&part.join("cert.pem"), &pem, EVERYBODY)?;
        keep(&part.join("ca.pem"), &self.pem, EVERYBODY)?;
        Ok(part)
    }
}

/// The same each time for one key, so that the key alone suffices to sign later.
fn authority_params(key: &KeyPair) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new()).context("an authority without names")?;
    let id = Digest::of(key.public_key_raw()).to_string();
    params.distinguished_name.push(DnType::CommonName, format!("elastic authority {}", &id[..12]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_valid(&mut params, AUTHORITY_DAYS);
    Ok(params)
}

const AUTHORITY_DAYS: i64 = 3_650;
const OWNER: u32 = 0o600;
const EVERYBODY: u32 = 0o644;

/// Writes a file that is not there yet: nobody's key is lost by a command said twice.
fn keep(path: &Path, text: &str, mode: u32) -> Result<()> {
    let dir = path.parent().expect("a file lies in a directory");
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("make {}", dir.display()))?;
    let mut file = match std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            let error = anyhow!("{} is there already: take another directory, or remove it first", path.display());
            return Err(mistake(error));
        }
        file => file.with_context(|| format!("write {}", path.display()))?,
    };
    if let Err(error) = file.write_all(text.as_bytes()) {
        bail!("write {}: {error}", path.display());
    }
    Ok(())
}

/// From yesterday, since clocks differ, for so many days.
fn set_valid(params: &mut CertificateParams, days: i64) {
    let today = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / (24 * 3_600)) as i64;
    let date = |days| {
        let (year, month, day) = civil(days);
        rcgen::date_time_ymd(year, month, day)
    };
    (params.not_before, params.not_after) = (date(today - 1), date(today + days));
}

/// Year, month and day of a count of days since 1970-01-01, by the calendar's eras of 400 years.
fn civil(days: i64) -> (i32, u8, u8) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year as i32, month as u8, day as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_783, (2026, 11, 26)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date, "{days}");
        }
    }

    #[test]
    fn keys_are_their_owners_and_nothing_is_written_over() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("certs");
        Authority::make(&dir).unwrap();
        let part = Authority::open(&dir).unwrap().issue(&dir, "n1", &["10.0.0.2".into()], 30).unwrap();
        for key in [dir.join("ca-key.pem"), part.join("key.pem")] {
            assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600, "{}", key.display());
        }
        let before = std::fs::read(dir.join("ca-key.pem")).unwrap();
        assert!(Authority::make(&dir).is_err());
        assert_eq!(std::fs::read(dir.join("ca-key.pem")).unwrap(), before);
        let again = Authority::open(&dir).unwrap().issue(&dir, "n1", &[], 30).unwrap_err();
        assert!(again.to_string().contains("there already"), "{again}");
    }

    #[test]
    fn a_name_that_could_leave_the_directory_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let authority = Authority::make(home.path()).unwrap();
        for bad in ["..", "a/b", "", "A"] {
            assert!(authority.issue(home.path(), bad, &[], 30).is_err(), "{bad:?}");
        }
    }
}
