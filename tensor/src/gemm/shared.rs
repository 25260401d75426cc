//! The product on a team of threads, also as the sum over shards: operands are packed once, tiles are tasks.
//!
//! C is cut into groups of tiles along rows and columns; a task owns its tiles of C from the first k to the last, so
//! the bits are those of [`super::fast_on`] for any number of threads. B, and a block of A's rows, are packed by the
//! team before, each panel by one task. Of several shards, k counts all their rows: a tile's chain restarts at each
//! shard, and the shards' tiles are added along the tree while they lie in the first-level cache, 1.8 KB for each open
//! level. So a sum over shards costs no more memory traffic than one long product.
//!
//! The operands are f32, or pairs of bf16 that are rounded when they are packed; C and its sums are f32 in both classes.

use super::{Gemm, Isa, K_BLOCK, Mat, Operand, Start, Tile, Tree};
use crate::leaves;
use crate::ops::{Room, take};
use crate::real::{Real, Single};
use crate::team::Team;

/// C = A B (+ bias), summed over shards.
#[derive(Clone, Copy, Debug)]
pub struct TeamGemm<'a, F> {
    pub gemm: Gemm<'a, F>,
    /// A power of two that divides `gemm.k`; more than one only with `Start::Zero`.
    pub shards: usize,
    /// Of each column, added to the finished chains; empty: none.
    pub bias: &'a [F],
}

/// Floats of B that are packed at once: 16 MiB, half of a usual third-level cache.
const B_MAX: usize = 4 << 20;
/// Floats of A that are packed at once.
const A_MAX: usize = 1 << 20;
/// Tiles of a task along rows: their packed A stays in the second-level cache while panels of B pass by.
const TILES: usize = 8;
/// Panels of a task along columns.
const PANELS: usize = 16;
/// Tasks for each thread: the last ones even out what the others left.
const TASKS: usize = 4;

/// Links of a leaf whose way up the tree costs more than the shorter loops of a low tile.
const SHORT: usize = 24;

/// Multiply-adds of a product that one thread does alone: some 5 µs.
const SMALL: usize = 1 << 18;

/// Panels that one task packs.
const TOGETHER: usize = 4;
/// Rows that go to all of them before the next; even.
const ROWS: usize = 16;

/// What becomes of the last of some panels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// As wide as the others, with zeros.
    Padded,
    /// As wide as there are columns.
    Narrow,
}

/// Most elements of a tile.
const TILE_MAX: usize = 14 * 32;

/// A matrix that tasks write apart from each other.
struct Out {
    start: *mut f32,
    len: usize,
    stride: usize,
}

// SAFETY: tasks write disjoint tiles of a slice that `multiply` has borrowed exclusively.
unsafe impl Sync for Out {}

/// Writes C, whose rows are `stride` apart, as the product of operands of the run's kind.
pub(crate) fn multiply<F: Single>(
    isa: Isa,
    product: TeamGemm<'_, f32>,
    c: &mut [f32],
    stride: usize,
    team: &Team,
    rooms: &mut [Room<F>],
) {
    let g = product.gemm;
    if g.m == 0 || g.n == 0 {
        return;
    }
    assert!(product.shards == 1 || (g.start == Start::Zero && g.k.is_multiple_of(product.shards)), "shards are alike");
    assert!(c.len() >= (g.m - 1) * stride + g.n && stride >= g.n, "C holds the product");
    let c = Out { start: c.as_mut_ptr(), len: c.len(), stride };
    let isa = <F::Operand as Operand>::set(isa);
    let (height, width) = isa.tile();
    let links = (g.k / product.shards).div_ceil(F::PER);
    let k = (links * product.shards).max(1);
    let columns = (B_MAX / k / width).max(1) * width;
    // Of short leaves two are kept in registers; see `kernel`.
    let height = if product.shards > 1 && links <= SHORT { (height / 2).max(1) } else { height };
    // Tiles of almost one height waste less than full ones and a low rest.
    let height = g.m.div_ceil(g.m.div_ceil(height));
    let rows = (A_MAX / k / height).max(1) * height;
    let [mut a, mut b] = rooms[0].pack.shared().map(std::mem::take);
    for n0 in (0..g.n).step_by(columns) {
        let n = columns.min(g.n - n0);
        for m0 in (0..g.m).step_by(rows) {
            let m = rows.min(g.m - m0);
            let cut = Cut { isa, product, links, height, width, m0, m, n0, n };
            cut.pack(m0 == 0, &mut a, &mut b, team);
            cut.run::<F>(&a, &b, &c, team, rooms);
        }
    }
    for (room, packed) in rooms[0].pack.shared().into_iter().zip([a, b]) {
        *room = packed;
    }
}

