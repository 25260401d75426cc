//! The load itself: connections, what each waits for, and when the next request goes out.

use crate::figures::Figures;
use crate::plan::{Plan, Run, Shape, Way};
use crate::speak::{self, Answer};
use anyhow::{Context, Result, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long answers are waited for at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// Known right answers to one request: versions and batch sizes make some.
const KNOWN_MAX: usize = 16;
const READ_BYTES: usize = 64 << 10;

pub struct Drive {
    address: SocketAddr,
    way: Way,
    requests: Vec<Vec<u8>>,
    expected: Vec<Vec<f32>>,
    tolerance: f32,
    /// Bodies of right answers, by request.
    known: Vec<Vec<Vec<u8>>>,
    poll: Poll,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    next_request: usize,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// The request that it waits for an answer to, and how much of it is sent.
    asked: Option<Asked>,
    came: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Asked {
    request: usize,
    sent: usize,
    /// When it should have gone out.
    at: Instant,
}

/// What came on a connection.
enum Came {
    Nothing,
    Whole(Answer, Asked),
    Broken(Option<Asked>),
}

impl Drive {
    pub fn new(plan: &Plan) -> Result<Drive> {
        ensure!(!plan.rows.is_empty() && plan.rows.len() == plan.expected.len(), "each row has its answer");
        Ok(Drive {
            address: plan.address.parse().context("the address")?,
            way: plan.way,
            requests: plan.rows.iter().map(|row| speak::request(plan, row)).collect::<Result<_>>()?,
            expected: plan.expected.clone(),
            tolerance: plan.tolerance,
            known: vec![Vec::new(); plan.rows.len()],
            poll: Poll::new().context("start to poll")?,
            connections: Vec::new(),
            idle: Vec::new(),
            next_request: 0,
            buffer: vec![0; READ_BYTES],
        })
    }

    pub fn run(&mut self, run: &Run) -> Result<Figures> {
        self.connections.clear();
        for at in 0..run.connections {
            let stream = self.connect(at)?;
            self.connections.push(Connection { stream, asked: None, came: Vec::new() });
        }
        self.idle = (0..run.connections).rev().collect();
        let mut tally = Tally::new(run);
        match run.shape {
            Shape::Closed => self.closed(&mut tally)?,
            Shape::Open { rate, seed } => self.open(&mut tally, rate, seed)?,
        }
        tally.figures.failed += self.connections.iter().filter(|connection| connection.asked.is_some()).count();
        self.connections.clear();
        Ok(tally.figures(run))
    }

    /// Waits for the connection: only then do requests go out on it.
    fn connect(&self, at: usize) -> Result<TcpStream> {
        let stream = std::net::TcpStream::connect(self.address).context("connect")?;
        stream.set_nodelay(true).and_then(|_| stream.set_nonblocking(true)).context("set up a connection")?;
        let mut stream = TcpStream::from_std(stream);
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(at), both).context("watch a connection")?;
        Ok(stream)
    }

    fn closed(&mut self, tally: &mut Tally) -> Result<()> {
        while let Some(at) = self.idle.pop() {
            self.send(at, Instant::now(), tally)?;
        }
        let mut events = Events::with_capacity(1024);
        while Instant::now() < tally.end {
            self.look(&mut events, tally)?;
            while let Some(at) = self.idle.pop() {
                self.send(at, Instant::now(), tally)?;
            }
        }
        self.last(&mut events, tally)
    }

    fn open(&mut self, tally: &mut Tally, rate: f64, seed: u64) -> Result<()> {
        let mut random = Random(seed);
        let mut events = Events::with_capacity(1024);
        let mut next = tally.start;
        loop {
            let now = Instant::now();
            if now >= tally.end {
                return self.last(&mut events, tally);
            }
            while next <= now {
                match self.idle.pop() {
                    Some(at) => {
                        tally.late(next, now);
                        self.send(at, next, tally)?;
                    }
                    None => tally.turned_away(next),
                }
                next += Duration::from_secs_f64(-(1.0 - random.next()).ln() / rate);
            }
            self.look(&mut events, tally)?;
        }
    }

    /// What is still asked for is waited for.
    fn last(&mut self, events: &mut Events, tally: &mut Tally) -> Result<()> {
        let by = Instant::now() + LAST_ANSWERS;
        while self.connections.iter().any(|connection| connection.asked.is_some()) && Instant::now() < by {
            self.look(events, tally)?;
        }
        Ok(())
    }

    fn send(&mut self, at: usize, intended: Instant, tally: &mut Tally) -> Result<()> {
        let request = self.next_request;
        self.next_request = (request + 1) % self.requests.len();
        self.connections[at].asked = Some(Asked { request, sent: 0, at: intended });
        if self.push(at).is_err() {
            self.broken(at, tally)?;
        }
        Ok(())
    }

    /// Writes what the socket takes.
    fn push(&mut self, at: usize) -> std::io::Result<()> {
        let connection = &mut self.connections[at];
        let Some(asked) = &mut connection.asked else { return Ok(()) };
        while asked.sent < self.requests[asked.request].len() {
            match connection.stream.write(&self.requests[asked.request][asked.sent..]) {
                Ok(bytes) => asked.sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn look(&mut self, events: &mut Events, tally: &mut Tally) -> Result<()> {
        self.poll.poll(events, Some(Duration::ZERO)).context("poll")?;
        for event in events.iter() {
            let at = event.token().0;
            if event.is_writable() && self.push(at).is_err() {
                self.broken(at, tally)?;
                continue;
            }
            if !event.is_readable() {
                continue;
            }
            match self.read(at)? {
                Came::Nothing => {}
                Came::Broken(None) => self.again(at)?,
                Came::Broken(Some(_)) => self.broken(at, tally)?,
                Came::Whole(answer, asked) => self.answered(at, answer, asked, tally)?,
            }
        }
        Ok(())
    }

    fn answered(&mut self, at: usize, answer: Answer, asked: Asked, tally: &mut Tally) -> Result<()> {
        let now = Instant::now();
        let right = answer.status == 200 && self.is_right(at, &answer, asked.request);
        tally.answer(asked.at, now, answer.status, right);
        self.connections[at].came.clear();
        match answer.closes {
            true => self.again(at)?,
            false => self.connections[at].asked = None,
        }
        self.idle.push(at);
        Ok(())
    }

    /// Reads what is there; a socket that gave less than was asked for is empty until the next event.
    fn read(&mut self, at: usize) -> Result<Came> {
        let connection = &mut self.connections[at];
        loop {
            let bytes = match connection.stream.read(&mut self.buffer) {
                Ok(0) => return Ok(Came::Broken(connection.asked)),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Came::Nothing),
                Err(_) => return Ok(Came::Broken(connection.asked)),
            };
            connection.came.extend_from_slice(&self.buffer[..bytes]);
            match (speak::answer(&connection.came)?, connection.asked) {
                (Some(answer), Some(asked)) => return Ok(Came::Whole(answer, asked)),
                _ if bytes < self.buffer.len() => return Ok(Came::Nothing),
                _ => {}
            }
        }
    }

    fn is_right(&mut self, at: usize, answer: &Answer, request: usize) -> bool {
        let came = &self.connections[at].came;
        let body = &came[answer.head..answer.length];
        if self.known[request].iter().any(|known| known == body) {
            return true;
        }
        let numbers = speak::logits(self.way, &came[..answer.head], body);
        let right = numbers.is_ok_and(|found| speak::agree(&found, &self.expected[request], self.tolerance));
        if right && self.known[request].len() < KNOWN_MAX {
            self.known[request].push(body.to_vec());
        }
        right
    }

    fn broken(&mut self, at: usize, tally: &mut Tally) -> Result<()> {
        if let Some(asked) = self.connections[at].asked {
            tally.failed(asked.at);
        }
        self.again(at)?;
        self.idle.push(at);
        Ok(())
    }

    /// A new connection in the place of one that is gone.
    fn again(&mut self, at: usize) -> Result<()> {
        self.connections[at] = Connection { stream: self.connect(at)?, asked: None, came: Vec::new() };
        Ok(())
    }
}

/// Counts what belongs to the time that counts: requests by when they should have gone out, answers a second by when
/// they came.
struct Tally {
    figures: Figures,
    start: Instant,
    from: Instant,
    end: Instant,
    times: Vec<(u64, u64)>,
    right_within: usize,
}

impl Tally {
    fn new(run: &Run) -> Tally {
        let start = Instant::now();
        let from = start + Duration::from_secs_f64(run.warm_s);
        let end = from + Duration::from_secs_f64(run.seconds);
        Tally { figures: Figures::default(), start, from, end, times: Vec::new(), right_within: 0 }
    }

    fn counts(&self, at: Instant) -> bool {
        at >= self.from && at < self.end
    }

    fn answer(&mut self, at: Instant, now: Instant, status: u16, right: bool) {
        if self.counts(now) && right {
            self.right_within += 1;
        }
        if !right && status == 200 {
            self.figures.wrong += 1;
        }
        if !self.counts(at) {
            return;
        }
        match status {
            200 => {
                self.figures.answered += 1;
                self.times.push(((at - self.from).as_nanos() as u64, (now - at).as_nanos() as u64));
            }
            status => *self.figures.refused.entry(status).or_default() += 1,
        }
    }

    fn failed(&mut self, at: Instant) {
        self.figures.failed += usize::from(self.counts(at));
    }

    fn turned_away(&mut self, at: Instant) {
        self.figures.turned_away += usize::from(self.counts(at));
    }

    fn late(&mut self, intended: Instant, now: Instant) {
        if self.counts(intended) {
            self.figures.late_max_us = self.figures.late_max_us.max((now - intended).as_nanos() as f64 / 1000.0);
        }
    }

    fn figures(mut self, run: &Run) -> Figures {
        self.figures.name = run.name.clone();
        self.figures.seconds = run.seconds;
        self.figures.per_s = self.right_within as f64 / run.seconds;
        self.figures.times(&self.times);
        self.figures
    }
}

/// Numbers from 0 to 1, the same for a seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
