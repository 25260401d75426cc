//! Exact reduction between processes: the byte form of frames, the links that carry them, the sum along the tree.
//!
//! Three layers, each usable without the next: [`reduce`] adds up payloads in tree order; [`Transport`] moves
//! [`elastic_spec::frame::Frame`]s, over TCP ([`Links`]) or inside one process ([`local`]); [`Group`] is a whole
//! exact all-reduce between a fixed set of members, for plain programs that know no coordinator. An elastic job
//! runs `elastic-member` on a transport instead of a [`Group`].

pub mod codec;
mod group;
pub mod links;
pub mod local;
pub mod reduce;
mod transport;

pub use codec::{DecodeError, EncodeError, Identity};
pub use group::{BadGroup, Group, GroupConfig, Leaf, ReduceError, Reducer, Waiting};
pub use links::{LinkConfig, LinkError, Links, TlsConfig, TlsError};
pub use transport::{LinkEvent, Sent, Transport};
