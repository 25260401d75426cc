//! A net of two layers, trained by define-by-run: relu(x w1) w2, squared distance to y, and an update written by hand.
//!
//! `cargo run --release -p elastic-tensor --example classic_two_layers`

use elastic_tensor::eager::{Result, Tensor, no_grad};

/// Samples, inputs, hidden units, outputs.
pub const SIZES: [usize; 4] = [64, 1000, 100, 10];
pub const RATE: f64 = 1e-6;

/// x, y, and the weights of both layers at the start.
pub fn start() -> [Tensor; 4] {
    let [n, d_in, h, d_out] = SIZES;
    let random = |name, shape: [usize; 2]| Tensor::randn(0, name, &shape);
    [random("x", [n, d_in]), random("y", [n, d_out]), random("w1", [d_in, h]), random("w2", [h, d_out])]
}

/// The loss of each step.
pub fn train(steps: usize) -> Result<Vec<f32>> {
    let [x, y, w1, w2] = start();
    let (w1, w2) = (w1.requires_grad()?, w2.requires_grad()?);
    let mut losses = Vec::new();
    for _ in 0..steps {
        let off = x.matmul(&w1)?.relu()?.matmul(&w2)?.sub(&y)?;
        let loss = off.mul(&off)?.sum_all()?;
        loss.backward()?;
        for w in [&w1, &w2] {
            let step = w.grad().expect("a leaf of the loss").mul_scalar(RATE)?;
            no_grad(|| w.sub_(&step))?;
            w.zero_grad();
        }
        losses.push(loss.item()? as f32);
    }
    Ok(losses)
}

#[allow(dead_code, reason = "a test includes this file and calls what is above")]
fn main() -> Result<()> {
    let losses = train(500)?;
    losses.iter().enumerate().step_by(100).for_each(|(step, loss)| println!("{step}: {loss}"));
    println!("at the end: {}", losses[losses.len() - 1]);
    Ok(())
}
