//! A rank of the self-test, as a process: does what its parent says, line by line, and answers each line with one that
//! begins with `@`. Another thread reads the lines, and carries out `abort` at once, whatever this one is at.

use super::job;
use crate::device_reduce::{Abort, DeviceReduce, Membership, Vectors};
use crate::{Adder, Nccl, NcclError, NcclReduce, Seat, Spread, UniqueId};
use elastic_cuda::cache::Cache;
use elastic_cuda::driver::{Arena, Context, Event, Span};
use elastic_cuda::libs::Libraries;
use elastic_cuda::loaded::Loaded;
use elastic_cuda::usable_of;
use elastic_spec::layout::Layout;
use elastic_spec::{Digest, Rank};
use std::io::{self, BufRead, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// More than the parent ever says ahead.
const LINES_MAX: usize = 64;
/// Written before a round where its value goes: what is not delivered is seen.
const POISON: u8 = 0xa5;

/// What the thread that reads shares with the one that works.
type Armed = Arc<Mutex<Option<Arc<dyn Abort>>>>;

/// Serves the parent until its end, which is this process's.
pub fn run(floats: usize) -> io::Result<()> {
    let armed = Armed::default();
    let lines = read(armed.clone());
    let started = Instant::now();
    let mut rank = match Member::new(Layout::new(floats), armed) {
        Ok(rank) => rank,
        Err(why) => return say(format_args!("@err {} other {why}", started.elapsed().as_millis())),
    };
    say(format_args!("@ok {} ready", started.elapsed().as_millis()))?;
    for line in lines {
        rank.began = Instant::now();
        let done = rank.hear(&line);
        let ms = rank.began.elapsed().as_millis();
        match done {
            Ok(Done { words, took }) => say(format_args!("@ok {} {words}", took.map_or(ms, |took| took.as_millis())))?,
            Err(error) => say(format_args!("@err {ms} {} {error}{}", kind_of(&error), rank.part()))?,
        }
    }
    Ok(())
}

fn say(line: std::fmt::Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// What the parent tells apart.
fn kind_of(error: &NcclError) -> &'static str {
    match error {
        NcclError::Aborted { .. } => "aborted",
        NcclError::Late { .. } => "late",
        // "System error" is what a socket gives whose other end is gone.
        NcclError::Call { code: 2 | 6, .. } => "lost",
        NcclError::Stuck { .. } | NcclError::Hung { .. } => "stuck",
        _ => "other",
    }
}

fn read(armed: Armed) -> Receiver<String> {
    let (give, take) = sync_channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if line == "abort" {
                let aborter = armed.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let started = Instant::now();
                let ended = aborter.map_or(Ok(()), |aborter| aborter.abort());
                let ms = started.elapsed().as_millis();
                let _ = match ended {
                    Ok(()) => say(format_args!("@aborted {ms}")),
                    Err(error) => say(format_args!("@err {ms} {} {error}", kind_of(&error))),
                };
            } else if give.send(line).is_err() {
                return;
            }
        }
        // The parent is gone, and this process may hang in a call.
        std::process::exit(0);
    });
    take
}

/// What was done: words for the parent, and how long the part of it took that counts, if that is not all.
struct Done {
    words: String,
    took: Option<Duration>,
}

impl Done {
    fn all(words: impl Into<String>) -> Done {
        Done { words: words.into(), took: None }
    }
}

struct Member {
    nccl: Arc<Nccl>,
    context: Arc<Context>,
    adder: Arc<Adder>,
    layout: Layout,
    armed: Armed,
    seated: Option<Seated>,
    /// The newest line, or the wait for others that it led to.
    began: Instant,
    /// Bytes of the GPU's memory that were free before the newest communicator was made.
    free_before: u64,
}

struct Seated {
    reduce: NcclReduce,
    seat: Seat,
}

impl Member {
    fn new(layout: Layout, armed: Armed) -> Result<Member, String> {
        let libraries = Libraries::open();
        let device = usable_of(&libraries)?;
        let driver = libraries.driver.as_ref().map_err(|error| error.to_string())?;
        let context = Context::open(driver, device.ordinal).map_err(|error| error.to_string())?;
        let loaded = Loaded::new(context.clone(), device.capability, libraries, Cache::of_user());
        let adder = Adder::new(&loaded).map_err(|error| error.to_string())?;
        let nccl = Nccl::find().map_err(|error| error.to_string())?;
        Ok(Member {
            nccl,
            context,
            adder: Arc::new(adder),
            layout,
            armed,
            seated: None,
            began: Instant::now(),
            free_before: 0,
        })
    }

