//! The thread that continues the texts of one version of a model, and the way to it.
//!
//! Between two steps texts join, and those leave that are finished, late, or heard by nobody any more. Nobody is waited
//! for: who takes its words too slowly is not told to go on until it took them. After a while, which is short where
//! others need its seats, its request ends with all its texts. When the scribe is dropped its thread ends; whoever listens
//! holds the version, so there is nobody left then.

use super::desk::{Desk, Full, Waiting};
use super::stats::Stats;
use super::{Ask, Policy, Word, Writer};
use crate::batching::crew::Times;
use crate::clock::now_us;
use crate::limits::WORDS_MAX;
use crate::model::{Model, Takes};
use crate::quiet;
use crate::refusal::Refusal;
use crate::serving::Hands;
use elastic_bundle::{AddError, Asking, Completion, Found, Likelihood, Seat, Wanted, likelihood};
use elastic_transform::Text;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

pub struct Scribe {
    shared: Arc<Shared>,
}

struct Shared {
    model: Arc<dyn Model>,
    text: Arc<Text>,
    vocab: usize,
    context: usize,
    /// The most bytes that a token stands for.
    longest: usize,
    policy: Policy,
    threads: usize,
    stats: Stats,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    desk: Desk<Line>,
    life: Life,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// The scribe was dropped: its thread ends when nobody is seated.
    Closed,
    /// The thread could not go on.
    Dead,
}

type Heard = Result<Word, Refusal>;

/// One text of a request.
struct Line {
    text: usize,
    tokens: Arc<[i32]>,
    of_prompt: Option<usize>,
    completion: Completion,
    words: mpsc::Sender<Heard>,
    arrived_us: u64,
    deadline_us: u64,
    fate: Arc<Fate>,
}

impl Line {
    fn is_gone(&self, now_us: u64) -> bool {
        self.words.is_closed() || self.deadline_us <= now_us || self.fate.was_slow.load(Relaxed)
    }
}

/// What became of a request besides its words.
struct Fate {
    /// When the first of its texts got a seat.
    seated_us: AtomicU64,
    /// When its listener took a word last.
    taken_us: AtomicU64,
    /// Its words were not taken: none of its texts goes on.
    was_slow: AtomicBool,
}

/// What the texts of one request say, as it comes.
pub struct Hearing {
    words: mpsc::Receiver<Heard>,
    /// Texts that are not finished.
    left: usize,
    arrived_us: u64,
    deadline_us: u64,
    fate: Arc<Fate>,
}

impl Hearing {
    /// The next word of any text; None when all are finished. After a refusal nothing comes.
    pub async fn next(&mut self) -> Option<Heard> {
        if self.left == 0 {
            return None;
        }
        let left = Duration::from_micros(self.deadline_us.saturating_sub(now_us()));
        let heard = match tokio::time::timeout(left, self.words.recv()).await {
            Ok(Some(heard)) => heard,
            Ok(None) if self.fate.was_slow.load(Relaxed) => {
                Err(Refusal::Slow("the text was read too slowly, and others wait for its seat".into()))
            }
            Ok(None) if now_us() < self.deadline_us => {
                Err(Refusal::Internal("the thread that continued the text ended".into()))
            }
            Ok(None) | Err(_) => Err(Refusal::Late("the deadline passed before the text was finished".into())),
        };
        match &heard {
            Ok(word) => {
                self.fate.taken_us.store(now_us(), Relaxed);
                self.left -= usize::from(word.is_last());
            }
            Err(_) => self.left = 0,
        }
        Some(heard)
    }

    /// Waiting for the first seat, and what came then.
    pub fn times(&self) -> Times {
        let now_us = now_us();
        let seated_us = self.fate.seated_us.load(Relaxed).min(now_us);
        let queue_us = seated_us.saturating_sub(self.arrived_us);
        Times { queue_us, infer_us: now_us - seated_us, ..Times::default() }
    }
}

