//! Boxes of elements whose places in several operands are strides along axes, as `walk.cuh` walks over them.
//!
//! Kernels count in 32 bits, since a division of 64 takes longer than what it is for. A box that is too large for that is
//! cut into several, each with its own starts.

use super::Words;
use elastic_tensor::ops::{AXES_MAX, Strides};

/// Elements that a kernel takes at a time, along the inner axis.
const CHUNK: usize = 4;

/// Rows and columns of a tile that is transposed.
const TILE: usize = 32;

/// What a kernel may count to.
const REACH: usize = 1 << 31;

/// A box, with its places in operands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Walk {
    /// The inner axis last; one at least.
    shape: Vec<usize>,
    operands: Vec<Operand>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Operand {
    /// Of the box's first element.
    pub start: usize,
    /// As many as axes.
    strides: Vec<isize>,
}

impl Walk {
    /// Axes of one element fall away, and those that lie one behind the other in every operand become one.
    pub fn new(shape: &[usize], operands: &[(usize, Strides)]) -> Walk {
        let empty = |(start, _): &(usize, Strides)| Operand { start: *start, strides: Vec::new() };
        let mut walk = Walk { shape: Vec::new(), operands: operands.iter().map(empty).collect() };
        for (axis, len) in shape.iter().enumerate().filter(|(_, len)| **len != 1) {
            let follows = |(operand, (_, strides)): (&Operand, &(usize, Strides))| {
                operand.strides.last().is_some_and(|outer| *outer == strides[axis] * *len as isize)
            };
            let melts = walk.operands.iter().zip(operands).all(follows);
            let outer = if melts { walk.shape.pop() } else { None };
            walk.shape.push(outer.unwrap_or(1) * len);
            for (operand, (_, strides)) in walk.operands.iter_mut().zip(operands) {
                if melts {
                    operand.strides.pop();
                }
                operand.strides.push(strides[axis]);
            }
        }
        if walk.shape.is_empty() {
            walk.shape.push(1);
            walk.operands.iter_mut().for_each(|operand| operand.strides.push(0));
        }
        walk
    }

    pub fn operand(&self, number: usize) -> &Operand {
        &self.operands[number]
    }

    /// Chunks of all rows.
    pub fn chunks(&self) -> usize {
        let (inner, outer) = self.shape.split_last().expect("a box has an axis");
        outer.iter().product::<usize>() * inner.div_ceil(CHUNK)
    }

    /// How far an operand's last element along an axis is from its first.
    fn span(&self, operand: &Operand, axis: usize) -> usize {
        (self.shape[axis] - 1) * operand.strides[axis].unsigned_abs()
    }

    /// Boxes that kernels can count in, one behind the other; none of a box without elements.
    pub fn cut(self) -> Vec<Walk> {
        self.cut_to(REACH)
    }

    fn cut_to(self, reach: usize) -> Vec<Walk> {
        if self.shape.contains(&0) {
            return Vec::new();
        }
        let axes = 0..self.shape.len();
        let reaches = |operand: &Operand| axes.clone().map(|axis| self.span(operand, axis)).sum::<usize>() < reach;
        if self.chunks() < reach && self.operands.iter().all(reaches) {
            return vec![self];
        }
        // Along the axis on which the operands reach farthest; those that repeat one element are as long all the same.
        let far = |axis: &usize| {
            let spans = self.operands.iter().map(|operand| self.span(operand, *axis));
            (spans.max().unwrap_or(0), self.shape[*axis])
        };
        let axis = axes.max_by_key(far).expect("a box has an axis");
        let [low, high] = self.halves(axis);
        [low.cut_to(reach), high.cut_to(reach)].concat()
    }

    /// Chunks stay whole.
    fn halves(self, axis: usize) -> [Walk; 2] {
        let len = self.shape[axis];
        assert!(len > 1, "a box with one element on its farthest axis is small");
        let at = if len > 2 * CHUNK { (len / 2).next_multiple_of(CHUNK) } else { len / 2 };
        let (mut low, mut high) = (self.clone(), self);
        (low.shape[axis], high.shape[axis]) = (at, len - at);
        for operand in &mut high.operands {
            operand.start = operand.start.strict_add_signed(operand.strides[axis] * at as isize);
        }
        [low, high]
    }

