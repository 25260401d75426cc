//! 2-D convolution as matrix products that read the image in place, through a table of offsets.
//!
//! x: (sample, in, h, w), W: (out, in, kh, kw), b: (out), y: (sample, out, oh, ow). Every element of y is one chain
//! over (in, kh, kw), padding as zeros; of dx, over the output channels and the taps that meet the pixel, later taps
//! first; of dW, over the samples of a shard and their output pixels. Operands in pairs: two planes, or two pixels of a
//! row; docs/numerics.md.

mod correlate;
mod frame;
mod weight;

pub(crate) use correlate::Part;

use super::*;
use crate::leaves::tree_sum;
use crate::real::sum;
use correlate::{Correlation, Grid, Weights};
use frame::Frame;
use weight::WeightGradient;

#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    pub stride: usize,
    pub pad: usize,
}

/// Sizes of one convolution.
#[derive(Clone, Copy)]
struct Sizes {
    conv: Conv2d,
    inner: usize,
    h: usize,
    w: usize,
    kh: usize,
    kw: usize,
    oh: usize,
    ow: usize,
}

impl Conv2d {
    fn sizes(self, image: &[usize], weight: &[usize]) -> Result<Sizes, String> {
        let along = |axis: usize| -> Result<usize, String> {
            let (padded, kernel) = (image[axis] + 2 * self.pad, weight[axis]);
            match padded.checked_sub(kernel) {
                Some(rest) if kernel > 0 && self.stride > 0 => Ok(rest / self.stride + 1),
                _ => Err(format!(
                    "axis {axis} of the input is {}, with padding {padded}: less than the kernel's {kernel} (stride {})",
                    image[axis], self.stride
                )),
            }
        };
        let (oh, ow) = (along(2)?, along(3)?);
        Ok(Sizes { conv: self, inner: image[1], h: image[2], w: image[3], kh: weight[2], kw: weight[3], oh, ow })
    }
}

impl Sizes {
    fn patch(&self) -> usize {
        self.inner * self.kh * self.kw
    }

    fn image(&self) -> usize {
        self.inner * self.h * self.w
    }

    fn out(&self) -> usize {
        self.oh * self.ow
    }

    /// The input in margins that are the padding, without what no window reads.
    fn frame(&self) -> Frame {
        let Conv2d { stride, pad } = self.conv;
        let behind = |size: usize, kernel: usize, out: usize| ((out - 1) * stride + kernel).saturating_sub(size + pad);
        let behind = (behind(self.h, self.kh, self.oh), behind(self.w, self.kw, self.ow));
        Frame::new((self.h, self.w), (pad, pad), behind)
    }

    /// One axis of the input's gradient: what the pixels from `first` on, a stride apart, see of dy.
    fn phase(&self, first: usize, size: usize, kernel: usize) -> Phase {
        let Conv2d { stride, pad } = self.conv;
        // Pixel y meets tap k where y + pad = o stride + k: the taps are those of one remainder, k = rest + t stride, and
        // o = (y + pad) / stride - t, so that later taps meet earlier rows of dy.
        let (rest, row) = ((first + pad) % stride, (first + pad) / stride);
        let taps = kernel.saturating_sub(rest).div_ceil(stride);
        Phase { rest, row, taps, points: size.saturating_sub(first).div_ceil(stride) }
    }
}

/// Pixels along one axis that lie a stride apart from each other.
#[derive(Clone, Copy)]
struct Phase {
    /// The first tap that they meet; the others are a stride apart.
    rest: usize,
    /// The row of dy that the first pixel and the first tap meet at.
    row: usize,
    taps: usize,
    points: usize,
}

impl Rule for Conv2d {
    const NAME: &'static str = "conv2d";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect_axes(x, 0, "the input", "sample, channel, height, width")?;
        expect_axes(x, 1, "the weight", "out, in, height, width")?;
        let (image, weight) = (&x[0].shape, &x[1].shape);
        if image[1] != weight[1] {
            return Err(format!(
                "axis 1 (channel) of the input {} is {}, axis 1 (in) of the weight {} is {}",
                x[0], image[1], x[1], weight[1]
            ));
        }
        if x.len() == 3 {
            expect(x, 2, "the bias", &weight[..1])?;
        }
        let sizes = self.sizes(image, weight)?;
        Ok(vec![Type::float(&[image[0], weight[0], sizes.oh, sizes.ow])])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let (x, w) = (node.inputs[0], node.inputs[1]);
        let (image, weight) = (graph.ty(x).shape.clone(), graph.ty(w).shape.clone());
        let dx = Op::Conv2dGradInput(Conv2dGradInput { conv: *self, image });
        let dw = Op::Conv2dGradWeight(Conv2dGradWeight { conv: *self, weight });
        let mut grads =
            vec![Some(graph.apply1(dx, &node.path, &[w, dy])?), Some(graph.apply1(dw, &node.path, &[x, dy])?)];
        if node.inputs.len() == 3 {
            grads.push(Some(graph.apply1(Op::Conv2dGradBias(Conv2dGradBias), &node.path, &[dy])?));
        }
        Ok(grads)
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let s = self.sizes(&io.types[0].shape, &io.types[1].shape).expect("checked when the graph was built");
        let (outer, patch) = (io.types[1].shape[0], s.patch());
        let (x, weight) = (io.x[0], io.x[1]);
        let bias = if io.types.len() == 3 { io.x[2] } else { &[] };
        let mut packed = std::mem::take(&mut io.work.rooms[0].pack.weights);
        let (taps, planes) = (s.kh * s.kw, s.inner);
        let weights = Weights { columns: outer, planes, taps, at: 0 };
        correlate::pack(io.work, &mut packed, weights, |plane, tap, out| weight[out * patch + plane * taps + tap]);
        let frame = s.frame();
        let part = Part {
            taps: (s.kh, s.kw),
            points: (s.oh, s.ow),
            window: Grid { first: (0, 0), every: self.stride, row: frame.size.1 },
            pixel: Grid { first: (0, 0), every: 1, row: s.ow },
            weights: 0,
        };
        let all = Correlation { frame, planes: s.inner, parts: &[part], columns: outer, plane: s.out() };
        all.run(x, &packed, bias, y, io.work);
        io.work.rooms[0].pack.weights = packed;
    }
}

