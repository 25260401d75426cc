//! An exact all-reduce between a fixed set of members, for programs that have no coordinator.
//!
//! The value is the sum of V leaves along the fixed tree. Who brings which leaf does not matter to the bits,
//! nor does the number of members; only V and the leaves do. `rounds` decides, this file waits and sends.

mod rounds;

use crate::reduce::{self, SumError};
use crate::transport::{LinkEvent, Transport};
use bytes::Bytes;
use elastic_spec::frame::{Body, Frame};
use elastic_spec::layout::{Layout, Tail};
use elastic_spec::limits::{RESEND_MS, RESEND_MS_MAX, SHARDS_MAX};
use elastic_spec::tree::{self, TreeNode};
use elastic_spec::{Epoch, Round, Shard, WorkerId};
use rounds::{Out, Rounds, Shape, Waits};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// One shard's share of a sum.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<'a> {
    pub shard: Shard,
    pub floats: &'a [f32],
    pub tail: Tail,
}

/// Adds up leaves so that the bits depend on nothing but V and the leaves.
///
/// **What an abort leaves.** After an error, or when the future is dropped half way, `sum` is as it was and so
/// is the round: no leaf is half added, since sums are made of whole leaves at fixed places in the tree.
/// Others may or may not have finished. Calling again *with the same leaves* goes on with the same round and
/// gives the same bits; leaves that arrived before count, those that arrive twice count once.
pub trait Reducer {
    /// Each of the V shards must be among the leaves of at least one member. All members call this equally often.
    fn exact_all_reduce(
        &mut self,
        leaves: &[Leaf<'_>],
        sum: &mut [f32],
    ) -> impl Future<Output = Result<Tail, ReduceError>> + Send;
}

#[derive(Debug, thiserror::Error)]
pub enum ReduceError {
    #[error("shard {0} is named twice, or is not below V")]
    Shard(Shard),
    #[error("{found} floats where the group reduces {wanted}")]
    Length { found: usize, wanted: usize },
    #[error("{found} chunks where the group's layout has {wanted}")]
    Chunks { found: usize, wanted: usize },
    #[error("node (level {}, index {}) is not of the group's tree", .0.level, .0.index)]
    Node(TreeNode),
    #[error("waited {waited_ms} ms for {}", describe(.waits))]
    Late { waited_ms: u128, waits: Waiting },
    #[error("the group has ended")]
    Over,
    #[error(transparent)]
    Sum(#[from] SumError),
}

/// What did not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub members: Vec<WorkerId>,
    pub shards: Vec<Shard>,
}

fn describe(waiting: &Waiting) -> String {
    let list = |items: Vec<String>| items.join(", ");
    let members = list(waiting.members.iter().map(ToString::to_string).collect());
    let shards = list(waiting.shards.iter().map(ToString::to_string).collect());
    match (waiting.members.is_empty(), waiting.shards.is_empty()) {
        (false, true) => format!("the sums of {members}"),
        (true, false) => format!("the leaves of shards {shards}"),
        _ => format!("the sums of {members} and the leaves of shards {shards}"),
    }
}

#[derive(Clone, Debug)]
pub struct GroupConfig {
    pub me: WorkerId,
    /// All members and where they are, this one included; the same set everywhere.
    pub members: Vec<(WorkerId, String)>,
    /// V: a power of two.
    pub shards: u16,
    pub layout: Layout,
    /// A reduction that takes longer ends with [`ReduceError::Late`].
    pub patience: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadGroup {
    #[error("V = {0} is not a power of two up to {SHARDS_MAX}")]
    Shards(u16),
    #[error("member {0} is named twice")]
    Twice(WorkerId),
    #[error("{0} is not among the members")]
    Stranger(WorkerId),
}

/// A member of a group over any transport. It answers its peers in the background until it leaves.
pub struct Group {
    shape: Shape,
    patience: Duration,
    /// The round that the program is in: one for each sum that it was given.
    round: Round,
    asks: mpsc::Sender<Ask>,
    task: JoinHandle<()>,
}

enum Ask {
    Reduce {
        round: Round,
        segments: Vec<Vec<(TreeNode, Bytes)>>,
        deadline: Instant,
        reply: oneshot::Sender<Result<Vec<Bytes>, ReduceError>>,
    },
    Leave {
        deadline: Instant,
        reply: oneshot::Sender<()>,
    },
}

impl Group {
    /// `events` are those of `transport`.
    pub fn join(
        transport: Arc<dyn Transport>,
        events: mpsc::Receiver<LinkEvent>,
        config: GroupConfig,
    ) -> Result<Group, BadGroup> {
        let GroupConfig { me, mut members, shards, layout, patience } = config;
        if !shards.is_power_of_two() || shards > SHARDS_MAX {
            return Err(BadGroup::Shards(shards));
        }
        members.sort();
        if let Some(pair) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(BadGroup::Twice(pair[0].0));
        }
        if members.iter().all(|(id, _)| *id != me) {
            return Err(BadGroup::Stranger(me));
        }
        let shape = Shape { me, members: members.iter().map(|(id, _)| *id).collect(), shards, layout };
        transport.set_peers(members);
        let (asks, asked) = mpsc::channel(1);
        let rounds = Rounds::new(shape.clone());
        let actor = Actor { rounds, down: BTreeMap::new(), transport, events, asked, shape: shape.clone() };
        Ok(Group { shape, patience, round: Round(0), asks, task: tokio::spawn(actor.run()) })
    }

