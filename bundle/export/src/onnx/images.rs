//! The graphs of networks that read images: `cnn` and `resnet18`, as elastic-models builds them.

use super::builder::{Builder, Name};
use super::linear;
use super::proto::AttributeProto;
use anyhow::{Result, ensure};
use elastic_bundle::LOGITS;
use elastic_spec::job::Stem;

pub struct Cnn {
    /// Height and width.
    pub sides: [u32; 2],
    pub blocks: usize,
    pub kernel: u32,
    /// Whether there is a hidden linear layer.
    pub hidden: bool,
    pub batch_norm: bool,
}

impl Cnn {
    pub fn build(&self, b: &mut Builder<'_>, mut x: Name) {
        let mut sides = self.sides;
        for i in 0..self.blocks {
            let at = format!("blocks.{i}");
            let bias = if self.batch_norm { None } else { Some(b.weight(&format!("{at}.conv.bias"))) };
            let window = Window { kernel: self.kernel, stride: 1, pad: self.kernel / 2 };
            x = convolve(b, &format!("{at}.conv"), &x, bias, window);
            if self.batch_norm {
                x = batch_norm(b, &format!("{at}.norm"), &x);
            }
            x = relu(b, &at, &x);
            if sides.iter().all(|side| *side >= 2) {
                let window = Window { kernel: 2, stride: 2, pad: 0 };
                x = b.node("MaxPool", &format!("{at}.pool"), &[&x], window.attributes());
                sides = sides.map(|side| side / 2);
            }
        }
        x = b.node("Flatten", "flat", &[&x], vec![AttributeProto::int("axis", 1)]);
        if self.hidden {
            x = linear(b, "hidden", "hidden.linear", &x);
            x = relu(b, "hidden", &x);
        }
        linear(b, "output", LOGITS, &x);
    }
}

pub fn resnet18(b: &mut Builder<'_>, mut x: Name, stem: Stem) -> Result<()> {
    let window = match stem {
        Stem::Small => Window { kernel: 3, stride: 1, pad: 1 },
        Stem::Full => Window { kernel: 7, stride: 2, pad: 3 },
    };
    x = convolve(b, "conv1", &x, None, window);
    x = batch_norm(b, "bn1", &x);
    x = relu(b, "bn1", &x);
    if stem == Stem::Full {
        // Ours pads with zeros by way of this weight, ONNX with what is below everything; behind a ReLU that is the same.
        let one = b.tensor("maxpool.one").floats();
        ensure!(one.as_deref() == Some(&[1.0]), "tensor \"maxpool.one\" is not 1, which a padding needs");
        x = b.node("MaxPool", "maxpool", &[&x], Window { kernel: 3, stride: 2, pad: 1 }.attributes());
    }
    for stage in 1..=4 {
        for i in 0..2 {
            let stride = if stage > 1 && i == 0 { 2 } else { 1 };
            x = block(b, &format!("layer{stage}.{i}"), x, stride);
        }
    }
    x = b.node("GlobalAveragePool", "avgpool", &[&x], vec![]);
    x = b.node("Flatten", "flat", &[&x], vec![AttributeProto::int("axis", 1)]);
    linear(b, "fc", LOGITS, &x);
    Ok(())
}

fn block(b: &mut Builder<'_>, at: &str, x: Name, stride: u32) -> Name {
    let y = convolve(b, &format!("{at}.conv1"), &x, None, Window { kernel: 3, stride, pad: 1 });
    let y = batch_norm(b, &format!("{at}.bn1"), &y);
    let y = relu(b, &format!("{at}.bn1"), &y);
    let y = convolve(b, &format!("{at}.conv2"), &y, None, Window { kernel: 3, stride: 1, pad: 1 });
    let y = batch_norm(b, &format!("{at}.bn2"), &y);
    let x = match stride {
        1 => x,
        _ => {
            let down = convolve(b, &format!("{at}.downsample.0"), &x, None, Window { kernel: 1, stride, pad: 0 });
            batch_norm(b, &format!("{at}.downsample.1"), &down)
        }
    };
    let sum = b.node("Add", &format!("{at}.sum"), &[&y, &x], vec![]);
    relu(b, at, &sum)
}

/// Squares, how far apart they are, and the border around the image.
struct Window {
    kernel: u32,
    stride: u32,
    pad: u32,
}

impl Window {
    fn attributes(&self) -> Vec<AttributeProto> {
        let [kernel, stride, pad] = [self.kernel, self.stride, self.pad].map(i64::from);
        vec![
            AttributeProto::ints("kernel_shape", &[kernel; 2]),
            AttributeProto::ints("pads", &[pad; 4]),
            AttributeProto::ints("strides", &[stride; 2]),
        ]
    }
}

fn convolve(b: &mut Builder<'_>, at: &str, x: &str, bias: Option<Name>, window: Window) -> Name {
    let weight = b.weight(&format!("{at}.weight"));
    let mut inputs = vec![x, &weight];
    inputs.extend(bias.as_deref());
    b.node("Conv", &format!("{at}.out"), &inputs, window.attributes())
}

fn batch_norm(b: &mut Builder<'_>, at: &str, x: &str) -> Name {
    let [scale, shift, mean, var] =
        ["weight", "bias", "running_mean", "running_var"].map(|word| b.weight(&format!("{at}.{word}")));
    let inputs = [x, &scale, &shift, &mean, &var];
    b.node("BatchNormalization", &format!("{at}.out"), &inputs, vec![AttributeProto::float("epsilon", 1e-5)])
}

fn relu(b: &mut Builder<'_>, at: &str, x: &str) -> Name {
    b.node("Relu", &format!("{at}.relu"), &[x], vec![])
}
