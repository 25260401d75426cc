//! Steps on this machine's first GPU, where the state stays: each is one captured graph.

use crate::rows::Row;
use crate::{Batches, Machine};
use elastic_cuda::gpu::Gpu;
use elastic_cuda::network::CudaNetwork;
use elastic_cuda::optim::{Now, Rule};
use elastic_cuda::resident::{Resident, Units};
use elastic_models::build_by;
use elastic_spec::batch::Batch;
use elastic_spec::job::Dtype;
use elastic_spec::layout::Tail;
use elastic_tensor::nn::Module;
use elastic_tensor::{LeafKey, Network, StateLayout, compile_in};
use serde_json::{Value, json};
use std::cell::RefCell;

pub struct OneGpu {
    layout: StateLayout,
    units: Vec<Batch>,
    resident: Resident,
}

impl OneGpu {
    pub fn new(row: &Row, dtype: Dtype, batches: Batches) -> Result<OneGpu, String> {
        let gpu = Gpu::open(0)?;
        let made = RefCell::new(None);
        let compile = |module: &dyn Module| {
            *made.borrow_mut() = Some(CudaNetwork::new(&gpu, dtype, module, &row.data, batches.samples)?);
            compile_in(dtype, module, &row.data, batches.samples)
        };
        build_by(&row.kind, &row.data, &compile)?;
        let network = made.take().expect("the model was compiled");
        let cut = Units::of(batches.shards, network.shards_max());
        let units = batches.units(row, cut.shards);
        let rule = Rule { optimizer: row.optimizer, clip_norm: row.clip_norm, ema: None };
        let resident = Resident::new(&network, rule, cut, &units[0], &network.init(1));
        let resident = resident.map_err(|error| error.to_string())?;
        Ok(OneGpu { layout: network.layout().clone(), units, resident })
    }
}

impl Machine for OneGpu {
    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn units(&self) -> &[Batch] {
        &self.units
    }

    fn once(&mut self, row: &Row, key: LeafKey) -> Tail {
        let now = Now { step: key.step, lr: row.lr, correction: 1.0 };
        let (tail, _) = self.resident.step(&self.units, key, now).unwrap_or_else(|error| panic!("{error}"));
        tail
    }

    fn state(&self) -> Vec<f32> {
        self.resident.state().unwrap_or_else(|error| panic!("{error}"))
    }

    fn memory(&self, _shards: usize) -> Value {
        json!({ "device_bytes": self.resident.device_bytes(), "launches": self.resident.launches() })
    }
}
