//! The gradient that a leaf starts from: each loss weighs the call's `scale`.

use super::*;

#[derive(Clone, Debug)]
pub struct Seed {
    pub shape: Vec<usize>,
}

impl Rule for Seed {
    const NAME: &'static str = "seed";

    fn infer(&self, _: &[&Type]) -> Result<Vec<Type>, String> {
        Ok(vec![Type::float(&self.shape)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        y.fill(F::of(io.key.scale as f64));
    }
}
