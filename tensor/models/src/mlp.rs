//! Linear layers with an activation between them.

use elastic_spec::job::Activation;
use elastic_tensor::nn::{Module, Scope};
use elastic_tensor::{Result, Tensor};

/// Parameters: `layers.<i>.{weight,bias}`, the output layer last.
#[derive(Clone, Debug)]
pub struct Mlp {
    pub hidden: Vec<usize>,
    pub activation: Activation,
}

impl Module for Mlp {
    fn forward(&self, nn: &Scope, input: Tensor) -> Result<Tensor> {
        let layers = nn.enter("layers");
        let mut x = input;
        for (i, width) in self.hidden.iter().enumerate() {
            let y = layers.linear(&i.to_string(), &x, *width)?;
            x = match self.activation {
                Activation::Relu => y.relu(),
                Activation::Gelu => y.gelu(),
            };
        }
        layers.linear(&self.hidden.len().to_string(), &x, nn.outputs())
    }
}