/// Rows and columns of C whose operands are packed at once.
struct Cut<'a> {
    isa: Isa,
    product: TeamGemm<'a, f32>,
    /// Operands along k of a shard.
    links: usize,
    height: usize,
    width: usize,
    m0: usize,
    m: usize,
    n0: usize,
    n: usize,
}

impl Cut<'_> {
    fn tiles(&self) -> usize {
        self.m.div_ceil(self.height)
    }

    fn panels(&self) -> usize {
        self.n.div_ceil(self.width)
    }

    /// Operands along k of all shards.
    fn k(&self) -> usize {
        self.links * self.product.shards
    }

    /// Packs the rows of A as tiles of (k, height) and, if asked, the columns of B as panels of (k, width).
    fn pack<O: Operand>(&self, with_b: bool, a: &mut Vec<O>, b: &mut Vec<O>, team: &Team) {
        let Gemm { a: from_a, b: from_b, .. } = self.product.gemm;
        let tile = (self.k() * self.height).max(1);
        self.chunks(team, take(a, self.tiles() * tile), TOGETHER * tile, |i, out| {
            let first = i * TOGETHER * self.height;
            let rows = (TOGETHER * self.height).min(self.m - first);
            self.panels_at(from_a.transposed(), self.m0 + first, (rows, self.height, Last::Narrow), out);
        });
        let panel = (self.k() * self.width).max(1);
        if with_b {
            self.chunks(team, take(b, self.panels() * panel), TOGETHER * panel, |j, out| {
                let first = j * TOGETHER * self.width;
                let columns = (TOGETHER * self.width).min(self.n - first);
                self.panels_at(from_b, self.n0 + first, (columns, self.width, Last::Padded), out);
            });
        }
    }

    /// Packs columns as panels, one behind the other. Where a row's columns are neighbours, some rows go to all panels
    /// before the next: lines of the cache that two panels share are read once, and pages that rows are apart less often.
    fn panels_at<O: Operand>(
        &self,
        from: Mat<'_, f32>,
        first: usize,
        (columns, width, last): (usize, usize, Last),
        out: &mut [O],
    ) {
        let (shards, k) = (self.product.shards, self.product.gemm.k / self.product.shards);
        // Operands do not go from one shard to the next: shards that do not end with a whole one are packed one by one.
        let (pieces, k) = if k.is_multiple_of(O::PER) { (1, k * shards) } else { (shards, k) };
        let (links, rows) = (k.div_ceil(O::PER), if from.col == 1 { ROWS } else { k.max(1) });
        let size = self.k() * width;
        for (piece, k0) in (0..pieces).flat_map(|piece| (0..k).step_by(rows).map(move |k0| (piece, k0))) {
            let from = Mat { data: &from.data[(piece * k + k0) * from.row..], ..from };
            for (column, out) in (0..columns).step_by(width).zip(out.chunks_mut(size)) {
                let here = width.min(columns - column);
                let width = if last == Last::Padded { width } else { here };
                let at = (piece * links + k0 / O::PER) * width;
                O::panel(self.isa, from, first + column, rows.min(k - k0), (here, width), &mut out[at..]);
            }
        }
    }

    /// Whether the product takes less time than two forks and joins would.
    fn is_small(&self) -> bool {
        self.m * self.n * self.product.gemm.k < SMALL
    }

    fn chunks<O: Operand>(&self, team: &Team, y: &mut [O], chunk: usize, work: impl Fn(usize, &mut [O]) + Sync) {
        match self.is_small() {
            true => y.chunks_mut(chunk).enumerate().for_each(|(i, y)| work(i, y)),
            false => team.chunks(y, chunk, |_, i, y| work(i, y)),
        }
    }

    fn run<F: Single>(&self, a: &[F::Operand], b: &[F::Operand], c: &Out, team: &Team, rooms: &mut [Room<F>]) {
        let (tiles, panels) = (self.tiles(), self.panels());
        let (mut rows, mut columns) = (tiles.min(TILES), panels.min(PANELS));
        let tasks = |rows: usize, columns: usize| tiles.div_ceil(rows) * panels.div_ceil(columns);
        let threads = if self.is_small() { 1 } else { team.threads() };
        while threads > 1 && tasks(rows, columns) < TASKS * threads && rows * columns > 1 {
            if columns > 1 { columns = columns.div_ceil(2) } else { rows = rows.div_ceil(2) }
        }
        let across = panels.div_ceil(columns);
        let run = |room: &mut Room<F>, task: usize| {
            let (i, j) = (task / across * rows, task % across * columns);
            let part = Part { a, b, c, i: i..tiles.min(i + rows), j: j..panels.min(j + columns) };
            match self.product.shards {
                1 => self.chains(&part),
                _ => self.trees(&part, F::floats_mut(take(&mut room.sums, self.siblings()))),
            }
        };
        match threads {
            1 => (0..tasks(rows, columns)).for_each(|task| run(&mut rooms[0], task)),
            _ => team.run_in(rooms, tasks(rows, columns), run),
        }
    }

    /// Tiles of one task, k block by k block.
    fn chains<O: Operand>(&self, part: &Part<'_, O>) {
        let k = self.k();
        if k == 0 {
            return self.without_links(part);
        }
        let mut edge = [0.0f32; TILE_MAX];
        for k0 in (0..k).step_by(K_BLOCK) {
            let len = K_BLOCK.min(k - k0);
            let start = if k0 == 0 { self.product.gemm.start } else { Start::Go };
            for (i, j) in part.tiles() {
                let (rows, columns) = self.size(i, j);
                let at = part.c.at(self, i, j);
                let is_whole = columns == self.width;
                if !is_whole && start == Start::Go {
                    part.c.load(at, rows, columns, &mut edge, self.width);
                }
                let (c, c_len, c_stride) = match is_whole {
                    true => part.c.tile(at, rows, columns),
                    false => (edge.as_mut_ptr(), edge.len(), self.width),
                };
                let (a, b) = self.panels_of(part, i, j, rows, k0, len);
                let bias = if is_whole && k0 + len == k { self.bias(j, columns) } else { &[] };
                O::run(self.isa, Tile { rows, k: len, a, b, b_stride: self.width, c, c_len, c_stride, start, bias });
                if !is_whole {
                    part.c.store(at, rows, columns, &edge, self.width);
                }
            }
        }
        // A narrow panel's bias is shorter than a kernel takes.
        part.tiles().filter(|(i, j)| self.size(*i, *j).1 < self.width).for_each(|tile| self.add_bias(part, tile));
    }

    /// Chains of no links are the +0 or the C that they start from.
    fn without_links<O>(&self, part: &Part<'_, O>) {
        for (i, j) in part.tiles() {
            let (rows, columns) = self.size(i, j);
            if self.product.gemm.start == Start::Zero {
                part.c.rows(part.c.at(self, i, j), rows, columns, |_, row| row.fill(0.0));
            }
            self.add_bias(part, (i, j));
        }
    }

    /// Tiles of one task, each walked from the first shard to the last. `room` holds the left siblings that wait, one
    /// tile a level: see `leaves::climb`.
    fn trees<O: Operand>(&self, part: &Part<'_, O>, room: &mut [f32]) {
        let (shards, k) = (self.product.shards, self.links);
        let mut edge = [0.0f32; TILE_MAX];
        for (i, j) in part.tiles() {
            let (rows, columns) = self.size(i, j);
            let at = part.c.at(self, i, j);
            let is_whole = columns == self.width;
            let (c, c_len, c_stride) = match is_whole {
                true => part.c.tile(at, rows, columns),
                false => (edge.as_mut_ptr(), edge.len(), self.width),
            };
            // Leaves without rows are +0, and so is their sum.
            if k > 0 {
                let (a, b) = self.panels_of(part, i, j, rows, 0, shards * k);
                O::run_tree(self.isa, Tree { rows, k, shards, a, b, c, c_len, c_stride }, room);
            }
            if !is_whole || k == 0 {
                part.c.store(at, rows, columns, &edge, self.width);
            }
            self.add_bias(part, (i, j));
        }
    }

    /// Floats of the left siblings that wait.
    fn siblings(&self) -> usize {
        self.product.shards.ilog2() as usize * TILE_MAX
    }

    fn size(&self, i: usize, j: usize) -> (usize, usize) {
        (self.height.min(self.m - i * self.height), self.width.min(self.n - j * self.width))
    }

    /// Packed A of a tile and B of a panel, from `k0` on.
    fn panels_of<'p, O>(
        &self,
        part: &Part<'p, O>,
        i: usize,
        j: usize,
        rows: usize,
        k0: usize,
        len: usize,
    ) -> (&'p [O], &'p [O]) {
        let k = self.k();
        let a = &part.a[i * k * self.height + k0 * rows..][..len * rows];
        (a, &part.b[j * k * self.width + k0 * self.width..][..len * self.width])
    }

    /// Of a panel's columns; empty if there is none.
    fn bias(&self, j: usize, columns: usize) -> &[f32] {
        match self.product.bias {
            [] => &[],
            bias => &bias[self.n0 + j * self.width..][..columns],
        }
    }

    fn add_bias<O>(&self, part: &Part<'_, O>, (i, j): (usize, usize)) {
        let (rows, columns) = self.size(i, j);
        let bias = self.bias(j, columns);
        if !bias.is_empty() {
            part.c.rows(part.c.at(self, i, j), rows, columns, |_, row| {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += *b);
            });
        }
    }
}

