//! How products are cut into tiles, and sums over shards into launches: `kernels/gemm.cuh`.
//!
//! Each element is one chain over k whatever the tile, so the choice changes no bit; it is made for an H100's time alone.

use super::{At, Given, Launches, given, numbers};
use crate::driver::LaunchShape;

/// A block's part of C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tile {
    /// 128 by 128.
    Large,
    /// 64 by 64.
    Medium,
    /// 16 by 16: one block has little to do for a link, where there are too few elements for all multiprocessors.
    Small,
}

/// Multiprocessors of an H100. On a GPU with others the choice is good, if not the best.
const PROCESSORS: usize = 132;
/// Most floats of leaves that are kept side by side, 64 MiB.
const LEAVES_MAX: usize = 16 << 20;
/// Most blocks along y and z of a grid.
const ROW_MAX: usize = 65_535;

impl Tile {
    pub const ALL: [Tile; 3] = [Tile::Large, Tile::Medium, Tile::Small];

    fn side(self) -> usize {
        match self {
            Tile::Large => 128,
            Tile::Medium => 64,
            Tile::Small => 16,
        }
    }

    pub fn threads(self) -> u32 {
        match self {
            Tile::Large => 256,
            Tile::Medium => 128,
            Tile::Small => 64,
        }
    }

    /// Blocks that run on one multiprocessor at a time.
    fn resident(self) -> usize {
        match self {
            Tile::Large => 2,
            Tile::Medium => 4,
            Tile::Small => 8,
        }
    }

    /// The function of a family that has one for each tile.
    pub fn of(self, [large, medium, small]: [&'static str; 3]) -> &'static str {
        match self {
            Tile::Large => large,
            Tile::Medium => medium,
            Tile::Small => small,
        }
    }

    /// Tiles down and across.
    pub fn count(self, m: usize, n: usize) -> (usize, usize) {
        (m.div_ceil(self.side()), n.div_ceil(self.side()))
    }

    /// Cycles for a link of so many blocks' chains. A multiprocessor adds 128 links a cycle at best; a thread's own links,
    /// and what it reads from shared memory for them, take it the longer of the two (counted in the machine code).
    fn cycles(self, blocks: usize) -> usize {
        let of_one = blocks.div_ceil(PROCESSORS);
        match self {
            Tile::Large => 140 * of_one,
            Tile::Medium => 42 * of_one,
            Tile::Small => (4 * of_one).max(8),
        }
    }

    /// The fastest for `batch` products.
    pub fn best(m: usize, n: usize, batch: usize) -> Tile {
        Tile::best_of(&Tile::ALL, m, n, batch)
    }

    fn best_of(tiles: &[Tile], m: usize, n: usize, batch: usize) -> Tile {
        let cycles = |tile: &Tile| tile.cycles(tile.blocks(m, n) * batch);
        tiles.iter().copied().min_by_key(cycles).expect("there are some")
    }

    fn blocks(self, m: usize, n: usize) -> usize {
        let (down, across) = self.count(m, n);
        down * across
    }
}

/// A number that kernels count in 32 bits.
pub(super) fn u32_of(count: usize) -> u32 {
    u32::try_from(count).expect("an axis of a product has less than 2^32 elements")
}

/// Two numbers of 32 bits side by side, as fields of a struct.
pub(super) fn pair(first: usize, second: usize) -> u64 {
    u64::from(u32_of(first)) | u64::from(u32_of(second)) << 32
}

/// How the shards' leaves of one product come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shards {
    /// A block walks from the first shard to the last, and takes its tile up the tree. Of so many blocks each has a room.
    Walked { tile: Tile, blocks: usize },
    /// Leaves are made side by side, and added afterwards: where tiles are too few for all multiprocessors.
    SideBySide { tile: Tile },
}

impl Shards {
    /// With one of some tiles.
    pub fn of(tiles: &[Tile], m: usize, n: usize, shards: usize) -> Shards {
        let [walked, beside] = [1, shards].map(|batch| Tile::best_of(tiles, m, n, batch));
        if shards == 1 {
            return Shards::SideBySide { tile: walked };
        }
        let tiles = walked.blocks(m, n);
        let in_turn = shards * walked.cycles(tiles);
        let at_once = beside.cycles(beside.blocks(m, n) * shards);
        // A leaf that lies side by side is written and read once more.
        if shards * m * n <= LEAVES_MAX && 4 * at_once <= 3 * in_turn {
            return Shards::SideBySide { tile: beside };
        }
        Shards::Walked { tile: walked, blocks: tiles.min(PROCESSORS * walked.resident()) }
    }

