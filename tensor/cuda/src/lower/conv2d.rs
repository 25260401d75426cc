//! 2-D convolutions: `kernels/conv2d*.cu`.

use super::gemm::{NOWHERE, Run, Shards, Tile, grid, structure};
use super::norms::{half_warps, sum_columns};
use super::tensor_core::{sum_over_shards, tile_of_planes};
use super::{At, Given, Launches, Site, given, numbers};
use elastic_spec::job::Dtype;
use elastic_tensor::ops::{Conv2d, Conv2dGradInput, Conv2dGradWeight};

/// Sizes of one convolution: x (sample, in, h, w), W (out, in, kh, kw), y (sample, out, oh, ow).
#[derive(Clone, Copy, Debug)]
struct Sizes {
    conv: Conv2d,
    samples: usize,
    inner: usize,
    size: (usize, usize),
    outer: usize,
    kernel: (usize, usize),
    out: (usize, usize),
}

impl Sizes {
    fn of(conv: Conv2d, image: &[usize], weight: &[usize], out: &[usize]) -> Sizes {
        Sizes {
            conv,
            samples: image[0],
            inner: image[1],
            size: (image[2], image[3]),
            outer: weight[0],
            kernel: (weight[2], weight[3]),
            out: (out[2], out[3]),
        }
    }

    fn patch(self) -> usize {
        self.inner * self.kernel.0 * self.kernel.1
    }

    /// Parts of the input whose pixels meet the same taps.
    fn phases(self) -> usize {
        self.conv.stride.min(self.size.0) * self.conv.stride.min(self.size.1)
    }

    /// `struct Sizes` of `conv2d.cuh`.
    fn given(self, shards: usize) -> Given {
        let Sizes {
            conv: Conv2d { stride, pad },
            samples,
            inner,
            size: (h, w),
            outer,
            kernel: (kh, kw),
            out: (oh, ow),
        } = self;
        let plain = [samples, inner, h, w, outer, kh, kw, oh, ow, stride, pad, shards];
        let mut fields: Vec<u32> = plain.into_iter().map(counted).collect();
        fields.extend(divisor(oh * ow));
        fields.extend(divisor(ow));
        structure(&fields)
    }
}

/// What kernels count in 31 bits: links of a chain, points of all samples, elements of a sample.
fn counted(count: usize) -> u32 {
    assert!(count < 1 << 31, "an axis of a convolution's product has less than 2^31 elements, not {count}");
    count as u32
}

/// `struct Divisor` of `conv2d.cuh`.
fn divisor(by: usize) -> [u32; 3] {
    let by = counted(by.max(1));
    let shift = 31 + by.next_power_of_two().ilog2();
    let magic = (1u64 << shift) / u64::from(by) + 1;
    [by, u32::try_from(magic).expect("2^l is less than twice the divisor"), shift]
}

/// Points that see the same taps of a source, each a window of it: `struct Part` of `conv2d.cuh`, of a whole plane.
#[derive(Clone, Copy, Debug)]
struct Part {
    planes: usize,
    size: (usize, usize),
    taps: (usize, usize),
    points: (usize, usize),
    /// Row and column of the first point's window, and from one to the next.
    window: (isize, isize),
    every: usize,
}

impl Part {
    fn given(self) -> Given {
        let Part { planes, size, taps, points, window, every } = self;
        counted(planes * size.0 * size.1);
        counted(planes * taps.0 * taps.1);
        let plain = [planes, size.0, size.1, taps.0, taps.1, points.0, points.1].map(counted);
        let signed = |at: isize| i32::try_from(at).expect("padding has less than 2^31 rows") as u32;
        let mut fields = plain.to_vec();
        fields.extend([signed(window.0), signed(window.1), counted(every), 0, 0, 1]);
        fields.extend(divisor(taps.0 * taps.1));
        fields.extend(divisor(taps.1));
        structure(&fields)
    }

