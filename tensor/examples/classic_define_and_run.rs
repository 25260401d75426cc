//! The net of `classic_two_layers`, traced once into a graph with gradients and update, which then runs 500 times.
//!
//! It has the losses of define-by-run to the last bit, and allocates nothing while it runs.
//! `cargo run --release -p elastic-tensor --example classic_define_and_run`

#[path = "classic_two_layers.rs"]
#[allow(dead_code, reason = "only its sizes and numbers are used here")]
pub mod by_run;

use by_run::{RATE, SIZES};
use elastic_tensor::eager::{Captured, DType, Device, Result, gradient_name, trace};

/// One step on a device: from x, y and the weights to the loss and the gradients.
fn gradients(device: Device) -> Result<Captured> {
    let [n, d_in, h, d_out] = SIZES;
    let f32s = DType::F32;
    let inputs =
        [("x", f32s, &[n, d_in][..]), ("y", f32s, &[n, d_out]), ("w1", f32s, &[d_in, h]), ("w2", f32s, &[h, d_out])];
    let traced = trace(device, &inputs, |given| {
        let [x, y, w1, w2] = given else { unreachable!("as many as were named") };
        let off = x.matmul(w1)?.relu()?.matmul(w2)?.sub(y)?;
        Ok(vec![("loss", off.mul(&off)?.sum_all()?)])
    })?;
    traced
        .with_gradients("loss", &["w1", "w2"])?
        .update(|given, made| {
            let next = |w: &str| given(w)?.sub(&made(&gradient_name("loss", w))?.mul_scalar(RATE)?);
            Ok(vec![("next w1", next("w1")?), ("next w2", next("w2")?)])
        })?
        .compile(2)
}

/// The loss of each step.
pub fn train(device: Device, steps: usize) -> Result<Vec<f32>> {
    let mut step = gradients(device)?;
    for (name, tensor) in ["x", "y", "w1", "w2"].iter().zip(&by_run::start()) {
        step.set(name, tensor)?;
    }
    let mut losses = Vec::new();
    for _ in 0..steps {
        step.run();
        step.carry("next w1", "w1")?;
        step.carry("next w2", "w2")?;
        losses.push(step.get("loss")?.item()? as f32);
    }
    Ok(losses)
}

#[allow(dead_code, reason = "a test includes this file and calls what is above")]
fn main() -> Result<()> {
    let losses = train(Device::Cpu, 500)?;
    losses.iter().enumerate().step_by(100).for_each(|(step, loss)| println!("{step}: {loss}"));
    println!("at the end: {}", losses[losses.len() - 1]);
    Ok(())
}
