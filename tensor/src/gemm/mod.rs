//! Matrix product: C = A B for any strides, on one thread here, on a team in `shared`.
//!
//! Every element of C is one chain of fused multiply-adds over ascending k, started at +0 (or at C).
//! Blocks only cut the chain where the partial sum is stored as the f32 it is, so the bits depend on
//! nothing but the operands: not on the number of rows, on blocking, packing or the instruction set
//! (AVX-512, AVX2 and the portable kernel all fuse).
//!
//! In the class of bf16 operands are pairs along k, and a link of the chain is `bf16::dot`: see `operand`.

/// Calls the kernel that is compiled for so many rows.
#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ($rows:expr, $kernel:ident $arguments:tt, $($count:literal),*) => {
        match $rows {
            $($count => $kernel::<$count> $arguments,)*
            other => unreachable!("no tile has {other} rows"),
        }
    };
}

#[cfg(target_arch = "x86_64")]
#[macro_use]
mod kernel;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2_bf16;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_bf16;
pub(crate) mod indirect;
mod operand;
#[cfg(target_arch = "x86_64")]
mod pack_avx512;
mod portable;
pub(crate) mod shared;
pub(crate) mod transpose;

pub use operand::Operand;
pub use shared::TeamGemm;

use crate::real::{Real, Single};

/// A matrix in a slice: element (i, j) is at `i * row + j * col`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, F> {
    pub data: &'a [F],
    pub row: usize,
    pub col: usize,
}

impl<'a, F> Mat<'a, F> {
    /// Rows one behind the other, `stride` apart.
    pub fn rows(data: &'a [F], stride: usize) -> Mat<'a, F> {
        Mat { data, row: stride, col: 1 }
    }

    pub fn transposed(self) -> Mat<'a, F> {
        Mat { data: self.data, row: self.col, col: self.row }
    }
}

impl<F: Single> Gemm<'_, F> {
    /// The same numbers as f32.
    pub(crate) fn single(&self) -> Gemm<'_, f32> {
        let Gemm { m, n, k, a, b, start } = *self;
        Gemm {
            m,
            n,
            k,
            a: Mat { data: F::floats(a.data), row: a.row, col: a.col },
            b: Mat { data: F::floats(b.data), row: b.row, col: b.col },
            start,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// C = A B.
    Zero,
    /// C = C + A B, going on with C's chains.
    Go,
}

/// A is (m, k), B is (k, n).
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a, F> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Mat<'a, F>,
    pub b: Mat<'a, F>,
    pub start: Start,
}

/// Room for packed panels, kept between calls.
#[derive(Debug, Default)]
pub struct Pack<F: Real> {
    pub(crate) a: Vec<F::Operand>,
    pub(crate) b: Vec<F::Operand>,
    /// What a team packed for all of its threads.
    shared_a: Vec<F::Operand>,
    shared_b: Vec<F::Operand>,
    /// The same of a convolution.
    pub(crate) images: Vec<F>,
    pub(crate) windows: Vec<F::Operand>,
    pub(crate) weights: Vec<F::Operand>,
}

impl<F: Real> Pack<F> {
    /// For what one thread packs of A and of B.
    pub(crate) fn alone(&mut self) -> [&mut Vec<F::Operand>; 2] {
        [&mut self.a, &mut self.b]
    }

    /// For what a team packs.
    pub(crate) fn shared(&mut self) -> [&mut Vec<F::Operand>; 2] {
        [&mut self.shared_a, &mut self.shared_b]
    }
}

/// The instruction sets that have a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    Avx512,
    Avx2,
    Portable,
}

impl Isa {
    /// Those that this machine runs, fastest first.
    pub fn here() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                all.push(Isa::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Isa::Avx2);
            }
        }
        all.push(Isa::Portable);
        all
    }

    pub(crate) fn best() -> Isa {
        #[cfg(test)]
        if let Some(forced) = FORCED.get() {
            return forced;
        }
        static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Isa::here()[0])
    }

    /// Rows and columns of a tile of C that stays in registers.
    fn tile(self) -> (usize, usize) {
        match self {
            Isa::Avx512 => (14, 32),
            Isa::Avx2 => (6, 16),
            Isa::Portable => (4, 16),
        }
    }
}

