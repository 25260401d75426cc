//! The float type of a run: f32 or, with products in bf16, [`crate::mixed::Mixed`] for training, f64 as the reference
//! that checks them.
//!
//! Every kernel is written once over [`Real`]. What differs is here and in `mixed`: f32 takes the polynomials of `math`
//! and the packed product of `gemm`; f64 takes the `libm` crate and three plain loops.

use crate::gemm::{self, Gemm, Mat, Operand, Pack, TeamGemm, indirect};
use crate::ops::Work;
use crate::simd::{Set, vectorised};
use crate::tile::{self, Product};
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
    /// Numbers along k that an operand of a product holds.
    const PER: usize;
    /// What a product reads.
    type Operand: Copy + Default + Debug + Send + Sync + 'static;
    fn of(x: f64) -> Self;
    fn f64(self) -> f64;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn exp2(self) -> Self;
    fn sqrt(self) -> Self;
    fn tanh(self) -> Self;
    /// To a power that is fixed when the graph is built.
    fn pow(self, power: f64) -> Self;
    /// Numbers as operands, where they are such as they lie in memory.
    fn in_place(xs: &[Self]) -> Option<&[Self::Operand]>;
    /// Neighbours along a row as operands, with a zero behind the last if it is odd.
    fn lengthwise(set: Set, row: &[Self], to: &mut [Self::Operand]);
    /// `count` rows of numbers, `stride` apart, as rows of operands across them, which are `padded` long, with zeros
    /// behind the last number and below an odd last row.
    fn crosswise(set: Set, rows: Rows<'_, Self>, padded: usize, to: &mut [Self::Operand]);
    /// Rows transposed, with operands along them: (row's length / PER, width), zeros behind the last row.
    fn panel(set: Set, rows: Rows<'_, Self>, width: usize, to: &mut [Self::Operand]);
    /// Of two neighbours along k; of one, where an operand holds no more.
    fn operand(first: Self, second: Self) -> Self::Operand;
    /// Puts a number at its place along k (under PER), with zeros behind it.
    fn put(operand: &mut Self::Operand, place: usize, number: Self);
    /// The set whose kernels multiply operands.
    fn set(set: Set) -> Set;
    fn is_finite(operand: Self::Operand) -> bool;
    /// Only its first number, zeros behind it.
    fn only_first(operand: Self::Operand) -> Self::Operand;
    /// The same products as [`Real::gemm`] of matrices that lie in the cache as operands, read in place.
    fn tile(product: Product<'_, Self::Operand>, c: &mut [Self], stride: usize);
    /// C (rows `stride` apart) = A B, or C + A B: each element one chain over ascending k.
    fn gemm(product: Gemm<'_, Self>, c: &mut [Self], stride: usize, pack: &mut Pack<Self>);
    /// A tile of a product whose A is read through a table; the set gives its size (`gemm::indirect::size`).
    fn indirect(set: Set, tile: indirect::Tile<'_, Self::Operand, Self>, c: &mut [Self]);
    /// `to[j * to_stride + i] = from[i * from_stride + j]` for (i, j) inside `size`.
    fn transpose(from: &[Self], from_stride: usize, to: &mut [Self], to_stride: usize, size: (usize, usize));
    /// The same on a team, with a bias and as a sum over shards.
    fn product(product: TeamGemm<'_, Self>, c: &mut [Self], stride: usize, work: &mut Work<Self>);

    fn of_usize(n: usize) -> Self {
        Self::of(n as f64)
    }
}

/// Rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T> {
    pub data: &'a [T],
    /// From the start of a row to that of the next.
    pub stride: usize,
    pub count: usize,
    pub width: usize,
}

impl<'a, T> Rows<'a, T> {
    pub fn get(&self, row: usize) -> &'a [T] {
        &self.data[row * self.stride..][..self.width]
    }
}

vectorised! {
    /// Copies rows one behind the other, with zeros up to their new length.
    fn pad[F: Real](rows: Rows<'_, F>, padded: usize, to: &mut [F]) {
        for (row, to) in to.chunks_exact_mut(padded.max(1)).take(rows.count).enumerate() {
            let (whole, rest) = rows.get(row).as_chunks::<LANES>();
            let (to, last) = to.split_at_mut(whole.len() * LANES);
            to.as_chunks_mut::<LANES>().0.copy_from_slice(whole);
            if !last.is_empty() {
                last[..rest.len()].copy_from_slice(rest);
                last[rest.len()..].fill(F::ZERO);
            }
        }
    }
}

/// A float that is an f32 in memory.
pub trait Single: Real<Operand: Operand> {
    fn of_floats(xs: &[f32]) -> &[Self];
    fn of_floats_mut(xs: &mut [f32]) -> &mut [Self];
    fn floats(xs: &[Self]) -> &[f32];
    fn floats_mut(xs: &mut [Self]) -> &mut [f32];
}

impl Single for f32 {
    fn of_floats(xs: &[f32]) -> &[f32] {
        xs
    }

    fn of_floats_mut(xs: &mut [f32]) -> &mut [f32] {
        xs
    }

    fn floats(xs: &[f32]) -> &[f32] {
        xs
    }

    fn floats_mut(xs: &mut [f32]) -> &mut [f32] {
        xs
    }
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NAN: f32 = f32::from_bits(0x7fc0_0000);
    const PER: usize = 1;
    type Operand = f32;

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

    #[inline(always)]
    fn ln(self) -> f32 {
        crate::math::ln(self)
    }

    #[inline(always)]
    fn exp2(self) -> f32 {
        crate::math::exp2(self)
    }

    /// Rounded exactly by IEEE 754, so the hardware's is everybody's.
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn tanh(self) -> f32 {
        crate::math::tanh(self)
    }

    /// Rounded once, from f64: exp(power · ln x) in f32 would lose as many digits as the power has. Whole powers up
    /// to 64 are products, which vectorise; their error in f64 is far below what f32 shows.
    #[inline(always)]
    fn pow(self, power: f64) -> f32 {
        if power.abs() <= 64.0 && power == libm::floor(power) {
            crate::math::whole_power(self as f64, power as i32) as f32
        } else {
            libm::pow(self as f64, power) as f32
        }
    }

    fn in_place(xs: &[f32]) -> Option<&[f32]> {
        Some(xs)
    }

    fn lengthwise(_: Set, row: &[f32], to: &mut [f32]) {
        to.copy_from_slice(row);
    }

    fn crosswise(set: Set, rows: Rows<'_, f32>, padded: usize, to: &mut [f32]) {
        let Rows { data, stride, count, width } = rows;
        <f32 as Operand>::panel(set.isa(), Mat::rows(data, stride), 0, count, (width, padded), to);
    }

    fn panel(set: Set, rows: Rows<'_, f32>, width: usize, to: &mut [f32]) {
        let Rows { data, stride, count, width: len } = rows;
        <f32 as Operand>::panel(set.isa(), Mat::rows(data, stride).transposed(), 0, len, (count, width), to);
    }

    #[inline(always)]
    fn operand(first: f32, _: f32) -> f32 {
        first
    }

    #[inline(always)]
    fn put(operand: &mut f32, _: usize, number: f32) {
        *operand = number;
    }

    fn set(set: Set) -> Set {
        set
    }

    fn only_first(operand: f32) -> f32 {
        operand
    }

    #[inline(always)]
    fn is_finite(operand: f32) -> bool {
        // 0 times a finite number is 0, times any other NaN.
        operand * 0.0 == 0.0
    }

    fn tile(product: Product<'_, f32>, c: &mut [f32], stride: usize) {
        tile::fast(product, c, stride);
    }

    fn gemm(product: Gemm<'_, f32>, c: &mut [f32], stride: usize, pack: &mut Pack<f32>) {
        gemm::fast(product, c, stride, pack);
    }

    fn indirect(set: Set, tile: indirect::Tile<'_, f32, f32>, c: &mut [f32]) {
        indirect::run(set.isa(), tile, c);
    }

    fn transpose(from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize, size: (usize, usize)) {
        gemm::transpose::copy(from, from_stride, to, to_stride, size);
    }

    fn product(product: TeamGemm<'_, f32>, c: &mut [f32], stride: usize, work: &mut Work<f32>) {
        gemm::shared::multiply(gemm::Isa::best(), product, c, stride, &work.team, &mut work.rooms);
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NAN: f64 = f64::from_bits(0x7ff8_0000_0000_0000);
    const PER: usize = 1;
    type Operand = f64;

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

    fn exp2(self) -> f64 {
        libm::exp2(self)
    }

    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }

    fn tanh(self) -> f64 {
        libm::tanh(self)
    }

    fn pow(self, power: f64) -> f64 {
        libm::pow(self, power)
    }

    fn in_place(xs: &[f64]) -> Option<&[f64]> {
        Some(xs)
    }

    fn lengthwise(_: Set, row: &[f64], to: &mut [f64]) {
        to.copy_from_slice(row);
    }

    fn crosswise(set: Set, rows: Rows<'_, f64>, padded: usize, to: &mut [f64]) {
        pad(set, rows, padded, to);
    }

    fn panel(_: Set, rows: Rows<'_, f64>, width: usize, to: &mut [f64]) {
        if rows.count < width {
            to.fill(0.0);
        }
        Self::transpose(rows.data, rows.stride, to, width, (rows.count, rows.width));
    }

    #[inline(always)]
    fn operand(first: f64, _: f64) -> f64 {
        first
    }

    #[inline(always)]
    fn put(operand: &mut f64, _: usize, number: f64) {
        *operand = number;
    }

    fn set(set: Set) -> Set {
        set
    }

    fn only_first(operand: f64) -> f64 {
        operand
    }

    #[inline(always)]
    fn is_finite(operand: f64) -> bool {
        // 0 times a finite number is 0, times any other NaN.
        operand * 0.0 == 0.0
    }

    fn tile(product: Product<'_, f64>, c: &mut [f64], stride: usize) {
        tile::plain(product, c, stride);
    }

    fn gemm(product: Gemm<'_, f64>, c: &mut [f64], stride: usize, _pack: &mut Pack<f64>) {
        gemm::plain(product, c, stride);
    }

    fn indirect(set: Set, tile: indirect::Tile<'_, f64, f64>, c: &mut [f64]) {
        indirect::plain(set.isa(), tile, c);
    }

    fn transpose(from: &[f64], from_stride: usize, to: &mut [f64], to_stride: usize, (rows, columns): (usize, usize)) {
        for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
            to[j * to_stride + i] = from[i * from_stride + j];
        }
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

/// The largest, or minus infinity; a NaN is passed over.
#[inline(always)]
pub fn largest<F: Real>(xs: &[F]) -> F {
    let mut lanes = [F::of(f64::NEG_INFINITY); LANES];
    let larger = |a: F, b: F| if b > a { b } else { a };
    let (blocks, rest) = xs.as_chunks::<LANES>();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane = larger(*lane, *x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, *x);
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = larger(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

/// Replaces each by its term, and gives the terms' sum in the order of [`sum`].
#[inline(always)]
pub fn sum_in_place<F: Real>(xs: &mut [F], term: impl Fn(F) -> F) -> F {
    let mut lanes = [F::ZERO; LANES];
    let (blocks, rest) = xs.as_chunks_mut::<LANES>();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *x = term(*x);
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = term(*x);
        *lane += *x;
    }
    fold(lanes)
}

/// [`sum`] over pairs.
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
    let ((x_blocks, x_rest), (y_blocks, y_rest)) = (xs.as_chunks::<LANES>(), ys.as_chunks::<LANES>());
    let (z_blocks, z_rest) = zs.as_chunks::<LANES>();
    for ((xs, ys), zs) in x_blocks.iter().zip(y_blocks).zip(z_blocks) {
        for (((lane, x), y), z) in lanes.iter_mut().zip(xs).zip(ys).zip(zs) {
            *lane += term(*x, *y, *z);
        }
    }
    for (((lane, x), y), z) in lanes.iter_mut().zip(x_rest).zip(y_rest).zip(z_rest) {
        *lane += term(*x, *y, *z);
    }
    fold(lanes)
}

/// Running sums of a long one.
pub(crate) const LANES: usize = 16;

#[inline(always)]
pub(crate) fn fold<F: Real>(mut lanes: [F; LANES]) -> F {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}
