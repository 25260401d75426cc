//! Initial values of the state: random by tensor name, or from safetensors files.
//!
//! A tensor's numbers come from the Philox stream of (seed, its name) and are counted by element, so they
//! depend neither on the order of tensors nor on the machine.

use crate::network::StateLayout;
use crate::philox::{Stream, unit};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeSet;

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
    let mut intake = Intake::new(layout, vec![false; layout.params.len()], state);
    intake.file(bytes, |name| Some((name.to_string(), Axes::AsStored)))?;
    intake.finish()
}

/// The order of a matrix's axes in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axes {
    AsStored,
    /// (in, out) in the file, (out, in) in the model.
    Swapped,
}

/// A state that is being filled from files, whose names may differ from the model's.
pub struct Intake<'a> {
    layout: &'a StateLayout,
    state: &'a mut [f32],
    /// Parameters that keep what they have.
    except: Vec<bool>,
    filled: BTreeSet<&'a str>,
    wrong: Vec<String>,
}

/// Mistakes that are told; the rest is counted.
const WRONG_SHOWN: usize = 24;

impl<'a> Intake<'a> {
    /// `except` has a flag for each parameter of the layout.
    pub fn new(layout: &'a StateLayout, except: Vec<bool>, state: &'a mut [f32]) -> Intake<'a> {
        assert_eq!(state.len(), layout.floats(), "the state has the layout's length");
        assert_eq!(except.len(), layout.params.len(), "a flag for each parameter");
        Intake { layout, state, except, filled: BTreeSet::new(), wrong: Vec::new() }
    }

    /// Takes a safetensors file's tensors. `meant` gives a tensor's name in the model; `None`: it is not needed.
    pub fn file(&mut self, bytes: &[u8], meant: impl Fn(&str) -> Option<(String, Axes)>) -> Result<(), String> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| format!("read safetensors: {e}"))?;
        for (name, tensor) in file.iter() {
            let Some((ours, axes)) = meant(name) else { continue };
            if let Err(why) = self.take(&ours, &tensor, axes) {
                self.wrong.push(format!("tensor `{name}` {why}"));
            }
        }
        Ok(())
    }

    fn take(&mut self, name: &str, tensor: &TensorView<'_>, axes: Axes) -> Result<(), String> {
        let layout = self.layout;
        let params = layout.params.iter().zip(self.except.iter().copied());
        let mut known = params.chain(layout.buffers.iter().map(|info| (info, false)));
        let Some((info, except)) = known.find(|(info, _)| info.name == name) else {
            return Err("is not of this model; take it out of the file, or change the model to have it".into());
        };
        if except {
            return Ok(());
        }
        if !self.filled.insert(&info.name) {
            return Err("is there twice".into());
        }
        let mut shape = tensor.shape().to_vec();
        if axes == Axes::Swapped {
            shape.reverse();
        }
        if shape != info.shape {
            return Err(shapes_differ(&info.shape, tensor.shape(), axes));
        }
        let out = &mut self.state[info.offset..info.offset + info.len];
        match axes {
            Axes::AsStored => convert(tensor, out),
            Axes::Swapped => {
                let mut stored = vec![0.0; info.len];
                convert(tensor, &mut stored)?;
                transpose(&stored, tensor.shape(), out);
                Ok(())
            }
        }
    }

    /// Adds a mistake that somebody else found in the files.
    pub fn note(&mut self, wrong: String) {
        self.wrong.push(wrong);
    }

    /// The numbers of a parameter, if a file had it.
    pub fn filled(&self, name: &str) -> Option<&[f32]> {
        let info = self.layout.params.iter().find(|info| info.name == name)?;
        self.filled.contains(name).then(|| &self.state[info.offset..info.offset + info.len])
    }

    /// Whether every parameter was there, and nothing wrong with any; all that is not, with what to do about it.
    pub fn finish(mut self) -> Result<(), String> {
        for (info, except) in self.layout.params.iter().zip(&self.except) {
            if !except && !self.filled.contains(info.name.as_str()) {
                let (name, shape) = (&info.name, &info.shape);
                self.wrong.push(format!(
                    "tensor `{name}` {shape:?} is missing; take a file that has it, or name it in model.init_except"
                ));
            }
        }
        self.wrong.sort();
        let rest = self.wrong.len().saturating_sub(WRONG_SHOWN);
        self.wrong.truncate(WRONG_SHOWN);
        if rest > 0 {
            self.wrong.push(format!("and {rest} more"));
        }
        if self.wrong.is_empty() { Ok(()) } else { Err(self.wrong.join("; ")) }
    }
}

