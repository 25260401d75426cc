//! Products of matrices: `kernels/gemm.cu`.

use super::gemm::{NOWHERE, Run, Shards, Tile, grid, pair};
use super::{At, Given, Launches, Site, given};
use elastic_tensor::ops::{BatchMatMul, MatMul};

/// `struct Product` of `gemm.cu`, without the tiles.
#[derive(Clone, Copy, Debug)]
struct Product {
    m: usize,
    n: usize,
    k: usize,
    /// Pairs of matrices, or shards.
    batch: usize,
    is_transposed: (bool, bool),
}

impl Product {
    fn words(self, tile: Tile, room_step: usize) -> Given {
        let Product { m, n, k, batch, .. } = self;
        let (down, across) = tile.count(m, n);
        let steps = [m * k, k * n, m * n, room_step].map(|step| step as u64);
        let mut words = vec![pair(m, n), pair(k, batch), pair(down, across)];
        words.extend(steps);
        Given::Struct(words)
    }

    fn function(self, tile: Tile) -> &'static str {
        tile.of(match self.is_transposed {
            (false, false) => ["nn_large", "nn_medium", "nn_small"],
            (false, true) => ["nt_large", "nt_medium", "nt_small"],
            (true, false) => ["tn_large", "tn_medium", "tn_small"],
            (true, true) => ["tt_large", "tt_medium", "tt_small"],
        })
    }

    /// `bias` is of each column, or [`NOWHERE`].
    fn lower(self, y: At, (a, b): (At, At), bias: Given, to: &mut Launches) {
        let Product { m, n, batch, .. } = self;
        let tile = Tile::best(m, n, batch);
        let given = given![y, a, b, bias, self.words(tile, 0)];
        to.push("gemm", self.function(tile), grid(tile, m, n, batch), given);
    }

    /// The sum over shards, of which `k` counts the links of one.
    fn lower_sum(self, y: At, (a, b): (At, At), to: &mut Launches) {
        let Product { m, n, batch: shards, .. } = self;
        Shards::of(&Tile::ALL, m, n, shards).lower(
            (m, n),
            shards,
            y,
            to,
            |Run { tile, y, room, shape }, to| match room {
                Some((room, step)) => {
                    let function = tile.of(["sum_large", "sum_medium", "sum_small"]);
                    to.push("gemm", function, shape, given![y, a, b, room, self.words(tile, step)]);
                }
                None => to.push("gemm", self.function(tile), shape, given![y, a, b, NOWHERE, self.words(tile, 0)]),
            },
        );
    }
}

/// Rows and columns of a matrix that may be read transposed.
fn turned(is_transposed: bool, shape: &[usize]) -> (usize, usize) {
    if is_transposed { (shape[1], shape[0]) } else { (shape[0], shape[1]) }
}

pub(super) fn matmul(op: &MatMul, site: &Site<'_>, to: &mut Launches) {
    let (m, k) = turned(op.a_transposed, &site.types[0].shape);
    let (_, n) = turned(op.b_transposed, &site.types[1].shape);
    let is_transposed = (op.a_transposed, op.b_transposed);
    Product { m, n, k, batch: 1, is_transposed }.lower(site.y[0], (site.x[0], site.x[1]), NOWHERE, to);
}

pub(super) fn batch_matmul(op: &BatchMatMul, site: &Site<'_>, to: &mut Launches) {
    let (m, k) = turned(op.a_transposed, &site.types[0].shape[1..]);
    let (_, n) = turned(op.b_transposed, &site.types[1].shape[1..]);
    let (batch, is_transposed) = (site.types[0].shape[0], (op.a_transposed, op.b_transposed));
    Product { m, n, k, batch, is_transposed }.lower(site.y[0], (site.x[0], site.x[1]), NOWHERE, to);
}

pub(super) fn linear(site: &Site<'_>, to: &mut Launches) {
    let ((m, k), n) = (site.types[0].rows_cols(), site.types[1].shape[0]);
    let bias = site.x.get(2).map_or(NOWHERE, |bias| Given::At(*bias));
    Product { m, n, k, batch: 1, is_transposed: (false, true) }.lower(site.y[0], (site.x[0], site.x[1]), bias, to);
}

pub(super) fn linear_grad_weight(site: &Site<'_>, to: &mut Launches) {
    let ((rows, m), n) = (site.types[0].rows_cols(), site.types[1].shape[1]);
    let product = Product { m, n, k: rows / site.shards, batch: site.shards, is_transposed: (true, false) };
    product.lower_sum(site.y[0], (site.x[0], site.x[1]), to);
}
