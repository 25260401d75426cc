//! The loop around the machine: event in, records to the store, then everything else out.
//!
//! It owns the machine, the clock and the only timer, and decides nothing itself.

use crate::Config;
use crate::ask::{Answer, Ask, Change};
use crate::clock::{Clock, unix_ms};
use crate::links::Links;
use crate::meters::Meters;
use crate::store::{Candidate, Leadership, Store};
use crate::sweep::Sweep;
use crate::unsaid::{Landed, Unsaid};
use crate::web::Diary;
use elastic_control::{Effects, Event, Level, Machine, Note, Record, Reply, RequestId};
use elastic_proto::{Refusal, Ring};
use elastic_spec::facts::NodeWant;
use elastic_spec::{NodeId, Term};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

pub(crate) struct Driver {
    pub store: Arc<dyn Store>,
    pub config: Config,
    pub inbox: mpsc::Receiver<Ask>,
    pub role: watch::Sender<Role>,
    pub stopped: watch::Receiver<bool>,
    pub meters: Arc<Meters>,
    pub diary: Arc<Diary>,
}

/// What this coordinator is at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Standby {
        leader: Option<String>,
    },
    Leader {
        term: Term,
        /// Why records wait for the store.
        late: Option<String>,
    },
}

/// How a reign ended.
enum End {
    Stopped,
    /// Another leads or will; a new term must be above the one named.
    Deposed {
        above: Term,
    },
}

impl Driver {
    pub async fn run(mut self) {
        let mut above = Term(0);
        while let Some(leadership) = self.campaign(above).await {
            let term = leadership.term;
            let end = self.lead(leadership).await;
            self.role.send_replace(Role::Standby { leader: None });
            self.config.access.ring.forget();
            self.store.resign(term).await;
            match end {
                End::Stopped => return info!(%term, "resigned"),
                End::Deposed { above: seen } => above = above.max(seen),
            }
            warn!(%term, "leads no more");
        }
    }

    /// Waits to be elected; `None` when told to stop.
    async fn campaign(&mut self, above: Term) -> Option<Leadership> {
        let candidate = Candidate { address: self.config.advertise.clone(), above };
        let store = self.store.clone();
        let mut campaign = store.campaign(&candidate);
        let mut look = tokio::time::interval(LOOK_PERIOD);
        let mut away = None;
        loop {
            tokio::select! {
                () = crate::until(self.stopped.clone()) => return None,
                elected = &mut campaign => {
                    match elected {
                        Ok(leadership) => return Some(leadership),
                        Err(e) => {
                            let why = e.to_string();
                            if away.replace(why.clone()).is_none() {
                                warn!(%why, "campaign waits for the store");
                            }
                        }
                    }
                    tokio::time::sleep(RETRY_PERIOD).await;
                    campaign = store.campaign(&candidate);
                }
                _ = look.tick() => {
                    let leader = store.leader().await.unwrap_or_default();
                    self.role.send_replace(Role::Standby { leader });
                }
                // Whoever asks a standby finds the answer's way cut, and asks elsewhere.
                ask = self.inbox.recv() => drop(ask?),
            }
        }
    }

    async fn lead(&mut self, mut leadership: Leadership) -> End {
        let clock = Clock::start();
        let records = match self.store.load().await {
            Ok(records) => records,
            Err(e) => {
                warn!(term = %leadership.term, why = %e, "read records");
                return End::Deposed { above: leadership.term };
            }
        };
        let mut reign = Reign::new(self, leadership.term, clock, records);
        self.config.access.ring.replace(reign.machine.tokens());
        self.role.send_replace(Role::Leader { term: leadership.term, late: None });
        loop {
            let event = tokio::select! {
                () = crate::until(self.stopped.clone()) => return End::Stopped,
                () = leadership.ended() => return End::Deposed { above: leadership.term },
                () = clock.until(reign.machine.next_deadline()) => Some(Event::Tick),
                landed = reign.unsaid.landed() => match reign.land(landed) {
                    Ok(()) => None,
                    Err(end) => return end,
                },
                ask = self.inbox.recv() => match ask {
                    Some(ask) => reign.take(ask),
                    None => return End::Stopped,
                },
            };
            if let Some(event) = event
                && let Err(end) = reign.step(event).await
            {
                return end;
            }
            self.tell_late(reign.unsaid.late());
            reign.sweep.when_due(clock.now(), &reign.machine);
        }
    }

