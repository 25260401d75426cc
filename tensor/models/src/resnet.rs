//! ResNet-18: He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2015), with torchvision's
//! layout, parameter names and initialisation.

use elastic_spec::job::Stem;
use elastic_tensor::nn::{Bias, Conv, Module, Scope};
use elastic_tensor::{Init, Result, Tensor};

/// Four stages of two blocks; a stage after the first halves the image and doubles the channels. Parameters:
/// `conv1`, `bn1`, `layer<s>.<b>.{conv1,bn1,conv2,bn2}`, `layer<s>.0.downsample.{0,1}` (stages 2 to 4), `fc`.
/// Batch norm has the statistics of each shard by itself.
#[derive(Clone, Debug)]
pub struct Resnet18 {
    /// Channels, height, width of a sample; as high as wide.
    pub image: [usize; 3],
    pub stem: Stem,
    /// Channels of the first stage.
    pub width: usize,
    /// Whether a block's last scale starts at 0 instead of 1.
    pub zero_init_residual: bool,
}

impl Module for Resnet18 {
    fn forward(&self, nn: &Scope, input: Tensor) -> Result<Tensor> {
        let [c, h, w] = self.image;
        let x = input.reshape(&[input.shape()[0], c, h, w])?;
        let mut x = match self.stem {
            Stem::Small => self.stem(nn, &x, Patch { kernel: 3, stride: 1 })?,
            Stem::Full => {
                let x = self.stem(nn, &x, Patch { kernel: 7, stride: 2 })?;
                // The pool's own padding is below everything. Behind a ReLU zeros are as good: they change no
                // maximum, and where one wins over a zero of the image the gradient ends at the ReLU anyway.
                nn.zero_pad("maxpool", &x, 1)?.max_pool(3, 2)?
            }
        };
        for (stage, power) in [1usize, 2, 4, 8].into_iter().enumerate() {
            let layer = nn.enter(&format!("layer{}", stage + 1));
            let stride = if stage == 0 { 1 } else { 2 };
            x = self.block(&layer.enter("0"), x, self.width * power, stride)?;
            x = self.block(&layer.enter("1"), x, self.width * power, 1)?;
        }
        let side = x.shape()[2];
        nn.linear("fc", &x.avg_pool(side, 1)?.flatten()?, nn.outputs())
    }
}

/// A square window and how far apart its places are.
#[derive(Clone, Copy)]
struct Patch {
    kernel: usize,
    stride: usize,
}

impl Resnet18 {
    fn stem(&self, nn: &Scope, x: &Tensor, patch: Patch) -> Result<Tensor> {
        Ok(nn.batch_norm("bn1", &convolve(nn, "conv1", x, self.width, patch)?)?.relu())
    }

    fn block(&self, at: &Scope, x: Tensor, out: usize, stride: usize) -> Result<Tensor> {
        let y = convolve(at, "conv1", &x, out, Patch { kernel: 3, stride })?;
        let y = at.batch_norm("bn1", &y)?.relu();
        let y = convolve(at, "conv2", &y, out, Patch { kernel: 3, stride: 1 })?;
        let y = at.batch_norm_scaled("bn2", &y, if self.zero_init_residual { 0.0 } else { 1.0 })?;
        let x = match stride {
            1 => x,
            _ => {
                let down = at.enter("downsample");
                down.batch_norm("1", &convolve(&down, "0", &x, out, Patch { kernel: 1, stride })?)?
            }
        };
        Ok(y.add(&x)?.relu())
    }
}

/// Without bias, padded so that stride 1 keeps the size; He's normal initialisation by the outgoing count.
fn convolve(at: &Scope, name: &str, x: &Tensor, out: usize, Patch { kernel, stride }: Patch) -> Result<Tensor> {
    let std = (2.0 / (out * kernel * kernel) as f64).sqrt();
    let conv = Conv { out, kernel, stride, pad: kernel / 2, bias: Bias::None };
    at.conv2d_init(name, x, conv, Init::Normal { std })
}