impl Scribe {
    /// Returns warm. The error says why texts of the model are not continued.
    pub fn start(model: Arc<dyn Model>, policy: Policy, hands: Hands) -> Result<Scribe, String> {
        let Takes::Tokens { vocab, context } = model.face().takes else {
            return Err("it reads features".into());
        };
        if policy.sequences == 0 {
            return Err("the server continues none (--sequences 0)".into());
        }
        let threads = hands.threads;
        let flags = |why| format!("{why} (--text-memory-mib, --sequences)");
        let make = || {
            let mut writer =
                model.writer(policy.size(threads)).map_err(flags)?.ok_or("its tokens stand for no text")?;
            warm(&mut writer);
            Ok(writer)
        };
        // Threads that it has for itself would stay behind.
        let writer = quiet::run(hands.behind && threads <= 1, make)?;
        let state = Mutex::new(State { desk: Desk::new(&policy), life: Life::Open });
        let text = writer.text.clone();
        let longest = text.longest();
        let (stats, wake) = (Stats::default(), Condvar::new());
        let shared = Arc::new(Shared { model, text, vocab, context, longest, policy, threads, stats, state, wake });
        let scribe = Scribe { shared: shared.clone() };
        let thread = std::thread::Builder::new().name("text".into());
        thread.spawn(move || shared.work(writer)).map_err(|error| format!("start a thread for texts: {error}"))?;
        Ok(scribe)
    }

    pub fn text(&self) -> &Arc<Text> {
        &self.shared.text
    }

    /// Can a text of so many bytes be a prompt? Asked before anything is made of it: it can be any length.
    pub fn check_bytes(&self, bytes: usize) -> Result<(), AddError> {
        let (longest, context) = (self.shared.longest, self.shared.context);
        match bytes.div_ceil(longest) {
            tokens if tokens <= context => Ok(()),
            tokens if longest == 1 => Err(AddError::TooLong { tokens, context }),
            tokens => Err(AddError::TooManyBytes { bytes, tokens, context }),
        }
    }

    /// Can the tokens be a prompt? The error says why not.
    pub fn check(&self, tokens: &[i32]) -> Result<(), AddError> {
        let (vocab, context) = (self.shared.vocab, self.shared.context);
        if tokens.is_empty() {
            return Err(AddError::Empty);
        }
        if tokens.len() > context {
            return Err(AddError::TooLong { tokens: tokens.len(), context });
        }
        match tokens.iter().position(|token| usize::try_from(*token).map_or(true, |token| token >= vocab)) {
            Some(place) => Err(AddError::Unknown { place, token: tokens[place], vocab }),
            None => Ok(()),
        }
    }

    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    pub fn policy(&self) -> &Policy {
        &self.shared.policy
    }

    /// The texts wait for seats. Who drops the hearing takes them out.
    pub fn ask(&self, ask: Ask) -> Result<Hearing, Refusal> {
        let Ask { prompts, begun, n, asking, of_prompt, deadline_us } = ask;
        let texts = prompts.len() * n;
        let (sender, words) = mpsc::channel(WORDS_MAX.max(texts));
        let arrived_us = now_us();
        let fate = Arc::new(Fate {
            seated_us: AtomicU64::new(u64::MAX),
            taken_us: AtomicU64::new(arrived_us),
            was_slow: AtomicBool::new(false),
        });
        let end = self.shared.text.end();
        let mut lines = Vec::with_capacity(texts);
        for (at, prompt) in prompts.iter().enumerate() {
            for choice in 0..n {
                let text = at * n + choice;
                let asking = Asking { choice: choice as u32, ..asking.clone() };
                let of_prompt = asking.likely.filter(|_| of_prompt);
                let completion = Completion::new(asking, prompt.len(), self.shared.context, end);
                let completion = completion.after(begun.get(at).map(Vec::as_slice).unwrap_or_default());
                if completion.is_over() && of_prompt.is_none() {
                    sender.try_send(Ok(Word::Nothing { text })).expect("there is room for a word of each text");
                    continue;
                }
                let item = Line {
                    text,
                    tokens: prompt.clone(),
                    of_prompt,
                    completion,
                    words: sender.clone(),
                    arrived_us,
                    deadline_us,
                    fate: fate.clone(),
                };
                lines.push(Waiting { bytes: size_of_val(&**prompt), item });
            }
        }
        let mut state = self.shared.lock();
        if state.life == Life::Dead {
            return Err(Refusal::Internal("texts of this model cannot be continued any more".into()));
        }
        state.desk.sweep(|line| line.is_gone(arrived_us));
        state.desk.admit(lines).map_err(full)?;
        self.shared.stats.waiting(state.desk.len());
        drop(state);
        self.shared.wake.notify_one();
        Ok(Hearing { words, left: texts, arrived_us, deadline_us, fate })
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        self.shared.lock().life = Life::Closed;
        self.shared.wake.notify_one();
    }
}

