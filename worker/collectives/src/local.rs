//! Members inside one process: the same contract as TCP links, and faults on demand.
//!
//! For tests, and for programs whose members are threads. A [`Hub`] is the network; each member joins it and
//! gets a [`Local`] transport. Pairs can be cut and healed, members can crash, and a rule may drop, repeat or
//! hold back any frame.

use crate::transport::{LinkEvent, Sent, Transport};
use elastic_spec::WorkerId;
use elastic_spec::frame::Frame;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// Frames that may wait for one member.
const INBOX_FRAMES_MAX: usize = 4096;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Deliver,
    Drop,
    /// Delivered twice, as after a reconnection.
    Twice,
    /// Kept back until [`Hub::release`]: it overtakes nothing and is overtaken by everything.
    Hold,
}

type Rule = Box<dyn FnMut(WorkerId, WorkerId, &Frame) -> Fate + Send>;

/// The network between the members of one process.
#[derive(Clone, Default)]
pub struct Hub {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    members: BTreeMap<WorkerId, Seat>,
    cut: BTreeSet<(WorkerId, WorkerId)>,
    rule: Option<Rule>,
    held: Vec<(WorkerId, WorkerId, Frame)>,
}

struct Seat {
    inbox: Arc<Inbox>,
    wants: BTreeSet<WorkerId>,
    up: BTreeSet<WorkerId>,
}

#[derive(Default)]
struct Inbox {
    events: Mutex<VecDeque<LinkEvent>>,
    filled: Notify,
}

/// One member's transport. Dropping it is a crash.
pub struct Local {
    me: WorkerId,
    address: String,
    hub: Hub,
    pump: JoinHandle<()>,
}

impl Hub {
    pub fn new() -> Hub {
        Hub::default()
    }

    /// Takes `me` in; what happens to it goes into `events`. To be called inside a tokio runtime.
    pub fn join(&self, me: WorkerId, events: mpsc::Sender<LinkEvent>) -> Local {
        let inbox = Arc::new(Inbox::default());
        let seat = Seat { inbox: inbox.clone(), wants: BTreeSet::new(), up: BTreeSet::new() };
        self.inner().members.insert(me, seat);
        let pump = tokio::spawn(pump(inbox, events));
        Local { me, address: format!("local:{:x}", me.0), hub: self.clone(), pump }
    }

    /// Every frame from now on is judged by `rule(from, to, frame)`.
    pub fn rule(&self, rule: impl FnMut(WorkerId, WorkerId, &Frame) -> Fate + Send + 'static) {
        self.inner().rule = Some(Box::new(rule));
    }

    /// No frame passes between the two until they are healed.
    pub fn cut(&self, a: WorkerId, b: WorkerId) {
        let mut inner = self.inner();
        inner.cut.insert((a.min(b), a.max(b)));
        inner.settle();
    }

    pub fn heal(&self, a: WorkerId, b: WorkerId) {
        let mut inner = self.inner();
        inner.cut.remove(&(a.min(b), a.max(b)));
        inner.settle();
    }

    /// Delivers what was held back.
    pub fn release(&self) {
        let mut inner = self.inner();
        for (from, to, frame) in std::mem::take(&mut inner.held) {
            inner.deliver(from, to, frame);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no rule panics")
    }
}

impl Inner {
    /// A link is up where both want it and nothing cuts it.
    fn settle(&mut self) {
        let ids: Vec<WorkerId> = self.members.keys().copied().collect();
        for &a in &ids {
            for &b in ids.iter().filter(|b| **b != a) {
                let wants = |x: WorkerId, y: WorkerId| self.members[&x].wants.contains(&y);
                let up = wants(a, b) && wants(b, a) && !self.cut.contains(&(a.min(b), a.max(b)));
                let seat = self.members.get_mut(&a).expect("a is one of the members");
                if up && seat.up.insert(b) {
                    seat.inbox.push(LinkEvent::Up(b));
                } else if !up && seat.up.remove(&b) {
                    seat.inbox.push(LinkEvent::Down(b));
                }
            }
        }
    }

    fn send(&mut self, from: WorkerId, to: WorkerId, frame: Frame) -> Sent {
        if !self.members.get(&from).is_some_and(|seat| seat.wants.contains(&to)) {
            return Sent::Unknown;
        }
        let fate = self.rule.as_mut().map_or(Fate::Deliver, |rule| rule(from, to, &frame));
        match fate {
            Fate::Deliver => self.deliver(from, to, frame),
            Fate::Drop => Sent::Queued,
            Fate::Twice => {
                self.deliver(from, to, frame.clone());
                self.deliver(from, to, frame)
            }
            Fate::Hold => {
                self.held.push((from, to, frame));
                Sent::Queued
            }
        }
    }

    fn deliver(&mut self, from: WorkerId, to: WorkerId, frame: Frame) -> Sent {
        let Some(seat) = self.members.get(&to) else { return Sent::Queued };
        if !seat.up.contains(&from) {
            return Sent::Queued;
        }
        match seat.inbox.len() < INBOX_FRAMES_MAX {
            true => seat.inbox.push(LinkEvent::Frame { from, frame }),
            false => return Sent::Full,
        }
        Sent::Queued
    }
}

impl Inbox {
    fn events(&self) -> MutexGuard<'_, VecDeque<LinkEvent>> {
        self.events.lock().expect("no one panics with the inbox in hand")
    }

    fn len(&self) -> usize {
        self.events().len()
    }

    fn push(&self, event: LinkEvent) {
        self.events().push_back(event);
        self.filled.notify_one();
    }

    fn pop(&self) -> Option<LinkEvent> {
        self.events().pop_front()
    }
}

async fn pump(inbox: Arc<Inbox>, events: mpsc::Sender<LinkEvent>) {
    loop {
        match inbox.pop() {
            None => inbox.filled.notified().await,
            Some(event) => {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Transport for Local {
    fn send(&self, to: WorkerId, frame: Frame) -> Sent {
        self.hub.inner().send(self.me, to, frame)
    }

    fn set_peers(&self, peers: Vec<(WorkerId, String)>) {
        let mut inner = self.hub.inner();
        if let Some(seat) = inner.members.get_mut(&self.me) {
            seat.wants = peers.into_iter().map(|(id, _)| id).filter(|id| *id != self.me).collect();
        }
        inner.settle();
    }

    fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.pump.abort();
        // A panic in a test's rule has poisoned the lock; there is nothing left to tidy up then.
        if let Ok(mut inner) = self.hub.inner.lock() {
            if let Some(seat) = inner.members.get_mut(&self.me) {
                seat.wants.clear();
            }
            inner.settle();
            inner.members.remove(&self.me);
        }
    }
}
