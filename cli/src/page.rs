//! Where the coordinator's page is served.

use crate::exit::mistake;
use anyhow::{Context, Result};
use elastic_proto::Access;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Where nobody says otherwise.
const USUAL: &str = "127.0.0.1:7071";

/// A listener where the flag says; none for "off". Without a flag it is on the loopback, and its place may be taken:
/// a cluster does not wait for somebody to look at it.
pub async fn listen(said: Option<&str>, access: &Access) -> Result<Option<TcpListener>> {
    match said {
        Some("off") => Ok(None),
        Some(address) => {
            let listener = TcpListener::bind(address).await.with_context(|| format!("--http: listen on {address}"))?;
            access.check(listener.local_addr().context("the page's address")?).context("--http").map_err(mistake)?;
            Ok(Some(listener))
        }
        None => match TcpListener::bind(USUAL).await {
            Ok(listener) => Ok(Some(listener)),
            Err(error) => {
                tracing::warn!(%error, "no page: {USUAL} cannot be had; choose another address with --http");
                Ok(None)
            }
        },
    }
}

/// What to open in a browser.
pub fn url(listener: &TcpListener, access: &Access) -> Option<String> {
    let address: SocketAddr = listener.local_addr().ok()?;
    let scheme = if access.certificate.is_some() { "https" } else { "http" };
    Some(format!("{scheme}://{address}/"))
}
