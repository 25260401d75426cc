//! The coordinator from outside: its stores, its calls, its streams, and what it makes of bad messages.

mod cluster;
mod etcd_server;

mod etcd;
mod logs;
mod malformed;
mod serve;
mod store;
mod tokens;
