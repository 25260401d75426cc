//! Breaches of the protocol, put in on purpose: each must be caught, or the checkers are blind.

use elastic_spec::Epoch;
use elastic_spec::Round;
use elastic_spec::frame::Body;
use elastic_spec::tree::TreeNode;
use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Members take any view, also an older one.
    NoFence,
    /// Segments are forgotten once sent: nothing is sent again after a view change or a loss.
    EarlyFree,
    /// A checkpoint is called published when its writing begins.
    PublishBeforeSync,
    /// A joiner computes from a state that it has not replayed to the end.
    JoinerCountedEarly,
    /// A segment that arrives late is taken for one of the round in flight.
    WrongStepSegment,
}

impl Mutant {
    pub const ALL: [Mutant; 5] = [
        Mutant::NoFence,
        Mutant::EarlyFree,
        Mutant::PublishBeforeSync,
        Mutant::JoinerCountedEarly,
        Mutant::WrongStepSegment,
    ];
}

/// What a mutated process has to remember.
#[derive(Debug, Default)]
pub struct Breach {
    sent: BTreeSet<(Round, u32, TreeNode)>,
    /// Stands in for the epochs of views when the fence is gone.
    pub views: u64,
    pub real_epoch: Epoch,
}

impl Breach {
    /// Whether the early-free mutant still has this segment.
    pub fn may_send(&mut self, body: &Body) -> bool {
        match body {
            Body::Contribution { round, chunk, node, .. } => {
                self.sent.retain(|(r, _, _)| *r >= *round);
                self.sent.insert((*round, *chunk, *node))
            }
            _ => true,
        }
    }
}
