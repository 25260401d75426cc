//! One worker process: the real member machine between a modelled trainer and modelled links.

use crate::mutant::{Breach, Mutant};
use crate::trainer::{State, sum};
use crate::world::{Happening, World};
use elastic_member::{Config, Effect, Event, Leaving, Member};
use elastic_spec::facts::{End, Phase, Published, WorkerStatus};
use elastic_spec::frame::{Body, Frame};
use elastic_spec::tree::TreeNode;
use elastic_spec::view::{WorkerOrder, exit};
use elastic_spec::{Digest, Epoch, Round, Step, WorkerId};
use std::collections::{BTreeSet, VecDeque};

#[derive(Debug)]
pub struct Process {
    pub node: usize,
    pub config: Config,
    pub member: Member,
    pub state: Option<State>,
    queue: VecDeque<Effect>,
    is_busy: bool,
    pub stopped_until: u64,
    /// The training thread spins: nothing that it was given is done any more.
    pub hangs: bool,
    links: BTreeSet<WorkerId>,
    tick_at: Option<u64>,
    breach: Breach,
    has_finished: bool,
}

impl World {
    /// A process that the agent has just started: it boots for a while, then restores.
    pub(crate) fn boot(&mut self, id: WorkerId, node: usize) {
        let config = Config { me: id, ..self.config.clone() };
        let process = Process {
            node,
            member: Member::new(config.clone()),
            config,
            state: None,
            queue: VecDeque::new(),
            is_busy: false,
            stopped_until: 0,
            hangs: false,
            links: BTreeSet::new(),
            tick_at: None,
            breach: Breach::default(),
            has_finished: false,
        };
        self.processes.insert(id, process);
        let boot = self.chance.between(5_000, 60_000);
        self.at(boot, Happening::Booted(id));
    }

    pub(crate) fn booted(&mut self, id: WorkerId) {
        let newest = self.disk.last_key_value().map(|(_, bytes)| State::from_bytes(bytes));
        let Some(process) = self.processes.get_mut(&id) else { return };
        let state = newest.unwrap_or_else(|| State::init(&process.config));
        let round = state.round;
        process.state = Some(state);
        self.counts.restored += u64::from(round > Round(0));
        self.tell(id, Event::Ready { round });
    }

    /// Hands the machine an event and carries out what it wants.
    pub(crate) fn tell(&mut self, id: WorkerId, event: Event) {
        let now = self.now / 1000;
        let Some(process) = self.processes.get_mut(&id) else { return };
        let effects = process.member.step(now, event);
        for effect in effects {
            self.act(id, effect);
        }
        let Some(process) = self.processes.get_mut(&id) else { return };
        let deadline = process.member.next_deadline();
        if let Some(deadline) = deadline.filter(|d| process.tick_at.is_none_or(|t| *d < t || t <= now)) {
            process.tick_at = Some(deadline);
            self.at((deadline * 1000).saturating_sub(self.now), Happening::MemberTick(id));
        }
    }

    pub(crate) fn order(&mut self, id: WorkerId, order: WorkerOrder) {
        if let Some(mut view) = order.view {
            let is_new =
                self.processes.get(&id).and_then(|p| p.member.status().view).is_none_or(|v| v.epoch < view.epoch);
            let mutant = self.mutant;
            let Some(process) = self.processes.get_mut(&id) else { return };
            if mutant == Some(Mutant::NoFence) {
                if process.breach.real_epoch > view.epoch {
                    self.violation(format!(
                        "{id} went back from view {} to {}",
                        self.processes[&id].breach.real_epoch, view.epoch
                    ));
                    return;
                }
                process.breach.views += 1;
                process.breach.real_epoch = view.epoch;
                view.epoch = Epoch::new(u64::MAX >> 1, process.breach.views);
                self.tell(id, Event::View(view));
            } else {
                if is_new {
                    self.counts.views_taken += 1;
                    self.trace(|| {
                        format!(
                            "{id} view {} {:?} {}",
                            view.epoch,
                            view.pace,
                            view.members
                                .iter()
                                .map(|m| format!(
                                    "{}{}",
                                    m.worker,
                                    if m.role == elastic_spec::view::Role::Active { "" } else { "?" }
                                ))
                                .collect::<Vec<_>>()
                                .join(" ")
                        )
                    });
                }
                self.tell(id, Event::View(view));
            }
        }
        if order.leave {
            self.tell(id, Event::Leave);
        }
    }

