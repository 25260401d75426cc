//! The two 16-bit float formats: bf16 (f32's upper half) and f16 (IEEE 754 binary16). Storage only: numbers are
//! computed with as f32, which holds every one of them, and rounded to nearest, ties to even, on the way back.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Bf16,
    F16,
}

impl Half {
    pub fn to_f32(self, bits: u16) -> f32 {
        match self {
            Half::Bf16 => f32::from_bits((bits as u32) << 16),
            Half::F16 => f16_to_f32(bits),
        }
    }

    /// Nearest, ties to even. A NaN stays one; what is too large becomes infinite.
    pub fn of_f32(self, x: f32) -> u16 {
        match self {
            Half::Bf16 => bf16_of(x),
            Half::F16 => f16_of(x),
        }
    }

    /// Rounded once: f32 in between keeps in its last place whether anything was lost.
    pub fn of_f64(self, x: f64) -> u16 {
        let near = x as f32;
        if near as f64 == x || x.is_nan() {
            return self.of_f32(near);
        }
        let inwards = near.to_bits() - ((near as f64).abs() > x.abs()) as u32;
        self.of_f32(f32::from_bits(inwards | 1))
    }

    pub fn round(self, x: f32) -> f32 {
        self.to_f32(self.of_f32(x))
    }
}

fn bf16_of(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    // Half of the last kept place, or a hair less where that place is even: the carry then rounds.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn f16_to_f32(bits: u16) -> f32 {
    let (sign, exponent, mantissa) = ((bits as u32 & 0x8000) << 16, bits as u32 >> 10 & 0x1f, bits as u32 & 0x3ff);
    let magnitude = match exponent {
        // Denormal: mantissa · 2^-24, which f32 holds exactly.
        0 => return f32::from_bits(sign | (mantissa as f32 / 16_777_216.0).to_bits()),
        31 => 0x7f80_0000 | mantissa << 13,
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

fn f16_of(x: f32) -> u16 {
    let (sign, magnitude) = ((x.to_bits() >> 16 & 0x8000) as u16, x.to_bits() & 0x7fff_ffff);
    if x.is_nan() {
        return sign | 0x7e00 | (magnitude >> 13 & 0x3ff) as u16;
    }
    let rounded = match magnitude {
        // From 65520 on the nearest is 2^16, which the format does not have.
        0x477f_f000.. => 0x7c00,
        // Under 2^-14 the last place is 2^-24: adding 0.5 leaves that many places in f32's mantissa, rounded.
        0..0x3880_0000 => (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits(),
        _ => (magnitude - (112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13,
    };
    sign | rounded as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_16_bit_number_comes_back() {
        for half in [Half::Bf16, Half::F16] {
            for bits in 0..=u16::MAX {
                let x = half.to_f32(bits);
                let back = half.of_f32(x);
                let is_nan = x.is_nan() && half.to_f32(back).is_nan();
                assert!(is_nan || back == bits, "{half:?} {bits:04x} is {x}, and comes back as {back:04x}");
            }
        }
    }

    #[test]
    fn what_lies_between_two_numbers_goes_to_the_nearer_and_a_tie_to_the_even_one() {
        for half in [Half::Bf16, Half::F16] {
            // All positive finite neighbours.
            let infinity = half.of_f32(f32::INFINITY);
            for bits in 0..infinity - 1 {
                let (low, high) = (half.to_f32(bits), half.to_f32(bits + 1));
                let middle = ((low as f64 + high as f64) / 2.0) as f32;
                let even = if bits % 2 == 0 { bits } else { bits + 1 };
                // Denormal bf16 numbers have middles that f32 holds too.
                assert_eq!(half.of_f32(middle), even, "{half:?} between {low} and {high}");
                assert_eq!(half.of_f32(-middle), even | 0x8000);
                assert_eq!(half.of_f32(f32::from_bits(middle.to_bits() + 1)), bits + 1);
                assert_eq!(half.of_f32(f32::from_bits(middle.to_bits() - 1)), bits);
            }
        }
        assert_eq!((Half::F16.round(65519.9), Half::F16.round(65520.0)), (65504.0, f32::INFINITY));
        assert_eq!(Half::Bf16.round(f32::MAX), f32::INFINITY);
    }
}
