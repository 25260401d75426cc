//! How long a step of the classic net takes by run and captured, and what an operation costs by itself.
//!
//! `cargo run --release -p elastic-tensor --example eager_speed`

#[path = "classic_define_and_run.rs"]
#[allow(dead_code, reason = "only its training is used here")]
mod define_and_run;

use define_and_run::by_run;
use elastic_tensor::eager::{DType, Device, Result, Tensor, set_threads, trace};
use std::time::Instant;

fn main() -> Result<()> {
    let micros = |steps: usize, work: &dyn Fn(usize) -> Result<()>| -> Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..7 {
            let start = Instant::now();
            work(steps)?;
            best = best.min(start.elapsed().as_secs_f64() * 1e6 / steps as f64);
        }
        Ok(best)
    };
    for threads in [1, 2] {
        set_threads(threads);
        let by_run = micros(200, &|steps| by_run::train(steps).map(drop))?;
        println!("a step by run, {threads} threads: {by_run:.0} us");
    }
    let captured = micros(200, &|steps| define_and_run::train(Device::Cpu, steps).map(drop))?;
    println!("captured, 2 threads: {captured:.0} us");
    set_threads(1);
    let (x, leaf) = (Tensor::ones(&[1], DType::F32), Tensor::ones(&[1], DType::F32).requires_grad()?);
    let chain = |x: &Tensor, steps: usize| (0..steps).try_fold(x.clone(), |y, _| y.add(x)).map(drop);
    println!(
        "an addition of one number: {:.2} us, recorded {:.2} us",
        micros(100_000, &|n| chain(&x, n))?,
        micros(100_000, &|n| chain(&leaf, n))?
    );
    let long = Tensor::randn(1, "x", &[1000, 1000]);
    println!("a sum of a million: {:.0} us", micros(50, &|n| (0..n).try_for_each(|_| long.sum_all().map(drop)))?);
    println!("the same over the rows: {:.0} us", micros(50, &|n| (0..n).try_for_each(|_| long.sum(&[0]).map(drop)))?);
    println!("a permutation of a million: {:.0} us", micros(20, &|n| (0..n).try_for_each(|_| long.t().map(drop)))?);
    let chain = |x: &Tensor| x.mul(x)?.add_scalar(1.0)?.tanh()?.mul(x)?.sigmoid()?.sub(x)?.mean(&[]);
    let leaf = long.requires_grad()?;
    let by_run = micros(5, &|n| (0..n).try_for_each(|_| chain(&leaf)?.backward()))?;
    let traced = trace(Device::Cpu, &[("x", DType::F32, &[1000, 1000])], |x| Ok(vec![("y", chain(&x[0])?)]))?;
    let mut captured = traced.with_gradients("y", &["x"])?.compile(1)?;
    captured.set("x", &long)?;
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let start = Instant::now();
        captured.run();
        best = best.min(start.elapsed().as_secs_f64() * 1e6);
    }
    println!("seven functions of a million and their gradients: {by_run:.0} us by run, {best:.0} us captured");
    Ok(())
}