    fn act(&mut self, id: WorkerId, effect: Effect) {
        match effect {
            Effect::Send { to, frame } => self.send_frame(id, to, frame),
            Effect::Sum { round, chunk, parts } => {
                let layout = self.config.layout_of(round);
                let root = TreeNode::root(self.config.shards);
                let payload = sum(layout, chunk, root, &parts.into_iter().collect());
                self.at(200, Happening::ToMember(id, Box::new(Event::Summed { round, chunk, payload })));
            }
            Effect::Links { peers } => {
                let wanted: BTreeSet<WorkerId> = peers.into_iter().map(|(w, _)| w).collect();
                let Some(process) = self.processes.get_mut(&id) else { return };
                let new: Vec<WorkerId> = wanted.difference(&process.links).copied().collect();
                process.links = wanted;
                for peer in new.into_iter().filter(|p| self.processes.contains_key(p)).collect::<Vec<_>>() {
                    let delay = self.chance.between(100, 2_000);
                    self.at(delay, Happening::ToMember(id, Box::new(Event::LinkUp(peer))));
                }
            }
            Effect::Stalled { ms } => self.counts.stalls_ms.push(ms),
            Effect::Exit(why) => self.exits(id, why),
            queued => {
                let Some(process) = self.processes.get_mut(&id) else { return };
                process.queue.push_back(queued);
                self.train(id);
            }
        }
    }

    fn exits(&mut self, id: WorkerId, why: Leaving) {
        self.trace(|| format!("{id} exits {why:?}"));
        if why == Leaving::Finished {
            let last = self.config.rounds();
            if !self.disk.contains_key(&last) {
                self.violation(format!("{id} finished, but no checkpoint of round {last} is on the disk"));
            }
            self.has_finished = true;
            if let Some(process) = self.processes.get_mut(&id) {
                process.has_finished = true;
            }
        }
        let code = if why == Leaving::Finished { exit::DONE } else { exit::DRAINED };
        self.at(1_000, Happening::Ended(id, End::Code(code)));
    }

    fn send_frame(&mut self, from: WorkerId, to: WorkerId, mut frame: Frame) {
        let mutant = self.mutant;
        let Some(process) = self.processes.get_mut(&from) else { return };
        if mutant == Some(Mutant::EarlyFree) && !process.breach.may_send(&frame.body) {
            return;
        }
        if let Body::Reduced { round, .. } = &frame.body {
            self.reduced_sent(from, *round);
        }
        if self.is_cut(from, to) || self.chance.permille(self.net.loss) {
            self.counts.frames_lost += 1;
            return;
        }
        if mutant == Some(Mutant::WrongStepSegment)
            && let Body::Contribution { round, .. } = &mut frame.body
            && self.chance.permille(20)
        {
            *round = round.next();
        }
        let copies = 1 + u64::from(self.chance.permille(self.net.doubles));
        for _ in 0..copies {
            let delay = self.net.delay(&mut self.chance);
            self.at(delay, Happening::ToMember(to, Box::new(Event::Frame { from, frame: frame.clone() })));
        }
    }

    /// Starts the trainer's next piece of work.
    fn train(&mut self, id: WorkerId) {
        let pace = self.pace_us;
        let Some(process) = self.processes.get_mut(&id) else { return };
        if process.is_busy || process.hangs {
            return;
        }
        let Some(effect) = process.queue.pop_front() else { return };
        process.is_busy = true;
        let takes = match &effect {
            Effect::Compute { node, .. } => pace * node.range().len() as u64,
            _ => 100,
        };
        let jitter = self.chance.between(0, takes / 2);
        self.at(takes + jitter, Happening::Trained(id, Box::new(effect)));
    }

