//! ResNet-18 against a second writing of it: plain loops in f64, over the weights by torchvision's names.

use elastic_models::build;
use elastic_spec::batch::{Batch, DataShape, IGNORE};
use elastic_spec::job::{ModelKind, Stem};
use elastic_tensor::LeafKey;
use std::collections::BTreeMap;

/// (sample, channel, h, w)
struct Image {
    shape: [usize; 4],
    x: Vec<f64>,
}

impl Image {
    /// What lies outside is `outside`.
    fn at(&self, n: usize, c: usize, [y, x]: [isize; 2], outside: f64) -> f64 {
        let [_, channels, h, w] = self.shape;
        let inside = (0..h as isize).contains(&y) && (0..w as isize).contains(&x);
        if inside { self.x[((n * channels + c) * h + y as usize) * w + x as usize] } else { outside }
    }

    fn map(self, f: impl Fn(f64) -> f64) -> Image {
        Image { shape: self.shape, x: self.x.into_iter().map(f).collect() }
    }

    /// Each output element from its place: (sample, channel, the window's corner).
    fn windows(
        &self,
        channels: usize,
        [kernel, stride, pad]: [usize; 3],
        f: impl Fn(usize, usize, [isize; 2]) -> f64,
    ) -> Image {
        let [n, _, h, w] = self.shape;
        let out = |side: usize| (side + 2 * pad - kernel) / stride + 1;
        let shape = [n, channels, out(h), out(w)];
        let corner = |at: usize| (at * stride) as isize - pad as isize;
        let mut x = Vec::new();
        for n in 0..n {
            for c in 0..channels {
                for i in 0..shape[2] * shape[3] {
                    x.push(f(n, c, [corner(i / shape[3]), corner(i % shape[3])]));
                }
            }
        }
        Image { shape, x }
    }
}

fn places(kernel: usize, [y, x]: [isize; 2]) -> impl Iterator<Item = [isize; 2]> {
    let k = kernel as isize;
    (0..k * k).map(move |i| [y + i / k, x + i % k])
}

struct Plain {
    state: BTreeMap<String, Vec<f32>>,
    trains: bool,
}

impl Plain {
    fn get(&self, name: &str) -> &[f32] {
        self.state.get(name).unwrap_or_else(|| panic!("a tensor {name}"))
    }

    fn conv(&self, name: &str, x: &Image, [kernel, stride]: [usize; 2]) -> Image {
        let weight = self.get(&format!("{name}.weight"));
        let inner = x.shape[1];
        let each = inner * kernel * kernel;
        x.windows(weight.len() / each, [kernel, stride, kernel / 2], |n, out, corner| {
            let term = |(i, w): (usize, &f32)| {
                let place = places(kernel, corner).nth(i % (kernel * kernel)).expect("a place of the window");
                f64::from(*w) * x.at(n, i / (kernel * kernel), place, 0.0)
            };
            weight[out * each..][..each].iter().enumerate().map(term).sum()
        })
    }

    fn norm(&self, name: &str, x: Image) -> Image {
        let get = |what: &str| self.get(&format!("{name}.{what}"));
        let [n, channels, h, w] = x.shape;
        let values = |c: usize| (0..n).flat_map(move |n| (0..h * w).map(move |i| (n * channels + c) * h * w + i));
        let mut out = x.x.clone();
        for c in 0..channels {
            let count = (n * h * w) as f64;
            let (mean, var) = match self.trains {
                false => (f64::from(get("running_mean")[c]), f64::from(get("running_var")[c])),
                true => {
                    let mean = values(c).map(|i| x.x[i]).sum::<f64>() / count;
                    (mean, values(c).map(|i| (x.x[i] - mean).powi(2)).sum::<f64>() / count)
                }
            };
            let (scale, shift) = (f64::from(get("weight")[c]), f64::from(get("bias")[c]));
            values(c).for_each(|i| out[i] = (x.x[i] - mean) / (var + 1e-5).sqrt() * scale + shift);
        }
        Image { shape: x.shape, x: out }
    }

