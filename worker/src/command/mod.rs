//! One node's group of processes of a job that runs a command.
//!
//! Instead of training, this worker keeps the processes of one generation: it starts them when a view names it, says
//! when all of them are done or which failed first, and clears all of them away, with everything they started, before
//! the next generation begins. When there is a generation, and with whom, is the coordinator's to decide.
//!
//! `group` has the processes of one generation, `family` whatever comes of them, `names` what they are told, `cause`
//! why one failed, `output` what they print and `prefix` what stands before it, `meeting` the port where they will find
//! each other.

mod cause;
pub(crate) mod family;
mod group;
mod meeting;
mod names;
mod output;
mod prefix;

use crate::agent_link::AgentLink;
use crate::boot::Order;
use crate::env::Env;
use crate::fault::Fault;
use crate::stderr;
use anyhow::Context;
use elastic_spec::facts::{Phase, WorkerStatus};
use elastic_spec::job::CommandSpec;
use elastic_spec::limits::{BEAT_MS, GRACE_MS};
use elastic_spec::view::{Pace, View, WorkerOrder, exit};
use elastic_spec::{Epoch, Rank};
use group::{Group, Outcome};
use meeting::Meeting;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// While processes end.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Orphans that have ended count among the processes that the system allows, until they are reaped.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// An agent that stops this worker waits no longer than `GRACE_MS`, and the rest of the work takes its time, too.
const LAST_GRACE: Duration = Duration::from_millis(GRACE_MS - 2_000);

/// What this worker keeps processes of; None of a job that trains a model.
pub(crate) fn order(env: &Env) -> Option<(Order, CommandSpec)> {
    // A launch that cannot be read is told where it is read again.
    let order = Order::read(env).ok()?;
    let command = order.spec.command()?.clone();
    Some((order, command))
}

/// Keeps processes until told to leave.
pub(crate) async fn life(env: &Env, order: &Order, command: &CommandSpec, agent: &mut AgentLink) -> Result<i32, Fault> {
    family::adopt().context("become the parent of what the processes leave behind").map_err(Fault::Node)?;
    let mut terminated = signal(SignalKind::terminate()).context("hear SIGTERM").map_err(Fault::Node)?;
    // As many as there can be processes: a thread that tells an end never waits.
    let (end, mut ends) = mpsc::channel(usize::from(command.processes));
    let mut meeting = Meeting::reserve(env).map_err(Fault::Node)?;
    let mut status = WorkerStatus { phase: Phase::Ready, ..crate::status::blank(meeting.address(), 0) };
    let mut keeper =
        Keeper { env, order, command, group: None, began: None, failed_at: Instant::now(), reaped_at: Instant::now() };
    let mut is_ending = false;
    agent.tell(status.clone());
    loop {
        let told = agent.orders.borrow_and_update().clone();
        let grace = if is_ending { LAST_GRACE } else { Duration::from_secs(command.grace_s.into()) };
        keeper.end_what_is_over(&told, is_ending || told.leave, grace, &mut status);
        if keeper.group.is_none() {
            if is_ending || told.leave {
                // How the generation ended may have come out just now: done is not to be done again.
                keeper.age(&mut status);
                agent.tell_last(|last| *last = status).await;
                return Ok(exit::DRAINED);
            }
            if let Some((view, rank)) = keeper.is_due(&told) {
                output::stands(view.epoch, rank);
                if rank == Rank(0) {
                    // Free for rank 0 of this generation; the next one meets elsewhere.
                    drop(meeting);
                    meeting = Meeting::reserve(env).map_err(Fault::Node)?;
                    status.address = meeting.address();
                }
                (status.phase, status.failure, status.view) = (Phase::Active, None, Some(view.clone()));
                keeper.begin(&view, rank, told.restarts, &end);
            } else if let Some(view) = told.view.filter(|v| v.epoch > keeper.began.unwrap_or_default()) {
                (status.phase, status.failure, status.view) = (Phase::Ready, None, Some(view));
            }
        }
        keeper.reap_orphans();
        keeper.age(&mut status);
        agent.tell(status.clone());
        let pause = if keeper.is_in_motion() { LOOK_EVERY } else { Duration::from_millis(BEAT_MS) };
        tokio::select! {
            Ok(()) = agent.orders.changed() => {}
            Some((epoch, local, ended)) = ends.recv() => keeper.note_end(epoch, local, ended),
            _ = terminated.recv() => is_ending = true,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The processes that this worker keeps, if any.
struct Keeper<'a> {
    env: &'a Env,
    order: &'a Order,
    command: &'a CommandSpec,
    group: Option<Group>,
    /// The newest generation that was begun here.
    began: Option<Epoch>,
    /// When the failure that is told took place.
    failed_at: Instant,
    reaped_at: Instant,
}

impl Keeper<'_> {
    /// The generation that shall run here and has not been begun.
    fn is_due(&self, told: &WorkerOrder) -> Option<(View, Rank)> {
        let view = told.view.as_ref().filter(|v| v.pace == Pace::Run && Some(v.epoch) > self.began)?;
        Some((view.clone(), view.rank_of(self.env.worker)?))
    }

    fn begin(&mut self, view: &View, rank: Rank, restarts: u32, end: &mpsc::Sender<group::Ended>) {
        let place = names::Place::new(self.env, self.order, self.command, view, rank, restarts);
        place.forget_older();
        stderr::say(format_args!("elastic: generation {} begins: {place}", view.epoch.gen_));
        self.began = Some(view.epoch);
        self.group = Some(Group::start(self.command, place, end));
    }

    fn note_end(&mut self, epoch: Epoch, local: u16, ended: elastic_spec::facts::End) {
        if let Some(group) = self.group.as_mut().filter(|g| g.epoch() == epoch) {
            group.note_end(local, ended);
        }
    }

    /// Sees to it that a generation ends when another is wanted, or when it has come to its end by itself.
    fn end_what_is_over(&mut self, told: &WorkerOrder, leaves: bool, grace: Duration, status: &mut WorkerStatus) {
        let Some(group) = &mut self.group else { return };
        // A coordinator that is new may know of no view yet; what runs goes on.
        if leaves || told.view.as_ref().is_some_and(|v| v.epoch > group.epoch()) {
            group.stop(grace);
        }
        if let Some((at, failure)) = group.first_failure() {
            self.failed_at = at;
            status.failure = Some(failure);
            group.stop(grace);
        }
        if let Some(outcome) = group.clear(grace) {
            if outcome == Outcome::Done {
                status.phase = Phase::Finished;
            } else if status.failure.is_none() {
                status.phase = Phase::Ready;
            }
            self.group = None;
        }
    }

    /// A failure is told with its age, which grows.
    fn age(&self, status: &mut WorkerStatus) {
        if let Some(failure) = &mut status.failure {
            failure.age_ms = self.failed_at.elapsed().as_millis() as u64;
        }
    }

    fn reap_orphans(&mut self) {
        if let Some(group) = self.group.as_ref().filter(|_| self.reaped_at.elapsed() >= REAP_EVERY) {
            group.reap_orphans();
            self.reaped_at = Instant::now();
        }
    }

    fn is_in_motion(&self) -> bool {
        self.group.as_ref().is_some_and(Group::is_in_motion)
    }
}
