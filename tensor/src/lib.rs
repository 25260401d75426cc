//! The tensor engine: models as traced graphs, their gradients, and exact arithmetic on CPU threads.
//!
//! A [`nn::Module`] is traced into a [`graph`], [`autograd`] adds the backward pass, [`plan`] decides what runs
//! where, and [`exec`] runs it. [`Network`] is what the rest of the product sees: leaves of shards, and
//! [`optim`] for what follows their sum. Bits depend on the arguments alone: not on threads, nor on
//! the instruction set, nor on how many rows are computed together. Files, processes and the sum
//! over shards belong to others.

pub mod autograd;
pub mod backend;
pub mod bf16;
pub mod cost;
mod decode;
pub mod eager;
pub mod ema;
pub mod exec;
pub mod float_mode;
mod freeze;
mod fuse;
pub mod gemm;
pub mod graph;
mod groups;
pub mod half;
pub mod init;
pub mod leaves;
mod math;
pub mod memory;
pub mod mixed;
mod network;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod passes;
pub mod peak;
pub mod philox;
pub mod plan;
pub mod predict;
mod probe;
pub mod real;
mod recompute;
mod simd;
pub mod team;
mod tensor;
pub mod tile;
mod units;

pub use decode::{Asked, Decode, DecodeMemory, DecodeSize, Decoding, Piece, compile_decode};
pub use freeze::freeze;
pub use graph::ShapeError;
pub use groups::{GroupRates, set_groups};
pub use init::{Init, init_from_safetensors};
pub use network::{
    DeviceMemory, Held, LeafKey, Network, ParamInfo, RunningPair, StateLayout, compile, compile_in,
    compile_on_processor,
};
pub use optim::{Update, UpdateReport, apply, apply_on, learning_rate, moments_of};
pub use predict::{Forward, ForwardPlans, Rows, compile_forward};
pub use probe::{probe, probe_by};
pub use tensor::{Result, Tensor};