    pub(crate) fn trained(&mut self, id: WorkerId, effect: Effect) {
        let mutant = self.mutant;
        let Some(process) = self.processes.get_mut(&id).filter(|p| !p.hangs) else { return };
        process.is_busy = false;
        let config = process.config.clone();
        let answer = match effect {
            Effect::Compute { round, node } => {
                let state = process.state.as_ref().expect("who computes holds a state");
                if state.round != round && mutant.is_none() {
                    let held = state.round;
                    self.violation(format!("{id} computes round {round} from the state of {held}"));
                    return;
                }
                Some(Event::Computed { round, node, chunks: state.compute(&config, round, node) })
            }
            Effect::Apply { round, chunks } => {
                let state = process.state.as_mut().expect("who applies holds a state");
                if state.round != round {
                    let held = state.round;
                    self.violation(format!("{id} applies round {round} to the state of {held}"));
                    return;
                }
                state.apply(&config, round, &chunks);
                let hash = state.hash();
                self.check_state(id, round.next(), hash);
                Some(Event::Applied { round })
            }
            Effect::TakeState { to, round, part, parts } => {
                let state = process.state.as_ref().expect("who gives a state holds one");
                let frames = cut_state(state, round, part, parts);
                if state.round != round {
                    let held = state.round;
                    self.violation(format!("{id} gives the state of {held} for that of {round}"));
                    return;
                }
                Some(Event::StateTaken { to, round, frames })
            }
            Effect::Install { round, parts } => {
                let mut state = State::from_bytes(&parts.concat());
                if mutant == Some(Mutant::JoinerCountedEarly) && round.0 > 2 {
                    // Stands for a joiner that takes part before it has applied the last of the log.
                    state.moments.fill(0.0);
                }
                let accepted = state.round == round;
                process.state = Some(state);
                self.counts.states_installed += 1;
                Some(Event::Installed { round, accepted })
            }
            Effect::Publish { round } => {
                let bytes = process.state.as_ref().expect("who publishes holds a state").to_bytes();
                let takes = self.chance.between(1_000, 20_000);
                if mutant == Some(Mutant::PublishBeforeSync) {
                    self.at(takes * 8, Happening::Synced(id, round, bytes));
                    Some(Event::Published { round, done: true })
                } else {
                    self.at(takes, Happening::Written(id, round, bytes));
                    None
                }
            }
            other => unreachable!("{other:?} is not the trainer's"),
        };
        if let Some(answer) = answer {
            self.tell(id, answer);
        }
        self.train(id);
    }

    pub(crate) fn written(&mut self, id: WorkerId, round: Round, bytes: Vec<u8>) {
        let done = !self.chance.permille(self.net.disk_fails);
        if done {
            self.synced(round, bytes);
        }
        self.tell(id, Event::Published { round, done });
    }

    pub(crate) fn synced(&mut self, round: Round, bytes: Vec<u8>) {
        let state = State::from_bytes(&bytes);
        if state.round != round || state.hash() != self.reference[round.0 as usize] {
            self.violation(format!("the checkpoint of round {round} is not what an undisturbed run has there"));
        }
        self.disk.insert(round, bytes);
    }

    pub(crate) fn status_of(&self, id: WorkerId) -> Option<WorkerStatus> {
        let process = self.processes.get(&id)?;
        process.state.as_ref()?;
        let status = process.member.status();
        let published = (status.published > Round(0) || process.has_finished).then(|| Published {
            round: status.published,
            step: self.config.schedule.step_at(status.published),
            path: "disk".into(),
            weights_sha256: Digest::of(&status.published.0.to_le_bytes()),
            state_sha256: Digest::of(&status.published.0.to_le_bytes()),
        });
        Some(WorkerStatus {
            address: format!("127.0.0.1:{}", 1000 + id.0 % 60000),
            numerics: 7,
            phase: status.phase,
            view: status.view,
            at: status.at,
            step: status.at.map(|r| self.config.schedule.step_at(r)).unwrap_or(Step(0)),
            steps_total: self.config.schedule.steps,
            progress: status.progress,
            waiting_on: status.waiting_on,
            lost_peers: status.lost_peers,
            metrics: None,
            published,
            error: None,
            stalls_ms: Vec::new(),
            run_dir_id: None,
            unpublished: None,
            failure: None,
        })
        .inspect(|s| debug_assert!(s.phase != Phase::Finished || process.has_finished))
    }
}

/// The wire pieces of one stripe of a state.
fn cut_state(state: &State, round: Round, part: u16, parts: u16) -> Vec<Body> {
    let bytes = state.to_bytes();
    let size = bytes.len().div_ceil(parts as usize);
    let stripe = &bytes[(size * part as usize).min(bytes.len())..(size * (part as usize + 1)).min(bytes.len())];
    let sha256_of_part = Digest::of(stripe).0;
    let pieces: Vec<&[u8]> = if stripe.is_empty() { vec![stripe] } else { stripe.chunks(120).collect() };
    let count = pieces.len();
    let mut offset = 0;
    let mut out = Vec::new();
    for (i, piece) in pieces.into_iter().enumerate() {
        let payload = bytes::Bytes::copy_from_slice(piece);
        out.push(Body::State {
            round,
            part,
            parts,
            total: stripe.len() as u64,
            offset,
            payload,
            sha256_of_part,
            last: i + 1 == count,
        });
        offset += piece.len() as u64;
    }
    out
}
