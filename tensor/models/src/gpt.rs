//! A small decoder: pre-norm blocks, output layer tied to the token table. In the manner of GPT-2, or, with RMS norms
//! and rotary positions, of Llama.

use elastic_spec::job::{Norm, Positions};
use elastic_tensor::nn::{Module, Scope, Table};
use elastic_tensor::{Init, Result, Tensor};

/// Parameters: `wte.weight` (also the output layer), `wpe.weight` where positions are learned, `h.<i>.{ln_1,attn.c_attn,attn.c_proj,ln_2,
/// mlp.c_fc,mlp.c_proj}.…`, `ln_f.…`. Dropout follows the embeddings and each block's two branches.
#[derive(Clone, Debug)]
pub struct Gpt {
    pub layers: usize,
    pub heads: usize,
    pub width: usize,
    pub dropout: f32,
    pub norm: Norm,
    pub positions: Positions,
}

impl Module for Gpt {
    fn forward(&self, nn: &Scope, tokens: Tensor) -> Result<Tensor> {
        let context = tokens.shape()[1];
        let init = Init::Normal { std: STD };
        let (x, table) = nn.embedding("wte", &tokens, Table { rows: nn.outputs(), width: self.width, init })?;
        let x = match self.positions {
            Positions::Learned => x.add(&nn.enter("wpe").param("weight", &[context, self.width], init)?)?,
            Positions::Rotary => x,
        };
        let mut x = nn.dropout("drop", &x, self.dropout)?;
        for i in 0..self.layers {
            x = self.block(&nn.enter("h").enter(&i.to_string()), x)?;
        }
        self.norm(nn, "ln_f", &x)?.linear_with(&table)
    }
}

/// GPT-2's initial spread of weights.
const STD: f64 = 0.02;

impl Gpt {
    fn norm(&self, at: &Scope, name: &str, x: &Tensor) -> Result<Tensor> {
        match self.norm {
            Norm::Layer => at.layer_norm(name, x),
            Norm::Rms => at.rms_norm(name, x),
        }
    }

    fn block(&self, at: &Scope, x: Tensor) -> Result<Tensor> {
        let inner = [Init::Normal { std: STD }, Init::Constant(0.0)];
        // Two branches a layer add up on the way; their last weights start smaller by the root of that count.
        let outer = [Init::Normal { std: STD / ((2 * self.layers) as f64).sqrt() }, Init::Constant(0.0)];
        let attn = at.enter("attn");
        let y = attn.linear_init("c_attn", &self.norm(at, "ln_1", &x)?, 3 * self.width, inner)?;
        let y = if self.positions == Positions::Rotary { y.rotary(self.heads)? } else { y };
        let y = attn.linear_init("c_proj", &y.causal_attention(self.heads)?, self.width, outer)?;
        let x = x.add(&attn.dropout("drop", &y, self.dropout)?)?;
        let mlp = at.enter("mlp");
        let y = mlp.linear_init("c_fc", &self.norm(at, "ln_2", &x)?, 4 * self.width, inner)?.gelu();
        let y = mlp.linear_init("c_proj", &y, self.width, outer)?;
        x.add(&mlp.dropout("drop", &y, self.dropout)?)
    }
}
