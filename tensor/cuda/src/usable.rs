//! Whether this machine can compute on a GPU: the one answer that others ask for.

use crate::device::{self, Device};
use crate::libs::Libraries;

/// The first GPU that kernels run on, or why there is none, and what a person does about it.
pub fn usable() -> Result<Device, String> {
    usable_of(&Libraries::open())
}

/// The same of libraries that were opened before.
pub fn usable_of(libraries: &Libraries) -> Result<Device, String> {
    let driver = libraries.driver.as_ref().map_err(|error| error.to_string())?;
    let devices = device::all(driver).map_err(|error| error.to_string())?;
    choose(devices)
}

pub(crate) fn choose(devices: Vec<Device>) -> Result<Device, String> {
    let refusals: Vec<String> = devices.iter().filter_map(Device::refusal).collect();
    match devices.into_iter().find(|device| device.refusal().is_none()) {
        Some(device) => Ok(device),
        None if refusals.is_empty() => Err("the driver sees no GPU; look at CUDA_VISIBLE_DEVICES".into()),
        None => Err(refusals.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Capability;

    fn gpu(ordinal: u32, major: u32, minor: u32) -> Device {
        Device {
            ordinal,
            name: "Test".into(),
            capability: Capability { major, minor },
            memory_bytes: 1 << 30,
            multiprocessors: 1,
            shared_bytes_max: 1 << 16,
        }
    }

    #[test]
    fn an_old_gpu_is_passed_over_and_named_if_there_is_no_other() {
        assert_eq!(choose(vec![gpu(0, 7, 5), gpu(1, 9, 0)]).map(|device| device.ordinal), Ok(1));
        let why = "GPU 0, Test, has compute capability 7.5; 8.0 (Ampere) is the oldest that works";
        assert_eq!(choose(vec![gpu(0, 7, 5)]), Err(why.to_string()));
        assert!(choose(vec![]).is_err_and(|why| why.contains("CUDA_VISIBLE_DEVICES")));
    }
}