/// dx = the patches' gradients, folded back. Inputs: W, dy.
#[derive(Clone, Debug)]
pub struct Conv2dGradInput {
    pub conv: Conv2d,
    pub image: Vec<usize>,
}

impl Rule for Conv2dGradInput {
    const NAME: &'static str = "conv2d input gradient";

    fn infer(&self, _: &[&Type]) -> Result<Vec<Type>, String> {
        Ok(vec![Type::float(&self.image)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dx, ..] = io.y;
        let s = self.conv.sizes(&self.image, &io.types[0].shape).expect("checked when the graph was built");
        let (outer, stride, pad) = (io.types[0].shape[0], self.conv.stride, self.conv.pad);
        let (weight, dy) = (io.x[0], io.x[1]);
        // The first tap of the last row that a pixel meets may lie above or below dy.
        let margin = |size: usize, kernel: usize, out: usize| {
            let last = (size.max(1) - 1 + pad) / stride;
            (kernel.div_ceil(stride) - 1, last.saturating_sub(out - 1))
        };
        let ((above, below), (left, right)) = (margin(s.h, s.kh, s.oh), margin(s.w, s.kw, s.ow));
        let frame = Frame::new((s.oh, s.ow), (above, left), (below, right));
        let mut packed = std::mem::take(&mut io.work.rooms[0].pack.weights);
        let mut parts: Vec<Part> = std::mem::take(&mut io.work.rooms[0].convolutions);
        parts.clear();
        let mut weights = 0;
        for (y, x) in (0..stride.min(s.h)).flat_map(|y| (0..stride.min(s.w)).map(move |x| (y, x))) {
            let (down, across) = (s.phase(y, s.h, s.kh), s.phase(x, s.w, s.kw));
            let taps = (down.taps, across.taps);
            let of_part = Weights { columns: s.inner, planes: outer, taps: taps.0 * taps.1, at: weights };
            // Taps in the order in which rows of dy ascend.
            correlate::pack(io.work, &mut packed, of_part, |out, tap, channel| {
                let ky = down.rest + (taps.0 - 1 - tap / taps.1) * stride;
                let kx = across.rest + (taps.1 - 1 - tap % taps.1) * stride;
                weight[((out * s.inner + channel) * s.kh + ky) * s.kw + kx]
            });
            let first = (down.row + above + 1 - taps.0.max(1), across.row + left + 1 - taps.1.max(1));
            parts.push(Part {
                taps,
                points: (down.points, across.points),
                window: Grid { first, every: 1, row: frame.size.1 },
                pixel: Grid { first: (y, x), every: stride, row: s.w },
                weights,
            });
            weights += correlate::packed::<F>(s.inner, outer.div_ceil(F::PER) * taps.0 * taps.1);
        }
        let all = Correlation { frame, planes: outer, parts: &parts, columns: s.inner, plane: s.h * s.w };
        all.run(dy, &packed, &[], dx, io.work);
        io.work.rooms[0].pack.weights = packed;
        io.work.rooms[0].convolutions = parts;
    }
}

/// dW = sum over samples of dy (out, oh·ow) times the patches, transposed; a shard's samples in ascending order, the
/// shards along the tree. Inputs: x, dy.
#[derive(Clone, Debug)]
pub struct Conv2dGradWeight {
    pub conv: Conv2d,
    pub weight: Vec<usize>,
}

impl Rule for Conv2dGradWeight {
    const NAME: &'static str = "conv2d weight gradient";

    fn infer(&self, _: &[&Type]) -> Result<Vec<Type>, String> {
        Ok(vec![Type::float(&self.weight)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dw, ..] = io.y;
        let sizes = self.conv.sizes(&io.types[0].shape, &self.weight).expect("checked when the graph was built");
        let (samples, shards) = (io.types[0].shape[0], io.key.shards);
        WeightGradient { sizes, outer: self.weight[0], samples, shards }.run(io.x[0], io.x[1], dw, io.work);
    }
}

/// db: each channel adds its planes' sums, sample by sample. Input: dy.
#[derive(Clone, Debug)]
pub struct Conv2dGradBias;

impl Rule for Conv2dGradBias {
    const NAME: &'static str = "conv2d bias gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        Ok(vec![Type::float(&x[0].shape[1..2])])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [db, ..] = io.y;
        let shape = &io.types[0].shape;
        let plane = (shape[2] * shape[3]).max(1);
        let (dy, channels, shards) = (io.x[0], shape[1], io.key.shards);
        let samples = shape[0] / shards;
        let Work { team, rooms } = io.work;
        team.chunks_in(rooms, db, CHANNELS, |room, i, db| {
            tree_sum(shards, db, &mut room.sums, |shard, db| {
                db.fill(F::ZERO);
                for sample in shard * samples..(shard + 1) * samples {
                    let planes = dy[(sample * channels + i * CHANNELS) * plane..].chunks_exact(plane);
                    db.iter_mut().zip(planes).for_each(|(db, plane)| *db += sum(plane, |x| x));
                }
            });
        });
    }
}

/// Channels of a bias gradient's task.
const CHANNELS: usize = 4;