fn shapes_differ(wanted: &[usize], stored: &[usize], axes: Axes) -> String {
    let is_turned = axes == Axes::AsStored && stored.len() == 2 && stored.iter().rev().eq(wanted);
    let cure = match is_turned {
        true => "transpose it, or, if it is a GPT-2 of Hugging Face, name the folder that holds config.json",
        false => "change the model to fit, or name it in model.init_except to begin it at random",
    };
    let there = match axes {
        Axes::Swapped => format!(" (in, out), but {wanted:?} (out, in)"),
        Axes::AsStored => format!(", but {wanted:?}"),
    };
    format!("is {stored:?} in the file{there} in the model; {cure}")
}

/// x: (rows, cols) as it is stored; out: (cols, rows).
fn transpose(x: &[f32], shape: &[usize], out: &mut [f32]) {
    let (rows, cols) = (shape[0], shape[1]);
    for (row, x) in x.chunks_exact(cols.max(1)).enumerate() {
        x.iter().enumerate().for_each(|(col, x)| out[col * rows + row] = *x);
    }
}

/// A tensor's numbers as f32: exact but for f64, which is rounded.
pub fn floats(tensor: &TensorView<'_>) -> Result<Vec<f32>, String> {
    let mut out = vec![0.0; tensor.shape().iter().product()];
    convert(tensor, &mut out)?;
    Ok(out)
}

fn convert(tensor: &TensorView<'_>, out: &mut [f32]) -> Result<(), String> {
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => fill(out, data, |b: [u8; 4]| f32::from_le_bytes(b)),
        Dtype::F64 => fill(out, data, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
        Dtype::BF16 => fill(out, data, |b: [u8; 2]| f32::from_bits((u16::from_le_bytes(b) as u32) << 16)),
        Dtype::F16 => fill(out, data, |b: [u8; 2]| half(u16::from_le_bytes(b))),
        other => return Err(format!("is of type {other:?}; convert it to F32, F64, F16 or BF16")),
    }
    Ok(())
}

fn fill<const N: usize>(out: &mut [f32], data: &[u8], read: impl Fn([u8; N]) -> f32) {
    for (x, bytes) in out.iter_mut().zip(data.as_chunks::<N>().0) {
        *x = read(*bytes);
    }
}

/// IEEE 754 binary16: sign, 5 bits of exponent, 10 of fraction. Every value is a f32; a NaN keeps its payload.
fn half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = ((bits as u32 & 0x8000) << 16, bits as u32 >> 10 & 0x1f, bits as u32 & 0x3ff);
    match exponent {
        // A multiple of 2^-24, both subnormals and zero.
        0 => f32::from_bits((fraction as f32 / 16_777_216.0).to_bits() | sign),
        0x1f => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::half;

    #[test]
    fn every_half_is_the_number_that_its_bits_say() {
        for bits in 0..=u16::MAX {
            let (exponent, fraction) = (bits >> 10 & 0x1f, bits & 0x3ff);
            let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
            let wanted = match exponent {
                0 => sign * f64::from(fraction) * libm::exp2(-24.0),
                0x1f if fraction == 0 => sign * f64::INFINITY,
                0x1f => f64::NAN,
                _ => sign * (1.0 + f64::from(fraction) / 1024.0) * libm::exp2(f64::from(exponent) - 15.0),
            };
            let got = f64::from(half(bits));
            let same = got == wanted && got.is_sign_negative() == wanted.is_sign_negative();
            assert!(same || (got.is_nan() && wanted.is_nan()), "{bits:04x}: {got} instead of {wanted}");
        }
    }
}
