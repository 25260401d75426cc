//! Which inputs living jobs still need: what the store must keep.

use crate::machine::Machine;
use elastic_spec::Digest;
use std::collections::BTreeSet;

impl Machine {
    pub fn inputs(&self) -> BTreeSet<Digest> {
        let live = self.jobs.values().filter(|job| job.is_live());
        live.flat_map(|job| job.launch.blobs.iter().map(|(_, digest)| *digest)).collect()
    }
}
