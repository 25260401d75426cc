//! The engine as its users see it, in one program: what is generic in it is compiled once for all of these.

mod bits;
mod classic;
mod common;
mod files;
mod golden;
mod gradients;
mod gradients_eager;
mod names;
mod numpy;
mod pooled;
mod tape;
mod traps;
mod traps_bf16;
mod traps_dropout;
mod traps_flush;
mod traps_optim;
mod traps_ulps;
