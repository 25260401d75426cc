//! A product whose A is read where it lies, through a table: element (r, p) is `a[rows[r] + steps[p]]`.
//!
//! A convolution is such a product: a row is an output pixel and a step one tap of one channel, or, for the weight's
//! gradient, a row is a tap and a step a pixel. Nothing is unfolded and nothing of A is packed; the same pixel is read
//! from the cache for each window it lies in (Dukhan, The Indirect Convolution Algorithm, arXiv:1907.02129, with
//! offsets where the paper has pointers). Each element is the chain that `gemm` has: fused multiply-adds over
//! ascending p from +0 (or from C).

use super::{Isa, Start, portable};
use crate::bf16::{self, Pair};
use crate::leaves;
use crate::real::Real;

/// Distances from a row's start, in elements, one for each link of the chain.
#[derive(Clone, Copy, Debug)]
pub struct Steps<'a> {
    list: &'a [u32],
    largest: u32,
}

impl<'a> Steps<'a> {
    pub fn new(list: &'a [u32]) -> Steps<'a> {
        Steps { list, largest: list.iter().copied().max().unwrap_or(0) }
    }

    pub fn part(self, range: std::ops::Range<usize>) -> Steps<'a> {
        Steps { list: &self.list[range], ..self }
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn list(&self) -> &'a [u32] {
        self.list
    }
}

/// The work of one tile: C is (rows, width), its rows one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a, O, F> {
    pub a: &'a [O],
    /// Where each row starts in `a`.
    pub rows: &'a [u32],
    pub steps: Steps<'a>,
    /// (steps, width).
    pub b: &'a [O],
    pub start: Start,
    /// Tiles like C, one behind the other, that the finished chains are added to, one after the other, as
    /// `leaves::add` does: the left siblings of a sum over shards.
    pub left: &'a [F],
}

impl<O, F> Tile<'_, O, F> {
    /// What the SIMD kernels rely on when they read and write without bounds checks.
    fn check(&self, height: usize, width: usize, c: &[F]) {
        let last = self.rows.iter().max().copied().unwrap_or(0) as usize + self.steps.largest as usize;
        assert!(!self.rows.is_empty() && self.rows.len() <= height, "a tile has 1 to {height} rows");
        assert!(self.steps.list.is_empty() || last < self.a.len(), "A holds every row's steps");
        assert!(self.b.len() >= self.steps.list.len() * width, "B holds every step's columns");
        assert!(c.len() == self.rows.len() * width, "C is the tile");
        assert!(self.left.len().is_multiple_of(c.len()), "left siblings are whole tiles");
    }
}

/// Rows and columns of a tile of the set.
pub fn size(isa: Isa) -> (usize, usize) {
    isa.tile()
}

/// The f32 tile on a set of this machine; the bits are the same on each.
pub fn run(isa: Isa, tile: Tile<'_, f32, f32>, c: &mut [f32]) {
    let (height, width) = isa.tile();
    tile.check(height, width, c);
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::here` lists the set only if the machine has it, and `check` held.
        Isa::Avx512 => unsafe { super::avx512::run_indirect(tile, c) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { super::avx2::run_indirect(tile, c) },
        _ => by_loops(tile, c, width, portable::fused),
    }
}

/// The tile of pairs of bf16, each link of which is a `bf16::dot`; the set is one that `Pair::set` gives.
pub fn run_pairs(isa: Isa, tile: Tile<'_, Pair, f32>, c: &mut [f32]) {
    let (height, width) = isa.tile();
    tile.check(height, width, c);
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Pair::set` leaves the set only where the machine has its instruction, and `check` held.
        Isa::Avx512 => unsafe { super::avx512_bf16::run_indirect(tile, c) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { super::avx2_bf16::run_indirect(tile, c) },
        _ => {
            let (left, tile) = (tile.left, Tile { left: &[], ..tile });
            by_loops(tile, c, width, |a, b, sum| bf16::dot(sum, a, b));
            c.iter_mut().filter(|sum| sum.is_nan()).for_each(|sum| *sum = <f32 as Real>::NAN);
            add_left(c, left);
        }
    }
}

/// The reference: products rounded before they are added.
pub fn plain<F: Real>(isa: Isa, tile: Tile<'_, F, F>, c: &mut [F]) {
    let (height, width) = isa.tile();
    tile.check(height, width, c);
    by_loops(tile, c, width, |a, b, c| a * b + c);
}

fn by_loops<O: Copy, F: Real>(tile: Tile<'_, O, F>, c: &mut [F], width: usize, add: impl Fn(O, O, F) -> F) {
    if tile.start == Start::Zero {
        c.fill(F::ZERO);
    }
    for (row, c) in tile.rows.iter().zip(c.chunks_exact_mut(width)) {
        for (step, b) in tile.steps.list.iter().zip(tile.b.chunks_exact(width)) {
            let x = tile.a[(row + step) as usize];
            c.iter_mut().zip(b).for_each(|(c, b)| *c = add(x, *b, *c));
        }
    }
    add_left(c, tile.left);
}

