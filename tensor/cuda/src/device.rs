//! The GPUs that the driver sees, and what they are.

use crate::arch::Capability;
use crate::driver::Driver;
use crate::error::{CudaError, Result};
use crate::ffi::driver::{
    ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, ATTRIBUTE_MULTIPROCESSOR_COUNT, CUdevice, CUdevice_attribute,
};
use core::ffi::c_char;

/// The oldest GPUs that kernels are written for: Ampere, with bf16 and asynchronous copies.
pub const CAPABILITY_MIN: Capability = Capability { major: 8, minor: 0 };

/// A GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    pub ordinal: u32,
    pub name: String,
    pub capability: Capability,
    pub memory_bytes: u64,
    pub multiprocessors: u32,
    /// What a block may have at most.
    pub shared_bytes_max: u32,
}

impl Device {
    /// Why no kernel runs on it, if none does.
    pub fn refusal(&self) -> Option<String> {
        (self.capability < CAPABILITY_MIN).then(|| {
            let Device { ordinal, name, capability, .. } = self;
            format!("GPU {ordinal}, {name}, has compute capability {capability}; {CAPABILITY_MIN} (Ampere) is the oldest that works")
        })
    }
}

/// All that the driver sees, in its order.
pub fn all(driver: &Driver) -> Result<Vec<Device>> {
    (0..count(driver)?).map(|ordinal| device(driver, ordinal)).collect()
}

/// The GPU of this number, counted from 0.
pub fn device(driver: &Driver, ordinal: u32) -> Result<Device> {
    let handle = handle(driver, ordinal)?;
    let attribute = |which| attribute(driver, handle, which);
    Ok(Device {
        ordinal,
        name: name(driver, handle)?,
        capability: Capability {
            major: attribute(ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        },
        memory_bytes: memory(driver, handle)?,
        multiprocessors: attribute(ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_max: attribute(ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    })
}

fn count(driver: &Driver) -> Result<u32> {
    let mut count = 0;
    // SAFETY: the function writes one int.
    driver.check("cuDeviceGetCount", unsafe { (driver.functions.device_count)(&mut count) })?;
    Ok(count.unsigned_abs())
}

/// The driver's own number for a GPU.
pub(crate) fn handle(driver: &Driver, ordinal: u32) -> Result<CUdevice> {
    let there = count(driver)?;
    if ordinal >= there {
        return Err(CudaError::NoDevice { asked: ordinal, there });
    }
    let mut handle = 0;
    // SAFETY: the function writes one int.
    driver.check("cuDeviceGet", unsafe { (driver.functions.device)(&mut handle, ordinal as i32) })?;
    Ok(handle)
}

fn name(driver: &Driver, handle: CUdevice) -> Result<String> {
    let mut text = [0u8; 256];
    let room = text.len() as i32;
    // SAFETY: the function writes at most as many bytes as it is told that there is room for.
    let code = unsafe { (driver.functions.device_name)(text.as_mut_ptr().cast::<c_char>(), room, handle) };
    driver.check("cuDeviceGetName", code)?;
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    Ok(String::from_utf8_lossy(&text[..end]).into_owned())
}

fn memory(driver: &Driver, handle: CUdevice) -> Result<u64> {
    let mut bytes = 0usize;
    // SAFETY: the function writes one size.
    driver.check("cuDeviceTotalMem", unsafe { (driver.functions.device_memory)(&mut bytes, handle) })?;
    Ok(bytes as u64)
}

fn attribute(driver: &Driver, handle: CUdevice, which: CUdevice_attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the function writes one int.
    let code = unsafe { (driver.functions.device_attribute)(&mut value, which, handle) };
    driver.check("cuDeviceGetAttribute", code)?;
    Ok(value.unsigned_abs())
}
