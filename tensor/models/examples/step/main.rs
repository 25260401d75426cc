//! Our side of `bench/step`: the step of a job on one machine, timed when a line on stdin asks for it.
//!
//! `step MODEL DTYPE THREADS SHARDS BATCH [DEVICE]` makes the network, the state and one batch, and says `ready` with its
//! figures, or `unsupported` with the reason. Then each line is a command, answered by one line of JSON:
//! `export PATH` writes the weights and the batch as safetensors, `memory N` gives the bytes planned for units of N
//! shards, `run N` makes N steps and gives their milliseconds and losses. A step is what a job does: all shards' leaves in
//! units, their sum along the tree, the update of the whole state. Nothing is sent.
//!
//! `step time N MODEL …` makes N steps and says how long they took. `step peak THREADS` prints the GFLOP/s of multiply-adds
//! alone. DEVICE is `cpu`, or `cuda` for the first GPU, on which a step is one captured graph.

mod export;
mod gpu;
mod processor;
mod rows;

use elastic_spec::batch::Batch;
use elastic_spec::job;
use elastic_spec::layout::Tail;
use elastic_tensor::{LeafKey, StateLayout, peak};
use rows::Row;
use serde_json::{Value, json};
use std::io::BufRead;
use std::process::ExitCode;
use std::time::Instant;

/// Steps before any is timed: a GPU's first one loads its kernels, its second is recorded.
const WARM_STEPS: usize = 5;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["peak", threads] => println!("{}", json!({ "gflops": peak::measure(number(threads)) })),
        ["time", steps, ref rest @ ..] => {
            if let Err(why) = time(&Asked::of(rest), number(steps)) {
                eprintln!("error: {why}");
                return ExitCode::FAILURE;
            }
        }
        ref rest => serve(&Asked::of(rest)),
    }
    ExitCode::SUCCESS
}

/// What the command line names.
struct Asked<'a> {
    model: &'a str,
    dtype: &'a str,
    threads: usize,
    shards: usize,
    batch: usize,
    device: &'a str,
}