    fn tell_late(&self, why: Option<&String>) {
        self.role.send_if_modified(|role| match role {
            Role::Leader { late, .. } if late.as_ref() != why => {
                *late = why.cloned();
                true
            }
            _ => false,
        });
    }
}

/// One term of one leader.
struct Reign {
    machine: Machine,
    clock: Clock,
    term: Term,
    links: Links,
    unsaid: Unsaid,
    /// A want went out without its acknowledgements.
    owes_acknowledgements: bool,
    requests: u64,
    waiting: BTreeMap<RequestId, Answer<Result<(), Refusal>>>,
    sweep: Sweep,
    ring: Ring,
    meters: Arc<Meters>,
    diary: Arc<Diary>,
}

impl Reign {
    fn new(driver: &Driver, term: Term, clock: Clock, records: Vec<Record>) -> Reign {
        let count = records.len();
        let (machine, unreadable) = Machine::new(term, clock.now(), records, driver.config.control.clone());
        for record in unreadable {
            error!(%term, record, "a record cannot be read: its job is not taken up");
        }
        info!(%term, records = count, "leads");
        Reign {
            machine,
            clock,
            term,
            links: Links::default(),
            unsaid: Unsaid::new(driver.store.clone(), term, driver.meters.clone()),
            owes_acknowledgements: false,
            requests: 0,
            waiting: BTreeMap::new(),
            sweep: Sweep::new(driver.store.clone()),
            ring: driver.config.access.ring.clone(),
            meters: driver.meters.clone(),
            diary: driver.diary.clone(),
        }
    }

    /// Answers what needs no decision; the rest becomes an event.
    fn take(&mut self, ask: Ask) -> Option<Event> {
        let now = self.clock.now();
        match ask {
            Ask::Attach { link, first, wants, answer } => {
                let attached = self.links.attach(link, &first, wants);
                let event = attached.is_ok().then(|| {
                    self.send_present(&first.node);
                    Event::Report(*first, unix_ms())
                });
                let _ = answer.send(attached);
                return event;
            }
            Ask::Report { link, report } => {
                return self.links.hear(link, &report).then(|| Event::Report(*report, unix_ms()));
            }
            Ask::Detach { link, node } => {
                return self.links.detach(link, &node).map(|incarnation| Event::NodeLost { node, incarnation });
            }
            Ask::Change { change, answer } => return Some(self.change(change, answer)),
            Ask::Jobs { answer } => drop(answer.send(self.machine.jobs(now))),
            Ask::Job { job, answer } => drop(answer.send(self.machine.job(now, &job))),
            Ask::Nodes { answer } => drop(answer.send(self.machine.nodes(now))),
            Ask::LogPlaces { answer } => drop(answer.send(self.links.log_places())),
            Ask::Tokens { answer } => drop(answer.send(self.machine.tokens())),
        }
        None
    }

    fn change(&mut self, change: Change, answer: Answer<Result<(), Refusal>>) -> Event {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.waiting.retain(|_, answer| !answer.is_closed());
        self.waiting.insert(request, answer);
        change.event(request, unix_ms())
    }

