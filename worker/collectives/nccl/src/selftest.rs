//! What `elastic-nccl-selftest` does on a machine with a GPU and NCCL: processes that share the GPU meet, reduce exactly,
//! abort, are killed and meet again, and each thing is said as it is done.
//!
//! A rank is this program started once more, with the environment of [`environment`](crate::environment): a host of its
//! own to NCCL, and sockets between them. Speed is not tested: kernels of such ranks take turns.

mod job;
mod rank;
mod report;
mod world;

pub use rank::run as run_rank;
pub use report::Format;

use crate::communicator::ABORT_WAITS;
use crate::{Nccl, Version};
use elastic_spec::layout::Layout;
use report::{Report, Said};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use world::{Answer, World};

/// How a self-test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Failed,
    /// No GPU that kernels run on, or no NCCL.
    NothingToTest,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// This program, for the ranks.
    pub program: PathBuf,
    /// Numbers of ranks, each a test of its own.
    pub worlds: Vec<u16>,
    /// Length of the gradient.
    pub floats: usize,
    /// A bound on each wait of a rank.
    pub patience: Duration,
    pub format: Format,
}

/// What a rank needs for a line besides its waits for others: making leaves, compiling kernels at its start.
const WORK: Duration = Duration::from_secs(120);
/// From "a rank has begun" to the moment when its transfers are under way; nothing says when they are.
const UNDER_WAY: Duration = Duration::from_millis(200);
/// More than a bound, for what the machine is busy with otherwise.
const A_LITTLE: Duration = Duration::from_secs(1);

pub fn run(out: &mut dyn Write, options: &Options) -> io::Result<Verdict> {
    let mut report = Report::new(out, options.format);
    let found = elastic_cuda::usable().and_then(|gpu| Ok((gpu, Nccl::find().map_err(|error| error.to_string())?)));
    let (gpu, nccl) = match found {
        Ok(found) => found,
        Err(why) => {
            report.nothing_to_test(&why)?;
            return Ok(Verdict::NothingToTest);
        }
    };
    report.found("GPU", &format!("{} {}, {}", gpu.ordinal, gpu.name, gpu.capability))?;
    let Version(code) = nccl.version();
    report.found("NCCL", &format!("{} ({code}) in {}", nccl.version(), nccl.path().display()))?;
    if !nccl.lacks().is_empty() {
        report.found("this NCCL lacks", &nccl.lacks().join(", "))?;
    }
    for ranks in &options.worlds {
        report.world(*ranks)?;
        let world = World::new(options.program.clone(), options.floats);
        let mut test = Test { report: &mut report, options, ranks: *ranks, world, round: 0 };
        match test.run() {
            Ok(()) => {}
            Err(Stop::Failed) => report.not_done(*ranks)?,
            Err(Stop::Io(error)) => return Err(error),
        }
    }
    report.end()?;
    Ok(if report.failed() == 0 { Verdict::Passed } else { Verdict::Failed })
}

enum Stop {
    Io(io::Error),
    Failed,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Io(error)
    }
}

type Outcome = Result<Said, String>;

/// The test of one number of ranks.
struct Test<'a, 'out> {
    report: &'a mut Report<'out>,
    options: &'a Options,
    ranks: u16,
    world: World,
    round: u64,
}

