//! A stretch of work that is recorded once and given to the GPU in one call from then on.

use super::{Context, Stream};
use crate::error::Result;
use crate::ffi::driver::{CAPTURE_MODE_THREAD_LOCAL, CUgraph, CUgraphExec};
use std::ptr::null_mut;
use std::sync::Arc;

/// Recorded work, ready to run.
pub struct Graph {
    context: Arc<Context>,
    pub(crate) raw: CUgraphExec,
}

// SAFETY: the handle is only given to the driver, and a graph runs in one stream at a time by the driver's own rule.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` gives to the stream, in place of running it.
    ///
    /// While it records, nothing may be allocated, loaded or waited for: the driver refuses that, and the recording
    /// with it. An error of `work` comes first; what was recorded until then is thrown away.
    pub fn capture(stream: &Stream, work: impl FnOnce(&Stream) -> Result<()>) -> Result<Graph> {
        let context = &stream.context;
        let functions = &context.driver.functions;
        context.enter()?;
        // Thread-local: calls of other threads that a recording forbids do not break this one.
        // SAFETY: the stream lives.
        let code = unsafe { (functions.capture_begin)(stream.raw, CAPTURE_MODE_THREAD_LOCAL) };
        context.driver.check("cuStreamBeginCapture", code)?;
        let recording = Recording { stream, goes_on: true };
        let worked = work(stream);
        let recorded = recording.end();
        worked?;
        let graph = recorded?;
        let mut raw = null_mut();
        // SAFETY: the recorded graph lives; the function writes one handle; 0 asks for nothing special.
        let code = unsafe { (functions.graph_instantiate)(&mut raw, graph.raw, 0) };
        context.driver.check("cuGraphInstantiateWithFlags", code)?;
        Ok(Graph { context: Arc::clone(context), raw })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.context.leave_nothing();
        // SAFETY: made once, destroyed once; the driver waits for a run that is under way.
        unsafe { (self.context.driver.functions.graph_exec_destroy)(self.raw) };
    }
}

/// A stream that records. It stops to do so, whatever the work does, a panic included.
struct Recording<'a> {
    stream: &'a Stream,
    goes_on: bool,
}

impl Recording<'_> {
    fn end(mut self) -> Result<Recorded> {
        self.stop()
    }

    fn stop(&mut self) -> Result<Recorded> {
        self.goes_on = false;
        let context = &self.stream.context;
        // A stream that goes on recording would be of no use, so it is stopped in any case.
        let entered = context.enter();
        let mut raw = null_mut();
        // SAFETY: the stream records; the function writes one handle.
        let code = unsafe { (context.driver.functions.capture_end)(self.stream.raw, &mut raw) };
        let recorded = Recorded { context: Arc::clone(context), raw };
        entered?;
        context.driver.check("cuStreamEndCapture", code)?;
        Ok(recorded)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.goes_on {
            // The panic that got here is what is wrong; a failure to stop adds nothing.
            let _ = self.stop();
        }
    }
}

/// What was recorded, before it is made ready.
struct Recorded {
    context: Arc<Context>,
    raw: CUgraph,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            self.context.leave_nothing();
            // SAFETY: recorded once, destroyed once.
            unsafe { (self.context.driver.functions.graph_destroy)(self.raw) };
        }
    }
}
