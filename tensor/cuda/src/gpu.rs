//! A GPU that a process computes on.

use crate::cache::Cache;
use crate::device::{self, Device};
use crate::driver::Context;
use crate::forward::CudaForward;
use crate::libs::Libraries;
use crate::loaded::Loaded;
use crate::network;
use elastic_spec::batch::DataShape;
use elastic_spec::job::Dtype;
use elastic_tensor::backend::Backend;
use elastic_tensor::nn::Module;
use elastic_tensor::{Forward, Network};
use std::sync::Arc;

pub struct Gpu {
    pub loaded: Loaded,
    pub device: Device,
    /// A leaf is copied out in pieces of at least so many bytes, each when it is whole.
    pub bucket_bytes: u64,
}

/// PyTorch's size of buckets: below it, what a segment costs by itself shows; above, too little is left to hide behind.
const BUCKET_BYTES: u64 = 25 << 20;

impl Gpu {
    /// Of the GPUs that can be used, number `turn` modulo how many there are: workers of one node spread over them.
    /// The error says what is missing, and what a person does about it.
    pub fn open(turn: usize) -> Result<Arc<Gpu>, String> {
        Gpu::open_with(Libraries::open(), Cache::of_user(), turn)
    }

    pub fn open_with(libraries: Libraries, cache: Cache, turn: usize) -> Result<Arc<Gpu>, String> {
        let driver = libraries.driver.as_ref().map_err(|error| error.to_string())?;
        let all = device::all(driver).map_err(|error| error.to_string())?;
        let first = crate::usable::choose(all.clone())?;
        let usable: Vec<Device> = all.into_iter().filter(|device| device.refusal().is_none()).collect();
        let device = usable.get(turn % usable.len().max(1)).cloned().unwrap_or(first);
        let context = Context::open(driver, device.ordinal).map_err(|error| error.to_string())?;
        let loaded = Loaded::new(context, device.capability, libraries, cache);
        Ok(Arc::new(Gpu { loaded, device, bucket_bytes: BUCKET_BYTES }))
    }

    /// Bytes of memory that are free now.
    pub fn free_bytes(&self) -> Result<u64, String> {
        self.loaded.context().memory().map(|(free, _)| free).map_err(|error| error.to_string())
    }
}

/// The engine's networks, compiled for this GPU.
pub struct OnGpu(pub Arc<Gpu>);

impl Backend for OnGpu {
    fn name(&self) -> String {
        format!("GPU {}, {}", self.0.device.ordinal, self.0.device.name)
    }

    fn compile(
        &self,
        dtype: Dtype,
        module: &dyn Module,
        data: &DataShape,
        samples: usize,
    ) -> Result<Box<dyn Network>, String> {
        Ok(Box::new(network::CudaNetwork::new(&self.0, dtype, module, data, samples)?))
    }

    fn compile_forward(&self, dtype: Dtype, module: &dyn Module, data: &DataShape) -> Result<Box<dyn Forward>, String> {
        Ok(Box::new(CudaForward::new(&self.0, dtype, module, data)?))
    }
}
