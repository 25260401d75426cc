//! The processor's floating-point mode: results are rounded to nearest and denormal numbers are numbers.
//!
//! A library may have told the thread otherwise (one built with -ffast-math does when it is loaded, and threads
//! inherit it), and the same step would then have other bits there. What computes in a job holds an [`Ieee`] while it
//! does. On x86-64 that is the MXCSR register; elsewhere threads start in this mode, and nothing is done.

/// While this lives, the thread computes in the mode of IEEE 754; then the caller's mode is back.
#[derive(Debug)]
pub struct Ieee {
    before: u32,
}

/// Nearest, no flushing, exceptions masked: what a process starts with. The lowest six bits only tell what happened.
const DEFAULT: u32 = 0x1f80;
const HAPPENED: u32 = 0x3f;

impl Ieee {
    /// Costs about a nanosecond where the mode is right already, as it nearly always is.
    pub fn enter() -> Ieee {
        let before = read() & !HAPPENED;
        if before != DEFAULT {
            write(DEFAULT);
        }
        Ieee { before }
    }

    /// For a thread that is one's own: it keeps the mode to its end, and threads that it starts inherit it.
    pub fn stay() {
        if read() & !HAPPENED != DEFAULT {
            write(DEFAULT);
        }
    }
}

impl Drop for Ieee {
    fn drop(&mut self) {
        if self.before != DEFAULT {
            write(self.before);
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn read() -> u32 {
    let mut mode = 0u32;
    // SAFETY: every x86-64 processor has the register; it is written to four bytes of this frame.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut mode, options(nostack, preserves_flags)) };
    mode
}

#[cfg(target_arch = "x86_64")]
fn write(mode: u32) {
    // SAFETY: the mode is the default, or one that was read from this thread, so no reserved bit is set; compiled code
    // expects the default. Not `nomem`: no computation may be moved over it.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &mode, options(nostack, preserves_flags)) };
}

#[cfg(not(target_arch = "x86_64"))]
fn read() -> u32 {
    DEFAULT
}

#[cfg(not(target_arch = "x86_64"))]
fn write(_: u32) {}
