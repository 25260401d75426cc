//! A rank as a process: takes views and letters from its parent, line by line, and runs rounds on NCCL between them.
//!
//! Another thread reads the lines. When a view comes it aborts the communicator at once, whatever the rank is in the
//! middle of, as a worker's link to its agent would.

use crate::job::{Job, apply, from_hex, leaves, start, to_hex, view_of};
use bytes::Bytes;
use elastic_collectives::reduce;
use elastic_cuda::libs::search::Surroundings;
use elastic_nccl::meeting::{Act, Invitation, Meeting};
use elastic_nccl::plan::{Place, Plan, Sum, plan};
use elastic_nccl::round::{self, Device, Memory, Span};
use elastic_nccl::{Aborter, Communicator, Nccl, NcclError, Seat};
use elastic_spec::layout::Layout;
use elastic_spec::tree::TreeNode;
use elastic_spec::view::View;
use elastic_spec::{Digest, Epoch, Rank, Round, WorkerId};
use libloading::os::unix::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::BufRead;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CLOSE: Duration = Duration::from_secs(5);

/// What the thread that reads shares with the one that works.
#[derive(Default)]
struct Alarm {
    /// The gen of the newest view that has come.
    newest: u64,
    aborter: Option<Aborter>,
}

type Armed = Arc<Mutex<Alarm>>;

/// Lets a newer view abort what a view of this gen has begun. False if one has come already: it found nothing to abort.
fn arm(armed: &Armed, gen_: u64, aborter: Aborter) -> bool {
    let mut alarm = armed.lock().expect("nobody panics with it");
    alarm.aborter = Some(aborter);
    alarm.newest <= gen_
}

/// What a rank keeps between rounds, and what it is in.
struct Member {
    me: WorkerId,
    job: Job,
    nccl: Arc<Nccl>,
    host: Host,
    armed: Armed,
    round: u64,
    weights: Vec<f32>,
    digest: Digest,
    /// The last round's value, for those who lack it.
    reduced: Vec<u8>,
    view: Option<View>,
    meeting: Option<Meeting>,
    invited: Option<Act>,
    communicator: Option<(Communicator, Rank)>,
}

pub fn main(me: WorkerId, job: Job) -> ! {
    let armed: Armed = Arc::default();
    let lines = read(armed.clone());
    let named = Some(format!("{}:-", job.library.display()));
    let nccl = Nccl::find_in(&Surroundings { named, ..Surroundings::default() }).expect("the test has made it");
    let host = Host::new(&nccl, job.layout(), job.shards);
    let (weights, digest) = start(&job);
    let mut member = Member {
        me,
        job,
        nccl,
        host,
        armed,
        round: 0,
        weights,
        digest,
        reduced: Vec::new(),
        view: None,
        meeting: None,
        invited: None,
        communicator: None,
    };
    loop {
        // While there is nothing to do but wait: the parent's end is this one's.
        let is_waiting = member.communicator.is_none();
        match lines.recv_timeout(if is_waiting { Duration::from_secs(60) } else { Duration::ZERO }) {
            Ok(line) => member.hear(&line),
            Err(RecvTimeoutError::Timeout) if !is_waiting => member.go_on(),
            Err(_) => std::process::exit(3),
        }
    }
}

fn read(armed: Armed) -> Receiver<String> {
    let (give, take) = sync_channel(1024);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if let Some(gen_) = line.strip_prefix("view ").and_then(|rest| rest.split(' ').next()) {
                let aborter = {
                    let mut alarm = armed.lock().expect("nobody panics with it");
                    alarm.newest = gen_.parse().expect("a number");
                    alarm.aborter.clone()
                };
                let started = Instant::now();
                if let Some(Err(error)) = aborter.map(|aborter| aborter.abort_within(Duration::from_millis(500))) {
                    // What a worker does: the process is of no more use, and ends.
                    println!("@stuck {error}");
                    std::process::exit(70);
                }
                println!("@aborted {}", started.elapsed().as_millis());
            }
            if give.send(line).is_err() {
                return;
            }
        }
    });
    take
}

