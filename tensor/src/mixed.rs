//! The float of a run in bf16: f32 that products read as bf16.
//!
//! A [`Mixed`] is an f32, and every kernel computes with it as with an f32. Only where a kernel hands operands to a
//! product ([`Real::product`], [`Real::gemm`], [`Real::tile`]) are they rounded to bf16, and there the chains are
//! `bf16::dot`, from an f32 zero to an f32 sum. So parameters, their gradients' leaves, sums along the tree, norms,
//! softmax, losses and the optimizer are those of f32; docs/numerics.md says which op is which.

use crate::bf16::{self, Pair};
use crate::gemm::{self, Gemm, Isa, Operand, Pack, TeamGemm, indirect};
use crate::ops::Work;
use crate::real::{Real, Rows, Single};
use crate::simd::Set;
use crate::tile::{self, Product};
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Mixed(f32);

macro_rules! arithmetic {
    ($($trait:ident $method:ident),*) => {
        $(impl $trait for Mixed {
            type Output = Mixed;

            #[inline(always)]
            fn $method(self, other: Mixed) -> Mixed {
                Mixed($trait::$method(self.0, other.0))
            }
        })*
    };
}

arithmetic!(Add add, Sub sub, Mul mul, Div div);

impl Neg for Mixed {
    type Output = Mixed;

    #[inline(always)]
    fn neg(self) -> Mixed {
        Mixed(-self.0)
    }
}

impl AddAssign for Mixed {
    #[inline(always)]
    fn add_assign(&mut self, other: Mixed) {
        self.0 += other.0;
    }
}

impl MulAssign for Mixed {
    #[inline(always)]
    fn mul_assign(&mut self, other: Mixed) {
        self.0 *= other.0;
    }
}

impl Single for Mixed {
    fn of_floats(xs: &[f32]) -> &[Mixed] {
        // SAFETY: a `Mixed` is an f32 in memory (`repr(transparent)`), and any f32 is one.
        unsafe { std::slice::from_raw_parts(xs.as_ptr().cast(), xs.len()) }
    }

    fn of_floats_mut(xs: &mut [f32]) -> &mut [Mixed] {
        // SAFETY: as above; the borrow is handed on.
        unsafe { std::slice::from_raw_parts_mut(xs.as_mut_ptr().cast(), xs.len()) }
    }

    fn floats(xs: &[Mixed]) -> &[f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(xs.as_ptr().cast(), xs.len()) }
    }

    fn floats_mut(xs: &mut [Mixed]) -> &mut [f32] {
        // SAFETY: as above; the borrow is handed on.
        unsafe { std::slice::from_raw_parts_mut(xs.as_mut_ptr().cast(), xs.len()) }
    }
}

impl Real for Mixed {
    const ZERO: Mixed = Mixed(0.0);
    const ONE: Mixed = Mixed(1.0);
    const NAN: Mixed = Mixed(<f32 as Real>::NAN);
    const PER: usize = 2;
    type Operand = Pair;

    #[inline(always)]
    fn of(x: f64) -> Mixed {
        Mixed(x as f32)
    }

    #[inline(always)]
    fn f64(self) -> f64 {
        self.0 as f64
    }

    #[inline(always)]
    fn exp(self) -> Mixed {
        Mixed(Real::exp(self.0))
    }

    #[inline(always)]
    fn ln(self) -> Mixed {
        Mixed(Real::ln(self.0))
    }

    #[inline(always)]
    fn exp2(self) -> Mixed {
        Mixed(Real::exp2(self.0))
    }

    #[inline(always)]
    fn sqrt(self) -> Mixed {
        Mixed(Real::sqrt(self.0))
    }

    #[inline(always)]
    fn tanh(self) -> Mixed {
        Mixed(Real::tanh(self.0))
    }

    #[inline(always)]
    fn pow(self, power: f64) -> Mixed {
        Mixed(Real::pow(self.0, power))
    }

    fn in_place(_: &[Mixed]) -> Option<&[Pair]> {
        None
    }

    fn lengthwise(set: Set, row: &[Mixed], to: &mut [Pair]) {
        bf16::lengthwise(set, Mixed::floats(row), to);
    }

    fn crosswise(set: Set, rows: Rows<'_, Mixed>, padded: usize, to: &mut [Pair]) {
        let Rows { data, stride, count, width } = rows;
        bf16::crosswise(set, Rows { data: Mixed::floats(data), stride, count, width }, padded, to);
    }

    fn panel(set: Set, rows: Rows<'_, Mixed>, width: usize, to: &mut [Pair]) {
        let Rows { data, stride, count, width: len } = rows;
        bf16::transposed(set, Rows { data: Mixed::floats(data), stride, count, width: len }, width, to);
    }

    #[inline(always)]
    fn operand(first: Mixed, second: Mixed) -> Pair {
        Pair::new(first.0, second.0)
    }

    #[inline(always)]
    fn put(operand: &mut Pair, place: usize, number: Mixed) {
        // What is bf16 already is rounded to itself.
        *operand = if place == 0 { Pair::new(number.0, 0.0) } else { Pair::new(operand.first(), number.0) };
    }

    fn set(set: Set) -> Set {
        Set::of(Pair::set(set.isa()))
    }

    fn only_first(operand: Pair) -> Pair {
        operand.without_second()
    }

    #[inline(always)]
    fn is_finite(operand: Pair) -> bool {
        operand.is_finite()
    }

    fn tile(product: Product<'_, Pair>, c: &mut [Mixed], stride: usize) {
        tile::pairs(product, Mixed::floats_mut(c), stride);
    }

    fn gemm(product: Gemm<'_, Mixed>, c: &mut [Mixed], stride: usize, pack: &mut Pack<Mixed>) {
        gemm::alone(Isa::best(), product.single(), Mixed::floats_mut(c), stride, pack.alone());
    }

    fn indirect(set: Set, tile: indirect::Tile<'_, Pair, Mixed>, c: &mut [Mixed]) {
        let indirect::Tile { a, rows, steps, b, start, left } = tile;
        let tile = indirect::Tile { a, rows, steps, b, start, left: Mixed::floats(left) };
        indirect::run_pairs(set.isa(), tile, Mixed::floats_mut(c));
    }

    fn transpose(from: &[Mixed], from_stride: usize, to: &mut [Mixed], to_stride: usize, size: (usize, usize)) {
        gemm::transpose::copy(Mixed::floats(from), from_stride, Mixed::floats_mut(to), to_stride, size);
    }

    fn product(product: TeamGemm<'_, Mixed>, c: &mut [Mixed], stride: usize, work: &mut Work<Mixed>) {
        let TeamGemm { gemm, shards, bias } = product;
        let product = TeamGemm { gemm: gemm.single(), shards, bias: Mixed::floats(bias) };
        gemm::shared::multiply(Isa::best(), product, Mixed::floats_mut(c), stride, &work.team, &mut work.rooms);
    }
}
