//! Matrix products on tensor cores as launches: `kernels/gemm_bf16.cu` and `kernels/gemm_rounded.cu`.
//!
//! An element takes 16 products of ascending k with each instruction whichever way it is made, so the choice changes no
//! bit; it is made for an H100's time alone.

use super::{At, Given, Launches, given, numbers};
use crate::driver::LaunchShape;

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    AsMultiplied,
    Transposed,
}

impl Stored {
    pub fn of(is_transposed: bool) -> Stored {
        if is_transposed { Stored::Transposed } else { Stored::AsMultiplied }
    }
}

/// A matrix of f32 of each product of a batch, one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub at: At,
    pub stored: Stored,
}

/// C (m, n) = A (m, k) B (k, n) + bias (n), `batches` times one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    pub a: Operand,
    pub b: Operand,
    pub bias: Option<At>,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub batches: usize,
}

/// A kernel, by its tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// 64 by 64, of f32 that every tile rounds for itself.
    Small,
    /// 128 by 128 of these.
    Large,
    /// 128 by 128 of operands that are rounded before.
    Square,
    /// 128 by 256 of these.
    Wide,
}

/// Multiprocessors of an H100. On a GPU with others the choice is good, if not the best.
const PROCESSORS: usize = 132;
/// Bytes of memory that it moves in a cycle.
const BYTES_A_CYCLE: usize = 1900;
/// Cycles until a launch's first block has begun.
const LAUNCH_CYCLES: usize = 3500;
/// Most floats of room for rounded operands, 2 GiB.
const ROUNDED_MAX: usize = 1 << 29;
/// Most blocks along y and z of a grid.
const ROW_MAX: usize = 65_535;
/// Steps of shared memory that `gemm_rounded.cu` fills ahead, and bytes of a line in one.
const STAGES: usize = 4;
const LINE_BYTES: usize = 64;

impl Way {
    pub const ALL: [Way; 4] = [Way::Small, Way::Large, Way::Square, Way::Wide];

    fn sides(self) -> (usize, usize) {
        match self {
            Way::Small => (64, 64),
            Way::Large | Way::Square => (128, 128),
            Way::Wide => (128, 256),
        }
    }

    fn threads(self) -> u32 {
        match self {
            Way::Small | Way::Square => 128,
            Way::Large | Way::Wide => 256,
        }
    }

    fn is_rounded(self) -> bool {
        matches!(self, Way::Square | Way::Wide)
    }

    /// Cycles of a multiprocessor for one k of a block: what it reads through the second-level cache, of which each
    /// gets some 28 bytes a cycle, takes longer than its products. And how long one k takes a block that runs alone
    /// with as many others as fit, waiting for memory. Reckoned, not measured.
    fn cycles(self) -> (usize, usize, usize) {
        match self {
            Way::Small => (18, 24, 4),
            Way::Large => (37, 40, 1),
            Way::Square => (18, 20, 2),
            Way::Wide => (27, 30, 1),
        }
    }

    fn function(self, a: Stored, b: Stored) -> &'static str {
        let of = |[nn, nt, tn, tt]: [&'static str; 4]| match (a, b) {
            (Stored::AsMultiplied, Stored::AsMultiplied) => nn,
            (Stored::AsMultiplied, Stored::Transposed) => nt,
            (Stored::Transposed, Stored::AsMultiplied) => tn,
            (Stored::Transposed, Stored::Transposed) => tt,
        };
        of(match self {
            Way::Small => ["small_nn", "small_nt", "small_tn", "small_tt"],
            Way::Large => ["large_nn", "large_nt", "large_tn", "large_tt"],
            Way::Square => ["square_nn", "square_nt", "square_tn", "square_tt"],
            Way::Wide => ["wide_nn", "wide_nt", "wide_tn", "wide_tt"],
        })
    }
}

fn size(axis: usize) -> u32 {
    u32::try_from(axis).expect("an axis of a product has fewer than 2^32 elements")
}

/// Grids have `batches` along y and z together.
pub(super) fn over_y_and_z(batches: usize) -> [u32; 2] {
    let rows = batches.min(ROW_MAX);
    [size(rows), size(batches.div_ceil(rows.max(1)))]
}

/// Rows of an operand in memory, and numbers of each; all of a batch together.
#[derive(Clone, Copy)]
struct Rows {
    count: usize,
    length: usize,
}

impl Rows {
    /// Numbers of a rounded row, which lie in pieces of 16 bytes.
    fn padded(self) -> usize {
        self.length.next_multiple_of(8)
    }

    fn room(self) -> usize {
        self.count * self.padded() / 2
    }