    fn hear(&mut self, line: &str) -> Result<Done, NcclError> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |text: &str| text.parse::<u64>().map_err(|_| NcclError::Device(format!("{text} is no number")));
        let ms = |text: &str| number(text).map(Duration::from_millis);
        match words.as_slice() {
            ["id"] => Ok(Done::all(to_hex(&self.nccl.unique_id()?.to_bytes()))),
            ["join", rank, world, id, patience] => {
                let seat = Seat { rank: Rank(number(rank)? as u16), world: number(world)? as u16 };
                self.join(seat, from_hex(id)?, ms(patience)?)
            }
            ["reduce", round, patience] => self.reduce(number(round)?, ms(patience)?),
            ["fast", patience] => self.fast(ms(patience)?),
            ["close", patience] => {
                let reduce = self.seated.take().ok_or_else(not_seated)?.reduce;
                self.arm(None);
                Box::new(reduce).close(ms(patience)?)?;
                Ok(Done::all(""))
            }
            _ => Err(NcclError::Device(format!("`{line}` is nothing that a rank does"))),
        }
    }

    fn arm(&self, aborter: Option<Arc<dyn Abort>>) {
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = aborter;
    }

    fn free(&self) -> u64 {
        self.context.memory().map_or(0, |(free, _)| free)
    }

    fn join(&mut self, seat: Seat, id: UniqueId, patience: Duration) -> Result<Done, NcclError> {
        self.seated = None;
        self.free_before = self.free();
        self.context.enter()?;
        let joining = self.nccl.join(seat, id)?;
        self.arm(Some(Arc::new(joining.aborter())));
        let communicator = joining.ready(patience)?;
        let view = job::view(seat.world);
        let membership = Membership { view: &view, rank: seat.rank, layout: self.layout };
        let reduce = NcclReduce::new(communicator, membership, Spread::default(), self.adder.clone())?;
        self.seated = Some(Seated { reduce, seat });
        Ok(Done::all(format!("{} MiB of the GPU's memory", self.free_before.saturating_sub(self.free()) >> 20)))
    }

    fn memory(&self, bytes: &[u8]) -> Result<Span, NcclError> {
        let span = Arena::new(&self.context, bytes.len() as u64)?.whole();
        self.adder.stream().copy_in(&span, bytes)?;
        Ok(span)
    }

    fn reduce(&mut self, round: u64, patience: Duration) -> Result<Done, NcclError> {
        let seat = self.seated.as_ref().ok_or_else(not_seated)?.seat;
        let view = job::view(seat.world);
        let membership = Membership { view: &view, rank: seat.rank, layout: self.layout };
        let sums = membership.segments().into_iter().map(|node| job::sum(self.layout, round, node).concat());
        let segments = sums.map(|sum| self.memory(&sum)).collect::<Result<Vec<Span>, NcclError>>()?;
        let reduced = self.memory(&vec![POISON; membership.flat_bytes()])?;
        let after = Event::new(&self.context)?;
        self.adder.stream().mark(&after)?;
        say(format_args!("@began")).map_err(|error| NcclError::Device(error.to_string()))?;
        self.began = Instant::now();
        let vectors = Vectors { segments: &segments, reduced: &reduced, after: &after };
        self.seated.as_mut().ok_or_else(not_seated)?.reduce.reduce(vectors, patience)?;
        let took = Some(self.began.elapsed());
        let mut value = vec![0; membership.flat_bytes()];
        self.adder.stream().copy_out(&mut value, &reduced)?;
        Ok(Done { words: Digest::of(&value).to_string(), took })
    }

    /// NCCL's own sum of numbers that add up without rounding in any order.
    fn fast(&mut self, patience: Duration) -> Result<Done, NcclError> {
        let world = self.seated.as_ref().ok_or_else(not_seated)?.seat.world;
        let rank = self.seated.as_ref().ok_or_else(not_seated)?.seat.rank;
        let floats = self.layout.floats;
        let bytes = |times: u16| (0..floats).flat_map(move |i| ((i % 7 + 1) as f32 * f32::from(times)).to_ne_bytes());
        let from = self.memory(&bytes(rank.0 + 1).collect::<Vec<u8>>())?;
        let to = self.memory(&vec![POISON; 4 * floats])?;
        self.began = Instant::now();
        self.seated.as_mut().ok_or_else(not_seated)?.reduce.all_reduce_fast(&from, &to, patience)?;
        let took = Some(self.began.elapsed());
        let mut value = vec![0; 4 * floats];
        self.adder.stream().copy_out(&mut value, &to)?;
        let wanted: Vec<u8> = bytes(world * (world + 1) / 2).collect();
        match (0..value.len()).find(|at| value[*at] != wanted[*at]) {
            Some(at) => Err(NcclError::Device(format!("byte {at} of NCCL's own sum is not what it must be"))),
            None => Ok(Done { words: String::new(), took }),
        }
    }

    /// After an error: parts from the communicator, and says what that gave back.
    fn part(&mut self) -> String {
        self.arm(None);
        match self.seated.take() {
            Some(seated) => {
                drop(seated);
                let still = self.free_before.saturating_sub(self.free()) >> 20;
                format!("; {still} MiB of the GPU's memory not given back")
            }
            None => String::new(),
        }
    }
}

fn not_seated() -> NcclError {
    NcclError::Device("this rank has no communicator".into())
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Result<UniqueId, NcclError> {
    let pairs = text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    let bytes: Option<Vec<u8>> = pairs.collect();
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.map(UniqueId::from_bytes).ok_or_else(|| NcclError::Device("no id of a communicator".into()))
}
