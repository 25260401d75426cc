//! A wait for a stream with a bound, and what becomes of memory that a stream does not let go.

use crate::error::{NcclError, Result};
use elastic_cuda::driver::{Span, Stream};
use std::mem::ManuallyDrop;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks. Most waits are over at the first: what is left on the stream takes less than a ms.
const PAUSE: Duration = Duration::from_micros(100);

pub(crate) fn is_done_within(stream: &Stream, patience: Duration) -> Result<()> {
    let started = Instant::now();
    while !stream.is_done()? {
        let waited = started.elapsed();
        if waited >= patience {
            return Err(NcclError::Hung { waited_ms: waited.as_millis() });
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Keeps memory until the process ends, which it must: the GPU may still write to it, and freeing it would wait for that.
pub(crate) fn leak<'a>(memories: impl IntoIterator<Item = &'a Span>) {
    for memory in memories {
        let _kept = ManuallyDrop::new(memory.clone());
    }
}