fn full(full: Full) -> Refusal {
    let what = match full {
        Full::Texts(texts) => format!("{texts} texts wait for this model already"),
        Full::Bytes(bytes) => format!("prompts of {bytes} bytes wait for this model already"),
    };
    Refusal::Full { what, retry_after_s: 1 }
}

fn warm(writer: &mut Writer) {
    let seat = writer.generator.add(&[0], Wanted::Next);
    writer.generator.step();
    writer.generator.remove(seat);
}

/// While all who are seated are too slow, they are looked at so often.
const PAUSE: Duration = Duration::from_millis(5);

impl Shared {
    /// No code that can panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, writer: Writer) {
        let mut room = Room { writer, seated: Vec::new() };
        while let Some(lines) = self.next(&room) {
            if catch_unwind(AssertUnwindSafe(|| room.turn(lines, self))).is_ok() {
                continue;
            }
            tracing::error!("a model panicked; what continues its texts is made anew");
            for seated in room.seated.drain(..) {
                self.stats.left();
                // One whose channel is full sees that it ended.
                let _ = seated.line.words.try_send(Err(Refusal::Internal("the model panicked".into())));
            }
            // First the old one: there may not be memory for both.
            let made = catch_unwind(AssertUnwindSafe(|| {
                drop(room);
                self.model.writer(self.policy.size(self.threads))
            }));
            match made.unwrap_or_else(|_| Err("it panicked".into())) {
                Ok(Some(writer)) => room = Room { writer, seated: Vec::new() },
                other => {
                    let why = other.err().unwrap_or_else(|| "there is none".into());
                    tracing::error!(%why, "texts of a model cannot be continued any more; its thread ends");
                    self.die();
                    return;
                }
            }
        }
        // What the texts had is freed behind those who answer.
        quiet::step_back();
    }

    /// Those who wait hear that there is nobody.
    fn die(&self) {
        let mut state = self.lock();
        state.life = Life::Dead;
        state.desk.sweep(|_| true);
        self.stats.now(0, 0);
    }

    /// Who is to be seated before the next step; None when there is nothing to do any more.
    fn next(&self, room: &Room) -> Option<Vec<Line>> {
        let mut state = self.lock();
        if room.is_stuck() && (state.desk.is_empty() || room.writer.generator.free() == 0) {
            state = self.wake.wait_timeout(state, PAUSE).unwrap_or_else(PoisonError::into_inner).0;
        }
        loop {
            let now_us = now_us();
            state.desk.sweep(|line| line.is_gone(now_us));
            // Those who leave in this turn leave their seats to the next one.
            let free = room.writer.generator.free();
            let lines: Vec<Line> = std::iter::from_fn(|| state.desk.take()).take(free).collect();
            room.judge(&state.desk, &self.policy, now_us);
            self.stats.now(room.seated.len() + lines.len(), state.desk.len());
            match (room.seated.is_empty() && lines.is_empty(), state.life) {
                (false, _) => return Some(lines),
                (true, Life::Closed | Life::Dead) => return None,
                (true, Life::Open) => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Who is seated. Only the thread has it.
struct Room {
    writer: Writer,
    seated: Vec<Seated>,
}

struct Seated {
    seat: Seat,
    line: Line,
    prompt: Vec<Likelihood>,
    /// Words that were not taken yet, and since when.
    held: VecDeque<Word>,
    held_us: u64,
    next: Next,
}

/// Once its words are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// A step is to come.
    Wait,
    GoOn(i32),
    Leave,
}

impl Room {
    /// Nobody who is seated takes what was said to it.
    fn is_stuck(&self) -> bool {
        !self.seated.is_empty() && self.seated.iter().all(|seated| !seated.held.is_empty())
    }

    /// Who has taken nothing for too long is slow: sooner where others find no seat.
    fn judge(&self, desk: &Desk<Line>, policy: &Policy, now_us: u64) {
        for seated in self.seated.iter().filter(|seated| !seated.held.is_empty()) {
            let fate = &seated.line.fate;
            let since_us = seated.held_us.max(fate.taken_us.load(Relaxed));
            let is_silent = |bound: Duration| now_us.saturating_sub(since_us) > bound.as_micros() as u64;
            let is_needed = || desk.iter().any(|waiting| !Arc::ptr_eq(&waiting.fate, fate));
            if is_silent(policy.silence) || (is_silent(policy.silence_needed) && is_needed()) {
                fate.was_slow.store(true, Relaxed);
            }
        }
    }

    fn turn(&mut self, lines: Vec<Line>, shared: &Shared) {
        let now = now_us();
        self.seated.retain(|seated| {
            let stays = !seated.line.is_gone(now);
            if !stays {
                shared.stats.left();
                self.writer.generator.remove(seated.seat);
            }
            stays
        });
        for line in lines.into_iter().filter(|line| !line.is_gone(now)) {
            let wanted = if line.of_prompt.is_some() { Wanted::All } else { Wanted::Next };
            let seat = self.writer.generator.add(&line.tokens, wanted);
            line.fate.seated_us.fetch_min(now, Relaxed);
            shared.stats.seated(line.tokens.len());
            let (prompt, held, held_us, next) = (Vec::new(), VecDeque::new(), 0, Next::Wait);
            self.seated.push(Seated { seat, line, prompt, held, held_us, next });
        }
        // Who was too slow may go on now.
        self.tell(shared);
        if self.seated.iter().all(|seated| seated.next != Next::Wait) {
            return;
        }
        let found = self.writer.generator.step();
        shared.stats.stepped();
        for found in &found {
            let seated = self.seated.iter_mut().find(|seated| seated.seat == found.seat);
            let seated = seated.expect("only those who are seated are found");
            seated.hear(found, self.writer.generator.logits(found), &self.writer.text, shared);
        }
        self.tell(shared);
    }

    /// Gives words to those who take them, and says who goes on.
    fn tell(&mut self, shared: &Shared) {
        let generator = &mut self.writer.generator;
        self.seated.retain_mut(|seated| {
            while let Some(word) = seated.held.pop_front() {
                match seated.line.words.try_send(Ok(word)) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(Ok(word))) => {
                        seated.held.push_front(word);
                        return true;
                    }
                    // Nobody listens: it leaves in the next turn.
                    Err(_) => return true,
                }
            }
            match std::mem::replace(&mut seated.next, Next::Wait) {
                Next::Wait => return true,
                Next::GoOn(token) => {
                    assert!(generator.go_on(seated.seat, token), "a completion ends with its context");
                    return true;
                }
                Next::Leave => {}
            }
            shared.stats.finished();
            generator.remove(seated.seat);
            false
        });
    }
}

