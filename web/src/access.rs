//! Who may read over HTTP.

use axum::http::{HeaderMap, StatusCode, header};
use elastic_proto::{Access, Denied};
use elastic_spec::access::Role;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

/// Whether the caller may do what needs `role`; else the status and the words to answer with.
/// Who is turned away is told to the log.
pub fn allowed(
    access: &Access,
    headers: &HeaderMap,
    role: Role,
    peer: Option<SocketAddr>,
) -> Result<(), (StatusCode, String)> {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let judged = access.check_bearer(shown.and_then(|value| value.strip_prefix("Bearer ")), role, now);
    judged.map(drop).map_err(|denied| {
        let status = match &denied {
            Denied::Lacks { .. } => StatusCode::FORBIDDEN,
            Denied::Elsewhere => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        };
        if denied != Denied::Elsewhere {
            access.tell_refused(peer, "HTTP", &denied);
        }
        (status, denied.to_string())
    })
}

/// Whether a browser that was led here under another name asks: a page of somebody's, whose name was made to
/// mean this machine, must not read what needs no token on the loopback.
pub fn is_foreign(access: &Access, is_loopback: bool, headers: &HeaderMap) -> bool {
    if !access.is_open() || !is_loopback {
        return false;
    }
    let Some(host) = headers.get(header::HOST) else { return false };
    let host = host.to_str().unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let is_address = name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    name != "localhost" && !is_address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn only_the_clusters_token_opens() {
        let access = Access { token: Some("right".into()), ..Access::default() };
        let with = |value: &str| allowed(&access, &headers(header::AUTHORIZATION, value), Role::Viewer, None);
        assert!(with("Bearer right").is_ok());
        for wrong in ["Bearer wrong", "Bearer righ", "Bearer rightt", "right", "Basic right", ""] {
            let (status, _) = with(wrong).unwrap_err();
            assert!([StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE].contains(&status), "{wrong}");
        }
        assert!(allowed(&access, &HeaderMap::new(), Role::Viewer, None).is_err());
        assert!(allowed(&Access::default(), &HeaderMap::new(), Role::Viewer, None).is_ok());
    }

    #[test]
    fn a_name_that_was_made_to_mean_this_machine_is_foreign() {
        let open = Access::default();
        let asks = |host: &str| is_foreign(&open, true, &headers(header::HOST, host));
        for ours in ["localhost:7071", "localhost", "127.0.0.1:7071", "127.9.9.9", "[::1]:7071"] {
            assert!(!asks(ours), "{ours}");
        }
        for theirs in ["evil.example:7071", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", ""] {
            assert!(asks(theirs), "{theirs}");
        }
        assert!(!is_foreign(&open, false, &headers(header::HOST, "cluster.example")));
    }
}
