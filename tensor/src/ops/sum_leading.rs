//! Sum over all axes but the last `keep`: bias gradients. Each column adds its rows in ascending order.

use super::*;

#[derive(Clone, Debug)]
pub struct SumLeading {
    pub keep: usize,
}

impl Rule for SumLeading {
    const NAME: &'static str = "sum over leading axes";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let lead = x[0].shape.len().checked_sub(self.keep);
        let lead = lead.ok_or_else(|| format!("{} has fewer than the {} axes to keep", x[0], self.keep))?;
        Ok(vec![Type::float(&x[0].shape[lead..])])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        y.fill(F::ZERO);
        for row in io.x[0].chunks_exact(y.len().max(1)) {
            for (y, x) in y.iter_mut().zip(row) {
                *y += *x;
            }
        }
    }
}
