//! The server over real sockets, with real bundles: what clients send, right and wrong, and what happens to them while
//! versions change, queues fill, and the server ends.

mod client;
mod models;
mod up;

mod bad_grpc;
mod bad_rest;
mod clients;
mod default;
mod live;
mod rest;
mod scribe;
mod text;
mod text_live;
