//! Runs a plan on a communicator: groups of transfers and the sums between them, all on one stream, so that each sees
//! what those before it wrote. Adding up on the device is the [`Device`]'s.
//!
//! After an error nothing is lost but time: the rank's segments are only read, so the same sums go out again in the
//! next view. What is in the inbox and in the reduced value by then is of no worth.

use crate::communicator::{Communicator, Transfer};
use crate::error::{NcclError, Result};
use crate::ffi::cudaStream_t;
use crate::plan::{Place, Plan, Region, Sum, Way};
use std::time::{Duration, Instant};

/// Memory of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub address: usize,
    pub bytes: usize,
}

/// A rank's memories in a round, as [`Region`] names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// For each of [`Plan::segments`] its sum, flat, `flat_bytes` each.
    pub segments: Vec<Span>,
    pub inbox: Span,
    pub reduced: Span,
}

impl Memory {
    /// The address of a place, which must be of a plan that fits.
    pub fn address(&self, place: &Place) -> usize {
        let span = match place.region {
            Region::Segment(segment) => self.segments[segment],
            Region::Inbox => self.inbox,
            Region::Reduced => self.reduced,
        };
        assert!(place.bytes.end <= span.bytes, "the plan was found to fit: {place:?} in {span:?}");
        span.address + place.bytes.start
    }

    /// Whether a plan has room in it.
    pub fn fits(&self, plan: &Plan) -> Result<()> {
        let check = |region: String, room: usize, needed: usize| match room < needed {
            true => Err(NcclError::Room { region, room, needed }),
            false => Ok(()),
        };
        check("the list of segments".into(), self.segments.len(), plan.segments.len())?;
        for (segment, span) in self.segments.iter().enumerate().take(plan.segments.len()) {
            check(format!("segment {segment}"), span.bytes, plan.flat_bytes)?;
        }
        check("the inbox".into(), self.inbox.bytes, plan.inbox_bytes)?;
        check("the reduced value".into(), self.reduced.bytes, plan.flat_bytes)
    }
}

/// The stream that a round runs on, and the kernel that adds.
pub trait Device {
    fn stream(&self) -> cudaStream_t;

    /// Puts the sum of a chunk on the stream: element by element in f32 along the tree, one pattern for every NaN, and
    /// in the last chunk the tail behind them, as [`elastic_spec::layout::Layout::add`] says. Does not wait.
    fn sum(&mut self, sum: &Sum, memory: &Memory) -> std::result::Result<(), String>;

    /// Whether the stream is through with all that it was given. Does not wait.
    fn is_done(&mut self) -> std::result::Result<bool, String>;
}

/// One round. Every rank of the communicator runs its plan of the same view and layout.
///
/// # Safety
/// The memory is the device's, and nobody else touches it before this returns. After an error, before the communicator
/// was aborted and the stream is done.
pub unsafe fn run(
    communicator: &mut Communicator,
    plan: &Plan,
    memory: &Memory,
    device: &mut impl Device,
    patience: Duration,
) -> Result<()> {
    memory.fits(plan)?;
    let until = Instant::now() + patience;
    let left = || until.saturating_duration_since(Instant::now());
    for step in &plan.steps {
        let transfers: Vec<Transfer> = step
            .group
            .iter()
            .map(|m| {
                let (address, bytes) = (memory.address(&m.place), m.place.bytes.len());
                match m.way {
                    Way::To(to) => Transfer::Send { address, bytes, to },
                    Way::From(from) => Transfer::Receive { address, bytes, from },
                    Way::Broadcast(root) => Transfer::Broadcast { address, bytes, root },
                }
            })
            .collect();
        // SAFETY: the addresses are of the memory that the caller answers for, within its bounds.
        unsafe { communicator.exchange(&transfers, device.stream(), left())? };
        if let Some(sum) = &step.sum {
            device.sum(sum, memory).map_err(NcclError::Device)?;
        }
    }
    communicator.finish(left(), || device.is_done())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_too_small_is_named() {
        let span = |bytes| Span { address: 0x1000, bytes };
        let plan = Plan {
            segments: vec![elastic_spec::tree::TreeNode::root(2)],
            flat_bytes: 40,
            inbox_bytes: 100,
            steps: Vec::new(),
        };
        let memory = |segment, inbox, reduced| Memory {
            segments: vec![span(segment)],
            inbox: span(inbox),
            reduced: span(reduced),
        };
        assert_eq!(memory(40, 100, 40).fits(&plan), Ok(()));
        let said = memory(40, 99, 40).fits(&plan).unwrap_err().to_string();
        assert_eq!(said, "the inbox has 99 bytes, and the plan needs 100");
        assert!(memory(39, 100, 40).fits(&plan).unwrap_err().to_string().starts_with("segment 0 has 39"));
        assert!(memory(40, 100, 39).fits(&plan).unwrap_err().to_string().starts_with("the reduced value has 39"));
    }
}
