//! Bytes by name, in a folder or in an S3-compatible store.
//!
//! [`Store::at`] opens `s3://bucket/prefix`, `file:///folder` or `/folder`; the credentials of S3 come from the
//! environment (`docs/storage.md`). An object appears whole or not at all, a name can be taken by exactly one of those
//! who try at once ([`Store::put_new`]), and what a passing fault interrupts is tried again, for a bounded time.
//! [`Blobs`] names bytes by their SHA-256 and believes none that it has not hashed.
//!
//! The calls are async; [`blocking`] is the same for threads that may wait. What the bytes mean is the caller's business.

mod address;
mod blobs;
pub mod blocking;
mod cause;
mod error;
mod name;
mod patience;
mod s3;
mod store;
mod upload;

pub use address::Address;
pub use blobs::Blobs;
pub use cause::Cause;
pub use error::Error;
pub use name::check as check_name;
pub use patience::Patience;
pub use store::{Entry, Meta, Store};
pub use upload::Upload;

pub type Result<T> = std::result::Result<T, Error>;

/// Largest object that [`Store::put_new`] takes, in bytes: it is sent in one request.
pub const PUT_NEW_BYTES_MAX: u64 = 64 << 20;
