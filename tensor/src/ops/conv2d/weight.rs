//! dW = sum over samples and output pixels of patch · dy, summed along the tree over shards.
//!
//! The product is made transposed: its rows are the taps of all channels, read in place from the framed input, its
//! columns are output channels, its chains the pixels of a shard, sample by sample. Samples come in groups that stay in
//! the cache; a chain goes on from group to group in a tile of its own, kept until the end with the left siblings
//! that wait for it, one tile a level.

use super::Sizes;
use crate::gemm::Start;
use crate::gemm::indirect::{self, Steps, Tile};
use crate::ops::{Work, take};
use crate::real::{Real, Rows};
use crate::simd::Set;
use std::ops::Range;

/// Links of a chain that a group of samples adds, about: its gradients are a megabyte a panel.
const GROUP: usize = 8 << 10;
/// Links for which a panel's part stays in the first-level cache while tiles pass by.
const LINKS: usize = 128;
/// Tasks for each thread: the last ones even out what the others left.
const TASKS: usize = 4;

pub(super) struct WeightGradient {
    pub sizes: Sizes,
    pub outer: usize,
    pub samples: usize,
    pub shards: usize,
}

/// How the product is cut into tiles.
#[derive(Clone, Copy)]
struct Tiles {
    height: usize,
    width: usize,
    /// Tiles along the taps, and along the output channels.
    rows: usize,
    panels: usize,
    /// Tiles that are kept for one: its own and its waiting left siblings.
    levels: usize,
}

impl Tiles {
    fn one(self) -> usize {
        self.height * self.width
    }

    fn kept(self) -> usize {
        self.one() * self.levels
    }
}

impl WeightGradient {
    /// Writes dw (outer, patch) from x (sample, in, h, w) and dy (sample, outer, pixel).
    pub fn run<F: Real>(&self, x: &[F], dy: &[F], dw: &mut [F], work: &mut Work<F>) {
        let (patch, pixels, links) = (self.sizes.patch(), self.sizes.out(), self.links::<F>());
        if dw.is_empty() {
            return;
        }
        if self.samples == 0 {
            return dw.fill(F::ZERO);
        }
        let set = F::set(Set::best());
        let tiles = self.tiles(set);
        let group = (GROUP / links).clamp(1, self.samples);
        let mut tables = std::mem::take(&mut work.rooms[0].tables);
        let mut sums = std::mem::take(&mut work.rooms[0].parts);
        self.fill_tables::<F>(group, &mut tables);
        let (taps, pixels_of) = tables.split_at(patch);
        let sums_here = take(&mut sums, tiles.rows * tiles.panels * tiles.kept());
        for first in (0..self.samples).step_by(group) {
            let samples = first..self.samples.min(first + group);
            let len = samples.len() * links;
            let mut pack = std::mem::take(&mut work.rooms[0].pack);
            let a = self.frame_group(&x[first * self.sizes.image()..], samples.len(), &mut pack.images, work);
            let a = match F::in_place(a) {
                Some(a) => a,
                None => self.pixels_in_operands(set, a, samples.len(), &mut pack.windows, work),
            };
            let b = take(&mut pack.weights, tiles.panels * len * tiles.width);
            self.pack_group(&dy[first * self.outer * pixels..], samples.len(), (set, tiles), b, work);
            let steps = Steps::new(&pixels_of[..len]);
            let group: Group<'_, F> = Group { of: self, set, tiles, taps, steps, a, b, samples };
            group.run(sums_here, work);
            work.rooms[0].pack = pack;
        }
        let top = self.shards.ilog2() as usize;
        work.team.chunks(dw, tiles.width * patch, |_, panel, dw| {
            for row in 0..tiles.rows {
                let (from, rows) = (row * tiles.height, tiles.height.min(patch - row * tiles.height));
                let sum = &sums_here[(panel * tiles.rows + row) * tiles.kept() + top * rows * tiles.width..];
                let columns = dw.len() / patch;
                F::transpose(sum, tiles.width, &mut dw[from..], patch, (rows, columns));
            }
        });
        work.rooms[0].tables = tables;
        work.rooms[0].parts = sums;
    }

    /// Links that a sample adds to a chain.
    fn links<F: Real>(&self) -> usize {
        self.sizes.oh * self.sizes.ow.div_ceil(F::PER)
    }

    fn tiles(&self, set: Set) -> Tiles {
        let (height, width) = indirect::size(set.isa());
        let patch = self.sizes.patch();
        // Tiles of almost one height waste less than full ones and a low rest.
        let height = patch.div_ceil(patch.div_ceil(height));
        let (rows, panels) = (patch.div_ceil(height), self.outer.div_ceil(width));
        Tiles { height, width, rows, panels, levels: self.shards.ilog2() as usize + 1 }
    }

    /// The taps of all channels as places in a framed sample, then the pixels of a group of samples.
    fn fill_tables<F: Real>(&self, group: usize, tables: &mut Vec<u32>) {
        let Sizes { conv, inner, kh, kw, oh, ow, .. } = self.sizes;
        let frame = self.sizes.frame();
        let at = |at: usize| u32::try_from(at).expect("framed samples have less than 2^32 elements");
        tables.clear();
        for channel in 0..inner {
            let taps = (0..kh).flat_map(|y| (0..kw).map(move |x| (y, x)));
            tables.extend(taps.map(|(y, x)| at(channel * frame.len() + y * frame.size.1 + x)));
        }
        for sample in 0..group {
            let points = (0..oh).flat_map(|y| (0..ow).step_by(F::PER).map(move |x| (y * conv.stride, x * conv.stride)));
            tables.extend(points.map(|(y, x)| at(sample * inner * frame.len() + y * frame.size.1 + x)));
        }
    }

