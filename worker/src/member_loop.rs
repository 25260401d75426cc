//! Drives the member: carries events to it and its effects out, and never computes anything long.
//!
//! One task owns the member. The training thread, the sums, the publisher and the links answer through
//! bounded queues, so a computation that hangs leaves heartbeats and peers' questions going.

use crate::about::Views;
use crate::agent_link::AgentLink;
use crate::fail;
use crate::fault::Fault;
use crate::status::Speaker;
use crate::sums::{Sum, Sums};
use crate::trainer::Task;
use elastic_collectives::{LinkEvent, Sent, Transport};
use elastic_member::{Config, Effect, Event, Leaving, Member};
use elastic_spec::facts::{Phase, WorkerStatus};
use elastic_spec::frame::{Body, Frame};
use elastic_spec::limits::BEAT_MS;
use elastic_spec::view::WorkerOrder;
use elastic_spec::{Epoch, Round, WorkerId};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

pub struct MemberLoop {
    member: Member,
    config: Config,
    begun: Instant,
    /// Of the newest view handed to the member.
    epoch: Option<Epoch>,
    was_told_to_leave: bool,
    phase: Phase,
    /// The control plane should hear of it before the next beat.
    has_news: bool,
    leaving: Option<Leaving>,
    pub speaker: Speaker,
    /// Where views are noted that this worker is the writer of.
    pub views: Option<Views>,
    tasks: SyncSender<Task>,
    sums: Sums,
    links: Arc<dyn Transport>,
    /// Pieces of states that a link had no room for, in order; for everything else peers ask again.
    backlog: VecDeque<(WorkerId, Frame)>,
    /// When the backlog is tried again: a time, not a pause, which a busy loop would begin anew each turn.
    backlog_due: Instant,
}

/// What comes in.
pub struct Inputs {
    pub answers: Receiver<Event>,
    pub links: Receiver<LinkEvent>,
    pub alarms: Receiver<Fault>,
}

/// What the loop works with.
pub struct Outputs {
    pub tasks: SyncSender<Task>,
    pub sums: Sums,
    pub links: Arc<dyn Transport>,
}

impl MemberLoop {
    pub fn new(config: Config, speaker: Speaker, Outputs { tasks, sums, links }: Outputs) -> MemberLoop {
        MemberLoop {
            member: Member::new(config.clone()),
            config,
            begun: Instant::now(),
            epoch: None,
            was_told_to_leave: false,
            phase: Phase::Booting,
            has_news: true,
            leaving: None,
            speaker,
            views: None,
            tasks,
            sums,
            links,
            backlog: VecDeque::new(),
            backlog_due: Instant::now(),
        }
    }

    /// Takes part, from the state of round `ready`, until the member is done.
    pub async fn run(&mut self, ready: Round, agent: &mut AgentLink, inputs: &mut Inputs) -> Result<Leaving, Fault> {
        let mut beat = interval(Duration::from_millis(BEAT_MS));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answers = Vec::with_capacity(BATCH);
        let mut link_events = Vec::with_capacity(BATCH);
        agent.orders.mark_changed();
        self.feed(Event::Ready { round: ready })?;
        while self.leaving.is_none() {
            let deadline = self.member.next_deadline();
            let due = self.begun + Duration::from_millis(deadline.unwrap_or(0));
            // In this order, so that a flood of frames delays neither the beat nor the orders.
            tokio::select! {
                biased;
                Some(fault) = inputs.alarms.recv() => return Err(fault),
                _ = beat.tick() => agent.tell(self.status()),
                Ok(()) = agent.orders.changed() => {
                    let order = agent.orders.borrow_and_update().clone();
                    self.take_order(order)?;
                }
                () = sleep_until(due), if deadline.is_some() => self.feed(Event::Tick)?,
                () = sleep_until(self.backlog_due), if !self.backlog.is_empty() => self.send_backlog(),
                _ = inputs.answers.recv_many(&mut answers, BATCH) => {
                    for event in answers.drain(..) {
                        self.has_news |= matches!(event, Event::Published { .. } | Event::Installed { .. });
                        self.feed(event)?;
                    }
                }
                _ = inputs.links.recv_many(&mut link_events, BATCH) => {
                    for event in link_events.drain(..) {
                        self.take_link_event(event)?;
                    }
                }
            }
            self.tell_news(agent);
        }
        Ok(self.leaving.expect("the loop ends with it"))
    }

    pub fn status(&mut self) -> WorkerStatus {
        let status = self.speaker.status(&self.member);
        self.phase = status.phase;
        status
    }

    fn tell_news(&mut self, agent: &AgentLink) {
        // An active member changes its phase with a view or at its end; before that, anything may do it.
        let before = self.phase;
        if self.has_news || before != Phase::Active {
            let status = self.status();
            if self.has_news || status.phase != before {
                agent.tell(status);
            }
            self.has_news = false;
        }
    }

