//! The engine on NVIDIA GPUs: finds CUDA's libraries at run time, compiles its own kernels, drives the device.
//!
//! Nothing of CUDA is needed to build or to start: what a machine lacks is an error value that names the cure.
//! The networks and their plans are `elastic_tensor`'s; this crate runs them elsewhere.
