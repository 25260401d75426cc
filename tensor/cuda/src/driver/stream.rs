//! The order in which a GPU works: copies, kernels and graphs, one after the other in each stream.

use super::{Context, Event, Function, Graph, PinnedBytes, Span};
use crate::error::{CudaError, Result};
use crate::ffi::driver::{CUstream, ERROR_NOT_READY, STREAM_NON_BLOCKING};
use core::ffi::c_void;
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Arc;

/// A queue of work for a GPU.
pub struct Stream {
    pub(crate) context: Arc<Context>,
    pub(crate) raw: CUstream,
}

// SAFETY: the handle is only given to the driver, which may be called from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks, along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, along x, y and z.
    pub block: [u32; 3],
    /// Shared memory of a block, besides what the kernel itself declares.
    pub shared_bytes: u32,
}

/// What a kernel is given, in the order of its parameters; the kinds must be those of the kernel's source.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    Address(u64),
    U64(u64),
    U32(u32),
    I32(i32),
    F32(f32),
    /// A struct by value, as it lies in memory; in words, so that it lies as aligned as any struct may have to.
    Struct(Vec<u64>),
}

impl Stream {
    /// One that does not wait for the default stream.
    pub fn new(context: &Arc<Context>) -> Result<Stream> {
        context.enter()?;
        let mut raw = null_mut();
        // SAFETY: the function writes one handle.
        let code = unsafe { (context.driver.functions.stream_create)(&mut raw, STREAM_NON_BLOCKING) };
        context.driver.check("cuStreamCreate", code)?;
        Ok(Stream { context: Arc::clone(context), raw })
    }