/// What one task reads, and the tiles that it alone writes.
struct Part<'a, O> {
    a: &'a [O],
    b: &'a [O],
    c: &'a Out,
    i: std::ops::Range<usize>,
    j: std::ops::Range<usize>,
}

impl<O> Part<'_, O> {
    /// Panel by panel: B's stays in the first-level cache while A's tiles pass by.
    fn tiles(&self) -> impl Iterator<Item = (usize, usize)> {
        let i = self.i.clone();
        self.j.clone().flat_map(move |j| i.clone().map(move |i| (i, j)))
    }
}

impl Out {
    /// First element of a tile.
    fn at(&self, cut: &Cut<'_>, i: usize, j: usize) -> usize {
        (cut.m0 + i * cut.height) * self.stride + cut.n0 + j * cut.width
    }

    /// A tile as the kernels take it: start, elements up to its end, and distance of its rows.
    fn tile(&self, at: usize, rows: usize, columns: usize) -> (*mut f32, usize, usize) {
        let len = (rows - 1) * self.stride + columns;
        assert!(at + len <= self.len, "the tile lies in C");
        (self.start.wrapping_add(at), len, self.stride)
    }

    /// Visits the rows of a tile of the calling task.
    fn rows(&self, at: usize, rows: usize, columns: usize, mut visit: impl FnMut(usize, &mut [f32])) {
        let (start, ..) = self.tile(at, rows, columns);
        for r in 0..rows {
            // SAFETY: `tile` checked the bounds. Tiles do not overlap and each belongs to one task, which has no other
            // reference into it here.
            visit(r, unsafe { std::slice::from_raw_parts_mut(start.add(r * self.stride), columns) });
        }
    }