#[cfg(test)]
thread_local! {
    /// The set that this thread's tests are to use.
    pub(crate) static FORCED: std::cell::Cell<Option<Isa>> = const { std::cell::Cell::new(None) };
}

/// One tile's work: `a` is packed (k, rows), `b` has `b_stride` between its k rows.
pub struct Tile<'a, O = f32> {
    rows: usize,
    /// Operands along k.
    k: usize,
    a: &'a [O],
    b: &'a [O],
    b_stride: usize,
    /// The tile of C, which only this call uses; `c_len` elements from there are its caller's to write.
    c: *mut f32,
    c_len: usize,
    c_stride: usize,
    start: Start,
    /// Of each column, added to the finished chains; empty: none, or not finished yet.
    bias: &'a [f32],
}

impl<O> Tile<'_, O> {
    /// What the SIMD kernels rely on when they read and write without bounds checks.
    fn check(&self, columns: usize) {
        assert!(self.k > 0 && self.rows > 0, "an empty tile is not run");
        assert!(self.a.len() >= self.k * self.rows, "packed A holds the tile");
        assert!(self.b.len() >= (self.k - 1) * self.b_stride + columns, "B holds the panel");
        assert!(self.c_len >= (self.rows - 1) * self.c_stride + columns, "C holds the tile");
        assert!(self.bias.is_empty() || self.bias.len() >= columns, "a bias for each column");
    }
}

/// One tile's work as a sum over shards: a chain of `k` links for each, from +0, added along the tree (`leaves::climb`).
/// `a` is packed (shard, k, rows), `b` (shard, k, all columns).
pub struct Tree<'a, O = f32> {
    rows: usize,
    /// Operands along k of a shard.
    k: usize,
    /// A power of two.
    shards: usize,
    a: &'a [O],
    b: &'a [O],
    /// As a `Tile`'s.
    c: *mut f32,
    c_len: usize,
    c_stride: usize,
}

impl<O> Tree<'_, O> {
    /// What the SIMD kernels rely on. `room` keeps the left siblings that wait, one tile a level.
    fn check(&self, columns: usize, room: &[f32]) {
        assert!(self.k > 0 && self.rows > 0 && self.shards.is_power_of_two(), "an empty tile is not run");
        assert!(self.a.len() >= self.shards * self.k * self.rows, "packed A holds the tile");
        assert!(self.b.len() >= self.shards * self.k * columns, "B holds the panel");
        assert!(self.c_len >= (self.rows - 1) * self.c_stride + columns, "C holds the tile");
        assert!(room.len() >= self.shards.ilog2() as usize * self.rows * columns, "each level has its room");
    }
}

/// The f32 product on the best instruction set here.
pub fn fast(product: Gemm<'_, f32>, c: &mut [f32], stride: usize, pack: &mut Pack<f32>) {
    fast_on(Isa::best(), product, c, stride, pack);
}

/// The same on a chosen instruction set (one of [`Isa::here`]); the bits are the same.
pub fn fast_on(isa: Isa, product: Gemm<'_, f32>, c: &mut [f32], stride: usize, pack: &mut Pack<f32>) {
    alone(isa, product, c, stride, pack.alone());
}

/// Blocks of k and of columns whose packed B stays in the second-level cache (512 KiB).
const K_BLOCK: usize = 256;
const N_BLOCK: usize = 512;
/// Up to here a row-major B is read in place: packing would cost more than it saves.
const ROWS_UNPACKED: usize = 32;

/// A product of the operands' kind on one thread. A block of A and of B is packed at a time.
pub(crate) fn alone<O: Operand>(isa: Isa, g: Gemm<'_, f32>, c: &mut [f32], stride: usize, [a, b]: [&mut Vec<O>; 2]) {
    if g.m == 0 || g.n == 0 {
        return;
    }
    if g.k == 0 {
        if g.start == Start::Zero {
            (0..g.m).for_each(|i| c[i * stride..i * stride + g.n].fill(0.0));
        }
        return;
    }
    let isa = O::set(isa);
    let (_, width) = isa.tile();
    let k = g.k.div_ceil(O::PER);
    for n0 in (0..g.n).step_by(N_BLOCK) {
        let n = N_BLOCK.min(g.n - n0);
        for k0 in (0..k).step_by(K_BLOCK) {
            let in_place = O::in_place(g.b.data).filter(|_| g.b.col == 1 && g.m <= ROWS_UNPACKED);
            let block = Block { isa, n0, n, k0, k: K_BLOCK.min(k - k0), in_place };
            for j in (0..n).step_by(width) {
                // A partial panel is always packed: its missing columns must read as zeros.
                if in_place.is_none() || j + width > n {
                    block.pack_b(&g, j, width, b);
                }
            }
            block.run(&g, c, stride, a, b);
        }
    }
}

