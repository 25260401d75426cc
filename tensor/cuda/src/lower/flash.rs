//! Causal attention of a bf16 job: `kernels/flash_bf16.cu`.

use super::gemm_bf16::over_y_and_z;
use super::{At, Given, Launches, NoKernel, Site, given, numbers};
use crate::driver::LaunchShape;
use elastic_tensor::graph::Type;
use elastic_tensor::ops::CausalAttention;

/// Rows of a block; threads, a warp for every 16 of them.
const ROWS: usize = 128;
const THREADS: u32 = 256;
/// Most blocks along y, which take heads by turns.
const HEAD_BLOCKS_MAX: usize = 65_535;
/// Most blocks that round one part of a head.
const ROUNDING_BLOCKS_MAX: usize = 64;

#[derive(Clone, Copy)]
struct Sizes {
    samples: usize,
    tokens: usize,
    heads: usize,
    width: usize,
    length: Length,
}

/// Numbers of a rounded row, zeros behind the head's width among them.
#[derive(Clone, Copy)]
enum Length {
    L32,
    L64,
    L128,
}

impl Length {
    fn of(width: usize) -> Option<Length> {
        match width {
            0..=32 => Some(Length::L32),
            33..=64 => Some(Length::L64),
            65..=128 => Some(Length::L128),
            _ => None,
        }
    }

    fn numbers(self) -> usize {
        match self {
            Length::L32 => 32,
            Length::L64 => 64,
            Length::L128 => 128,
        }
    }

    /// Tokens of a tile that a pass of the gradient goes over.
    fn tile(self) -> usize {
        match self {
            Length::L32 | Length::L64 => 64,
            Length::L128 => 32,
        }
    }

    fn forward(self) -> &'static str {
        match self {
            Length::L32 => "forward_32",
            Length::L64 => "forward_64",
            Length::L128 => "forward_128",
        }
    }

    fn queries(self) -> &'static str {
        match self {
            Length::L32 => "queries_32",
            Length::L64 => "queries_64",
            Length::L128 => "queries_128",
        }
    }

    fn keys(self) -> &'static str {
        match self {
            Length::L32 => "keys_32",
            Length::L64 => "keys_64",
            Length::L128 => "keys_128",
        }
    }
}

impl Sizes {
    fn of(op: CausalAttention, qkv: &Type, site: &Site<'_>) -> Result<Sizes, NoKernel> {
        let (heads, width) = (op.heads, qkv.shape[2] / 3 / op.heads);
        let none = NoKernel { op: "causal attention with heads wider than 128", path: site.path.into() };
        let length = Length::of(width).ok_or(none)?;
        Ok(Sizes { samples: qkv.shape[0], tokens: qkv.shape[1], heads, width, length })
    }

    fn all_heads(self) -> usize {
        self.samples * self.heads
    }

    /// Floats of the room for as many rounded numbers, for some parts of all heads.
    fn room(self, parts: usize, to: &mut Launches) -> At {
        to.room(self.all_heads() * parts * self.tokens * self.length.numbers() / 2)
    }

    fn axes(self) -> [u32; 4] {
        [self.samples, self.tokens, self.heads, self.width]
            .map(|axis| u32::try_from(axis).expect("an axis has fewer than 2^32 elements"))
    }

    fn scale(self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }

    /// The scale for powers of 2 instead of e.
    fn scale2(self) -> f32 {
        self.scale() * std::f32::consts::LOG2_E
    }

    /// Blocks along x, and heads by turns.
    fn grid(self, blocks: usize, heads: usize) -> [u32; 3] {
        [blocks as u32, heads.min(HEAD_BLOCKS_MAX) as u32, 1]
    }

    fn rounding_blocks(self) -> usize {
        (self.tokens * self.length.numbers() / 8).div_ceil(THREADS as usize).min(ROUNDING_BLOCKS_MAX)
    }