    fn load(&self, at: usize, rows: usize, columns: usize, to: &mut [f32], width: usize) {
        self.rows(at, rows, columns, |r, row| to[r * width..][..columns].copy_from_slice(row));
    }

    fn store(&self, at: usize, rows: usize, columns: usize, from: &[f32], width: usize) {
        self.rows(at, rows, columns, |r, row| row.copy_from_slice(&from[r * width..][..columns]));
    }
}

/// The reference, on one thread: products rounded before they are added.
pub(crate) fn plain<F: Real>(product: TeamGemm<'_, F>, c: &mut [F], stride: usize, room: &mut Vec<F>) {
    let TeamGemm { gemm: g, shards, bias } = product;
    let k = g.k / shards;
    let shard_of = |mat: Mat<'_, F>, along: usize, shard: usize| (shard * k * along).min(mat.data.len());
    leaves::tree_sum(shards, &mut c[..((g.m * stride) + g.n).saturating_sub(stride)], room, |shard, c| {
        let a = Mat { data: &g.a.data[shard_of(g.a, g.a.col, shard)..], ..g.a };
        let b = Mat { data: &g.b.data[shard_of(g.b, g.b.row, shard)..], ..g.b };
        super::plain(Gemm { k, a, b, ..g }, c, stride);
    });
    for row in c.chunks_mut(stride.max(1)).take(g.m) {
        row.iter_mut().zip(bias).for_each(|(y, b)| *y += *b);
    }
}
