//! Listens for a cloud's word that it will take this machine back, and has the node drain then, as SIGTERM does.
//!
//! What an answer means is decided by `judge` (pure). Around it is a small poller that speaks plain HTTP with the
//! metadata server, which is on the machine's own network and speaks nothing else.

use serde_json::Value;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::{debug, info, warn};

/// Where notices are asked for. A word for the usual place of a cloud, or the URL itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notices {
    cloud: Cloud,
    /// host:port
    server: String,
    path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cloud {
    /// EC2 spot instances, with a session token (IMDSv2).
    Aws,
    /// Spot and preemptible VMs of Google.
    Gcp,
    /// Scheduled events.
    Azure,
}

const AWS: &str = "http://169.254.169.254/latest/meta-data/spot/instance-action";
const GCP: &str = "http://169.254.169.254/computeMetadata/v1/instance/preempted";
const AZURE: &str = "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01";
const AZURE_NAME: &str = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";

impl Notices {
    pub fn parse(text: &str) -> Result<Notices, String> {
        let url = match text {
            "aws" => AWS,
            "gcp" => GCP,
            "azure" => AZURE,
            url => url,
        };
        let meant = || format!("{text}: aws, gcp, azure, or the http:// URL of one of their notices is meant");
        let (server, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or_else(meant)?;
        let path = format!("/{path}");
        let cloud = match path.as_str() {
            p if p.contains("/spot/instance-action") => Cloud::Aws,
            p if p.contains("/instance/preempted") => Cloud::Gcp,
            p if p.contains("/scheduledevents") => Cloud::Azure,
            _ => return Err(meant()),
        };
        let is_plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        if server.is_empty() || !is_plain(server) || !is_plain(&path) {
            return Err(meant());
        }
        let server = if server.contains(':') { server.to_string() } else { format!("{server}:80") };
        Ok(Notices { cloud, server, path })
    }

    /// Returns when the machine will be taken back.
    pub async fn given(self) {
        let mut session = Session::default();
        let mut was_heard = true;
        loop {
            match self.ask(&mut session).await {
                Ok(Verdict::Leave(why)) => {
                    info!(%why, "the cloud takes this machine back: the node drains");
                    return;
                }
                Ok(Verdict::Stay) => was_heard = true,
                Ok(Verdict::Odd(status)) => {
                    session = Session::default();
                    debug!(status, "no answer about notices");
                }
                Err(error) if was_heard => {
                    was_heard = false;
                    warn!(%error, server = self.server, "notices cannot be asked for; asked again until they can");
                }
                Err(_) => {}
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn ask(&self, session: &mut Session) -> std::io::Result<Verdict> {
        let answer = match self.cloud {
            Cloud::Aws => {
                if session.token.is_none() {
                    let header = "X-aws-ec2-metadata-token-ttl-seconds: 21600";
                    let (status, token) = http(&self.server, "PUT", "/latest/api/token", header).await?;
                    let is_token = status == 200 && !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
                    session.token = is_token.then_some(token);
                }
                let Some(token) = &session.token else { return Ok(Verdict::Odd(0)) };
                http(&self.server, "GET", &self.path, &format!("X-aws-ec2-metadata-token: {token}")).await?
            }
            Cloud::Gcp => http(&self.server, "GET", &self.path, "Metadata-Flavor: Google").await?,
            Cloud::Azure => {
                if session.own_name.is_none() {
                    let (status, name) = http(&self.server, "GET", AZURE_NAME, "Metadata: true").await?;
                    session.own_name = (status == 200).then(|| name.trim().to_string());
                }
                http(&self.server, "GET", &self.path, "Metadata: true").await?
            }
        };
        Ok(judge(self.cloud, answer.0, &answer.1, session.own_name.as_deref()))
    }
}

#[derive(Default)]
struct Session {
    token: Option<String>,
    /// Azure tells the events of all machines that were made together.
    own_name: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stay,
    Leave(String),
    /// An answer that says neither, with its status.
    Odd(u16),
}

fn judge(cloud: Cloud, status: u16, body: &str, own_name: Option<&str>) -> Verdict {
    match (cloud, status) {
        (Cloud::Aws, 404) => Verdict::Stay,
        (Cloud::Aws, 200) => {
            let notice: Value = serde_json::from_str(body).unwrap_or_default();
            match (notice["action"].as_str(), notice["time"].as_str()) {
                (Some(action @ ("terminate" | "stop" | "hibernate")), at) => {
                    Verdict::Leave(format!("{action} at {}", at.unwrap_or("a time that it does not say")))
                }
                _ => Verdict::Odd(status),
            }
        }
        (Cloud::Gcp, 200) => match body.trim() {
            "TRUE" => Verdict::Leave("preempted".into()),
            "FALSE" => Verdict::Stay,
            _ => Verdict::Odd(status),
        },
        (Cloud::Azure, 200) => {
            let told: Value = serde_json::from_str(body).unwrap_or_default();
            let Some(events) = told["Events"].as_array() else { return Verdict::Odd(status) };
            let is_ours = |event: &&Value| match (own_name, event["Resources"].as_array()) {
                (Some(own), Some(named)) => named.iter().any(|name| name.as_str() == Some(own)),
                _ => true,
            };
            let takes = |event: &Value| event["EventType"].as_str().filter(|t| TAKES.contains(t)).map(str::to_string);
            events.iter().filter(is_ours).find_map(takes).map_or(Verdict::Stay, Verdict::Leave)
        }
        _ => Verdict::Odd(status),
    }
}

/// Azure's events after which this machine's processes are gone.
const TAKES: [&str; 4] = ["Preempt", "Terminate", "Redeploy", "Reboot"];

/// One request, one answer, one connection: its status and its body.
async fn http(server: &str, method: &str, path: &str, header: &str) -> std::io::Result<(u16, String)> {
    let exchange = async {
        let mut socket = TcpStream::connect(server).await?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {server}\r\n{header}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        socket.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        parse(&answer).ok_or_else(|| std::io::Error::other("the answer is no HTTP"))
    };
    tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| std::io::Error::other("no answer in time"))?
}

fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Some((status, if is_chunked { unchunked(body)? } else { body.to_string() }))
}

/// The pieces of a body, each behind its length in hexadecimal digits.
fn unchunked(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n")?;
        let length = usize::from_str_radix(length.split(';').next()?.trim(), 16).ok()?;
        if length == 0 {
            return Some(body);
        }
        body.push_str(after.get(..length)?);
        rest = after.get(length..)?.strip_prefix("\r\n")?;
    }
}

/// A machine of Amazon's has two minutes from the notice, one of Google's and Azure's thirty seconds.
const PERIOD: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(cloud: Cloud, status: u16, body: &str) -> Option<bool> {
        match judge(cloud, status, body, Some("vm-1")) {
            Verdict::Leave(_) => Some(true),
            Verdict::Stay => Some(false),
            Verdict::Odd(_) => None,
        }
    }

