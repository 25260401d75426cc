//! What a process computes on: the processor, or a GPU that it takes before anything is compiled.
//!
//! In f32 a GPU has the processor's bits, so workers of one job may be on either. A GPU proves that with the probe before
//! `auto` takes it; in bf16, where tensor cores add in an order of their own, all workers must be on GPUs or none.

use crate::fault::Fault;
use elastic_cuda::gpu::{Gpu, OnGpu};
use elastic_spec::job::{Device, Dtype, JobSpec};
use elastic_tensor::backend::{self, Backend};
use elastic_tensor::{probe, probe_by};
use std::sync::Arc;

/// Whether this machine has what `resources.device = "cuda"` needs; the error says what it lacks. For a job that is to run
/// on this machine.
pub fn check(device: Device) -> Result<(), String> {
    match device {
        Device::Auto | Device::Cpu => Ok(()),
        Device::Cuda => elastic_cuda::usable().map(drop).map_err(|why| refusal(&why)),
    }
}

fn refusal(why: &str) -> String {
    format!("resources.device = \"cuda\": {why}; \"auto\" trains on the processor where there is no GPU")
}

/// [`take`] for a process that is no worker: the words of what stands in the way.
pub fn take_alone(spec: &JobSpec) -> Result<(), String> {
    take(spec, 0).map_err(|fault| fault.to_string())
}

/// Takes a device for this process to ask models on. That a GPU which is asked for cannot be used is an error.
pub fn take_to_ask(asked: Device) -> Result<(), String> {
    match (asked, try_to_take(asked, Dtype::F32, 0)) {
        (Device::Cuda, Err(why)) => {
            Err(format!("--device cuda: {why}; with \"auto\" the processor computes where there is no GPU"))
        }
        (Device::Auto, Err(why)) => {
            tracing::info!("computes on the processor: {why}");
            Ok(())
        }
        (_, taken) => taken,
    }
}

/// Takes the device of the job for this process, as worker number `slot` of its node. That a GPU which is asked for cannot be
/// used ends the job: where only some nodes have one, "auto" is what to ask for.
pub(crate) fn take(spec: &JobSpec, slot: u16) -> Result<(), Fault> {
    let asked = spec.resources.device;
    match (asked, try_to_take(asked, spec.train.dtype, slot)) {
        (_, Ok(())) => Ok(()),
        (Device::Cuda, Err(why)) => Err(Fault::Job(refusal(&why))),
        (_, Err(why)) => {
            tracing::info!("trains on the processor: {why}");
            Ok(())
        }
    }
}

fn try_to_take(asked: Device, dtype: Dtype, slot: u16) -> Result<(), String> {
    match asked {
        Device::Cpu => Ok(()),
        Device::Auto | Device::Cuda => Gpu::open(slot.into()).and_then(|gpu| take_gpu(asked, dtype, gpu)),
    }
}

fn take_gpu(asked: Device, dtype: Dtype, gpu: Arc<Gpu>) -> Result<(), String> {
    let backend = OnGpu(gpu);
    let name = backend.name();
    if asked == Device::Auto && dtype == Dtype::F32 {
        let (here, there) =
            (probe(dtype), probe_by(dtype, &|module, data, samples| backend.compile(dtype, module, data, samples))?);
        if here != there {
            return Err(format!(
                "{name} has other bits than the processor: numerics class {there:016x}, not {here:016x}"
            ));
        }
    }
    backend::take(Box::new(backend)).map_err(|other| format!("{other} was taken before"))?;
    tracing::info!("computes on {name}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_always_there() {
        assert_eq!((check(Device::Auto), check(Device::Cpu)), (Ok(()), Ok(())));
    }

    #[test]
    fn a_gpu_is_refused_with_what_stands_in_the_way() {
        let wanted = "resources.device = \"cuda\": no driver; install it; \"auto\" trains on the processor where there \
                      is no GPU";
        assert_eq!(refusal("no driver; install it"), wanted);
    }
}