    /// Rounds all parts of all heads.
    fn round(self, heads: At, found: Option<At>, qkv: At, to: &mut Launches) {
        let [samples, tokens, heads_count, width] = self.axes();
        let grid = self.grid(self.rounding_blocks(), self.all_heads() * 3);
        let shape = LaunchShape { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
        let length = self.length.numbers() as u32;
        let found = found.map_or(Given::U64(0), Given::At);
        let given = given![heads, found, qkv, samples, tokens, heads_count, width, 3u32, length];
        to.push("flash_bf16", "round_heads", shape, given);
    }

    /// Blocks of rows with shared memory for two matrices of theirs (one of `forward`), and of two others two tiles
    /// each.
    fn blocks(self, own: usize, tile: usize, more_bytes: usize) -> LaunchShape {
        let shared_bytes = 2 * (own * ROWS + 4 * tile) * self.length.numbers() + more_bytes;
        let [y, z] = over_y_and_z(self.all_heads());
        let grid = [self.tokens.div_ceil(ROWS) as u32, y, z];
        LaunchShape { grid, block: [THREADS, 1, 1], shared_bytes: shared_bytes as u32 }
    }
}

/// Keys of a tile of the forward pass.
const SEEN: usize = 64;

pub(super) fn forward(op: CausalAttention, site: &Site<'_>, to: &mut Launches) -> Result<(), NoKernel> {
    let s = Sizes::of(op, &site.types[0], site)?;
    let [qkv, y, sums] = [site.x[0], site.y[0], site.y[1]];
    if site.y_len(0) == 0 {
        // Heads without width: their sums are 0.
        to.push("fill", "fill", numbers(site.y_len(1)), given![sums, site.y_len(1), 0.0f32]);
        return Ok(());
    }
    let [samples, tokens, heads, width] = s.axes();
    let rounded = s.room(3, to);
    let found = to.room(s.all_heads() * s.rounding_blocks());
    s.round(rounded, Some(found), qkv, to);
    let given = given![y, sums, rounded, samples, tokens, heads, width, s.scale2()];
    to.push("flash_bf16", s.length.forward(), s.blocks(1, SEEN, 0), given);
    let threads = (s.width as u32).next_multiple_of(32);
    let given = given![y, found, qkv, samples, tokens, heads, width, s.rounding_blocks() as u32];
    to.push("flash_bf16", "spoil", super::blocks(s.all_heads(), threads), given);
    Ok(())
}

pub(super) fn gradient(op: CausalAttention, site: &Site<'_>, to: &mut Launches) -> Result<(), NoKernel> {
    let s = Sizes::of(op, &site.types[0], site)?;
    let [qkv, y, sums, dy] = [site.x[0], site.x[1], site.x[2], site.x[3]];
    if site.y_len(0) == 0 {
        return Ok(());
    }
    let [samples, tokens, heads, width] = s.axes();
    let (rounded, rounded_dy) = (s.room(3, to), s.room(1, to));
    let along = to.room(s.all_heads() * s.tokens);
    s.round(rounded, None, qkv, to);
    let grid = s.grid(s.tokens.div_ceil(THREADS as usize / 32).min(ROUNDING_BLOCKS_MAX), s.all_heads());
    let shape = LaunchShape { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    let length = s.length.numbers() as u32;
    let given = given![rounded_dy, along, y, dy, samples, tokens, heads, width, length];
    to.push("flash_bf16", "prepare_gradient", shape, given);
    let tile = s.length.tile();
    for (function, more_bytes) in [(s.length.queries(), 0), (s.length.keys(), 16 * tile)] {
        let (dqkv, scale, scale2) = (site.y[0], s.scale(), s.scale2());
        let given = given![dqkv, rounded, rounded_dy, sums, along, samples, tokens, heads, width, scale, scale2];
        to.push("flash_bf16", function, s.blocks(2, tile, more_bytes), given);
    }
    Ok(())
}
