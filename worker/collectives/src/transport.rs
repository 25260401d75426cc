//! What carries frames between members, and what may be relied on.

use elastic_spec::WorkerId;
use elastic_spec::frame::Frame;

/// Moves frames between the members of one job.
///
/// **What is promised.** A frame arrives unchanged or not at all, and only from a peer that proved to belong
/// to the same job and config. Frames of one peer arrive in the order they were sent, for as long as the link
/// stays up ([`LinkEvent::Up`] to [`LinkEvent::Down`]); after `Down`, frames sent before may be lost, and a
/// frame may arrive a second time. Nothing here waits: a slow or dead peer costs its sender a bounded queue.
///
/// **What an abort leaves.** Nothing has to be undone: dropping a peer, a link or the whole transport in the
/// middle of a reduction leaves every frame either delivered whole or not delivered. What was delivered stays
/// valid, since frames are content addressed (the same bytes whoever sends them, in any view) or monotone
/// facts. So a reduction that was cut off is taken up again by sending what is still missing, to whoever
/// finishes it now; nobody has to know how far it came.
pub trait Transport: Send + Sync + 'static {
    /// Takes a frame for `to`; never blocks.
    fn send(&self, to: WorkerId, frame: Frame) -> Sent;

    /// Who shall be reachable, as (id, host:port). Links to peers that stay are not touched.
    fn set_peers(&self, peers: Vec<(WorkerId, String)>);

    /// Where peers reach this member: host:port.
    fn address(&self) -> &str;
}

/// What became of a frame that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Queued,
    /// The peer takes frames more slowly than they come, and its queue is full: the frame is lost, and the
    /// peer asks again for what it lacks.
    Full,
    /// No such peer.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    Frame {
        from: WorkerId,
        frame: Frame,
    },
    Up(WorkerId),
    /// It may come back by itself. While the peer is wanted, it is tried again.
    Down(WorkerId),
}