    async fn step(&mut self, event: Event) -> Result<(), End> {
        let is_about_tokens = matches!(event, Event::KeepToken { .. } | Event::RevokeToken { .. });
        let begun = std::time::Instant::now();
        let Effects { persist, then_send, then_reply, notes, stand_down } = self.machine.step(self.clock.now(), event);
        self.meters.decisions.observe(begun.elapsed());
        if is_about_tokens {
            // Before the record stands: a new token is told to nobody until then, a revoked one is of no more use.
            self.ring.replace(self.machine.tokens());
        }
        notes.iter().for_each(|note| self.tell(note));
        if let Some(seen) = stand_down {
            return Err(End::Deposed { above: seen });
        }
        let mut replies = then_reply;
        let is_behind = !self.unsaid.is_empty();
        if !persist.is_empty() || is_behind {
            self.unsaid.add(persist, std::mem::take(&mut replies));
            // A store that answers keeps the order "records, then words" for everything; one that does
            // not is overtaken by views, and is not waited for again until it has caught up.
            if !is_behind && let Ok(landed) = tokio::time::timeout(PATIENCE, self.unsaid.landed()).await {
                self.land(landed)?;
            }
        }
        for (node, want) in then_send {
            self.send(&node, want);
        }
        self.reply(replies);
        Ok(())
    }

    fn tell(&self, note: &Note) {
        log(self.term, note);
        self.meters.notes.add([note.kind(), ""], 1);
        self.diary.write(note, unix_ms());
    }

    fn land(&mut self, landed: Landed) -> Result<(), End> {
        match landed {
            Landed::Fenced => Err(End::Deposed { above: self.term }),
            Landed::Said { replies, all } => {
                self.reply(replies);
                if all && std::mem::take(&mut self.owes_acknowledgements) {
                    let nodes: Vec<NodeId> = self.links.nodes().cloned().collect();
                    nodes.iter().for_each(|node| self.send_present(node));
                }
                Ok(())
            }
        }
    }

    fn send_present(&mut self, node: &NodeId) {
        if let Some(want) = self.machine.want(node) {
            self.send(node, want);
        }
    }

    /// An end is acknowledged only when its record stands: the agent forgets it then.
    fn send(&mut self, node: &NodeId, mut want: NodeWant) {
        if !self.unsaid.is_empty() && !want.acknowledged.is_empty() {
            want.acknowledged.clear();
            self.owes_acknowledgements = true;
        }
        self.links.send(node, want);
    }

    fn reply(&mut self, replies: Vec<(RequestId, Reply)>) {
        for (request, reply) in replies {
            let Some(answer) = self.waiting.remove(&request) else { continue };
            let _ = answer.send(match reply {
                Reply::Submitted { .. } | Reply::Done => Ok(()),
                Reply::Refused(refusal) => Err(refused(&refusal)),
            });
        }
    }
}

fn refused(refusal: &elastic_control::Refusal) -> Refusal {
    use elastic_control::Refusal as Control;
    let words = refusal.to_string();
    match refusal {
        Control::UnknownJob(_) | Control::UnknownNode(_) | Control::UnknownToken(_) => Refusal::NotFound(words),
        Control::BadSpec(_) | Control::BadScale { .. } | Control::CommandsForbidden => Refusal::Invalid(words),
        Control::JobExists(_) | Control::JobOver { .. } | Control::RunInUse { .. } | Control::TokenExists(_) => {
            Refusal::NotNow(words)
        }
        Control::TooManyJobs { .. } | Control::TooManyTokens(_) => Refusal::TooMuch(words),
    }
}

fn log(term: Term, note: &Note) {
    let job = note.job().map(tracing::field::display);
    let node = note.node().map(tracing::field::display);
    match note.level() {
        Level::Info => info!(%term, job, node, "{note}"),
        Level::Warn => warn!(%term, job, node, "{note}"),
        Level::Error => error!(%term, job, node, "{note}"),
    }
}

/// How long a step waits for its records before views overtake them.
const PATIENCE: Duration = Duration::from_millis(250);
const RETRY_PERIOD: Duration = Duration::from_millis(500);
/// How often a standby looks who leads.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
