//! Where the time of a job's step goes: some warm steps on this machine, without a cluster, each op measured.
//!
//! A step here is what one worker alone would do: all shards' leaves in units, their sum along the tree, the update.
//! Nothing is sent or written. What an op must read, write and compute is `elastic_tensor::cost`; printing is the
//! caller's.

use crate::job::{Job, unit_of};
use crate::memory::{self, Memory};
use crate::{boot, state::State};
use anyhow::{Context, Result, anyhow, bail};
use elastic_spec::job::JobSpec;
use elastic_spec::job::schedule::Schedule;
use elastic_spec::layout::{Tail, canonical};
use elastic_spec::tree::TreeNode;
use elastic_tensor::cost::{self, Cost};
use elastic_tensor::exec::{At, Watch};
use elastic_tensor::peak;
use serde::Serialize;
use std::any::Any;
use std::path::PathBuf;
use std::time::Instant;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Threads to compute with, at least 1.
    pub threads: usize,
    /// Steps that are measured, after two that are not; at least 1.
    pub steps: usize,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Profile {
    pub job: String,
    pub threads: usize,
    pub steps: usize,
    pub shards: usize,
    /// Shards that are computed in one call.
    pub unit: usize,
    pub samples: usize,
    pub params: usize,
    /// f32 multiply-adds that the threads can do at most, measured just now.
    pub peak_gflops: f64,
    /// Median.
    pub step_us: f64,
    /// In the order in which they first ran.
    pub rows: Vec<Row>,
    pub total: Amount,
    pub memory: Memory,
    #[serde(skip)]
    pub events: Vec<Event>,
}

/// One op of the step.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub phase: &'static str,
    pub op: &'static str,
    /// The module's place in the network.
    pub path: String,
    /// In each step.
    pub calls: u64,
    /// All calls of a step together; the median over the steps.
    pub us: f64,
    #[serde(flatten)]
    pub cost: Amount,
}

/// What a step reads, writes and computes, by its shapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub flops: u64,
}

impl Amount {
    pub fn plus(self, other: Amount) -> Amount {
        Amount {
            read_bytes: self.read_bytes + other.read_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
            flops: self.flops + other.flops,
        }
    }
}

/// When a row ran, in µs from the first measured step.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub row: usize,
    pub step: usize,
    pub start_us: f64,
    pub us: f64,
}

/// Steps before the measured ones: memory is touched, caches and branch predictors know the way.
const WARM: usize = 2;

/// Measures the job's step. The weights are those of `train.seed`, whatever `model.init` says.
pub fn profile(spec: &JobSpec, ask: &Ask) -> Result<Profile> {
    let here = |path: &str| PathBuf::from(path);
    let data = elastic_loader::open(spec, &here).context("read the data")?;
    let schedule = elastic_loader::schedule(spec, &data).context("plan the steps")?;
    let samples = elastic_loader::Plan::from(&spec.train).shard_samples() as usize;
    let network = boot::network(spec, &data, samples, &None)?;
    let memory = Memory::plan(spec, &data.shape(), &*network);
    memory.check(1, memory::room(), spec).map_err(anyhow::Error::msg)?;
    if let Some(device) = memory::on_device(spec, &*network) {
        memory::check_device(&device, spec).map_err(anyhow::Error::msg)?;
    }
    // Steps alone, and enough of them.
    let steps = schedule.steps.max((WARM + ask.steps) as u64);
    let schedule = Schedule { steps, validate_every: 0, has_validation: false };
    let job = Job::new(spec.clone(), schedule, network, data);
    let shards = usize::from(job.plan.shards);
    let unit = unit_of(&*job.network, shards);
    let mut run = Run {
        scratch: job.network.new_scratch(ask.threads),
        state: job.first_state(),
        room: Vec::new(),
        clock: Clock { begun: Instant::now(), step: None, rows: Vec::new(), events: Vec::new(), at: 0 },
        unit,
        job,
    };
    let mut took = Vec::new();
    for step in 0..WARM + ask.steps {
        if step == WARM {
            run.clock.begin();
        }
        let begin = Instant::now();
        run.step()?;
        if step >= WARM {
            took.push(begin.elapsed().as_secs_f64() * 1e6);
            run.clock.next();
        }
    }
    let Run { clock, job, .. } = run;
    let rows: Vec<Row> = clock.rows.into_iter().map(Measured::row).collect();
    let total = rows.iter().fold(Amount::default(), |total, row| total.plus(row.cost));
    Ok(Profile {
        job: spec.name.clone(),
        threads: ask.threads,
        steps: ask.steps,
        shards,
        unit,
        samples: spec.train.global_batch as usize,
        params: job.network.layout().param_floats(),
        peak_gflops: peak::measure(ask.threads),
        step_us: median(took),
        rows,
        total,
        memory,
        events: clock.events,
    })
}