    /// `struct Walk` for so many operands.
    pub fn words(&self, operands: usize) -> Words {
        let inner = self.shape.len() - 1;
        let chunks = Axis { len: self.shape[inner].div_ceil(CHUNK), at: inner, elements: CHUNK };
        let axes: Vec<Axis> = [chunks].into_iter().chain((0..inner).rev().map(|at| self.whole(at))).collect();
        let mut words = Words::default();
        self.box_words(&axes, operands, &mut words);
        let by_fours = |operand: &Operand| {
            let rows = &operand.strides[..inner];
            operand.strides[inner] == 1 && rows.iter().all(|stride| stride % CHUNK as isize == 0)
        };
        let flags = (0..).zip(&self.operands).fold(0, |bits, (i, operand)| bits | u32::from(by_fours(operand)) << i);
        words.u32(self.shape[inner] as u32).u32(flags);
        for operand in (0..operands).map(|number| self.operands.get(number)) {
            words.i32(operand.map_or(0, |operand| operand.strides[inner] as i32));
        }
        words
    }

    /// If y (operand 0) is to be written along its rows and x (operand 1) read along other ones: `struct Tiles`, and how
    /// many tiles there are.
    pub fn tiles(&self) -> Option<(Words, usize)> {
        let column = self.shape.len() - 1;
        let [y, x] = &self.operands[..] else { return None };
        let row = x.strides.iter().position(|stride| *stride == 1)?;
        let is_wide = |axis: usize| self.shape[axis] >= TILE / 4;
        if row == column || y.strides[column] != 1 || x.strides[column] == 0 || !is_wide(row) || !is_wide(column) {
            return None;
        }
        let tile = |at: usize| Axis { len: self.shape[at].div_ceil(TILE), at, elements: TILE };
        let rest = (0..column).rev().filter(|at| *at != row);
        let axes: Vec<Axis> = [tile(column), tile(row)].into_iter().chain(rest.map(|at| self.whole(at))).collect();
        let mut words = Words::default();
        self.box_words(&axes, 2, &mut words);
        words.u32(self.shape[column] as u32).u32(self.shape[row] as u32);
        words.i32(y.strides[row] as i32).i32(x.strides[column] as i32);
        Some((words, axes.iter().map(|axis| axis.len).product()))
    }

    fn whole(&self, at: usize) -> Axis {
        Axis { len: self.shape[at], at, elements: 1 }
    }

    /// `struct Box` for so many operands.
    fn box_words(&self, axes: &[Axis], operands: usize, words: &mut Words) {
        words.u32(axes.len() as u32).u32(axes.iter().map(|axis| axis.len).product::<usize>() as u32);
        for i in 0..AXES_MAX {
            let Divisor { len, factor, shift } = Divisor::of(axes.get(i).map_or(1, |axis| axis.len as u32));
            words.u32(len).u32(factor).u32(shift);
        }
        for (number, i) in (0..operands).flat_map(|number| (0..AXES_MAX).map(move |i| (number, i))) {
            let stride = self.operands.get(number).zip(axes.get(i));
            // Where an axis has one piece, its stride is not used, and may not fit.
            words.i32(stride.map_or(0, |(operand, axis)| operand.strides[axis.at] * axis.elements as isize) as i32);
        }
    }
}

/// An axis of a box in pieces of so many elements.
#[derive(Clone, Copy, Debug)]
struct Axis {
    /// Pieces.
    len: usize,
    at: usize,
    elements: usize,
}

/// Division of numbers under 2^31 by a multiplication: (mulhi(n, factor) + n) >> shift.
#[derive(Clone, Copy, Debug)]
struct Divisor {
    len: u32,
    factor: u32,
    shift: u32,
}