    #[test]
    fn each_clouds_notice_is_understood_and_nothing_else_is_one() {
        let azure = |kind: &str, vm: &str| {
            format!("{{\"DocumentIncarnation\":2,\"Events\":[{{\"EventType\":\"{kind}\",\"Resources\":[\"{vm}\"]}}]}}")
        };
        for (cloud, status, body, expected) in [
            (Cloud::Aws, 404, "", Some(false)),
            (Cloud::Aws, 200, "{\"action\":\"terminate\",\"time\":\"2026-11-26T20:00:00Z\"}", Some(true)),
            (Cloud::Aws, 200, "{\"action\":\"stop\"}", Some(true)),
            (Cloud::Aws, 200, "<html>", None),
            (Cloud::Aws, 401, "", None),
            (Cloud::Aws, 500, "{\"action\":\"terminate\"}", None),
            (Cloud::Gcp, 200, "TRUE\n", Some(true)),
            (Cloud::Gcp, 200, "FALSE", Some(false)),
            (Cloud::Gcp, 200, "true story", None),
            (Cloud::Gcp, 404, "TRUE", None),
            (Cloud::Azure, 200, "{\"DocumentIncarnation\":1,\"Events\":[]}", Some(false)),
            (Cloud::Azure, 200, &azure("Preempt", "vm-1"), Some(true)),
            (Cloud::Azure, 200, &azure("Preempt", "vm-2"), Some(false)),
            (Cloud::Azure, 200, &azure("Freeze", "vm-1"), Some(false)),
            (Cloud::Azure, 200, &azure("Terminate", "vm-1"), Some(true)),
            (Cloud::Azure, 200, "{}", None),
        ] {
            assert_eq!(leaves(cloud, status, body), expected, "{cloud:?} {status} {body}");
        }
    }

    #[test]
    fn a_place_is_a_cloud_or_its_url() {
        assert_eq!(Notices::parse("aws").unwrap().server, "169.254.169.254:80");
        assert_eq!(Notices::parse("gcp").unwrap().cloud, Cloud::Gcp);
        let own = Notices::parse("http://127.0.0.1:99/metadata/scheduledevents?api-version=1").unwrap();
        assert_eq!((own.cloud, own.server.as_str()), (Cloud::Azure, "127.0.0.1:99"));
        for bad in ["", "ibm", "https://x/spot/instance-action", "http://x", "http://x/y", "http:///instance/preempted"]
        {
            assert!(Notices::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_are_read_plain_and_in_chunks_and_nonsense_is_none() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nTRUE"), Some((200, "TRUE".into())));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nTR\r\n2\r\nUE\r\n0\r\n\r\n";
        assert_eq!(parse(chunked), Some((200, "TRUE".into())));
        for bad in [&b""[..], b"HTTP/1.1 200", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 x y\r\n\r\n", &chunked[..60]] {
            assert_eq!(parse(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }
}
