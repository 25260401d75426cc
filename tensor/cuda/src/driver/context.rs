//! A GPU taken into use: its primary context, which all parts of a process share.

use super::Driver;
use crate::device;
use crate::error::Result;
use crate::ffi::driver::{CUcontext, CUdevice};
use std::ptr::null_mut;
use std::sync::Arc;

/// A GPU in use by this process. What is made in it keeps it.
pub struct Context {
    pub(crate) driver: Arc<Driver>,
    device: CUdevice,
    raw: CUcontext,
}

// SAFETY: the driver's functions may be called from any thread; the context is only made current, in each of them.
unsafe impl Send for Context {}
// SAFETY: as above; nothing in it changes once it is made.
unsafe impl Sync for Context {}

impl Context {
    /// Takes the GPU of this number, counted from 0.
    pub fn open(driver: &Arc<Driver>, ordinal: u32) -> Result<Arc<Context>> {
        let device = device::handle(driver, ordinal)?;
        let mut raw = null_mut();
        // SAFETY: the device is there; the function writes one handle.
        driver.check("cuDevicePrimaryCtxRetain", unsafe { (driver.functions.context_retain)(&mut raw, device) })?;
        let context = Context { driver: Arc::clone(driver), device, raw };
        context.enter()?;
        Ok(Arc::new(context))
    }

    /// Makes it the calling thread's: most calls go to the context that is, those of NCCL, too.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained for as long as this value lives.
        self.driver.check("cuCtxSetCurrent", unsafe { (self.driver.functions.context_set_current)(self.raw) })
    }

    /// Before something is freed: a context that cannot be entered is lost, and then the driver refuses to free.
    pub(crate) fn leave_nothing(&self) {
        let _ = self.enter();
    }

    /// Bytes of the GPU's memory: free, and in all.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: the function writes two sizes.
        self.driver.check("cuMemGetInfo", unsafe { (self.driver.functions.memory_info)(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`, released once here. What a failure would say, nobody could mend.
        unsafe { (self.driver.functions.context_release)(self.device) };
    }
}
