//! Initial values of the state: random by tensor name, or from a safetensors file.
//!
//! A tensor's numbers come from the Philox stream of (seed, its name) and are counted by element, so they
//! depend neither on the order of tensors nor on the machine.

use crate::network::{ParamInfo, StateLayout};
use crate::philox::{Stream, unit};
use safetensors::{Dtype, SafeTensors};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Constant(f32),
    /// Uniform in -bound up to bound.
    Uniform {
        bound: f64,
    },
    Normal {
        std: f64,
    },
}

impl Init {
    /// Fills a tensor of this name.
    pub fn fill(self, seed: u64, name: &str, out: &mut [f32]) {
        let stream = Stream::new(seed, name);
        match self {
            Init::Constant(value) => out.fill(value),
            Init::Uniform { bound } => {
                for (i, four) in (0u64..).zip(out.chunks_mut(4)) {
                    for (x, word) in four.iter_mut().zip(stream.words(counter(i))) {
                        *x = ((2.0 * unit(word) as f64 - 1.0) * bound) as f32;
                    }
                }
            }
            Init::Normal { std } => {
                for (i, four) in (0u64..).zip(out.chunks_mut(4)) {
                    let w = stream.words(counter(i));
                    let normal = [box_muller(w[0], w[1]), box_muller(w[2], w[3])];
                    for (x, z) in four.iter_mut().zip(normal.as_flattened()) {
                        *x = (z * std) as f32;
                    }
                }
            }
        }
    }
}

fn counter(i: u64) -> [u32; 4] {
    [i as u32, (i >> 32) as u32, 0, 0]
}

/// Two independent standard normals from two words; 32-bit radii reach 6.6 standard deviations.
fn box_muller(a: u32, b: u32) -> [f64; 2] {
    let radius = libm::sqrt(-2.0 * libm::log((a as f64 + 0.5) / 4_294_967_296.0));
    let angle = 2.0 * std::f64::consts::PI * (b as f64 / 4_294_967_296.0);
    [radius * libm::cos(angle), radius * libm::sin(angle)]
}

/// Replaces all parameters by a file's tensors of the same names. Buffers are replaced where the file has
/// them. Every mismatch is reported at once.
pub fn init_from_safetensors(layout: &StateLayout, bytes: &[u8], state: &mut [f32]) -> Result<(), String> {
    assert_eq!(state.len(), layout.floats(), "the state has the layout's length");
    let file = SafeTensors::deserialize(bytes).map_err(|e| format!("read safetensors: {e}"))?;
    let known = || layout.params.iter().chain(&layout.buffers);
    let mut wrong: Vec<String> = Vec::new();
    for name in file.names() {
        if !known().any(|info| info.name == name) {
            wrong.push(format!("tensor `{name}` is not of this model"));
        }
    }
    for info in known() {
        if file.tensor(&info.name).is_err() && layout.buffers.contains(info) {
            continue;
        }
        if let Err(why) = load(&file, info, &mut state[info.offset..info.offset + info.len]) {
            wrong.push(why);
        }
    }
    wrong.sort();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

fn load(file: &SafeTensors<'_>, info: &ParamInfo, out: &mut [f32]) -> Result<(), String> {
    let name = &info.name;
    let tensor = file.tensor(name).map_err(|_| format!("tensor `{name}` {:?} is missing in the file", info.shape))?;
    if tensor.shape() != info.shape {
        return Err(format!("tensor `{name}` is {:?} in the file, but {:?} in the model", tensor.shape(), info.shape));
    }
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => fill(out, data, |b: [u8; 4]| f32::from_le_bytes(b)),
        Dtype::F64 => fill(out, data, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
        Dtype::BF16 => fill(out, data, |b: [u8; 2]| f32::from_bits((u16::from_le_bytes(b) as u32) << 16)),
        other => return Err(format!("tensor `{name}` is of type {other:?}; convert it to F32, F64 or BF16")),
    }
    Ok(())
}

fn fill<const N: usize>(out: &mut [f32], data: &[u8], read: impl Fn([u8; N]) -> f32) {
    for (x, bytes) in out.iter_mut().zip(data.as_chunks::<N>().0) {
        *x = read(*bytes);
    }
}