impl<'a> Asked<'a> {
    fn of(words: &[&'a str]) -> Asked<'a> {
        let (words, device) = match *words {
            [model, dtype, threads, shards, batch] => ([model, dtype, threads, shards, batch], "cpu"),
            [model, dtype, threads, shards, batch, device] => ([model, dtype, threads, shards, batch], device),
            _ => panic!("usage: step [time N] MODEL DTYPE THREADS SHARDS BATCH [DEVICE] | step peak THREADS"),
        };
        let [model, dtype, threads, shards, batch] = words;
        let (threads, shards, batch) = (number(threads), number(shards), number(batch));
        assert!(batch.is_multiple_of(shards), "a batch of {batch} is not {shards} equal shards");
        Asked { model, dtype, threads, shards, batch, device }
    }

    /// Or why there are no such steps here.
    fn steps(&self) -> Result<Steps, String> {
        let dtypes = [job::Dtype::F32, job::Dtype::Bf16];
        let dtype = dtypes.into_iter().find(|dtype| dtype.word() == self.dtype);
        let dtype = dtype.ok_or_else(|| format!("steps are computed in f32 or bf16, not {}", self.dtype))?;
        let row = rows::row(self.model);
        let batches = Batches { shards: self.shards, samples: self.batch / self.shards };
        let machine: Box<dyn Machine> = match self.device {
            "cpu" => Box::new(processor::Processor::new(&row, dtype, self.threads, batches)),
            "cuda" => Box::new(gpu::OneGpu::new(&row, dtype, batches)?),
            other => return Err(format!("a device is cpu or cuda, not {other}")),
        };
        Ok(Steps { row, machine, step: 0 })
    }
}

fn number(word: &str) -> usize {
    word.parse().unwrap_or_else(|_| panic!("`{word}` is not a number"))
}

fn serve(asked: &Asked<'_>) {
    let mut steps = match asked.steps() {
        Ok(steps) => steps,
        Err(why) => return println!("{}", json!({ "unsupported": why })),
    };
    println!("{}", json!({ "ready": true, "params": steps.machine.layout().param_floats() }));
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin is text");
        let answer = match line.split_once(' ') {
            Some(("export", path)) => {
                let bytes = export::safetensors(steps.machine.layout(), &steps.machine.state(), steps.machine.units());
                std::fs::write(path, bytes).expect("write the weights");
                json!({ "exported": path })
            }
            Some(("run", count)) => steps.run(number(count)),
            Some(("memory", shards)) => steps.machine.memory(number(shards)),
            _ => panic!("`{line}` is not `export PATH`, `memory SHARDS` or `run N`"),
        };
        println!("{answer}");
    }
}

fn time(asked: &Asked<'_>, count: usize) -> Result<(), String> {
    let mut steps = asked.steps()?;
    steps.run(WARM_STEPS);
    let mut ms: Vec<f64> = (0..count).map(|_| steps.timed().0).collect();
    ms.sort_by(f64::total_cmp);
    let Asked { model, dtype, shards, batch, .. } = asked;
    let (median, best, tokens) = (ms[count / 2], ms[0], batch * steps.row.targets());
    println!("{model} {dtype}, batch {batch}, {shards} shards: {:.1} us a step", median * 1e3);
    let figure = json!({
        "figure": "step", "model": model, "dtype": dtype, "batch": batch, "shards": shards, "ms": median,
        "best_ms": best, "steps": count, "tokens_per_s": (tokens > *batch).then(|| tokens as f64 / median * 1e3),
        "planned": steps.machine.memory(*shards),
    });
    println!("{figure}");
    Ok(())
}

/// How a batch is cut.
#[derive(Clone, Copy)]
struct Batches {
    shards: usize,
    /// Of a shard.
    samples: usize,
}

impl Batches {
    /// The shards' samples in units of `unit` shards.
    fn units(self, row: &Row, unit: usize) -> Vec<Batch> {
        let units = (0..self.shards).step_by(unit).map(|first| {
            let shards = (first..first + unit).map(|shard| row.shard(shard, self.samples));
            shards.reduce(append).expect("a unit has a shard")
        });
        units.collect()
    }
}

/// The samples of `next` behind those of `batch`.
fn append(mut batch: Batch, next: Batch) -> Batch {
    batch.features.extend(next.features);
    batch.tokens.extend(next.tokens);
    batch.targets.extend(next.targets);
    batch.slots.extend(next.slots);
    batch
}

/// Where steps are computed: it has the state, and the batch in units.
trait Machine {
    fn layout(&self) -> &StateLayout;
    /// Full subtrees of shards that the network takes in one call.
    fn units(&self) -> &[Batch];
    fn once(&mut self, row: &Row, key: LeafKey) -> Tail;
    fn state(&self) -> Vec<f32>;
    fn memory(&self, shards: usize) -> Value;
}

/// A job on one machine, without its data and its wires.
struct Steps {
    row: Row,
    machine: Box<dyn Machine>,
    step: u64,
}

impl Steps {
    fn run(&mut self, count: usize) -> Value {
        let (ms, losses): (Vec<f64>, Vec<f64>) = (0..count).map(|_| self.timed()).unzip();
        json!({ "ms": ms, "loss": losses })
    }

    /// One step's milliseconds and its loss.
    fn timed(&mut self) -> (f64, f64) {
        let samples: usize = self.machine.units().iter().map(|unit| unit.slots.len()).sum();
        let begin = Instant::now();
        let scale = 1.0 / (samples * self.row.targets()) as f32;
        let tail = self.machine.once(&self.row, LeafKey { seed: 1, step: self.step, scale, label_smoothing: 0.0 });
        self.step += 1;
        (begin.elapsed().as_secs_f64() * 1e3, tail.loss / tail.count as f64)
    }
}