/// A block of k and columns of the product.
#[derive(Clone, Copy)]
struct Block<'a, O> {
    isa: Isa,
    n0: usize,
    n: usize,
    /// In operands, as `k`.
    k0: usize,
    k: usize,
    /// All of B, where it needs no packing.
    in_place: Option<&'a [O]>,
}

impl<O: Operand> Block<'_, O> {
    /// The rows of a matrix (k, …) that lie in the block, and how many they are.
    fn rows<'a>(&self, g: &Gemm<'_, f32>, from: Mat<'a, f32>) -> (Mat<'a, f32>, usize) {
        let k0 = self.k0 * O::PER;
        (Mat { data: &from.data[k0 * from.row..], ..from }, (self.k * O::PER).min(g.k - k0))
    }

    /// Packs the panel of B at column `j` of the block.
    fn pack_b(&self, g: &Gemm<'_, f32>, j: usize, width: usize, out: &mut Vec<O>) {
        if out.len() < K_BLOCK * N_BLOCK {
            out.resize(K_BLOCK * N_BLOCK, O::default());
        }
        let (from, k) = self.rows(g, g.b);
        let size = (width.min(self.n - j), width);
        O::panel(self.isa, from, self.n0 + j, k, size, &mut out[j * self.k..][..width * self.k]);
    }

    fn run(&self, g: &Gemm<'_, f32>, c: &mut [f32], stride: usize, a: &mut Vec<O>, b: &[O]) {
        let (height, width) = self.isa.tile();
        let start = if self.k0 == 0 { g.start } else { Start::Go };
        let mut edge = [0.0f32; 14 * 32];
        for i in (0..g.m).step_by(height) {
            let rows = height.min(g.m - i);
            self.pack_a(g, i, rows, a);
            for j in (0..self.n).step_by(width) {
                let columns = width.min(self.n - j);
                let (b, b_stride) = match self.in_place {
                    Some(b) if columns == width => (&b[self.k0 * g.b.row + self.n0 + j..], g.b.row),
                    _ => (&b[j * self.k..], width),
                };
                let at = i * stride + self.n0 + j;
                let tile = |c: &mut [f32], c_stride| {
                    let (c, c_len) = (c.as_mut_ptr(), c.len());
                    Tile { rows, k: self.k, a, b, b_stride, c, c_len, c_stride, start, bias: &[] }
                };
                if columns == width {
                    O::run(self.isa, tile(&mut c[at..], stride));
                    continue;
                }
                for r in 0..rows {
                    edge[r * width..][..columns].copy_from_slice(&c[at + r * stride..][..columns]);
                }
                O::run(self.isa, tile(&mut edge, width));
                for r in 0..rows {
                    c[at + r * stride..][..columns].copy_from_slice(&edge[r * width..][..columns]);
                }
            }
        }
    }

    /// Packs `rows` rows of A as (k, rows).
    fn pack_a(&self, g: &Gemm<'_, f32>, i: usize, rows: usize, out: &mut Vec<O>) {
        if out.len() < K_BLOCK * 14 {
            out.resize(K_BLOCK * 14, O::default());
        }
        let (from, k) = self.rows(g, g.a.transposed());
        O::panel(self.isa, from, i, k, (rows, rows), out);
    }
}

/// The reference: three loops, products rounded before they are added.
pub fn plain<F: Real>(g: Gemm<'_, F>, c: &mut [F], stride: usize) {
    for i in 0..g.m {
        for j in 0..g.n {
            let mut sum = if g.start == Start::Go { c[i * stride + j] } else { F::ZERO };
            for p in 0..g.k {
                sum += g.a.data[i * g.a.row + p * g.a.col] * g.b.data[p * g.b.row + j * g.b.col];
            }
            c[i * stride + j] = sum;
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_bf16;
