//! 2-D convolution as a matrix product over unfolded patches, each sample by one thread.
//!
//! x: (sample, in, h, w), W: (out, in, kh, kw), b: (out), y: (sample, out, oh, ow). A sample's patches are
//! unfolded to (in·kh·kw, oh·ow). The weight's gradient goes on with the same chains from sample to sample.

use super::*;
use crate::gemm::{Mat, Start};
use crate::leaves::tree_sum;
use crate::real::sum;
use std::ops::Range;

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

    /// Calls `visit` for every run of output columns whose pixels lie in one line of the image, in order;
    /// padding is left out. Rows of the unfolded matrix are counted from the first of `channels`.
    #[inline(always)]
    fn runs(&self, channels: Range<usize>, mut visit: impl FnMut(Run)) {
        let Conv2d { stride, pad } = self.conv;
        let kernel = self.kh * self.kw;
        for row in 0..channels.len() * kernel {
            let (channel, ky, kx) = (channels.start + row / kernel, row / self.kw % self.kh, row % self.kw);
            // The ox with 0 <= ox * stride + kx - pad < w.
            let first = pad.saturating_sub(kx).div_ceil(stride);
            let end = (self.w + pad).saturating_sub(kx).div_ceil(stride).min(self.ow);
            for oy in 0..self.oh {
                let y = oy * stride + ky;
                if y < pad || y - pad >= self.h || first >= end {
                    continue;
                }
                let pixel = (channel * self.h + y - pad) * self.w + first * stride + kx - pad;
                visit(Run { at: row * self.out() + oy * self.ow + first, pixel, len: end - first });
            }
        }
    }

    fn unfold<'a, F: Real>(&self, image: &[F], channels: Range<usize>, room: &'a mut Vec<F>) -> &'a [F] {
        let columns = take(room, channels.len() * self.kh * self.kw * self.out());
        if self.conv.pad > 0 {
            columns.fill(F::ZERO);
        }
        self.runs(channels, |Run { at, pixel, len }| {
            let to = &mut columns[at..at + len];
            match self.conv.stride {
                1 => to.copy_from_slice(&image[pixel..pixel + len]),
                stride => to.iter_mut().zip(image[pixel..].iter().step_by(stride)).for_each(|(to, x)| *to = *x),
            }
        });
        columns
    }

    /// Adds the unfolded values to their pixels.
    fn fold<F: Real>(&self, columns: &[F], image: &mut [F]) {
        self.runs(0..self.inner, |Run { at, pixel, len }| {
            let from = &columns[at..at + len];
            image[pixel..].iter_mut().step_by(self.conv.stride).zip(from).for_each(|(x, from)| *x += *from);
        });
    }
}

/// `len` elements of the unfolded matrix from `at`, and their first pixel; the others are a stride apart.
struct Run {
    at: usize,
    pixel: usize,
    len: usize,
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
        let (outer, n) = (io.types[1].shape[0], s.out());
        let (x, weight) = (io.x[0], io.x[1]);
        let bias = if io.types.len() == 3 { io.x[2] } else { &[] };
        let Work { team, rooms } = io.work;
        team.chunks_in(rooms, y, (outer * n).max(1), |Room { pack, columns, .. }, sample, y| {
            let image = &x[sample * s.image()..][..s.image()];
            let b = Mat::rows(s.unfold(image, 0..s.inner, columns), n);
            let a = Mat::rows(weight, s.patch());
            F::gemm(Gemm { m: outer, n, k: s.patch(), a, b, start: Start::Zero }, y, n, pack);
            for (plane, bias) in y.chunks_exact_mut(n).zip(bias) {
                plane.iter_mut().for_each(|y| *y += *bias);
            }
        });
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
        let (outer, n) = (io.types[0].shape[0], s.out());
        let (weight, dy) = (io.x[0], io.x[1]);
        let Work { team, rooms } = io.work;
        team.chunks_in(rooms, dx, s.image().max(1), |Room { pack, columns, .. }, sample, dx| {
            let columns = take(columns, s.patch() * n);
            let a = Mat::rows(weight, s.patch()).transposed();
            let b = Mat::rows(&dy[sample * outer * n..][..outer * n], n);
            F::gemm(Gemm { m: s.patch(), n, k: outer, a, b, start: Start::Zero }, columns, n, pack);
            dx.fill(F::ZERO);
            s.fold(columns, dx);
        });
    }
}

/// dW = sum over samples of dy (out, oh·ow) times the unfolded patches, transposed; a shard's samples in ascending
/// order, the shards along the tree. Inputs: x, dy. A task has some output and some input channels, of which alone it
/// unfolds the patches.
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
        let s = self.conv.sizes(&io.types[0].shape, &self.weight).expect("checked when the graph was built");
        let (outer, n) = (self.weight[0], s.out());
        let (shards, samples) = (io.key.shards, io.types[0].shape[0] / io.key.shards);
        let (x, dy, kernel) = (io.x[0], io.x[1], (s.kh * s.kw).max(1));
        // About two panels of columns; few of them are evened out by cutting the output channels as well.
        let inner = COLUMNS.div_ceil(kernel).min(s.inner.max(1));
        let groups = s.inner.div_ceil(inner).max(1);
        let rows = if groups < 4 { outer.clamp(1, ROWS) } else { outer.max(1) };
        let part = rows * inner * kernel;
        let mut parts = std::mem::take(&mut io.work.rooms[0].parts);
        let parts_here = take(&mut parts, outer.div_ceil(rows) * groups * part);
        let Work { team, rooms } = io.work;
        let place = |task: usize| {
            let (row, channel) = (task / groups * rows, task % groups * inner);
            (row..outer.min(row + rows), channel..s.inner.min(channel + inner))
        };
        team.chunks_in(rooms, parts_here, part.max(1), |Room { pack, columns, sums, .. }, task, part| {
            let (rows, channels) = place(task);
            let (m, width) = (rows.len(), channels.len() * kernel);
            tree_sum(shards, &mut part[..m * width], sums, |shard, dw| {
                dw.fill(F::ZERO);
                for sample in shard * samples..(shard + 1) * samples {
                    let image = &x[sample * s.image()..][..s.image()];
                    let b = Mat::rows(s.unfold(image, channels.clone(), columns), n).transposed();
                    let a = Mat::rows(&dy[(sample * outer + rows.start) * n..][..m * n], n);
                    F::gemm(Gemm { m, n: width, k: n, a, b, start: Start::Go }, dw, width, pack);
                }
            });
        });
        for (task, part) in parts_here.chunks_exact(part.max(1)).enumerate() {
            let (rows, channels) = place(task);
            let width = channels.len() * kernel;
            for (row, part) in rows.zip(part.chunks_exact(width.max(1))) {
                dw[row * s.patch() + channels.start * kernel..][..width].copy_from_slice(part);
            }
        }
        io.work.rooms[0].parts = parts;
    }
}

/// Columns of a weight gradient's task, about, and its rows where there are few columns.
const COLUMNS: usize = 64;
const ROWS: usize = 14;

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