    /// Writes `columns` planes a sample.
    fn lower(
        self,
        dtype: Dtype,
        y: At,
        (source, weight, bias): (At, At, Given),
        (samples, columns): (usize, usize),
        to: &mut Launches,
    ) {
        let (height, width) = self.points;
        let points = samples * height * width;
        let (file, tile) = match dtype {
            Dtype::F32 => ("conv2d", Tile::best(columns, points, 1)),
            Dtype::Bf16 => ("conv2d_bf16", tile_of_planes(columns)),
        };
        let function = tile.of(["correlate_large", "correlate_medium", "correlate_small"]);
        let planes = structure(&[columns, height * width, width, samples].map(counted));
        counted(points);
        let given = given![y, source, weight, bias, self.given(), planes];
        to.push(file, function, grid(tile, columns, points, 1), given);
    }
}

pub(super) fn conv2d(op: &Conv2d, site: &Site<'_>, to: &mut Launches) {
    let s = Sizes::of(*op, &site.types[0].shape, &site.types[1].shape, &site.out_types[0].shape);
    let bias = site.x.get(2).map_or(NOWHERE, |bias| Given::At(*bias));
    let before = -(op.pad as isize);
    let part = Part {
        planes: s.inner,
        size: s.size,
        taps: s.kernel,
        points: s.out,
        window: (before, before),
        every: op.stride,
    };
    part.lower(site.dtype, site.y[0], (site.x[0], site.x[1], bias), (s.samples, s.outer), to);
}

/// Inputs: W, dy.
pub(super) fn conv2d_grad_input(op: &Conv2dGradInput, site: &Site<'_>, to: &mut Launches) {
    let s = Sizes::of(op.conv, &op.image, &site.types[0].shape, &site.types[1].shape);
    if site.y_len(0) == 0 {
        return;
    }
    let (stride, pad) = (op.conv.stride, op.conv.pad as isize);
    let (weight, dy) = (site.x[0], site.x[1]);
    // Phases begin where four numbers can be read at once.
    let taps = s.kernel.0.div_ceil(stride) * s.kernel.1.div_ceil(stride);
    let step = (s.inner * s.outer * taps).next_multiple_of(4);
    let count = s.phases() * step;
    let packed = to.room(count);
    to.push("conv2d", "conv2d_pack", numbers(count), given![packed, weight, step, count, s.given(1)]);
    if stride == 1 {
        let first = |kernel: usize| pad + 1 - kernel as isize;
        let part = Part {
            planes: s.outer,
            size: s.out,
            taps: s.kernel,
            points: s.size,
            window: (first(s.kernel.0), first(s.kernel.1)),
            every: 1,
        };
        return part.lower(site.dtype, site.y[0], (dy, packed, NOWHERE), (s.samples, s.inner), to);
    }
    counted(s.samples * s.size.0 * s.size.1);
    counted(s.outer * s.out.0 * s.out.1);
    counted(s.outer * taps);
    // The first phase has the most points.
    let points = s.samples * s.size.0.div_ceil(stride) * s.size.1.div_ceil(stride);
    let (file, tile) = match site.dtype {
        Dtype::F32 => ("conv2d", Tile::best(s.inner, points, s.phases())),
        Dtype::Bf16 => ("conv2d_bf16", tile_of_planes(s.inner)),
    };
    let function = tile.of(["phases_large", "phases_medium", "phases_small"]);
    to.push(file, function, grid(tile, s.inner, points, s.phases()), given![site.y[0], dy, packed, step, s.given(1)]);
}

