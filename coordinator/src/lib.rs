//! The control plane's process: drives `control` over a store, and serves it by gRPC.

pub mod store;
