//! 2-D convolution as a matrix product over unfolded patches, one sample at a time.
//!
//! x: (sample, in, h, w), W: (out, in, kh, kw), b: (out), y: (sample, out, oh, ow). A sample's patches are
//! unfolded to (in·kh·kw, oh·ow). The weight's gradient goes on with the same chains from sample to sample.

use super::*;
use crate::gemm::{Mat, Start};
use crate::leaves::tree_sum;
use crate::real::sum;

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
    /// padding is left out.
    #[inline(always)]
    fn runs(&self, mut visit: impl FnMut(Run)) {
        let Conv2d { stride, pad } = self.conv;
        for row in 0..self.patch() {
            let (channel, ky, kx) = (row / (self.kh * self.kw), row / self.kw % self.kh, row % self.kw);
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

    fn unfold<'a, F: Real>(&self, image: &[F], room: &'a mut Vec<F>) -> &'a [F] {
        let columns = take(room, self.patch() * self.out());
        columns.fill(F::ZERO);
        self.runs(|Run { at, pixel, len }| {
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
        self.runs(|Run { at, pixel, len }| {
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
        let Room { pack, columns, .. } = &mut io.work.rooms[0];
        for (y, image) in y.chunks_exact_mut((outer * n).max(1)).zip(io.x[0].chunks_exact(s.image().max(1))) {
            let b = Mat::rows(s.unfold(image, columns), n);
            let a = Mat::rows(io.x[1], s.patch());
            F::gemm(Gemm { m: outer, n, k: s.patch(), a, b, start: Start::Zero }, y, n, pack);
            if io.types.len() == 3 {
                for (plane, bias) in y.chunks_exact_mut(n).zip(io.x[2]) {
                    plane.iter_mut().for_each(|y| *y += *bias);
                }
            }
        }
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
        let Room { pack, columns, .. } = &mut io.work.rooms[0];
        for (dx, dy) in dx.chunks_exact_mut(s.image().max(1)).zip(io.x[1].chunks_exact((outer * n).max(1))) {
            let columns = take(columns, s.patch() * n);
            let a = Mat::rows(io.x[0], s.patch()).transposed();
            let b = Mat::rows(dy, n);
            F::gemm(Gemm { m: s.patch(), n, k: outer, a, b, start: Start::Zero }, columns, n, pack);
            dx.fill(F::ZERO);
            s.fold(columns, dx);
        }
    }
}

/// dW = sum over samples of dy (out, oh·ow) times the unfolded patches, transposed. Inputs: x, dy.
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
        let Room { pack, columns, sums } = &mut io.work.rooms[0];
        let (shards, samples) = (io.key.shards, io.types[0].shape[0] / io.key.shards);
        let (image, dy_len) = (s.image(), outer * n);
        tree_sum(shards, dw, sums, |shard, dw| {
            dw.fill(F::ZERO);
            for sample in shard * samples..(shard + 1) * samples {
                let b = Mat::rows(s.unfold(&io.x[0][sample * image..][..image], columns), n).transposed();
                let a = Mat::rows(&io.x[1][sample * dy_len..][..dy_len], n);
                F::gemm(Gemm { m: outer, n: s.patch(), k: n, a, b, start: Start::Go }, dw, s.patch(), pack);
            }
        });
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
        let (shards, leaf) = (io.key.shards, io.x[0].len() / io.key.shards);
        tree_sum(shards, db, &mut io.work.rooms[0].sums, |shard, db| {
            db.fill(F::ZERO);
            for sample in io.x[0][shard * leaf..][..leaf].chunks_exact((shape[1] * plane).max(1)) {
                for (db, plane) in db.iter_mut().zip(sample.chunks_exact(plane)) {
                    *db += sum(plane, |x| x);
                }
            }
        });
    }
}