impl Member {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["view", gen_, workers, map] => self.take_view(view_of(gen_, workers, map)),
            ["at", from, gen_, round] => {
                let (from, round) = (WorkerId(from.parse().expect("a number")), round.parse().expect("a number"));
                if round + 1 == self.round {
                    println!("@reduced {} {}", round, to_hex(&self.reduced));
                }
                let epoch = Epoch::new(1, gen_.parse().expect("a number"));
                let acts = self.meeting.as_mut().map(|meeting| meeting.at(from, epoch, Round(round)));
                self.act(acts.unwrap_or_default());
            }
            ["invited", from, bytes] => {
                let invitation = Invitation::from_bytes(&from_hex(bytes)).expect("the bytes of one");
                let from = WorkerId(from.parse().expect("a number"));
                let acts = self.meeting.as_mut().map(|meeting| meeting.invited(from, invitation));
                self.act(acts.unwrap_or_default());
            }
            ["reduced", round, bytes] if round.parse() == Ok(self.round) => {
                self.commit(from_hex(bytes));
                self.try_to_join();
            }
            ["reduced", ..] => {}
            other => panic!("no such line: {other:?}"),
        }
    }

    fn take_view(&mut self, view: View) {
        self.part_from_communicator();
        println!("@at {} {}", view.epoch.gen_, self.round);
        let (meeting, acts) = Meeting::of(&view, self.me, Round(self.round)).expect("every member is active");
        (self.meeting, self.view, self.invited) = (Some(meeting), Some(view), None);
        self.act(acts);
    }

    fn part_from_communicator(&mut self) {
        // Dropping it aborts it; then the stream is soon through, and the memory is ours again.
        self.communicator = None;
        self.armed.lock().expect("nobody panics with it").aborter = None;
        while !self.host.is_done().expect("the fake says so") {
            std::thread::yield_now();
        }
    }

    fn act(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::MakeId => {
                    let made = self.nccl.unique_id().expect("no rule of these tests is for it");
                    let acts = self.meeting.as_mut().expect("it asked for it").made(made);
                    self.act(acts);
                }
                Act::Tell { to, invitation } => println!("@tell {} {}", to.0, to_hex(&invitation.to_bytes())),
                Act::Join { .. } => {
                    self.invited = Some(act);
                    self.try_to_join();
                }
            }
        }
    }

    /// Takes the seat once this rank is where the wire begins.
    fn try_to_join(&mut self) {
        let Some(Act::Join { rank, world, invitation }) = self.invited.clone() else { return };
        if invitation.first != Round(self.round) {
            return;
        }
        self.invited = None;
        let joined = self.nccl.join(Seat { rank, world }, invitation.id).and_then(|joining| {
            match arm(&self.armed, invitation.epoch.gen_.0, joining.aborter()) {
                true => joining.ready(self.job.patience),
                false => Err(NcclError::Aborted { call: "ncclCommInitRankConfig" }),
            }
        });
        match joined {
            Ok(communicator) => self.communicator = Some((communicator, rank)),
            Err(error) => self.lost(&error),
        }
    }

    fn lost(&mut self, error: &NcclError) {
        self.part_from_communicator();
        let gen_ = self.view.as_ref().map_or(0, |view| view.epoch.gen_.0);
        println!("@lost {gen_} {} {error}", self.round);
    }

    fn go_on(&mut self) {
        if self.round == self.job.rounds {
            let (communicator, _) = self.communicator.take().expect("it is there, or we would wait");
            match communicator.close(CLOSE) {
                Ok(()) => self.end(),
                Err(error) => self.lost(&error),
            }
            return;
        }
        let view = self.view.as_ref().expect("no communicator without a view");
        let (communicator, rank) = self.communicator.as_mut().expect("it is there, or we would wait");
        let plan = plan(view, self.job.layout(), *rank, self.job.spread);
        let memory = self.host.memory(&plan, &leaves(&self.job, self.round, &self.weights), self.job.layout());
        // SAFETY: the memory is the host's, which does not touch it before the stream is done.
        let run = unsafe { round::run(communicator, &plan, &memory, &mut self.host, self.job.patience) };
        match run {
            Ok(()) => {
                let reduced = self.host.reduced();
                self.commit(reduced);
            }
            Err(error) => self.lost(&error),
        }
    }

    fn commit(&mut self, reduced: Vec<u8>) {
        self.digest = apply(self.digest, &mut self.weights, &reduced, self.job.layout());
        self.reduced = reduced;
        self.round += 1;
        println!("@round {}", self.round);
    }

    fn end(&self) -> ! {
        let (violations, living, last) = self.host.counts();
        println!("@done {} {violations} {living} {last}", self.digest);
        std::process::exit(0);
    }
}

/// The fake's stream, memory of the host, and the sum as the spec has it, in the stream's order.
struct Host {
    library: Library,
    stream: *mut c_void,
    layout: Layout,
    shards: u16,
    buffers: Vec<Vec<u8>>,
}

/// What a sum on the stream needs when its turn has come.
struct Adding {
    layout: Layout,
    shards: u16,
    chunk: u32,
    parts: Vec<(TreeNode, Span)>,
    to: Span,
}

