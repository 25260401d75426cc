//! The product as people use it: real processes, real signals, a real etcd. Every test ends by comparing
//! weights, optimizer state, validation and the event log with a run that nothing disturbed.

mod averages;
mod buckets;
mod cluster;
mod commands;
mod coordinator_loss;
mod deploy;
mod devices;
mod disks;
mod exports;
mod faults;
mod generate;
mod gpu_bundle;
mod gpus;
mod groups;
mod inputs;
mod last_step;
mod membership;
mod mirrors;
mod netns;
mod not_finite;
mod pipeline;
mod pipeline_inputs;
mod pipeline_nodes;
mod pipelines;
mod portable;
mod preemption;
mod readme;
mod resume;
mod security;
mod serving;
mod starts;
mod torch;
mod tutorials;
mod watching;
mod world_sizes;
