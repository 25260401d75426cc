//! `struct Call` of `device.cuh`: what changes from call to call besides the tensors, in the GPU's memory so that a captured
//! graph reads it anew each time.

pub const BYTES: usize = 24;

pub fn bytes(seed: u64, step: u64, scale: f32, label_smoothing: f32) -> [u8; BYTES] {
    let mut out = [0; BYTES];
    out[..8].copy_from_slice(&seed.to_ne_bytes());
    out[8..16].copy_from_slice(&step.to_ne_bytes());
    out[16..20].copy_from_slice(&scale.to_ne_bytes());
    out[20..].copy_from_slice(&label_smoothing.to_ne_bytes());
    out
}
