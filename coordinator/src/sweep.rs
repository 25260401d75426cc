//! Drops inputs that no living job needs, now and then.
//!
//! An input is uploaded before its job is submitted, so a young one is left in peace.

use crate::store::Store;
use elastic_control::{Machine, Millis};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tracing::debug;

pub(crate) struct Sweep {
    store: Arc<dyn Store>,
    next: Millis,
    running: Option<JoinHandle<()>>,
}

impl Sweep {
    pub fn new(store: Arc<dyn Store>) -> Sweep {
        Sweep { store, next: Millis(0), running: None }
    }

    /// Sweeps beside the driver's work, if it is time.
    pub fn when_due(&mut self, now: Millis, machine: &Machine) {
        if now < self.next || self.running.as_ref().is_some_and(|sweep| !sweep.is_finished()) {
            return;
        }
        self.next = now.plus(PERIOD_MS);
        let (store, keep) = (self.store.clone(), machine.inputs());
        self.running = Some(tokio::spawn(async move {
            // What could not be dropped is dropped the next time.
            if let Err(why) = store.sweep_blobs(&keep, YOUNG).await {
                debug!(%why, "sweep inputs");
            }
        }));
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

const PERIOD_MS: u64 = 600_000;
const YOUNG: Duration = Duration::from_secs(3600);
