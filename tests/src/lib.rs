//! What the tests of the whole share. The simulator and the scenarios are targets of their own.

pub mod proxy;
pub mod skip;
