//! What the tests of the whole share. The simulator and the scenarios are targets of their own.

pub mod faulty_http;
pub mod proxy;
pub mod s3_server;
pub mod skip;