extern "C" fn add_up(argument: *mut c_void) {
    // SAFETY: made by `Host::sum` for this one call.
    let Adding { layout, shards, chunk, parts, to } = *unsafe { Box::from_raw(argument.cast::<Adding>()) };
    // SAFETY: memory of the host, which nobody else touches before the stream is done.
    let bytes = |span: &Span| unsafe { std::slice::from_raw_parts(span.address as *const u8, span.bytes) };
    let parts: Vec<(TreeNode, Bytes)> =
        parts.iter().map(|(node, span)| (*node, Bytes::copy_from_slice(bytes(span)))).collect();
    let sum = reduce::sum(layout, chunk, shards, &parts).expect("the plan's parts cover the tree");
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(to.address as *mut u8, to.bytes) }.copy_from_slice(&sum);
}

impl Host {
    fn new(nccl: &Nccl, layout: Layout, shards: u16) -> Host {
        // SAFETY: a library of these tests, which is loaded already.
        let library = unsafe { Library::new(nccl.path()) }.expect("it was loaded before");
        // SAFETY: the function takes nothing and gives a stream.
        let stream = unsafe { library.get::<extern "C" fn() -> *mut c_void>(b"fake_stream").expect("it has it")() };
        Host { library, stream, layout, shards, buffers: Vec::new() }
    }

    /// This round's memories: the segments, then the inbox, then the reduced value; the last two poisoned.
    fn memory(&mut self, plan: &Plan, leaves: &[Vec<Bytes>], layout: Layout) -> Memory {
        let segment = |node: &TreeNode| {
            let chunks = (0..layout.chunks()).map(|chunk| {
                let parts = node
                    .range()
                    .map(|s| (TreeNode { level: 0, index: s }, leaves[usize::from(s)][chunk as usize].clone()));
                reduce::sum_under(layout, chunk, *node, &parts.collect::<Vec<_>>()).expect("all leaves are there")
            });
            chunks.flatten().collect::<Vec<u8>>()
        };
        self.buffers = plan.segments.iter().map(segment).collect();
        self.buffers.push(vec![0xa5; plan.inbox_bytes]);
        self.buffers.push(vec![0xa5; plan.flat_bytes]);
        let mut spans: Vec<Span> =
            self.buffers.iter_mut().map(|b| Span { address: b.as_mut_ptr() as usize, bytes: b.len() }).collect();
        let reduced = spans.pop().expect("it was just put there");
        let inbox = spans.pop().expect("it was just put there");
        Memory { segments: spans, inbox, reduced }
    }

    fn reduced(&self) -> Vec<u8> {
        self.buffers.last().expect("a round was run").clone()
    }

    /// Broken rules, communicators that live, and the last broken rule.
    fn counts(&self) -> (c_int, c_int, String) {
        // SAFETY: the functions take nothing, and give an int and a text that stays.
        unsafe {
            let count = |name: &[u8]| self.library.get::<extern "C" fn() -> c_int>(name).expect("the fake has it")();
            let last = self.library.get::<extern "C" fn() -> *const c_char>(b"fake_last_violation");
            let last = CStr::from_ptr(last.expect("the fake has it")()).to_string_lossy().into_owned();
            (count(b"fake_violations"), count(b"fake_living"), last)
        }
    }
}

impl Device for Host {
    fn stream(&self) -> *mut c_void {
        self.stream
    }

    fn sum(&mut self, sum: &Sum, memory: &Memory) -> Result<(), String> {
        let span = |place: &Place| Span { address: memory.address(place), bytes: place.bytes.len() };
        let parts = sum.parts.iter().map(|(node, place)| (*node, span(place))).collect();
        let (layout, shards) = (self.layout, self.shards);
        let adding = Box::new(Adding { layout, shards, chunk: sum.chunk, parts, to: span(&sum.to) });
        // SAFETY: the function takes a stream, a function and its argument, which that function frees.
        unsafe {
            type Call = extern "C" fn(*mut c_void, extern "C" fn(*mut c_void), *mut c_void);
            let call = self.library.get::<Call>(b"fake_stream_call").expect("the fake has it");
            call(self.stream, add_up, Box::into_raw(adding).cast());
        }
        Ok(())
    }

    fn is_done(&mut self) -> Result<bool, String> {
        // SAFETY: the function takes the stream and gives an int.
        let done = unsafe { self.library.get::<extern "C" fn(*mut c_void) -> c_int>(b"fake_stream_is_done") };
        Ok(done.expect("the fake has it")(self.stream) != 0)
    }
}