    /// The mean loss over the samples.
    fn loss(&self, x: Image, targets: &[i32], stem: Stem) -> f64 {
        let relu = |x: f64| x.max(0.0);
        let mut x = match stem {
            Stem::Small => self.norm("bn1", self.conv("conv1", &x, [3, 1])).map(relu),
            Stem::Full => {
                let x = self.norm("bn1", self.conv("conv1", &x, [7, 2])).map(relu);
                x.windows(x.shape[1], [3, 2, 1], |n, c, corner| {
                    places(3, corner).map(|p| x.at(n, c, p, f64::NEG_INFINITY)).fold(f64::NEG_INFINITY, f64::max)
                })
            }
        };
        for (layer, block) in (1..=4).flat_map(|l| [(l, 0), (l, 1)]) {
            let at = format!("layer{layer}.{block}");
            let halves = layer > 1 && block == 0;
            let stride = if halves { 2 } else { 1 };
            let y = self.norm(&format!("{at}.bn1"), self.conv(&format!("{at}.conv1"), &x, [3, stride])).map(relu);
            let y = self.norm(&format!("{at}.bn2"), self.conv(&format!("{at}.conv2"), &y, [3, 1]));
            if halves {
                let down = format!("{at}.downsample");
                x = self.norm(&format!("{down}.1"), self.conv(&format!("{down}.0"), &x, [1, 2]));
            }
            x = Image { shape: y.shape, x: x.x.iter().zip(&y.x).map(|(a, b)| relu(a + b)).collect() };
        }
        let [n, channels, h, w] = x.shape;
        let (weight, bias) = (self.get("fc.weight"), self.get("fc.bias"));
        let loss = |n: usize| {
            let mean = |c: usize| x.x[(n * channels + c) * h * w..][..h * w].iter().sum::<f64>() / (h * w) as f64;
            let score = |k: usize| {
                f64::from(bias[k]) + (0..channels).map(|c| f64::from(weight[k * channels + c]) * mean(c)).sum::<f64>()
            };
            let scores: Vec<f64> = (0..bias.len()).map(score).collect();
            scores.iter().map(|s| s.exp()).sum::<f64>().ln() - scores[targets[n] as usize]
        };
        (0..n).map(loss).sum::<f64>() / n as f64
    }
}

fn check(side: usize, stem: Stem) {
    let (samples, channels) = (3, 2);
    let image = [channels as u32, side as u32, side as u32];
    let kind = ModelKind::Resnet18 { image, stem, width: 4, zero_init_residual: false };
    let features = channels * side * side;
    let network = build(&kind, &DataShape::Features { features, classes: 5 }, samples).expect("it fits");
    // Every number of the state differs from every other, running statistics included.
    let mut state = network.init(2);
    for info in network.layout().params.iter().chain(&network.layout().buffers).filter(|i| i.shape.len() == 1) {
        let numbers = state[info.offset..][..info.len].iter_mut();
        (0..).zip(numbers).for_each(|(i, x)| *x += 0.3 * ((i * 7 + info.offset) % 11) as f32 / 11.0);
    }
    let x: Vec<f32> = (0..samples * features).map(|i| ((i * 37 + i / 5) % 23) as f32 / 23.0 - 0.4).collect();
    let targets = vec![3, 0, 4];
    let batch = Batch { features: x.clone(), targets: targets.clone(), slots: vec![0, 1, 2], ..Batch::default() };
    let mut scratch = network.new_scratch(1);
    let key = LeafKey { seed: 0, step: 0, scale: 1.0 / samples as f32, label_smoothing: 0.0 };
    let mut out = vec![0.0; network.layout().reduced_floats()];
    let trained = network.sum(&mut *scratch, &state, &batch, key, &mut out).loss / samples as f64;
    let [evaluated] = network.evaluate(&mut *scratch, &state, &batch)[..] else { panic!("one shard has one tail") };
    let evaluated = evaluated.loss / samples as f64;

    let named = network.layout().params.iter().chain(&network.layout().buffers);
    let named: BTreeMap<_, _> = named.map(|i| (i.name.clone(), state[i.offset..][..i.len].to_vec())).collect();
    let plain = |trains| {
        let image = Image { shape: [samples, channels, side, side], x: x.iter().map(|x| f64::from(*x)).collect() };
        Plain { state: named.clone(), trains }.loss(image, &targets, stem)
    };
    for (got, wanted) in [(trained, plain(true)), (evaluated, plain(false))] {
        assert!((got - wanted).abs() < 2e-5 * wanted.abs(), "{stem:?} {side}: {got} instead of {wanted}");
    }
}

#[test]
fn the_small_stem_keeps_the_image() {
    check(8, Stem::Small);
}

#[test]
fn the_full_stem_pools_with_padding_like_torchvisions() {
    check(32, Stem::Full);
    check(19, Stem::Full);
}

#[test]
fn a_shard_of_padding_alone_adds_nothing_and_stays_finite() {
    let data = DataShape::Features { features: 64, classes: 5 };
    let kind = ModelKind::Resnet18 { image: [1, 8, 8], stem: Stem::Small, width: 8, zero_init_residual: false };
    let network = build(&kind, &data, 4).expect("the model fits its data");
    let batch = Batch {
        features: (0..4 * 64).map(|i| (i * 37 % 23) as f32 / 23.0).collect(),
        targets: vec![IGNORE; 4],
        slots: vec![0, 1, 2, 3],
        ..Batch::default()
    };
    let key = LeafKey { seed: 0, step: 0, scale: 0.25, label_smoothing: 0.0 };
    let mut leaf = vec![f32::NAN; network.layout().reduced_floats()];
    let tail = network.sum(&mut *network.new_scratch(1), &network.init(1), &batch, key, &mut leaf);
    assert_eq!((tail.loss, tail.count, tail.correct), (0.0, 0, 0));
    let strays = leaf.iter().filter(|x| **x != 0.0).count();
    assert_eq!(strays, 0, "numbers that are not zero: gradients, or moments that move the running statistics");
}