/// Inputs: x, dy.
pub(super) fn conv2d_grad_weight(op: &Conv2dGradWeight, site: &Site<'_>, to: &mut Launches) {
    let s = Sizes::of(op.conv, &site.types[0].shape, &op.weight, &site.types[1].shape);
    let (m, n, shards) = (s.outer, s.patch(), site.shards);
    counted(s.samples / shards * s.out.0 * s.out.1);
    counted(s.inner * s.size.0 * s.size.1);
    let (x, dy, sizes) = (site.x[0], site.x[1], s.given(shards));
    if site.dtype == Dtype::Bf16 {
        return grad_weight_bf16(s, site, to);
    }
    let shards_of = Shards::of(&[Tile::Medium, Tile::Small], m, n, shards);
    shards_of.lower((m, n), shards, site.y[0], to, |Run { tile, y, room, shape }, to| match room {
        Some((room, step)) => {
            let function = tile.of(["", "conv2d_grad_weight_sum_medium", "conv2d_grad_weight_sum_small"]);
            to.push("conv2d_grad_weight", function, shape, given![y, x, dy, room, step, sizes.clone()]);
        }
        None => {
            let function = tile.of(["", "conv2d_grad_weight_medium", "conv2d_grad_weight_small"]);
            to.push("conv2d_grad_weight", function, shape, given![y, x, dy, sizes.clone()]);
        }
    });
}

fn grad_weight_bf16(s: Sizes, site: &Site<'_>, to: &mut Launches) {
    let (m, n) = (s.outer, s.patch());
    let (of_x, of_dy) = (s.inner * s.size.0 * s.size.1, s.outer * s.out.0 * s.out.1);
    let tile = tile_of_planes(m);
    let function = tile.of(["grad_weight_large", "grad_weight_medium", ""]);
    sum_over_shards(m * n, site.shards, site.y[0], to, |shards, leaves, to| {
        let first = shards.start * (s.samples / site.shards);
        let (x, dy) = (site.x[0].plus(first * of_x), site.x[1].plus(first * of_dy));
        let (count, sizes) = (counted(shards.len()), s.given(site.shards));
        to.push("conv2d_bf16", function, grid(tile, m, n, shards.len()), given![leaves, x, dy, sizes, count]);
    });
}

/// Input: dy.
pub(super) fn conv2d_grad_bias(site: &Site<'_>, to: &mut Launches) {
    let [samples, channels, h, w] = site.types[0].shape[..] else { unreachable!("dy has four axes") };
    let sums = to.room(samples * channels);
    let shape = half_warps(samples * channels);
    to.push("conv2d_grad_bias", "conv2d_planes", shape, given![sums, site.x[0], samples * channels, h * w]);
    sum_columns([site.y[0]], channels, site.shards, to, |[db], shape, to| {
        let samples = samples / site.shards;
        to.push("conv2d_grad_bias", "conv2d_grad_bias", shape, given![db, sums, samples, channels]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes that `tests/ops/conv.rs` has for each tile: planes, points, phases; of weights planes, patch, shards.
    #[test]
    fn tests_of_convolutions_come_to_every_tile() {
        assert_eq!(Tile::best(49, 9 * 27 * 30, 1), Tile::Medium);
        assert_eq!(Tile::best(120, 11 * 38 * 36, 1), Tile::Large);
        assert_eq!(Tile::best(50, 9 * 14 * 15, 4), Tile::Medium);
        assert_eq!(Tile::best(118, 10 * 19 * 20, 4), Tile::Large);
        let of_weight = |m, n, shards| Shards::of(&[Tile::Medium, Tile::Small], m, n, shards);
        assert!(matches!(of_weight(260, 270, 2), Shards::Walked { tile: Tile::Small, .. }));
        assert!(matches!(of_weight(690, 702, 2), Shards::Walked { tile: Tile::Medium, .. }));
        assert_eq!(of_weight(690, 702, 1), Shards::SideBySide { tile: Tile::Medium });
        assert_eq!(of_weight(17, 18, 8), Shards::SideBySide { tile: Tile::Small });
    }

    #[test]
    fn a_product_divides_exactly() {
        let largest = (1u64 << 31) - 1;
        for by in [1, 2, 3, 5, 7, 9, 25, 49, 64, 121, 1000, 1024, 50_176, 65_537, (1 << 30) - 1, 1 << 30, (1 << 31) - 1]
        {
            let [by, magic, shift] = divisor(by).map(u64::from);
            let near = (0..3).flat_map(|i| [i, by - 1 + i, largest - i, largest / by * by - i.min(1)]);
            for n in near.filter(|n| *n <= largest) {
                assert_eq!((n * magic) >> shift, n / by, "{n} by {by}");
            }
        }
    }
}