struct Run {
    job: Job,
    scratch: Box<dyn Any + Send>,
    state: State,
    /// Sums that are not in use.
    room: Vec<Vec<f32>>,
    unit: usize,
    clock: Clock,
}

impl Run {
    fn step(&mut self) -> Result<()> {
        self.clock.at = 0;
        let (mut sum, tail) = self.under(TreeNode::root(self.job.plan.shards))?;
        let layout = self.job.network.layout();
        let cost = cost::of_update(&self.job.spec.train.optimizer, layout.param_floats());
        let name = match self.job.spec.train.optimizer {
            elastic_spec::job::Optimizer::Sgd { .. } => "sgd",
            elastic_spec::job::Optimizer::Adam { .. } => "adam",
            elastic_spec::job::Optimizer::AdamW { .. } => "adamw",
        };
        let start = Instant::now();
        let applied = self.job.apply(&mut *self.scratch, &mut self.state, &mut sum, tail);
        self.clock.note(Kind { phase: "update", op: name, path: "parameters" }, start, cost);
        self.room.push(sum);
        applied.map(drop).map_err(|found| anyhow!(found.told("it was not looked for in a profile")))
    }

    fn under(&mut self, node: TreeNode) -> Result<(Vec<f32>, Tail)> {
        match node.children() {
            Some((left, right)) if node.range().len() > self.unit => {
                let (mut left, right) = (self.under(left)?, self.under(right)?);
                let start = Instant::now();
                left.0.iter_mut().zip(&right.0).for_each(|(a, b)| *a = canonical(*a + *b));
                let floats = left.0.len() as u64;
                let cost = Cost { read_bytes: 8 * floats, written_bytes: 4 * floats, flops: floats };
                self.clock.note(Kind { phase: "sum", op: "tree sum", path: "gradient" }, start, cost);
                self.room.push(right.0);
                Ok((left.0, left.1.add(right.1)))
            }
            _ => self.leaves(node),
        }
    }

    fn leaves(&mut self, node: TreeNode) -> Result<(Vec<f32>, Tail)> {
        let (round, floats) = (self.state.round, self.job.network.layout().reduced_floats());
        let mut out = self.room.pop().unwrap_or_else(|| vec![0.0; floats]);
        let start = Instant::now();
        let step = self.job.schedule.step_at(round);
        let batch = self.job.batch(step, node);
        let bytes = 4 * (batch.features.len() + batch.tokens.len() + batch.targets.len()) as u64;
        let cost = Cost { read_bytes: bytes, written_bytes: bytes, flops: 0 };
        self.clock.note(Kind { phase: "data", op: "batch", path: "data" }, start, cost);
        let mut watch = Timed { clock: &mut self.clock, start: Instant::now() };
        let tail = self.job.sum_seen(&mut *self.scratch, &self.state.floats, (step, &batch), &mut out, &mut watch);
        match tail {
            Some(tail) => Ok((out, tail)),
            None => bail!("this network cannot show its ops: it implements `Network` itself, without `sum_seen`"),
        }
    }
}

/// What has been measured so far.
struct Clock {
    begun: Instant,
    /// The measured step that runs; none while warming up.
    step: Option<usize>,
    rows: Vec<Measured>,
    events: Vec<Event>,
    /// The row that comes next, if this step is like those before.
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Kind<'a> {
    phase: &'static str,
    op: &'static str,
    path: &'a str,
}

struct Measured {
    phase: &'static str,
    op: &'static str,
    path: String,
    /// Where in a plan it stands: two ops of a module may have one name.
    index: usize,
    calls: u64,
    cost: Cost,
    /// µs of each measured step.
    us: Vec<f64>,
}

impl Measured {
    fn row(self) -> Row {
        let steps = self.us.len().max(1) as u64;
        let Cost { read_bytes, written_bytes, flops } = self.cost;
        let cost =
            Amount { read_bytes: read_bytes / steps, written_bytes: written_bytes / steps, flops: flops / steps };
        let Measured { phase, op, path, calls, us, .. } = self;
        Row { phase, op, path, calls: calls / steps, us: median(us), cost }
    }
}

impl Clock {
    fn begin(&mut self) {
        self.begun = Instant::now();
        self.step = Some(0);
    }

    fn next(&mut self) {
        self.step = self.step.map(|step| step + 1);
    }

    fn note(&mut self, kind: Kind<'_>, start: Instant, cost: Cost) {
        self.note_at(kind, usize::MAX, start, cost);
    }

