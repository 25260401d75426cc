//! The engine's networks on a GPU.
