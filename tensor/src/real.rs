//! The float type of a run: f32 for training, f64 as the reference that checks it.
//!
//! Every kernel is written once over [`Real`]. What differs is here: f32 takes the polynomials of `math` and
//! the packed product of `gemm`; f64 takes the `libm` crate and three plain loops.

use crate::gemm::{self, Gemm, Pack, TeamGemm};
use crate::ops::Work;
use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

pub trait Real:
    Copy
    + Default
    + Debug
    + PartialOrd
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
{
    const ZERO: Self;
    const ONE: Self;
    /// The one NaN: quiet, positive, without a payload.
    const NAN: Self;
    fn of(x: f64) -> Self;
    fn f64(self) -> f64;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn tanh(self) -> Self;
    fn sqrt(self) -> Self;
    /// C (rows `stride` apart) = A B, or C + A B: each element one chain over ascending k.
    fn gemm(product: Gemm<'_, Self>, c: &mut [Self], stride: usize, pack: &mut Pack<Self>);
    /// The same on a team, with a bias and as a sum over shards.
    fn product(product: TeamGemm<'_, Self>, c: &mut [Self], stride: usize, work: &mut Work<Self>);

    fn of_usize(n: usize) -> Self {
        Self::of(n as f64)
    }
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NAN: f32 = f32::from_bits(0x7fc0_0000);

    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }

    #[inline(always)]
    fn f64(self) -> f64 {
        self as f64
    }

    #[inline(always)]
    fn exp(self) -> f32 {
        crate::math::exp(self)
    }

    fn ln(self) -> f32 {
        libm::logf(self)
    }

    #[inline(always)]
    fn tanh(self) -> f32 {
        crate::math::tanh(self)
    }

    /// Rounded exactly by IEEE 754, so the hardware's is everybody's.
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }

    fn gemm(product: Gemm<'_, f32>, c: &mut [f32], stride: usize, pack: &mut Pack<f32>) {
        gemm::fast(product, c, stride, pack);
    }

    fn product(product: TeamGemm<'_, f32>, c: &mut [f32], stride: usize, work: &mut Work<f32>) {
        gemm::shared::multiply(gemm::Isa::best(), product, c, stride, &work.team, &mut work.rooms);
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NAN: f64 = f64::from_bits(0x7ff8_0000_0000_0000);

    fn of(x: f64) -> f64 {
        x
    }

    fn f64(self) -> f64 {
        self
    }

    fn exp(self) -> f64 {
        libm::exp(self)
    }

    fn ln(self) -> f64 {
        libm::log(self)
    }

    fn tanh(self) -> f64 {
        libm::tanh(self)
    }

    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }

    fn gemm(product: Gemm<'_, f64>, c: &mut [f64], stride: usize, _pack: &mut Pack<f64>) {
        gemm::plain(product, c, stride);
    }

    fn product(product: TeamGemm<'_, f64>, c: &mut [f64], stride: usize, work: &mut Work<f64>) {
        gemm::shared::plain(product, c, stride, &mut work.rooms[0].sums);
    }
}

/// Sum in a fixed order: sixteen running sums over ascending indices, then a tree over them.
#[inline(always)]
pub fn sum<F: Real>(xs: &[F], term: impl Fn(F) -> F) -> F {
    let mut lanes = [F::ZERO; LANES];
    let (blocks, rest) = xs.as_chunks::<LANES>();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane += term(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += term(*x);
    }
    fold(lanes)
}

/// The same over pairs.
#[inline(always)]
pub fn sum2<F: Real>(xs: &[F], ys: &[F], term: impl Fn(F, F) -> F) -> F {
    let mut lanes = [F::ZERO; LANES];
    let ((x_blocks, x_rest), (y_blocks, y_rest)) = (xs.as_chunks::<LANES>(), ys.as_chunks::<LANES>());
    for (xs, ys) in x_blocks.iter().zip(y_blocks) {
        for ((lane, x), y) in lanes.iter_mut().zip(xs).zip(ys) {
            *lane += term(*x, *y);
        }
    }
    for ((lane, x), y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane += term(*x, *y);
    }
    fold(lanes)
}

/// The same over triples.
#[inline(always)]
pub fn sum3<F: Real>(xs: &[F], ys: &[F], zs: &[F], term: impl Fn(F, F, F) -> F) -> F {
    let mut lanes = [F::ZERO; LANES];
    let mut blocks = xs.chunks(LANES).zip(ys.chunks(LANES)).zip(zs.chunks(LANES));
    for ((xs, ys), zs) in &mut blocks {
        for (((lane, x), y), z) in lanes.iter_mut().zip(xs).zip(ys).zip(zs) {
            *lane += term(*x, *y, *z);
        }
    }
    fold(lanes)
}

const LANES: usize = 16;

#[inline(always)]
fn fold<F: Real>(mut lanes: [F; LANES]) -> F {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}
