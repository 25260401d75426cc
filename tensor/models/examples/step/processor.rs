//! Steps on the processor.

use crate::rows::Row;
use crate::{Batches, Machine};
use elastic_models::build_in;
use elastic_spec::batch::Batch;
use elastic_spec::job::Dtype;
use elastic_spec::layout::Tail;
use elastic_tensor::leaves::tree_sum;
use elastic_tensor::{LeafKey, Network, StateLayout, Update, moments_of};
use serde_json::{Value, json};
use std::any::Any;

pub struct Processor {
    network: Box<dyn Network>,
    scratch: Box<dyn Any + Send>,
    state: Vec<f32>,
    moments: Vec<Vec<f32>>,
    units: Vec<Batch>,
    reduced: Vec<f32>,
    room: Vec<f32>,
}

impl Processor {
    pub fn new(row: &Row, dtype: Dtype, threads: usize, batches: Batches) -> Processor {
        let network = build_in(dtype, &row.kind, &row.data, batches.samples).expect("the model fits its data");
        let layout = network.layout();
        Processor {
            scratch: network.new_scratch(threads),
            state: network.init(1),
            moments: vec![vec![0.0; layout.param_floats()]; moments_of(&row.optimizer)],
            units: batches.units(row, network.shards_max().min(batches.shards)),
            reduced: vec![0.0; layout.reduced_floats()],
            room: Vec::new(),
            network,
        }
    }

    /// The tree's sum of all shards' leaves.
    fn leaves(&mut self, key: LeafKey) -> Tail {
        let Processor { network, scratch, state, units, reduced, room, .. } = self;
        let mut tail = Tail::default();
        tree_sum(units.len(), reduced, room, |unit, sum| {
            tail = tail.add(network.sum(&mut **scratch, state, &units[unit], key, sum));
        });
        tail
    }
}

impl Machine for Processor {
    fn layout(&self) -> &StateLayout {
        self.network.layout()
    }

    fn units(&self) -> &[Batch] {
        &self.units
    }

    fn once(&mut self, row: &Row, key: LeafKey) -> Tail {
        let tail = self.leaves(key);
        let update = Update {
            layout: self.network.layout(),
            reduced: &mut self.reduced,
            state: &mut self.state,
            moments: &mut self.moments,
            step: key.step,
            lr: row.lr,
            correction: 1.0,
            clip_norm: row.clip_norm,
        };
        self.network.update(&mut *self.scratch, &row.optimizer, update);
        tail
    }

    fn state(&self) -> Vec<f32> {
        self.state.clone()
    }

    /// Planned for a step: the arena, and a gradient for each vector that holds one.
    fn memory(&self, shards: usize) -> Value {
        json!({
            "arena_bytes": 4 * self.network.arena_floats(shards),
            "gradient_bytes": 4 * self.network.layout().reduced_floats(),
        })
    }
}