impl Test<'_, '_> {
    fn run(&mut self) -> Result<(), Stop> {
        for _ in 0..self.ranks {
            self.world.start()?;
        }
        self.thing("processes start, CUDA, kernels and NCCL are loaded", |test| test.all_done(|_| None))?;
        self.thing("a communicator", Test::meet)?;
        self.thing("exact reduction", Test::reduce)?;
        self.thing("NCCL's own sum", |test| {
            let patience = test.patience();
            test.all_done(|_| Some(format!("fast {patience}")))
        })?;
        match self.ranks {
            1 => self.thing("abort, and what is refused then", Test::abort_alone)?,
            _ => {
                self.thing("abort from another thread in a reduction", Test::abort_in_the_middle)?;
                self.thing("the wait of the others ends", Test::others_wait_ends)?;
            }
        }
        self.thing("a new communicator", Test::meet)?;
        self.thing("exact reduction", Test::reduce)?;
        if self.ranks > 1 {
            self.thing("SIGKILL in a reduction: the wait of the others ends", Test::kill_in_the_middle)?;
            self.thing("a communicator of the survivors", Test::meet)?;
            self.thing("exact reduction", Test::reduce)?;
            self.world.start()?;
            let newest = self.world.size() - 1;
            self.thing("a new process comes", |test| test.done(newest))?;
            self.thing("a communicator of all", Test::meet)?;
            self.thing("exact reduction", Test::reduce)?;
        }
        self.thing("all close", |test| {
            let patience = test.patience();
            test.all_done(|_| Some(format!("close {patience}")))
        })
    }

    fn thing(&mut self, what: &str, f: impl FnOnce(&mut Self) -> Outcome) -> Result<(), Stop> {
        let outcome = f(self);
        self.report.thing(self.ranks, what, &outcome)?;
        outcome.map(drop).map_err(|_| Stop::Failed)
    }

    fn patience(&self) -> u128 {
        self.options.patience.as_millis()
    }

    fn hear(&mut self, rank: usize) -> Result<Answer, String> {
        let bound = self.options.patience + WORK;
        match self.world.hear(rank, bound) {
            None => Err(format!("rank {rank} said nothing for {} s", bound.as_secs())),
            Some(Answer::Gone) => Err(format!("the process of rank {rank} has ended")),
            Some(answer) => Ok(answer),
        }
    }

    /// A rank is done with what it was told.
    fn done(&mut self, rank: usize) -> Outcome {
        loop {
            match self.hear(rank)? {
                Answer::Done { ms, words } => return Ok(Said { ms, words }),
                Answer::Failed { ms, kind, words } => {
                    return Err(format!("rank {rank}, {kind} after {ms} ms: {words}"));
                }
                Answer::Began => {}
                other => return Err(format!("rank {rank} answers {other:?}")),
            }
        }
    }

    /// All are told a line, and are done with it. The time is the longest, the words are the first's.
    fn all_done(&mut self, line: impl Fn(usize) -> Option<String>) -> Outcome {
        for rank in 0..self.world.size() {
            if let Some(line) = line(rank) {
                self.world.tell(rank, &line);
            }
        }
        let mut all = Vec::new();
        for rank in 0..self.world.size() {
            all.push(self.done(rank)?);
        }
        let ms = all.iter().map(|said| said.ms).max().unwrap_or_default();
        let words: Vec<String> = all.into_iter().map(|said| said.words).collect();
        match words.iter().all(|one| *one == words[0]) {
            true => Ok(Said { ms, words: words[0].clone() }),
            false => Ok(Said { ms, words: words.join(", ") }),
        }
    }

    fn meet(&mut self) -> Outcome {
        self.world.tell(0, "id");
        let id = self.done(0)?.words;
        let (world, patience) = (self.world.size(), self.patience());
        self.all_done(|rank| Some(format!("join {rank} {world} {id} {patience}")))
    }

    /// All have the spec's bits.
    fn reduce(&mut self) -> Outcome {
        self.round += 1;
        let line = format!("reduce {} {}", self.round, self.patience());
        let said = self.all_done(|_| Some(line.clone()))?;
        let wanted = job::digest(Layout::new(self.options.floats), self.round);
        match said.words == wanted {
            true => {
                Ok(Said { ms: said.ms, words: format!("{} floats, SHA-256 {}…", self.options.floats, &wanted[..16]) })
            }
            false => Err(format!("{wanted} is the spec's sum; the ranks have {}", said.words)),
        }
    }

