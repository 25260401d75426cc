//! [`HostWire`] over a group of `elastic-collectives`: TCP links, or members inside one process.

use crate::device_reduce::Abort;
use crate::error::{NcclError, Result};
use crate::staged::HostWire;
use bytes::Bytes;
use elastic_collectives::Group;
use elastic_spec::tree::TreeNode;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// A member of a group. Its calls wait in the calling thread, which is none of the runtime's.
pub struct GroupWire {
    group: Group,
    runtime: Handle,
    is_over: Arc<watch::Sender<bool>>,
}

impl GroupWire {
    /// The group's members are the view's active ones, its V and layout those of the membership.
    pub fn new(group: Group, runtime: Handle) -> GroupWire {
        GroupWire { group, runtime, is_over: Arc::new(watch::Sender::new(false)) }
    }
}

impl HostWire for GroupWire {
    fn reduce(&mut self, sums: Vec<Vec<(TreeNode, Bytes)>>, patience: Duration) -> Result<Vec<Bytes>> {
        let mut is_over = self.is_over.subscribe();
        let group = &mut self.group;
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = is_over.wait_for(|is_over| *is_over) => Err(NcclError::Aborted { call: "the group's round" }),
                done = group.reduce_sums(sums, patience) => done.map_err(|error| NcclError::Wire(error.to_string())),
            }
        })
    }

    fn aborter(&self) -> Arc<dyn Abort> {
        Arc::new(Over(self.is_over.clone()))
    }

    fn close(self, patience: Duration) -> Result<()> {
        let left = self.runtime.block_on(async { tokio::time::timeout(patience, self.group.leave()).await });
        left.map_err(|_| NcclError::Late { call: "leaving the group", waited_ms: patience.as_millis() })
    }
}

struct Over(Arc<watch::Sender<bool>>);

impl Abort for Over {
    fn abort(&self) -> Result<()> {
        self.0.send_replace(true);
        Ok(())
    }
}
