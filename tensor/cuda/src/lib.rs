//! The engine on NVIDIA GPUs: finds CUDA's libraries at run time, compiles its own kernels, drives the device.
//!
//! Nothing of CUDA is needed to build or to start: what a machine lacks is an error value that names the cure.
//! The networks and their plans are `elastic_tensor`'s; this crate runs them elsewhere. What of it has run on
//! a GPU, and what has not: `docs/gpu.md`.
//!
//! | part | is |
//! |---|---|
//! | [`libs`] | where CUDA's libraries lie, which are taken, what is missing |
//! | [`device`], [`arch`] | the GPUs that there are, and which code runs on which |
//! | [`kernels`], [`nvrtc`], [`cache`] | from CUDA source to machine code that is kept |
//! | [`driver`] | memory, streams, launches, graphs |
//! | [`lower`], [`program`] | from a plan's steps to launches of kernels |
//! | [`gpu`], [`network`] | the engine's networks, run on a GPU |
//! | [`forward`] | the forward pass alone, for a server |
//! | [`optim`] | the optimizer's step on vectors in the GPU's memory |
//! | [`fold`] | sums along the tree of what lies in the GPU's memory |
//! | [`resident`] | a job's whole step on a GPU, by one process alone |
//! | [`selftest`] | what is to be run where there is a GPU |
//! | [`usable`] | whether this machine can compute on a GPU, in one line |

pub mod arch;
pub mod cache;
pub mod call;
pub mod device;
pub mod driver;
mod error;
pub mod ffi;
pub mod fold;
pub mod forward;
pub mod gpu;
pub mod kernels;
pub mod libs;
pub mod loaded;
pub mod lower;
pub mod network;
pub mod nvrtc;
pub mod optim;
mod plain;
pub mod program;
pub mod resident;
pub mod selftest;
mod usable;

pub use error::{CudaError, Result, version};
pub use usable::{usable, usable_of};