    fn frame_group<'a, F: Real>(&self, x: &'a [F], samples: usize, room: &'a mut Vec<F>, work: &Work<F>) -> &'a [F] {
        let (frame, image) = (self.sizes.frame(), self.sizes.image());
        let len = frame.room(self.sizes.inner);
        if len == 0 {
            return &x[..samples * image];
        }
        let framed = take(room, samples * len);
        work.team.chunks(framed, len, |_, sample, framed| frame.fill(&x[sample * image..][..image], framed));
        framed
    }

    /// Each pixel with the one that the next output pixel sees in its place; at a sample's end, with zero.
    fn pixels_in_operands<'a, F: Real>(
        &self,
        set: Set,
        framed: &[F],
        samples: usize,
        room: &'a mut Vec<F::Operand>,
        work: &Work<F>,
    ) -> &'a [F::Operand] {
        let (of_sample, next) = (framed.len() / samples, self.sizes.conv.stride);
        let operands = take(room, framed.len());
        let with_next = of_sample.saturating_sub(next);
        work.team.chunks(operands, of_sample.max(1), |_, sample, operands| {
            let data = &framed[sample * of_sample..][..of_sample];
            let (operands, last) = operands.split_at_mut(with_next);
            F::crosswise(set, Rows { data, stride: next, count: 2, width: with_next }, with_next, operands);
            let (data, width) = (&data[with_next..], last.len());
            F::crosswise(set, Rows { data, stride: width, count: 1, width }, width, last);
        });
        operands
    }

    /// Gradients as panels of (pixel, width), operands along the pixels of a row.
    fn pack_group<F: Real>(
        &self,
        dy: &[F],
        samples: usize,
        (set, tiles): (Set, Tiles),
        out: &mut [F::Operand],
        work: &Work<F>,
    ) {
        let (pixels, width, links) = (self.sizes.out(), tiles.width, self.links::<F>());
        // Rows of whole operands are one long row.
        let run = if self.sizes.ow.is_multiple_of(F::PER) { pixels } else { self.sizes.ow };
        work.team.chunks(out, links * width, |_, i, out| {
            let (panel, sample) = (i / samples, i % samples);
            let first = panel * width;
            let columns = width.min(self.outer - first);
            let from = &dy[(sample * self.outer + first) * pixels..];
            for (row, out) in out.chunks_mut(run.div_ceil(F::PER) * width).enumerate() {
                F::panel(
                    set,
                    Rows { data: &from[row * run..], stride: pixels, count: columns, width: run },
                    width,
                    out,
                );
            }
        });
    }
}

/// The part of the chains that some samples add.
struct Group<'a, F: Real> {
    of: &'a WeightGradient,
    set: Set,
    tiles: Tiles,
    taps: &'a [u32],
    steps: Steps<'a>,
    a: &'a [F::Operand],
    b: &'a [F::Operand],
    samples: Range<usize>,
}

impl<F: Real> Group<'_, F> {
    fn run(&self, sums: &mut [F], work: &mut Work<F>) {
        let (tiles, threads) = (self.tiles, work.team.threads());
        let count = tiles.rows * tiles.panels;
        let of_task = if threads == 1 { tiles.rows } else { count.div_ceil(TASKS * threads) };
        work.team.chunks(sums, of_task * tiles.kept(), |_, task, sums| {
            self.each_block(|block| {
                for (tile, sums) in sums.chunks_exact_mut(tiles.kept()).enumerate() {
                    self.tile(task * of_task + tile, sums, &block);
                }
            });
        });
    }

    /// Visits the group's links in order, some at a time.
    fn each_block(&self, mut visit: impl FnMut(Block)) {
        let links = self.of.links::<F>();
        let of_shard = self.of.samples / self.of.shards * links;
        let (begin, end) = (self.samples.start * links, self.samples.end * links);
        let mut at = begin;
        while at < end {
            let shard = at / of_shard;
            let shard_end = (shard + 1) * of_shard;
            let until = shard_end.min(end).min(at + LINKS);
            let start = if at == shard * of_shard { Start::Zero } else { Start::Go };
            // The shard's number says how many left siblings its leaf is added to; see `leaves::climb`.
            let level = shard.trailing_ones() as usize;
            visit(Block {
                links: at - begin..until - begin,
                start,
                level,
                lefts: if until == shard_end { level } else { 0 },
            });
            at = until;
        }
    }

    fn tile(&self, tile: usize, sums: &mut [F], block: &Block) {
        let tiles = self.tiles;
        let (panel, row) = (tile / tiles.rows, tile % tiles.rows);
        let first = row * tiles.height;
        let rows = &self.taps[first..self.taps.len().min(first + tiles.height)];
        let len = rows.len() * tiles.width;
        let (left, sum) = sums.split_at_mut(block.level * len);
        let links = block.links.clone();
        let b = &self.b[(panel * self.steps.len() + links.start) * tiles.width..][..links.len() * tiles.width];
        let left = &left[..block.lefts * len];
        let tile = Tile { a: self.a, rows, steps: self.steps.part(links), b, start: block.start, left };
        F::indirect(self.set, tile, &mut sum[..len]);
    }
}

/// Some links of one shard's chain.
struct Block {
    links: Range<usize>,
    start: Start,
    /// Where the shard's tile is kept, and how many left siblings the finished chains are added to.
    level: usize,
    lefts: usize,
}