fn add_left<F: Real>(c: &mut [F], left: &[F]) {
    for left in left.chunks_exact(c.len()) {
        c.iter_mut().zip(left).for_each(|(sum, left)| *sum = leaves::add(*left, *sum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{Gemm, Mat, Pack, fast_on};

    /// The same product with A written out, then the left siblings.
    fn written_out(tile: Tile<'_, f32, f32>, width: usize, c: &mut [f32]) {
        let k = tile.steps.list.len();
        let a: Vec<f32> =
            tile.rows.iter().flat_map(|r| tile.steps.list.iter().map(move |s| tile.a[(r + s) as usize])).collect();
        let (a, b) = (Mat::rows(&a, k), Mat::rows(tile.b, width));
        let product = Gemm { m: tile.rows.len(), n: width, k, a, b, start: tile.start };
        fast_on(Isa::Portable, product, c, width, &mut Pack::default());
        for left in tile.left.chunks_exact(c.len()) {
            c.iter_mut().zip(left).for_each(|(sum, left)| *sum = leaves::add(*left, *sum));
        }
    }

    #[test]
    fn a_tile_has_the_bits_of_the_product_with_a_written_out() {
        let number = |i: usize| match i % 17 {
            0 => -0.0,
            3 => f32::INFINITY,
            5 if i > 900 => f32::NAN,
            _ => ((i * 7919) % 1013) as f32 / 300.0 - 1.6,
        };
        let a: Vec<f32> = (0..1500).map(number).collect();
        for isa in Isa::here() {
            let (height, width) = size(isa);
            for (rows, k, lefts, start) in (1..=height).zip([0, 1, 27, 300].iter().cycle()).flat_map(|(rows, k)| {
                [(rows, *k, 0, Start::Zero), (rows, *k, 2, Start::Go), (rows, *k, 1, Start::Zero)]
            }) {
                let starts: Vec<u32> = (0..rows as u32).map(|r| r * 31 % 90).collect();
                let steps: Vec<u32> = (0..k as u32).map(|p| p * 53 % 1400).collect();
                let b: Vec<f32> = (0..k * width).map(|i| number(i + 7)).collect();
                let left: Vec<f32> = (0..lefts * rows * width).map(|i| number(i + 2)).collect();
                let tile = Tile { a: &a, rows: &starts, steps: Steps::new(&steps), b: &b, start, left: &left };
                let before: Vec<f32> = (0..rows * width).map(|i| number(i + 1)).collect();
                let (mut c, mut wanted) = (before.clone(), before);
                run(isa, tile, &mut c);
                written_out(tile, width, &mut wanted);
                // Without a sum over shards a NaN has the payload that its set gives it.
                let bits = |c: &[f32]| c.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect::<Vec<_>>();
                assert_eq!(bits(&c), bits(&wanted), "{rows} rows, {k} steps, {lefts} left on {isa:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "A holds every row's steps")]
    fn a_table_that_points_outside_is_refused() {
        let (a, b) = ([0.0; 10], [0.0; 64]);
        let tile = Tile { a: &a, rows: &[4], steps: Steps::new(&[0, 6]), b: &b, start: Start::Zero, left: &[] };
        run(Isa::here()[0], tile, &mut vec![0.0; size(Isa::here()[0]).1]);
    }

    #[test]
    fn a_tile_of_pairs_has_the_bits_of_the_dots_on_every_set() {
        use crate::gemm::Operand;
        let number = |i: usize| match i % 17 {
            0 => -0.0,
            3 if i > 700 => f32::INFINITY,
            5 if i > 900 => f32::NAN,
            6 => 1e-19,
            _ => ((i * 7919) % 1013) as f32 / 300.0 - 1.6,
        };
        let a: Vec<Pair> = (0..1500).map(|i| Pair::new(number(i), number(i + 31))).collect();
        for isa in Isa::here().into_iter().filter(|isa| Pair::set(*isa) == *isa) {
            let (height, width) = size(isa);
            for (rows, k, lefts, start) in (1..=height).zip([0, 1, 27, 300].iter().cycle()).flat_map(|(rows, k)| {
                [(rows, *k, 0, Start::Zero), (rows, *k, 2, Start::Go), (rows, *k, 1, Start::Zero)]
            }) {
                let starts: Vec<u32> = (0..rows as u32).map(|r| r * 31 % 90).collect();
                let steps: Vec<u32> = (0..k as u32).map(|p| p * 53 % 1400).collect();
                let b: Vec<Pair> = (0..k * width).map(|i| Pair::new(number(i + 7), number(i + 8))).collect();
                let left: Vec<f32> = (0..lefts * rows * width).map(|i| number(i + 2)).collect();
                let tile = Tile { a: &a, rows: &starts, steps: Steps::new(&steps), b: &b, start, left: &left };
                let before: Vec<f32> = (0..rows * width).map(|i| number(i % 600 + 1)).collect();
                let mut c = before.clone();
                run_pairs(isa, tile, &mut c);
                for (at, c) in c.iter().enumerate() {
                    let (row, column) = (at / width, at % width);
                    let link = |sum, (p, step): (usize, &u32)| {
                        bf16::dot(sum, a[(starts[row] + step) as usize], b[p * width + column])
                    };
                    let first = if start == Start::Zero { 0.0 } else { before[at] };
                    let sum = steps.iter().enumerate().fold(first, link);
                    let sum = left.chunks(rows * width).fold(sum, |sum, left| leaves::add(left[at], sum));
                    let is_same = c.to_bits() == sum.to_bits() || sum.is_nan() && c.to_bits() == 0x7fc0_0000;
                    // Without a link nothing is rounded nor flushed but what the machine's tile loads.
                    assert!(is_same || k == 0, "{isa:?} {rows}x{k}, {lefts} left, {start:?}, {at}: {c:?}, not {sum:?}");
                }
            }
        }
    }
}
