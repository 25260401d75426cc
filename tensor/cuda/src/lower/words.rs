//! Structs that kernels are given by value, written field by field as C lays them out.

use super::Given;

/// A struct of fields of four and eight bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Words {
    /// Fours of bytes: the machine's order, which is the GPU's.
    halves: Vec<u32>,
}

impl Words {
    pub fn u32(&mut self, value: u32) -> &mut Words {
        self.halves.push(value);
        self
    }

    pub fn i32(&mut self, value: i32) -> &mut Words {
        self.u32(value.cast_unsigned())
    }

    pub fn f32(&mut self, value: f32) -> &mut Words {
        self.u32(value.to_bits())
    }

    pub fn f64(&mut self, value: f64) -> &mut Words {
        self.align();
        let bits = value.to_bits();
        self.u32(bits as u32).u32((bits >> 32) as u32)
    }

    /// To where a field of eight bytes may begin.
    pub fn align(&mut self) -> &mut Words {
        self.halves.resize(self.halves.len().next_multiple_of(2), 0);
        self
    }
}

impl From<Words> for Given {
    fn from(mut words: Words) -> Given {
        let pairs = words.align().halves.as_chunks().0.iter();
        Given::Struct(pairs.map(|[low, high]| u64::from(*high) << 32 | u64::from(*low)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_eight_bytes_begin_at_multiples_of_eight() {
        let mut words = Words::default();
        words.u32(1).f64(1.0).i32(-1).f32(2.0).u32(3);
        let wanted = [1, 1.0f64.to_bits(), u64::from(2.0f32.to_bits()) << 32 | 0xffff_ffff, 3];
        assert_eq!(Given::from(words), Given::Struct(wanted.to_vec()));
    }
}
