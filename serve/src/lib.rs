//! Answers requests with bundles: the open inference protocol over REST and gRPC, TensorFlow Serving's REST, and more.
//!
//! A request's way: [`server`] lets a connection in, [`http`] reads what is asked, [`serving`] finds the model, its
//! [`batching`] computes logits together with those of others, [`outputs`] makes of them what was asked for.
//! [`repository`] keeps what is loaded in step with a directory, and swaps versions without a gap. Every decision (who is
//! admitted, what forms a batch, what is loaded and what goes) is a function of (state, event, now). Texts go on beside
//! that, several at once, token by token: [`text`].
//!
//! There is no path from here to training: the two meet in a bundle, which [`bundled`] alone opens.

mod patient;
mod quiet;
pub mod server;

pub mod config;
pub mod door;
pub mod keys;
pub mod limits;
pub mod refusal;
pub mod state;

pub mod grpc;
pub mod http;
mod json;
pub mod outputs;
pub mod tensor;

pub mod batching;
pub mod bundled;
mod clock;
pub mod model;
pub mod repository;
pub mod serving;
pub mod stats;
#[doc(hidden)]
pub mod testing;
pub mod text;

pub use config::Config;
pub use door::{Door, Tell, Tls};
pub use keys::Keys;
pub use server::{Listeners, Server, bind};
