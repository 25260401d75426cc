//! Marks in a stream: to wait for, and to take the time between.

use super::Context;
use crate::error::Result;
use crate::ffi::driver::{CUevent, ERROR_NOT_READY, EVENT_DEFAULT};
use std::ptr::null_mut;
use std::sync::Arc;

/// A mark that is reached when all that was given to its stream before is done.
pub struct Event {
    context: Arc<Context>,
    pub(crate) raw: CUevent,
}

// SAFETY: the handle is only given to the driver, which may be called from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub fn new(context: &Arc<Context>) -> Result<Event> {
        context.enter()?;
        let mut raw = null_mut();
        // SAFETY: the function writes one handle.
        let code = unsafe { (context.driver.functions.event_create)(&mut raw, EVENT_DEFAULT) };
        context.driver.check("cuEventCreate", code)?;
        Ok(Event { context: Arc::clone(context), raw })
    }

    /// Waits until it is reached; at once if it was never put into a stream.
    pub fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the event lives.
        let code = unsafe { (self.context.driver.functions.event_synchronize)(self.raw) };
        self.context.driver.check("cuEventSynchronize", code)
    }

    pub fn is_reached(&self) -> Result<bool> {
        self.context.enter()?;
        // SAFETY: the event lives.
        match unsafe { (self.context.driver.functions.event_query)(self.raw) } {
            ERROR_NOT_READY => Ok(false),
            code => self.context.driver.check("cuEventQuery", code).map(|()| true),
        }
    }

    /// Milliseconds from this event to a later one; both were reached.
    pub fn ms_until(&self, later: &Event) -> Result<f32> {
        self.context.enter()?;
        let mut ms = 0.0;
        // SAFETY: both events live; the function writes one float.
        let code = unsafe { (self.context.driver.functions.event_elapsed)(&mut ms, self.raw, later.raw) };
        self.context.driver.check("cuEventElapsedTime", code)?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.context.leave_nothing();
        // SAFETY: created once, destroyed once; the driver waits for streams that still hold it.
        unsafe { (self.context.driver.functions.event_destroy)(self.raw) };
    }
}
