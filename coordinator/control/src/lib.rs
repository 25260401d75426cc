//! Every decision of the cluster as one state machine: `(now, event) -> effects`.
//!
//! Jobs, nodes, placement, suspicion, views, shard maps, restarts, ends: all are decided here, and
//! nothing is done here. The driver in `elastic-coordinator` owns the clock, the store and the links;
//! it commits `Effects::persist` under the leader's term before it may act on anything else.
//! Facts come in whole (`NodeReport`), wanted state goes out whole (`NodeWant`), so lost, repeated and
//! reordered messages need no case of their own.
//!
//! Views are not records. A new leader adopts the highest view that workers report and goes on from it.

mod event;
pub mod machine;
mod note;

mod budget;
mod disks;
mod faults;
mod generations;
mod inputs;
mod leave;
mod members;
mod observe;
mod placement;
mod record;
mod requests;
pub mod shard_map;
mod status;
mod suspicion;
mod timers;
mod tokens;
mod views;

mod job;
mod node;
mod slot;
mod time;

pub use event::{Config, Effects, Event, Record, Refusal, Reply, RequestId};
pub use machine::Machine;
pub use note::{Cause, Level, Note, ViewNote};
pub use time::Millis;
pub use timers::Timer;
