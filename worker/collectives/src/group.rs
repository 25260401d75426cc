//! Group.
