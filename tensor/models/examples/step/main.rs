//! Our side of `bench/step`: the step of a job on one machine, timed when a line on stdin asks for it.
//!
//! `step MODEL DTYPE THREADS SHARDS BATCH` makes the network, the state and one batch, and says `ready` with its
//! figures, or `unsupported` with the reason. Then each line is a command, answered by one line of JSON:
//! `export PATH` writes the weights and the batch as safetensors, `memory N` gives the bytes planned for units of N
//! shards, `run N` makes N steps and gives their milliseconds and losses. `step peak THREADS` prints the GFLOP/s of multiply-adds alone. A step is what a job
//! does: all shards' leaves in units, their sum along the tree, the update of the whole state. Nothing is sent.

mod rows;

use elastic_models::build_in;
use elastic_spec::batch::Batch;
use elastic_spec::job;
use elastic_spec::layout::Tail;
use elastic_tensor::leaves::tree_sum;
use elastic_tensor::{LeafKey, Network, Update, moments_of, peak};
use rows::Row;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use std::any::Any;
use std::io::BufRead;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["peak", threads] => println!("{}", json!({ "gflops": peak::measure(number(threads)) })),
        [model, dtype, threads, shards, batch] => match dtype_of(dtype) {
            Some(dtype) => serve(Steps::new(&rows::row(model), dtype, number(threads), number(shards), number(batch))),
            None => println!("{}", json!({ "unsupported": format!("steps are computed in f32 or bf16, not {dtype}") })),
        },
        _ => panic!("usage: step MODEL DTYPE THREADS SHARDS BATCH | step peak THREADS"),
    }
}

fn dtype_of(word: &str) -> Option<job::Dtype> {
    [job::Dtype::F32, job::Dtype::Bf16].into_iter().find(|dtype| dtype.word() == word)
}

fn number(word: &str) -> usize {
    word.parse().unwrap_or_else(|_| panic!("`{word}` is not a number"))
}

fn serve(mut steps: Steps) {
    println!("{}", json!({ "ready": true, "params": steps.network.layout().param_floats() }));
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin is text");
        let answer = match line.split_once(' ') {
            Some(("export", path)) => {
                std::fs::write(path, steps.export()).expect("write the weights");
                json!({ "exported": path })
            }
            Some(("run", count)) => steps.run(number(count)),
            // Planned for a step: the arena, and a gradient for each vector that holds one.
            Some(("memory", shards)) => json!({
                "arena_bytes": 4 * steps.network.arena_floats(number(shards)),
                "gradient_bytes": 4 * steps.network.layout().reduced_floats(),
            }),
            _ => panic!("`{line}` is not `export PATH`, `memory SHARDS` or `run N`"),
        };
        println!("{answer}");
    }
}

/// A job on one machine, without its data and its wires.
struct Steps {
    row: Row,
    network: Box<dyn Network>,
    scratch: Box<dyn Any + Send>,
    state: Vec<f32>,
    moments: Vec<Vec<f32>>,
    /// Full subtrees of shards that the network takes in one call.
    units: Vec<Batch>,
    reduced: Vec<f32>,
    room: Vec<f32>,
    step: u64,
}

impl Steps {
    fn new(row: &Row, dtype: job::Dtype, threads: usize, shards: usize, batch: usize) -> Steps {
        assert!(batch.is_multiple_of(shards), "a batch of {batch} is not {shards} equal shards");
        let network = build_in(dtype, &row.kind, &row.data, batch / shards).expect("the model fits its data");
        let layout = network.layout();
        let unit = network.shards_max().min(shards);
        let units = (0..shards).step_by(unit).map(|first| {
            let shards = (first..first + unit).map(|shard| row.shard(shard, batch / shards));
            shards.reduce(append).expect("a unit has a shard")
        });
        Steps {
            row: row.clone(),
            scratch: network.new_scratch(threads),
            state: network.init(1),
            moments: vec![vec![0.0; layout.param_floats()]; moments_of(&row.optimizer)],
            units: units.collect(),
            reduced: vec![0.0; layout.reduced_floats()],
            room: Vec::new(),
            step: 0,
            network,
        }
    }

    fn run(&mut self, count: usize) -> Value {
        let (mut ms, mut losses) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let begin = Instant::now();
            let tail = self.once();
            ms.push(begin.elapsed().as_secs_f64() * 1e3);
            losses.push(tail.loss / tail.count as f64);
        }
        json!({ "ms": ms, "loss": losses })
    }

    fn once(&mut self) -> Tail {
        let samples: usize = self.units.iter().map(|unit| unit.slots.len()).sum();
        let scale = 1.0 / (samples * self.row.targets()) as f32;
        let key = LeafKey { seed: 1, step: self.step, scale, label_smoothing: 0.0 };
        let tail = self.leaves(key);
        let update = Update {
            layout: self.network.layout(),
            reduced: &mut self.reduced,
            state: &mut self.state,
            moments: &mut self.moments,
            step: self.step,
            lr: self.row.lr,
            correction: 1.0,
            clip_norm: self.row.clip_norm,
        };
        self.network.update(&mut *self.scratch, &self.row.optimizer, update);
        self.step += 1;
        tail
    }

    /// The tree's sum of all shards' leaves.
    fn leaves(&mut self, key: LeafKey) -> Tail {
        let Steps { network, scratch, state, units, reduced, room, .. } = self;
        let mut tail = Tail::default();
        tree_sum(units.len(), reduced, room, |unit, sum| {
            tail = tail.add(network.sum(&mut **scratch, state, &units[unit], key, sum));
        });
        tail
    }

    /// Parameters by name, and the whole batch as `x` and `y`.
    fn export(&self) -> Vec<u8> {
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for info in &self.network.layout().params {
            let values = &self.state[info.offset..info.offset + info.len];
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.push((info.name.clone(), Dtype::F32, info.shape.clone(), bytes));
        }
        let all = |part: fn(&Batch) -> &Vec<i32>| -> Vec<u8> {
            self.units.iter().flat_map(part).flat_map(|x| x.to_le_bytes()).collect()
        };
        let samples = self.units.iter().map(|unit| unit.slots.len()).sum();
        let (dtype, x) = match self.units[0].tokens.is_empty() {
            true => {
                (Dtype::F32, self.units.iter().flat_map(|unit| &unit.features).flat_map(|x| x.to_le_bytes()).collect())
            }
            false => (Dtype::I32, all(|unit| &unit.tokens)),
        };
        let y = all(|unit| &unit.targets);
        tensors.push(("x".into(), dtype, vec![samples, x.len() / 4 / samples], x));
        tensors.push(("y".into(), Dtype::I32, vec![samples, y.len() / 4 / samples], y));
        let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).expect("sizes agree");
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| (name, view(*dtype, shape, bytes)));
        serialize(views, None).expect("tensors have one name each")
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