    fn take_order(&mut self, order: WorkerOrder) -> Result<(), Fault> {
        if let Some(view) = order.view.filter(|view| self.epoch.is_none_or(|epoch| view.epoch > epoch)) {
            fail::point("view-received");
            tracing::info!(epoch = %view.epoch, world = view.world_size(), rank = view.rank_of(self.config.me).map(|rank| rank.0), "view");
            self.epoch = Some(view.epoch);
            self.has_news = true;
            if let Some(views) = self.views.as_ref().filter(|_| view.writer() == Some(self.config.me)) {
                let at = self.speaker.status(&self.member).at.unwrap_or(Round(0));
                views.lived(&view, at);
            }
            self.feed(Event::View(view))?;
        }
        if order.leave && !self.was_told_to_leave {
            self.was_told_to_leave = true;
            self.feed(Event::Leave)?;
        }
        Ok(())
    }

    fn take_link_event(&mut self, event: LinkEvent) -> Result<(), Fault> {
        match event {
            LinkEvent::Frame { from, frame } => self.feed(Event::Frame { from, frame }),
            LinkEvent::Up(peer) => {
                self.has_news = true;
                self.feed(Event::LinkUp(peer))
            }
            LinkEvent::Down(peer) => {
                self.has_news = true;
                self.feed(Event::LinkDown(peer))
            }
        }
    }

    /// Steps the member, and again with whatever could be answered on the spot.
    fn feed(&mut self, event: Event) -> Result<(), Fault> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.begun.elapsed().as_millis() as u64;
            for effect in self.member.step(now, event) {
                events.extend(self.carry_out(effect)?);
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) -> Result<Option<Event>, Fault> {
        match effect {
            Effect::Send { to, frame } => self.send(to, frame),
            Effect::Compute { round, node } => self.give(Task::Compute { round, node })?,
            Effect::Sum { round, chunk, parts } => {
                let sum = Sum { round, chunk, layout: self.config.layout_of(round), parts };
                let answer = self.sums.add_up(sum, self.config.shards);
                if answer.is_some() {
                    fail::point("owner-summed");
                }
                return Ok(answer);
            }
            Effect::Apply { round, chunks } => self.give(Task::Apply { round, chunks })?,
            Effect::TakeState { to, round, part, parts } => self.give(Task::TakeState { to, round, part, parts })?,
            Effect::Install { round, parts } => self.give(Task::Install { round, parts })?,
            Effect::Publish { round } => {
                let epoch = self.epoch.unwrap_or_default();
                self.give(Task::Publish { round, epoch })?;
            }
            Effect::Stalled { ms } => {
                tracing::info!(ms, "a fault was overcome");
                self.speaker.stalled(ms);
            }
            Effect::Links { peers } => {
                self.backlog.retain(|(to, _)| peers.iter().any(|(peer, _)| peer == to));
                self.links.set_peers(peers);
            }
            Effect::Exit(leaving) => self.leaving = Some(leaving),
        }
        Ok(None)
    }

    fn send(&mut self, to: WorkerId, frame: Frame) {
        let point = match &frame.body {
            Body::Contribution { .. } => Some("after-contribute"),
            Body::Reduced { .. } => Some("after-reduced-sent"),
            Body::At { .. } => Some("at-sent"),
            _ => None,
        };
        if matches!(frame.body, Body::State { .. }) {
            self.backlog.push_back((to, frame));
            return self.send_backlog();
        }
        self.links.send(to, frame);
        if let Some(point) = point {
            fail::point(point);
        }
    }

    /// A whole state is more than a link's queue holds, and a hole in it would cost the whole stripe.
    fn send_backlog(&mut self) {
        self.backlog_due = Instant::now() + BACKLOG_AGAIN;
        let mut full: Vec<WorkerId> = Vec::new();
        let waiting = std::mem::take(&mut self.backlog);
        self.backlog.extend(waiting.into_iter().filter(|(to, frame)| {
            let waits = full.contains(to) || self.links.send(*to, frame.clone()) == Sent::Full;
            if waits && !full.contains(to) {
                full.push(*to);
            }
            waits
        }));
    }

    /// Queues a task; the member has few out at once, but for states that peers ask for.
    fn give(&mut self, task: Task) -> Result<(), Fault> {
        match self.tasks.try_send(task) {
            Ok(()) => Ok(()),
            // It will be asked for again.
            Err(TrySendError::Full(Task::TakeState { .. })) => Ok(()),
            Err(TrySendError::Full(task)) => {
                Err(Fault::Internal(format!("the training thread's queue is full: {task:?}")))
            }
            // The alarm that says why is on its way, and is heard first.
            Err(TrySendError::Disconnected(_)) => Ok(()),
        }
    }
}

/// Events taken at once.
const BATCH: usize = 64;
/// A link that was full is tried again after this time.
const BACKLOG_AGAIN: Duration = Duration::from_millis(2);
