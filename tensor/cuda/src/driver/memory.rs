//! Memory of a GPU, in one piece that is planned before, and memory of the host that the GPU can reach by itself.

use super::Context;
use crate::error::{CudaError, Result};
use crate::ffi::driver::CUdeviceptr;
use core::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// One piece of a GPU's memory. A plan says what lies where in it; nothing is allocated while a step runs.
pub struct Arena {
    pub(crate) context: Arc<Context>,
    base: CUdeviceptr,
    bytes: u64,
}

/// A part of an arena, which it keeps.
#[derive(Clone)]
pub struct Span {
    arena: Arc<Arena>,
    at: u64,
    bytes: u64,
}

impl Arena {
    /// Takes so many bytes, whose contents are anything. None are an arena, too.
    pub fn new(context: &Arc<Context>, bytes: u64) -> Result<Arc<Arena>> {
        context.enter()?;
        let mut base = 0;
        if bytes > 0 {
            let size = usize::try_from(bytes).expect("a pointer has 64 bits");
            // SAFETY: the function writes one address.
            let code = unsafe { (context.driver.functions.memory_alloc)(&mut base, size) };
            context.driver.check("cuMemAlloc", code)?;
        }
        Ok(Arc::new(Arena { context: Arc::clone(context), base, bytes }))
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The part from `at` on.
    pub fn span(self: &Arc<Arena>, at: u64, bytes: u64) -> Result<Span> {
        let fits = at.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if !fits {
            return Err(CudaError::OutOfRange { what: "a span of an arena", at, found: bytes, room: self.bytes });
        }
        Ok(Span { arena: Arc::clone(self), at, bytes })
    }

    pub fn whole(self: &Arc<Arena>) -> Span {
        Span { arena: Arc::clone(self), at: 0, bytes: self.bytes }
    }
}

impl Span {
    /// Where it begins in the GPU's memory: what a kernel takes as a pointer.
    pub fn address(&self) -> u64 {
        self.arena.base + self.at
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A part of it, from `at` on.
    pub fn part(&self, at: u64, bytes: u64) -> Result<Span> {
        let fits = at.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if !fits {
            return Err(CudaError::OutOfRange { what: "a part of a span", at, found: bytes, room: self.bytes });
        }
        Ok(Span { arena: Arc::clone(&self.arena), at: self.at + at, bytes })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.context.leave_nothing();
            // SAFETY: allocated once in `new`, freed once here; the driver waits for work that still uses it.
            unsafe { (self.context.driver.functions.memory_free)(self.base) };
        }
    }
}

/// Memory of the host that stays where it is, so that the GPU copies from and to it while the processor goes on.
pub struct PinnedBytes {
    context: Arc<Context>,
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory with one owner; the context may be used from any thread.
unsafe impl Send for PinnedBytes {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for PinnedBytes {}

impl PinnedBytes {
    /// Takes so many bytes, all 0.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<PinnedBytes> {
        context.enter()?;
        let mut raw = null_mut();
        if bytes > 0 {
            // SAFETY: the function writes one pointer; 0 asks for nothing special.
            let code = unsafe { (context.driver.functions.host_alloc)(&mut raw, bytes, 0) };
            context.driver.check("cuMemHostAlloc", code)?;
        }
        let base = NonNull::new(raw.cast::<u8>()).unwrap_or(NonNull::dangling());
        // SAFETY: `bytes` bytes are ours from `base` on; of none, nothing is written.
        unsafe { base.as_ptr().write_bytes(0, bytes) };
        Ok(PinnedBytes { context: Arc::clone(context), base, bytes })
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `bytes` bytes from `base` on, written in `new`, ours for as long as this value lives.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.bytes) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedBytes {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.context.leave_nothing();
            // SAFETY: allocated once in `new`, freed once here.
            unsafe { (self.context.driver.functions.host_free)(self.base.as_ptr().cast::<c_void>()) };
        }
    }
}