    /// Stays until every member has finished what this one has, or patience ends. To be called before the
    /// program ends: a peer may still lack a sum that only this member holds.
    pub async fn leave(self) {
        let (reply, left) = oneshot::channel();
        let ask = Ask::Leave { deadline: Instant::now() + self.patience, reply };
        if self.asks.send(ask).await.is_ok() {
            let _ = left.await;
        }
    }

    /// [`Reducer::exact_all_reduce`] for who has added up its leaves already: by chunk, the sums of full subtrees that
    /// together are its leaves. Gives the finished chunks in their order. What an abort leaves is the same.
    pub async fn reduce_sums(
        &mut self,
        sums: Vec<Vec<(TreeNode, Bytes)>>,
        patience: Duration,
    ) -> Result<Vec<Bytes>, ReduceError> {
        self.check(&sums)?;
        let (reply, done) = oneshot::channel();
        let ask = Ask::Reduce { round: self.round, segments: sums, deadline: Instant::now() + patience, reply };
        self.asks.send(ask).await.map_err(|_| ReduceError::Over)?;
        let chunks = done.await.map_err(|_| ReduceError::Over)??;
        self.round = self.round.next();
        Ok(chunks)
    }

    /// A peer leaves alone what is not of its layout, and would wait for ever.
    fn check(&self, sums: &[Vec<(TreeNode, Bytes)>]) -> Result<(), ReduceError> {
        let Shape { shards, layout, .. } = self.shape;
        let wanted = layout.chunks() as usize;
        if sums.len() != wanted {
            return Err(ReduceError::Chunks { found: sums.len(), wanted });
        }
        for (chunk, sums) in (0u32..).zip(sums) {
            let wanted = layout.bytes(chunk);
            for (node, payload) in sums {
                if !node.is_within(shards) {
                    return Err(ReduceError::Node(*node));
                }
                if payload.len() != wanted {
                    return Err(SumError::Size { node: *node, chunk, bytes: payload.len(), wanted }.into());
                }
            }
        }
        Ok(())
    }

