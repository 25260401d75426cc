//! Convolution blocks, then linear layers.

use elastic_tensor::nn::{Bias, Conv, Module, Scope};
use elastic_tensor::{Result, Tensor};

/// Blocks of convolution (same padding), batch norm if wanted, ReLU, and a 2×2 max-pool while the image is
/// at least 2×2. Parameters: `blocks.<i>.{conv,norm}.…`, `hidden.…` if there is one, `output.…`.
#[derive(Clone, Debug)]
pub struct Cnn {
    /// Channels, height, width of a sample.
    pub image: [usize; 3],
    pub channels: Vec<usize>,
    /// Odd.
    pub kernel: usize,
    /// Width of the hidden linear layer; 0: none.
    pub hidden: usize,
    pub batch_norm: bool,
}

impl Module for Cnn {
    fn forward(&self, nn: &Scope, input: Tensor) -> Result<Tensor> {
        let [c, h, w] = self.image;
        let mut x = input.reshape(&[input.shape()[0], c, h, w])?;
        // Batch norm takes the mean off, and a bias before it with it.
        let bias = if self.batch_norm { Bias::None } else { Bias::PerChannel };
        for (i, channels) in self.channels.iter().enumerate() {
            let at = nn.enter("blocks").enter(&i.to_string());
            x = at.conv2d(
                "conv",
                &x,
                Conv { out: *channels, kernel: self.kernel, stride: 1, pad: self.kernel / 2, bias },
            )?;
            if self.batch_norm {
                x = at.batch_norm("norm", &x)?;
            }
            x = x.relu();
            if x.shape()[2..].iter().all(|side| *side >= 2) {
                x = x.max_pool(2, 2)?;
            }
        }
        let mut x = x.flatten()?;
        if self.hidden > 0 {
            x = nn.linear("hidden", &x, self.hidden)?.relu();
        }
        nn.linear("output", &x, nn.outputs())
    }
}
