//! What compiles networks: the processor, unless the process has taken a device.
//!
//! A device is a process's: a worker takes it once, before it compiles anything, and whatever asks for a network
//! ([`crate::compile`], a program's own model among them) gets one that runs there.

use crate::network::Network;
use crate::nn::Module;
use crate::predict::Forward;
use elastic_spec::batch::DataShape;
use elastic_spec::job::Dtype;
use std::sync::OnceLock;

/// A device's own way from a module to a network.
pub trait Backend: Send + Sync {
    /// For logs: "GPU 0, NVIDIA H100".
    fn name(&self) -> String;

    fn compile(
        &self,
        dtype: Dtype,
        module: &dyn Module,
        data: &DataShape,
        samples: usize,
    ) -> Result<Box<dyn Network>, String>;

    /// The forward pass alone.
    fn compile_forward(&self, dtype: Dtype, module: &dyn Module, data: &DataShape) -> Result<Box<dyn Forward>, String>;
}

static TAKEN: OnceLock<Box<dyn Backend>> = OnceLock::new();

/// From now on this process's networks run there. A second device is refused with the name of the first.
pub fn take(backend: Box<dyn Backend>) -> Result<(), String> {
    TAKEN.set(backend).map_err(|_| taken().map_or_else(String::new, Backend::name))
}

/// Do this process's networks run on a device?
pub fn is_taken() -> bool {
    taken().is_some()
}

pub(crate) fn taken() -> Option<&'static dyn Backend> {
    TAKEN.get().map(|backend| &**backend)
}

/// What a network unwinds with when its device fails while it computes: memory that cannot be had any more, a context that
/// is lost. The process has to end; another may do better.
#[derive(Clone, Debug)]
pub struct DeviceLost(pub String);

impl DeviceLost {
    /// Unwinds, without the words of a panic: this is no broken promise of ours.
    pub fn unwind(why: String) -> ! {
        std::panic::resume_unwind(Box::new(DeviceLost(why)))
    }
}