    fn round(self, from: At, to: &mut Launches) -> At {
        let rounded = to.room(self.room());
        let (length, padded) = (size(self.length), size(self.padded()));
        let shape = numbers(self.count * self.padded() / 8);
        to.push("gemm_rounded", "round_rows", shape, given![rounded, from, self.count, length, padded]);
        rounded
    }
}

impl Gemm {
    fn a_rows(&self) -> Rows {
        match self.a.stored {
            Stored::AsMultiplied => Rows { count: self.batches * self.m, length: self.k },
            Stored::Transposed => Rows { count: self.batches * self.k, length: self.m },
        }
    }

    fn b_rows(&self) -> Rows {
        match self.b.stored {
            Stored::AsMultiplied => Rows { count: self.batches * self.k, length: self.n },
            Stored::Transposed => Rows { count: self.batches * self.n, length: self.k },
        }
    }

    fn tiles(&self, way: Way) -> usize {
        let (rows, columns) = way.sides();
        self.m.div_ceil(rows) * self.n.div_ceil(columns)
    }

    fn cycles(&self, way: Way) -> usize {
        let (alone, waiting, resident) = way.cycles();
        let blocks = self.tiles(way) * self.batches;
        let busy = blocks.div_ceil(PROCESSORS) * alone;
        let products = self.k * busy.max(blocks.div_ceil(PROCESSORS * resident) * waiting);
        match way.is_rounded() {
            false => products,
            true => {
                let numbers = self.batches * self.k * (self.m + self.n);
                products + 6 * numbers / BYTES_A_CYCLE + 2 * LAUNCH_CYCLES
            }
        }
    }

    /// The fastest.
    pub fn best(&self) -> Way {
        let fits = |way: &Way| !way.is_rounded() || self.a_rows().room() + self.b_rows().room() <= ROUNDED_MAX;
        let ways = Way::ALL.into_iter().filter(fits);
        ways.min_by_key(|way| self.cycles(*way)).expect("some need no room")
    }

    pub fn launch(&self, c: At, to: &mut Launches) {
        self.launch_by(self.best(), c, to);
    }

    pub fn launch_by(&self, way: Way, c: At, to: &mut Launches) {
        let [y, z] = over_y_and_z(self.batches);
        let (rows, columns) = way.sides();
        let shared_bytes = if way.is_rounded() { STAGES * LINE_BYTES * (rows + columns) } else { 0 };
        let (grid, block) = ([size(self.tiles(way)), y, z], [way.threads(), 1, 1]);
        let shape = LaunchShape { grid, block, shared_bytes: size(shared_bytes) };
        let function = way.function(self.a.stored, self.b.stored);
        let bias = self.bias.map_or(Given::U64(0), Given::At);
        let [m, n, k, batches] = [self.m, self.n, self.k, self.batches].map(size);
        if !way.is_rounded() {
            let given = given![c, self.a.at, self.b.at, bias, m, n, k, batches];
            return to.push("gemm_bf16", function, shape, given);
        }
        let mark = to.room_mark();
        let (a_rows, b_rows) = (self.a_rows(), self.b_rows());
        let (a, b) = (a_rows.round(self.a.at, to), b_rows.round(self.b.at, to));
        let (a_row, b_row) = (size(a_rows.padded()), size(b_rows.padded()));
        to.push("gemm_rounded", function, shape, given![c, a, b, bias, m, n, k, batches, a_row, b_row]);
        to.free_room(mark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::Region;

    fn best(m: usize, n: usize, k: usize, batches: usize) -> Way {
        let operand = Operand { at: At::start(Region::Arena), stored: Stored::AsMultiplied };
        Gemm { a: operand, b: operand, bias: None, m, n, k, batches }.best()
    }

    #[test]
    fn large_products_round_their_operands_first_and_small_ones_do_not() {
        assert_eq!(best(64, 512, 784, 1), Way::Small);
        assert_eq!(best(512, 10, 512, 1), Way::Small);
        for (m, n, k, batches) in
            [(65_536, 768, 768, 1), (8192, 3072, 768, 1), (768, 768, 8192, 8), (65_536, 50_257, 768, 1)]
        {
            assert!(best(m, n, k, batches).is_rounded(), "{m} by {n} by {k}");
        }
        // There is no room for so much.
        assert_eq!(best(65_536, 768, 50_257, 1), Way::Large);
    }

    #[test]
    fn a_batch_of_any_size_fits_in_a_grid() {
        assert_eq!(over_y_and_z(0), [0, 0]);
        assert_eq!(over_y_and_z(65_535), [65_535, 1]);
        assert_eq!(over_y_and_z(65_536), [65_535, 2]);
    }
}
