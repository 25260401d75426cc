//! A seeded world for the whole cluster: one thread, virtual time, a network that loses, doubles, delays and
//! reorders, processes that die, stop and come back, leaders that change, disks that forget.
//!
//! The control machine and the member machine in it are the product's own. Agents, links, trainers and the
//! disk are small models. Safety is checked at every commit (the state's hash equals that of a run
//! that nothing disturbed), liveness after the faults have stopped (the job ends, with a checkpoint).

mod agent;
pub mod chance;
mod faults;
mod leader;
mod mutant;
mod oracle;
mod process;
pub mod trainer;
pub mod world;

pub use faults::Fault;
pub use mutant::Mutant;
pub use world::{Counts, Outcome, World};
