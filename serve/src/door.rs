//! What stands between the network and the server besides its keys: TLS, and somebody who is told of everyone who is
//! turned away. Both come from whoever starts the server; certificates are exchanged there, and what is told is kept
//! within bounds there.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio_rustls::rustls::ServerConfig;

/// Without anything: plain text, and nobody is told.
#[derive(Clone, Default)]
pub struct Door {
    /// None: plain text.
    pub tls: Option<Tls>,
    pub tell: Option<Arc<dyn Tell>>,
}

/// One certificate for both protocols, each by its name (ALPN).
#[derive(Clone)]
pub struct Tls {
    /// `http/1.1`.
    pub http: Arc<ServerConfig>,
    /// `h2`.
    pub grpc: Arc<ServerConfig>,
}

/// Hears of everyone who is turned away. A flood of them must not become a flood of lines.
pub trait Tell: Send + Sync {
    /// `what` is a path, or what else was tried. Nothing here says what was shown.
    fn refused(&self, peer: Option<SocketAddr>, what: &str, why: &dyn Display);

    /// A TLS handshake came to nothing.
    fn handshake(&self, peer: SocketAddr, error: &io::Error);
}

impl Door {
    pub(crate) fn refused(&self, peer: Option<SocketAddr>, what: &str, why: &dyn Display) {
        if let Some(tell) = &self.tell {
            tell.refused(peer, what, why);
        }
    }

    pub(crate) fn handshake(&self, peer: SocketAddr, error: &io::Error) {
        if let Some(tell) = &self.tell {
            tell.handshake(peer, error);
        }
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.tls.is_some() { "Door(TLS)" } else { "Door" })
    }
}