impl Divisor {
    fn of(len: u32) -> Divisor {
        let shift = len.next_power_of_two().ilog2();
        let factor = ((1u64 << 32) * ((1u64 << shift) - u64::from(len)) / u64::from(len) + 1) as u32;
        Divisor { len, factor, shift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_tensor::ops::{contiguous, repeated};

    #[test]
    fn axes_that_lie_one_behind_the_other_are_one() {
        let operands = [(0, contiguous(&[4, 1, 5, 6])), (0, repeated(&[4, 1, 5, 6], &[6]))];
        let walk = Walk::new(&[4, 1, 5, 6], &operands);
        assert_eq!(walk.shape, [20, 6]);
        assert_eq!(walk.operands[1].strides, [0, 1]);
        assert_eq!(Walk::new(&[4, 1, 5, 6], &operands[..1]).shape, [120]);
        assert_eq!(Walk::new(&[1, 1], &[(3, contiguous(&[1, 1]))]).shape, [1]);
    }

    /// All places in all operands, in the order of the box.
    fn places(walk: &Walk) -> Vec<Vec<usize>> {
        let count: usize = walk.shape.iter().product();
        let place = |operand: &Operand, mut number: usize| {
            let mut at = operand.start;
            for axis in (0..walk.shape.len()).rev() {
                at = at.strict_add_signed(operand.strides[axis] * (number % walk.shape[axis]) as isize);
                number /= walk.shape[axis];
            }
            at
        };
        (0..count).map(|number| walk.operands.iter().map(|operand| place(operand, number)).collect()).collect()
    }

    #[test]
    fn a_box_that_is_too_large_is_cut_into_ones_that_are_not() {
        let shape = [6, 5, 4, 23];
        let mut backwards = contiguous(&shape);
        backwards[3] = -1;
        let operands = [(0, contiguous(&shape)), (0, repeated(&shape, &[5, 1, 23])), (22, backwards)];
        let walk = Walk::new(&shape, &operands);
        for reach in [16, 60, 700, 10_000] {
            let parts = walk.clone().cut_to(reach);
            assert_eq!(parts.len() == 1, reach == 10_000, "{reach}");
            for part in &parts {
                assert!(part.chunks() < reach);
                for operand in &part.operands {
                    assert!((0..part.shape.len()).map(|axis| part.span(operand, axis)).sum::<usize>() < reach);
                }
            }
            let (mut all, mut wanted) = (parts.iter().flat_map(places).collect::<Vec<_>>(), places(&walk));
            all.sort();
            wanted.sort();
            assert!(all == wanted, "{reach}: every element once");
        }
        assert!(Walk::new(&[3, 0], &[(0, contiguous(&[3, 0]))]).cut().is_empty());
    }

    #[test]
    fn a_column_of_many_rows_is_cut_along_the_rows() {
        // A matrix of 2^34 elements, transposed: few launches.
        let side = 1 << 17;
        let mut across = [0; AXES_MAX];
        (across[0], across[1]) = (1, side as isize);
        let parts = Walk::new(&[side, side], &[(0, contiguous(&[side, side])), (0, across)]).cut();
        assert!((9..=64).contains(&parts.len()), "{}", parts.len());
    }

    #[test]
    fn only_what_is_read_across_rows_goes_through_tiles() {
        let tiles = |shape: &[usize], across: &[isize]| {
            let mut strides = [0; AXES_MAX];
            strides[..across.len()].copy_from_slice(across);
            Walk::new(shape, &[(0, contiguous(shape)), (0, strides)]).tiles().map(|(_, count)| count)
        };
        assert_eq!(tiles(&[64, 100], &[1, 64]), Some(2 * 4));
        assert_eq!(tiles(&[3, 64, 5, 100], &[32_000, 1, 64, 320]), Some(3 * 2 * 5 * 4));
        assert_eq!(tiles(&[3, 100], &[1, 3]), None, "a row of three is read as it lies");
        assert_eq!(tiles(&[2, 4, 9, 64], &[2304, 64, 256, 1]), None, "heads keep their rows");
        assert_eq!(tiles(&[64, 100], &[1, 0]), None, "one element is read for a row");
    }

    #[test]
    fn a_division_is_a_multiplication_and_a_shift() {
        for len in (1..2000).chain([65_535, 65_536, 65_537, 0x3fff_ffff, 0x7fff_fffe, 0x7fff_ffff]) {
            let Divisor { factor, shift, .. } = Divisor::of(len);
            let near = |n: u32| [n.saturating_sub(1), n, n.saturating_add(1)];
            let all = [0, len, 2 * len.min(1 << 29), 3 * len.min(1 << 28), 0x7fff_ffff / len * len, 0x7fff_fffe];
            for n in all.into_iter().flat_map(near).filter(|n| *n < 1 << 31) {
                let quotient = (((u64::from(n) * u64::from(factor)) >> 32) as u32 + n) >> shift;
                assert_eq!(quotient, n / len, "{n} / {len}");
            }
        }
    }
}
