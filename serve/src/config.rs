//! How a server is set up. The CLI reads flags into it; defaults are here.

use crate::batching::Policy;
use crate::door::Door;
use crate::keys::Keys;
use crate::limits::{CONNECTIONS_MAX, UNREAD_TIME_MAX};
use crate::repository::mirror::Mirror;
use crate::serving::Hands;
use crate::text;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Config {
    /// A bundle, or a directory of models.
    pub models: PathBuf,
    /// Where those are copies from.
    pub mirror: Option<Arc<Mirror>>,
    pub policy: Policy,
    pub hands: Hands,
    pub text: text::Policy,
    /// Newest versions of a model that are loaded; those with a label are besides.
    pub keep: usize,
    /// How often the directory is looked at; None: only when somebody asks for it.
    pub poll: Option<Duration>,
    /// For requests that ask for no time of their own.
    pub timeout: Duration,
    pub connections: usize,
    /// How long nothing of an answer may be written, because the client does not read.
    pub unread: Duration,
    /// After SIGTERM: how long requests are still taken while readiness says no …
    pub drain_delay: Duration,
    /// … and how long those that were taken may last then.
    pub drain: Duration,
    pub keys: Keys,
    pub door: Door,
}

impl Config {
    pub fn new(models: PathBuf) -> Config {
        Config {
            models,
            mirror: None,
            policy: Policy::default(),
            hands: Hands { instances: 1, threads: 1, behind: false },
            text: text::Policy::default(),
            keep: 1,
            poll: Some(Duration::from_secs(2)),
            timeout: Duration::from_secs(30),
            connections: CONNECTIONS_MAX,
            unread: UNREAD_TIME_MAX,
            drain_delay: Duration::ZERO,
            drain: Duration::from_secs(30),
            keys: Keys::default(),
            door: Door::default(),
        }
    }
}
