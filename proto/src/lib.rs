//! The wire: generated messages, and the one place where what comes in becomes a domain type.
//!
//! Whatever arrives is checked here, once, against `spec::limits` and the domain's own rules, and a
//! mistake is told with the path of its field ("report.workers\[2\].status.view: …"). Generated types stop
//! at this crate: clients and servers outside speak domain types (`client`, `server`, `framed`).

mod access;
mod api;
pub mod client;
mod convert;
mod facts;
pub mod framed;
mod logs;
mod refusal;
pub mod server;
mod view;

pub use access::{
    Access, Credentials, Denied, METHODS, Need, OpenBind, OwnCertificate, Principal, Refused, Ring, TlsError,
};
pub use convert::WireError;
pub use refusal::Refusal;

/// Generated from `proto/*.proto`.
#[allow(clippy::all)]
pub mod pb {
    tonic::include_proto!("elastic.v1");
}
