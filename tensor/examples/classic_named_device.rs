//! The net of `classic_define_and_run` on a device that is named on the command line: `cpu` (the default) or `cuda:0`.
//!
//! `cargo run --release -p elastic-tensor --example classic_named_device -- cpu`

#[path = "classic_define_and_run.rs"]
#[allow(dead_code, reason = "only its training is used here")]
pub mod define_and_run;

use elastic_tensor::eager::Result;

/// The loss of each step on the device of this name, or why it is not there.
pub fn train(device: &str, steps: usize) -> Result<Vec<f32>> {
    define_and_run::train(device.parse()?, steps)
}

#[allow(dead_code, reason = "a test includes this file and calls what is above")]
fn main() -> Result<()> {
    let device = std::env::args().nth(1).unwrap_or_else(|| "cpu".into());
    let losses = train(&device, 500)?;
    println!("on {device} from {} to {}", losses[0], losses[losses.len() - 1]);
    Ok(())
}