    /// Launches of a kernel for one shard or leaves side by side, or of one that walks. `run` gets the function's tile, where
    /// it writes, its room, the floats of a block's part of that, and its grid.
    pub fn lower(
        self,
        (m, n): (usize, usize),
        shards: usize,
        y: At,
        to: &mut Launches,
        run: impl Fn(Run, &mut Launches),
    ) {
        match self {
            Shards::Walked { tile, blocks } => {
                let step = tile.side() * tile.side() * shards.ilog2() as usize;
                let room = to.room(blocks * step);
                let shape =
                    LaunchShape { grid: [u32_of(blocks), 1, 1], block: [tile.threads(), 1, 1], shared_bytes: 0 };
                run(Run { tile, y, room: Some((room, step)), shape }, to);
            }
            Shards::SideBySide { tile } => {
                let leaves = if shards > 1 { to.room(shards * m * n) } else { y };
                run(Run { tile, y: leaves, room: None, shape: grid(tile, m, n, shards) }, to);
                if shards > 1 {
                    to.push("basic", "sum_leaves", numbers(m * n), given![y, leaves, m * n, u32_of(shards)]);
                }
            }
        }
    }
}

/// A launch of a product.
pub(super) struct Run {
    pub tile: Tile,
    pub y: At,
    /// Of a walk over shards: where, and the floats of one block.
    pub room: Option<(At, usize)>,
    pub shape: LaunchShape,
}

/// A block a tile, along x; y and z together count the batch.
pub(super) fn grid(tile: Tile, m: usize, n: usize, batch: usize) -> LaunchShape {
    let rows = batch.min(ROW_MAX);
    let layers = batch.div_ceil(rows.max(1));
    let grid = [tile.blocks(m, n), rows, layers].map(u32_of);
    LaunchShape { grid, block: [tile.threads(), 1, 1], shared_bytes: 0 }
}

/// A struct of numbers of 32 bits.
pub(super) fn structure(fields: &[u32]) -> Given {
    let word = |two: &[u32]| u64::from(two[0]) | u64::from(two.get(1).copied().unwrap_or(0)) << 32;
    Given::Struct(fields.chunks(2).map(word).collect())
}

/// An address that is none.
pub(super) const NOWHERE: Given = Given::U64(0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_elements_are_cut_small_and_many_large() {
        assert_eq!(Tile::best(64, 10, 1), Tile::Small);
        assert_eq!(Tile::best(64, 512, 1), Tile::Small);
        assert_eq!(Tile::best(2048, 256, 1), Tile::Medium);
        assert_eq!(Tile::best(4096, 4096, 1), Tile::Large);
        assert_eq!(Tile::best(64, 64, 1024), Tile::Medium);
        assert_eq!(Tile::best(0, 0, 1), Tile::Large, "any tile will do for nothing");
    }

    /// The sizes that `tests/ops/matrix.rs` has for each tile, and for walks over shards.
    #[test]
    fn tests_of_products_come_to_every_tile() {
        assert_eq!(Tile::best(577, 613, 1), Tile::Medium);
        assert_eq!(Tile::best(60, 63, 130), Tile::Medium);
        assert_eq!(Tile::best(1259, 1277, 1), Tile::Large);
        let walk = |m, n, shards| match Shards::of(&Tile::ALL, m, n, shards) {
            Shards::Walked { tile, .. } => Some(tile),
            Shards::SideBySide { .. } => None,
        };
        assert_eq!(walk(261, 267, 2), Some(Tile::Small));
        assert_eq!(walk(277, 281, 8), Some(Tile::Small));
        assert_eq!(walk(691, 701, 2), Some(Tile::Medium));
        assert_eq!(walk(1268, 1272, 2), Some(Tile::Large));
        assert_eq!(walk(1259, 1277, 4), Some(Tile::Large));
        assert_eq!(walk(40, 36, 8), None);
    }

    #[test]
    fn shards_stand_side_by_side_where_one_has_too_few_tiles() {
        assert_eq!(Shards::of(&Tile::ALL, 4096, 4096, 1), Shards::SideBySide { tile: Tile::Large });
        assert_eq!(Shards::of(&Tile::ALL, 64, 27, 8), Shards::SideBySide { tile: Tile::Small });
        assert!(matches!(Shards::of(&Tile::ALL, 50_257, 768, 8), Shards::Walked { tile: Tile::Large, blocks: 264 }));
        assert!(matches!(Shards::of(&Tile::ALL, 512, 512, 8), Shards::SideBySide { tile: Tile::Large }));
    }
}
