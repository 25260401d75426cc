//! A model of one's own, trained with every elastic promise: residual blocks with layer norm.
//!
//! The agent starts this program as the job's worker (`model.program` in job.toml). What a model is stands
//! in `forward`; gradients, shards, exact sums, joins and checkpoints are the library's.

use elastic_tensor::nn::{Module, Scope};
use elastic_tensor::{Result, Tensor, compile};
use std::process::ExitCode;

struct Residual {
    width: usize,
    blocks: usize,
}

impl Module for Residual {
    // input: (sample, feature); returns (sample, class)
    fn forward(&self, nn: &Scope, input: Tensor) -> Result<Tensor> {
        let mut x = nn.linear("input", &input, self.width)?;
        for i in 0..self.blocks {
            let block = nn.enter(&format!("block{i}"));
            let inner = block.linear("up", &block.layer_norm("norm", &x)?, 2 * self.width)?.gelu();
            x = x.add(&block.linear("down", &inner, self.width)?)?;
        }
        nn.linear("output", &x, nn.outputs())
    }
}

fn main() -> ExitCode {
    elastic_worker::main_with(|data, samples, params| {
        let number = |key: &str| match params[key].as_u64() {
            Some(number @ 1..=4096) => Ok(number as usize),
            _ => Err(format!("model.params.{key} is {}, not a number from 1 to 4096", params[key])),
        };
        let model = Residual { width: number("width")?, blocks: number("blocks")? };
        compile(&model, data, samples)
    })
}
