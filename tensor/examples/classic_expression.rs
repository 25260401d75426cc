//! c = Σ (x y + z) for random x, y, z of shape (3, 4), and its gradients: y, x and ones.
//!
//! `cargo run --release -p elastic-tensor --example classic_expression`

use elastic_tensor::eager::{Result, Tensor};

pub struct Outcome {
    pub x: Tensor,
    pub y: Tensor,
    pub z: Tensor,
    pub c: Tensor,
}

pub fn compute() -> Result<Outcome> {
    let leaf = |name| Tensor::randn(0, name, &[3, 4]).requires_grad();
    let (x, y, z) = (leaf("x")?, leaf("y")?, leaf("z")?);
    let c = x.mul(&y)?.add(&z)?.sum_all()?;
    c.backward()?;
    Ok(Outcome { x, y, z, c })
}

#[allow(dead_code, reason = "a test includes this file and calls what is above")]
fn main() -> Result<()> {
    let Outcome { x, y, z, c } = compute()?;
    println!("c = {}", c.item()?);
    for (name, leaf) in [("x", x), ("y", y), ("z", z)] {
        println!("dc/d{name}: {:?}", leaf.grad().expect("a leaf of c"));
    }
    Ok(())
}