    fn note_at(&mut self, Kind { phase, op, path }: Kind<'_>, index: usize, start: Instant, cost: Cost) {
        let us = start.elapsed().as_secs_f64() * 1e6;
        let Some(step) = self.step else { return };
        let is_it = |m: &Measured| (m.phase, m.op, m.index) == (phase, op, index) && m.path == path;
        // Mostly the row behind the last one.
        let row = match self.rows.get(self.at) {
            Some(next) if is_it(next) => self.at,
            _ => self.rows.iter().position(is_it).unwrap_or_else(|| {
                let (calls, cost, us) = (0, Cost::default(), Vec::new());
                self.rows.push(Measured { phase, op, path: path.to_string(), index, calls, cost, us });
                self.rows.len() - 1
            }),
        };
        self.at = row + 1;
        let measured = &mut self.rows[row];
        measured.us.resize(step + 1, 0.0);
        measured.us[step] += us;
        measured.calls += 1;
        measured.cost = measured.cost.plus(cost);
        let start_us = start.saturating_duration_since(self.begun).as_secs_f64() * 1e6;
        self.events.push(Event { row, step, start_us, us });
    }
}

/// Measures each op between its two looks.
struct Timed<'a> {
    clock: &'a mut Clock,
    start: Instant,
}

impl Watch for Timed<'_> {
    fn before(&mut self, _: At<'_>) {
        self.start = Instant::now();
    }

    fn after(&mut self, at: At<'_>, _: &mut dyn Iterator<Item = &[f32]>) {
        let kind = Kind { phase: at.phase.word(), op: at.step.op.name(), path: &at.step.path };
        self.clock.note_at(kind, at.index, self.start, cost::of_step(at.step));
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::job::{ParseContext, parse};

    const JOB: &str = "[model]\nkind = \"gpt\"\nlayers = 1\nheads = 2\nwidth = 8\ncontext = 8\n[data]\n\
                       kind = \"synthetic\"\nsamples = 64\nclasses = 7\n[train]\nglobal_batch = 16\nsteps = 2\nlr = 0.1\n";

    fn profiled(job: &str) -> Profile {
        let spec = parse(job, &ParseContext::default()).unwrap_or_else(|mistakes| panic!("{mistakes:?}")).spec;
        profile(&spec, &Ask { threads: 2, steps: 5 }).unwrap()
    }

    #[test]
    fn a_profile_has_every_op_of_the_step_with_time_and_cost() {
        let found = profiled(JOB);
        let phases: Vec<&str> = found.rows.iter().map(|row| row.phase).collect();
        for phase in ["data", "forward", "backward", "update"] {
            assert!(phases.contains(&phase), "{phase}: {phases:?}");
        }
        let of = |op: &str, path: &str| {
            let row = found.rows.iter().find(|row| row.op == op && row.path.contains(path));
            row.unwrap_or_else(|| panic!("no {op} at {path}")).clone()
        };
        let fc = of("linear", "h.0.mlp.c_fc");
        assert_eq!(fc.cost.flops, 2 * (16 * 8) * 8 * 32 + 16 * 8 * 32, "16 samples of 8 tokens, 8 to 32 channels");
        assert_eq!(of("adamw", "parameters").cost.read_bytes, 4 * 5 * found.params as u64);
        assert!(found.rows.iter().all(|row| row.us >= 0.0 && row.calls >= 1), "{:?}", found.rows);
        let rows: f64 = found.rows.iter().map(|row| row.us).sum();
        assert!(rows > 0.0 && rows < 1.5 * found.step_us, "{rows} of {} µs", found.step_us);
        assert!(found.peak_gflops > 0.1);
        assert_eq!(found.events.len() as u64, 5 * found.rows.iter().map(|row| row.calls).sum::<u64>());
        assert_eq!(found.total.flops, found.rows.iter().map(|row| row.cost.flops).sum::<u64>());
    }

    #[test]
    fn several_units_are_added_along_the_tree() {
        // Units of the network are as large as the batch here, so V above its largest unit needs many shards: none of
        // this size. One shard a unit is what a network of one's own has; the rows then say how often each op ran.
        let found = profiled(&JOB.replace("global_batch = 16", "global_batch = 16\nshards = 16"));
        assert_eq!((found.shards, found.samples), (16, 16));
        assert_eq!(
            found.rows.iter().filter(|row| row.op == "batch").map(|row| row.calls).sum::<u64>(),
            (16 / found.unit) as u64
        );
        let sums: u64 = found.rows.iter().filter(|row| row.op == "tree sum").map(|row| row.calls).sum();
        assert_eq!(sums, (16 / found.unit - 1) as u64);
    }
}