    /// By chunk, the sums of our maximal subtrees.
    fn segments(&self, leaves: &[Leaf<'_>]) -> Result<Vec<Vec<(TreeNode, Bytes)>>, ReduceError> {
        let Shape { shards, layout, .. } = self.shape;
        let mut cut = BTreeMap::new();
        for leaf in leaves {
            if leaf.floats.len() != layout.floats {
                return Err(ReduceError::Length { found: leaf.floats.len(), wanted: layout.floats });
            }
            let chunks = layout.cut(leaf.floats, leaf.tail);
            if leaf.shard.0 >= shards || cut.insert(leaf.shard, chunks).is_some() {
                return Err(ReduceError::Shard(leaf.shard));
            }
        }
        let ours: BTreeSet<Shard> = cut.keys().copied().collect();
        let cover = tree::cover(shards, |shard| ours.contains(&shard));
        let of_chunk = |chunk: u32| {
            let parts: Vec<_> =
                cut.iter().map(|(s, chunks)| (TreeNode::leaf(*s), chunks[chunk as usize].clone())).collect();
            let sums = cover.iter().map(|node| Ok((*node, reduce::sum_under(layout, chunk, *node, &parts)?)));
            sums.collect::<Result<Vec<_>, SumError>>()
        };
        Ok((0..layout.chunks()).map(of_chunk).collect::<Result<_, _>>()?)
    }
}

impl Reducer for Group {
    async fn exact_all_reduce(&mut self, leaves: &[Leaf<'_>], sum: &mut [f32]) -> Result<Tail, ReduceError> {
        let layout = self.shape.layout;
        if sum.len() != layout.floats {
            return Err(ReduceError::Length { found: sum.len(), wanted: layout.floats });
        }
        let segments = self.segments(leaves)?;
        let chunks = self.reduce_sums(segments, self.patience).await?;
        Ok(layout.join(&chunks, sum))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A peer that closed its link while we are about to leave has left, unless it is back within this time:
/// nobody leaves before it knows that all others have what it has.
const GONE: Duration = Duration::from_millis(300);

/// The background half of a group.
struct Actor {
    shape: Shape,
    rounds: Rounds,
    /// Peers without a link, and since when.
    down: BTreeMap<WorkerId, Instant>,
    transport: Arc<dyn Transport>,
    events: mpsc::Receiver<LinkEvent>,
    asked: mpsc::Receiver<Ask>,
}

/// What the program waits for.
enum Pending {
    Nothing,
    Reduce { since: Instant, deadline: Instant, reply: oneshot::Sender<Result<Vec<Bytes>, ReduceError>> },
    Leave { deadline: Instant, reply: oneshot::Sender<()> },
}

impl Actor {
    async fn run(mut self) {
        let mut pending = Pending::Nothing;
        let mut pause = Duration::from_millis(RESEND_MS);
        let mut again = Instant::now() + pause;
        loop {
            let wake = match &pending {
                Pending::Nothing => None,
                Pending::Reduce { deadline, .. } | Pending::Leave { deadline, .. } => Some(again.min(*deadline)),
            };
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => {
                        // While data comes in there is nothing to ask for; after it, ask soon.
                        if let LinkEvent::Frame { frame: Frame { body: Body::Contribution { .. } | Body::Reduced { .. }, .. }, .. } = &event {
                            pause = Duration::from_millis(RESEND_MS);
                            again = Instant::now() + pause;
                        }
                        self.hear(event, &mut pending);
                    }
                    None => return,
                },
                ask = self.asked.recv() => {
                    let Some(ask) = ask else { return };
                    pending = self.begin(ask);
                    pause = Duration::from_millis(RESEND_MS);
                    again = Instant::now() + pause;
                }
                () = sleep_until(wake.unwrap_or(again)), if wake.is_some() => {
                    if Instant::now() >= again {
                        self.say_where();
                        pause = (pause * 2).min(Duration::from_millis(RESEND_MS_MAX));
                        again = Instant::now() + pause;
                    }
                }
            }
            match self.settle(pending) {
                Some(still) => pending = still,
                None => return,
            }
        }
    }

    fn begin(&mut self, ask: Ask) -> Pending {
        match ask {
            Ask::Leave { deadline, reply } => Pending::Leave { deadline, reply },
            Ask::Reduce { round, segments, deadline, reply } => {
                // The program gave up waiting just when the sum was there, and asks again.
                if let Some(chunks) = self.rounds.done_before(round) {
                    let _ = reply.send(Ok(chunks));
                    return Pending::Nothing;
                }
                match self.rounds.contribute(segments) {
                    Ok(out) => {
                        self.send(out);
                        Pending::Reduce { since: Instant::now(), deadline, reply }
                    }
                    Err(error) => {
                        let _ = reply.send(Err(error.into()));
                        Pending::Nothing
                    }
                }
            }
        }
    }

    fn hear(&mut self, event: LinkEvent, pending: &mut Pending) {
        match event {
            LinkEvent::Up(peer) => {
                self.down.remove(&peer);
                let at = self.rounds.at(peer);
                self.send(vec![(peer, at)]);
            }
            LinkEvent::Down(peer) => {
                self.down.insert(peer, Instant::now());
            }
            LinkEvent::Frame { from, frame } => match self.rounds.receive(from, frame.body) {
                Ok(out) => self.send(out),
                Err(error) => {
                    if let Pending::Reduce { reply, .. } = std::mem::replace(pending, Pending::Nothing) {
                        let _ = reply.send(Err(error.into()));
                    }
                }
            },
        }
    }

    /// Answers the program if its wish came true or its time is over; `None` when the group has ended.
    fn settle(&mut self, pending: Pending) -> Option<Pending> {
        match pending {
            Pending::Nothing => Some(Pending::Nothing),
            Pending::Reduce { since, deadline, reply } => {
                // The caller gave up: the round stays as it is, to be asked for again.
                if reply.is_closed() {
                    return Some(Pending::Nothing);
                }
                if let Some(chunks) = self.rounds.take_done() {
                    self.say_where();
                    let _ = reply.send(Ok(chunks));
                    return Some(Pending::Nothing);
                }
                if Instant::now() < deadline {
                    return Some(Pending::Reduce { since, deadline, reply });
                }
                let Waits { owners, shards } = self.rounds.waits_for();
                let waits = Waiting { members: owners, shards: shards.into_iter().map(Shard).collect() };
                let _ = reply.send(Err(ReduceError::Late { waited_ms: since.elapsed().as_millis(), waits }));
                Some(Pending::Nothing)
            }
            Pending::Leave { deadline, reply } => {
                let waited_for = |peer: &WorkerId| self.down.get(peer).is_none_or(|since| since.elapsed() < GONE);
                if !self.rounds.behind().iter().any(waited_for) || Instant::now() >= deadline {
                    let _ = reply.send(());
                    return None;
                }
                Some(Pending::Leave { deadline, reply })
            }
        }
    }

    fn say_where(&self) {
        self.send(self.shape.others().map(|to| (to, self.rounds.at(to))).collect());
    }

    fn send(&self, out: Vec<Out>) {
        for (to, body) in out {
            // A frame that finds no room is asked for again by whoever lacks it.
            let _ = self.transport.send(to, Frame { epoch: Epoch::default(), body });
        }
    }
}