    /// Waits until all is done. An error of a kernel that ran since the last wait is seen here.
    pub fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream lives.
        let code = unsafe { (self.context.driver.functions.stream_synchronize)(self.raw) };
        self.context.driver.check("cuStreamSynchronize", code)
    }

    /// Whether all that was given is done. Does not wait; an error of a kernel is seen here, too.
    pub fn is_done(&self) -> Result<bool> {
        self.context.enter()?;
        // SAFETY: the stream lives.
        match unsafe { (self.context.driver.functions.stream_query)(self.raw) } {
            ERROR_NOT_READY => Ok(false),
            code => self.context.driver.check("cuStreamQuery", code).map(|()| true),
        }
    }

    /// The driver's own handle, for libraries that put work of theirs on a stream. Good for as long as this value lives.
    pub fn handle(&self) -> *mut c_void {
        self.raw
    }

    /// The GPU that it is of.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Puts a mark behind all that was given so far.
    pub fn mark(&self, event: &Event) -> Result<()> {
        self.context.enter()?;
        // SAFETY: event and stream live.
        let code = unsafe { (self.context.driver.functions.event_record)(event.raw, self.raw) };
        self.context.driver.check("cuEventRecord", code)
    }

    /// What is given from now on waits for another stream's mark.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        self.context.enter()?;
        // SAFETY: event and stream live.
        let code = unsafe { (self.context.driver.functions.stream_wait_event)(self.raw, event.raw, 0) };
        self.context.driver.check("cuStreamWaitEvent", code)
    }

    /// Copies to the GPU, and waits for it.
    pub fn copy_in(&self, to: &Span, from: &[u8]) -> Result<()> {
        same("a copy to the GPU", to.bytes(), from.len())?;
        // SAFETY: both sides have that many bytes, and live until the wait below is over.
        unsafe { self.start_copy_in(to.address(), from.as_ptr().cast(), from.len()) }?;
        self.wait()
    }

    /// Copies from the GPU, and waits for it.
    pub fn copy_out(&self, to: &mut [u8], from: &Span) -> Result<()> {
        same("a copy from the GPU", from.bytes(), to.len())?;
        // SAFETY: both sides have that many bytes, and live until the wait below is over.
        unsafe { self.start_copy_out(to.as_mut_ptr().cast(), from.address(), to.len()) }?;
        self.wait()
    }

    /// Copies to the GPU when the stream comes to it, without waiting.
    ///
    /// # Safety
    /// Nobody writes to the range of `from`, nor drops it or the span's arena, before the stream was waited for.
    pub unsafe fn copy_in_later(&self, to: &Span, from: &PinnedBytes, range: Range<usize>) -> Result<()> {
        let room = from.as_slice().len() as u64;
        let (at, found) = (range.start as u64, range.len() as u64);
        let bytes = from.as_slice().get(range);
        let bytes = bytes.ok_or(CudaError::OutOfRange { what: "a range of pinned memory", at, found, room })?;
        same("a copy to the GPU", to.bytes(), bytes.len())?;
        // SAFETY: as many bytes on both sides, which the caller leaves alone until the stream was waited for.
        unsafe { self.start_copy_in(to.address(), bytes.as_ptr().cast(), bytes.len()) }
    }

    /// Copies from the GPU when the stream comes to it, without waiting.
    ///
    /// # Safety
    /// Nobody reads or writes the range of `to`, nor drops it or the span's arena, before the stream was waited for.
    pub unsafe fn copy_out_later(&self, to: &mut PinnedBytes, range: Range<usize>, from: &Span) -> Result<()> {
        let room = to.as_slice().len() as u64;
        let (at, found) = (range.start as u64, range.len() as u64);
        let bytes = to.as_mut_slice().get_mut(range);
        let bytes = bytes.ok_or(CudaError::OutOfRange { what: "a range of pinned memory", at, found, room })?;
        same("a copy from the GPU", from.bytes(), bytes.len())?;
        // SAFETY: as many bytes on both sides, which the caller leaves alone until the stream was waited for.
        unsafe { self.start_copy_out(bytes.as_mut_ptr().cast(), from.address(), bytes.len()) }
    }

    /// Copies within the GPU's memory when the stream comes to it.
    ///
    /// # Safety
    /// The spans do not overlap, and their arenas are not dropped before the stream was waited for.
    pub unsafe fn copy_within(&self, to: &Span, from: &Span) -> Result<()> {
        same("a copy within the GPU", to.bytes(), from.bytes() as usize)?;
        if from.bytes() == 0 {
            return Ok(());
        }
        self.context.enter()?;
        let copy = self.context.driver.functions.copy_within;
        // SAFETY: as many bytes on both sides; the rest is the caller's promise.
        let code = unsafe { copy(to.address(), from.address(), from.bytes() as usize, self.raw) };
        self.context.driver.check("cuMemcpyDtoDAsync", code)
    }

    /// Sets every byte when the stream comes to it.
    ///
    /// # Safety
    /// The span's arena is not dropped before the stream was waited for.
    pub unsafe fn set_bytes(&self, span: &Span, byte: u8) -> Result<()> {
        if span.bytes() == 0 {
            return Ok(());
        }
        self.context.enter()?;
        let set = self.context.driver.functions.set_bytes;
        // SAFETY: the span lies in its arena; the rest is the caller's promise.
        let code = unsafe { set(span.address(), byte, span.bytes() as usize, self.raw) };
        self.context.driver.check("cuMemsetD8Async", code)
    }

    /// # Safety
    /// Both sides have `bytes` bytes and stay until the stream was waited for.
    unsafe fn start_copy_in(&self, to: u64, from: *const c_void, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.context.enter()?;
        // SAFETY: the caller's promise.
        let code = unsafe { (self.context.driver.functions.copy_in)(to, from, bytes, self.raw) };
        self.context.driver.check("cuMemcpyHtoDAsync", code)
    }

    /// # Safety
    /// Both sides have `bytes` bytes and stay until the stream was waited for.
    unsafe fn start_copy_out(&self, to: *mut c_void, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.context.enter()?;
        // SAFETY: the caller's promise.
        let code = unsafe { (self.context.driver.functions.copy_out)(to, from, bytes, self.raw) };
        self.context.driver.check("cuMemcpyDtoHAsync", code)
    }

    /// Runs a kernel when the stream comes to it. A grid without blocks runs nothing.
    ///
    /// # Safety
    /// Number and kinds of the arguments are those of the kernel's parameters; what it reads and writes at its
    /// addresses lies in arenas that are not dropped before the stream was waited for.
    pub unsafe fn launch(&self, function: &Function, shape: LaunchShape, arguments: &[Argument]) -> Result<()> {
        if shape.grid.contains(&0) {
            return Ok(());
        }
        self.context.enter()?;
        let slots: Vec<u64> = arguments.iter().map(|argument| argument.bits()).collect();
        let place = |(argument, slot): (&Argument, &u64)| match argument {
            Argument::Struct(words) => words.as_ptr().cast_mut().cast(),
            _ => std::ptr::from_ref(slot).cast_mut().cast(),
        };
        let mut pointers: Vec<*mut c_void> = arguments.iter().zip(&slots).map(place).collect();
        let LaunchShape { grid: [gx, gy, gz], block: [bx, by, bz], shared_bytes } = shape;
        let launch = self.context.driver.functions.launch;
        let (raw, list) = (function.raw, pointers.as_mut_ptr());
        // SAFETY: each pointer is of at least 8 bytes with the argument in the first; the driver only reads, in the call.
        let code = unsafe { launch(raw, gx, gy, gz, bx, by, bz, shared_bytes, self.raw, list, null_mut()) };
        self.context.driver.check("cuLaunchKernel", code)
    }

    /// Runs a captured graph when the stream comes to it.
    ///
    /// # Safety
    /// What the graph reads and writes lies in arenas and pinned memory that are still there, and are not dropped
    /// before the stream was waited for.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        self.context.enter()?;
        // SAFETY: graph and stream live; the rest is the caller's promise.
        let code = unsafe { (self.context.driver.functions.graph_launch)(graph.raw, self.raw) };
        self.context.driver.check("cuGraphLaunch", code)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.context.leave_nothing();
        // SAFETY: created once, destroyed once; the driver finishes what was given.
        unsafe { (self.context.driver.functions.stream_destroy)(self.raw) };
    }
}

fn same(what: &'static str, there: u64, given: usize) -> Result<()> {
    match there == given as u64 {
        true => Ok(()),
        false => Err(CudaError::OutOfRange { what, at: 0, found: given as u64, room: there }),
    }
}

impl Argument {
    /// Its bytes, the lowest first, as a kernel's parameter lies in memory.
    fn bits(&self) -> u64 {
        let four = |bytes: [u8; 4]| u64::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3], 0, 0, 0, 0]);
        match self {
            Argument::Address(value) | Argument::U64(value) => *value,
            Argument::U32(value) => four(value.to_ne_bytes()),
            Argument::I32(value) => four(value.to_ne_bytes()),
            Argument::F32(value) => four(value.to_ne_bytes()),
            Argument::Struct(_) => 0,
        }
    }
}