    fn abort_alone(&mut self) -> Outcome {
        self.world.tell(0, "abort");
        let Answer::Aborted { ms } = self.hear(0)? else { return Err("the abort gave an error".into()) };
        self.told_to_wait(0);
        Ok(Said { ms, words: self.ended(0, &["aborted"])?.words })
    }

    /// A rank is told to begin a reduction that cannot end well.
    fn told_to_wait(&mut self, rank: usize) {
        self.world.tell(rank, &format!("reduce 0 {}", self.patience()));
    }

    /// The waits of these ranks end because others are gone. The longest of them.
    fn all_ended(&mut self, ranks: std::ops::RangeInclusive<usize>) -> Outcome {
        let all: Result<Vec<Said>, String> = ranks.map(|rank| self.ended(rank, &["lost", "late"])).collect();
        Ok(all?.into_iter().max_by_key(|said| said.ms).unwrap_or_default())
    }

    /// A rank's wait ends with an error of one of these kinds, within its bound.
    fn ended(&mut self, rank: usize, kinds: &[&str]) -> Outcome {
        loop {
            match self.hear(rank)? {
                Answer::Began => {}
                answer => return self.judged(rank, answer, kinds),
            }
        }
    }

    fn judged(&self, rank: usize, answer: Answer, kinds: &[&str]) -> Outcome {
        // A wait's own bound, and that of the abort that follows.
        let bound = (self.options.patience + 2 * ABORT_WAITS + A_LITTLE).as_millis();
        match answer {
            Answer::Failed { kind, words, .. } if !kinds.contains(&kind.as_str()) => {
                Err(format!("rank {rank} ended with \"{kind}\", not {}: {words}", kinds.join(" or ")))
            }
            Answer::Failed { ms, words, .. } if u128::from(ms) > bound => {
                Err(format!("rank {rank} waited {ms} ms, with a bound of {bound}: {words}"))
            }
            Answer::Failed { ms, kind, words } => Ok(Said { ms, words: format!("rank {rank}, {kind}: {words}") }),
            other => Err(format!("rank {rank} was to end with an error, and answers {other:?}")),
        }
    }

    /// All but the last begin a reduction, which cannot end without it.
    fn all_but_the_last_begin(&mut self) -> Result<usize, String> {
        let last = self.world.size() - 1;
        (0..last).for_each(|rank| self.told_to_wait(rank));
        for rank in 0..last {
            match self.hear(rank)? {
                Answer::Began => {}
                other => return Err(format!("rank {rank} was to begin, and answers {other:?}")),
            }
        }
        std::thread::sleep(UNDER_WAY);
        Ok(last)
    }

    fn abort_in_the_middle(&mut self) -> Outcome {
        self.all_but_the_last_begin()?;
        let started = Instant::now();
        self.world.tell(0, "abort");
        // Its two threads answer in any order.
        let (mut has_returned, mut said) = (false, None);
        while !has_returned || said.is_none() {
            match self.hear(0)? {
                Answer::Aborted { .. } => has_returned = true,
                answer => said = Some(self.judged(0, answer, &["aborted"])?),
            }
        }
        let ms = started.elapsed().as_millis() as u64;
        match started.elapsed() <= 2 * ABORT_WAITS + A_LITTLE {
            true => Ok(Said { ms, words: said.unwrap_or_default().words }),
            false => Err(format!("its wait ended {ms} ms after the abort")),
        }
    }

    fn others_wait_ends(&mut self) -> Outcome {
        let last = self.world.size() - 1;
        // It finds rank 0 gone when it comes, and parts from the others.
        self.told_to_wait(last);
        self.all_ended(1..=last)
    }

    fn kill_in_the_middle(&mut self) -> Outcome {
        let last = self.all_but_the_last_begin()?;
        let started = Instant::now();
        self.world.kill_last().map_err(|error| format!("kill it: {error}"))?;
        let said = self.all_ended(0..=last - 1)?;
        Ok(Said { ms: started.elapsed().as_millis() as u64, ..said })
    }
}