impl Seated {
    fn hear(&mut self, found: &Found, logits: &[f32], text: &Text, shared: &Shared) {
        let line = &mut self.line;
        let rows: Vec<&[f32]> = logits.chunks_exact(shared.vocab).collect();
        if let Some(top) = line.of_prompt {
            for (at, row) in rows.iter().enumerate() {
                if let Some(token) = line.tokens.get(found.place + at + 1) {
                    self.prompt.push(likelihood(row, *token as usize, top));
                }
            }
        }
        if !found.is_next {
            return;
        }
        self.held_us = now_us();
        if line.of_prompt.is_some() && line.completion.made() == 0 {
            self.held.push_back(Word::Prompt { text: line.text, likelihoods: std::mem::take(&mut self.prompt) });
        }
        if line.completion.is_over() {
            self.held.push_back(Word::Nothing { text: line.text });
            self.next = Next::Leave;
            return;
        }
        let last = rows.last().expect("what is next has logits");
        let said = line.completion.next(last, text);
        shared.stats.said();
        if line.completion.made() == 1 {
            shared.stats.first(self.held_us.saturating_sub(line.arrived_us));
        }
        self.next = if said.finish.is_some() { Next::Leave } else { Next::GoOn(said.token) };
        self.held.push_back(Word::Said { text: line.text, said });
    }
}
