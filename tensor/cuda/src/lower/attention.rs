//! Causal attention, and its gradient.

use super::norms::{half_warps, zeros};
use super::{Given, LaunchShape, Launches, Site, given};
use elastic_tensor::graph::Type;
use elastic_tensor::ops::CausalAttention;

/// Tokens of a block's tile, its threads, and its shared memory, three tiles with padded rows: `attention.cuh`.
const SIDE: usize = 64;
const THREADS: u32 = 256;
const SHARED_BYTES: u32 = 3 * 64 * 68 * 4;

/// What all kernels of an attention share.
struct Sizes {
    samples: usize,
    tokens: usize,
    heads: usize,
    width: usize,
}

impl Sizes {
    fn of(op: &CausalAttention, qkv: &Type) -> Sizes {
        let (samples, tokens, channels) = (qkv.shape[0], qkv.shape[1], qkv.shape[2] / 3);
        Sizes { samples, tokens, heads: op.heads, width: channels / op.heads }
    }

    fn is_empty(&self) -> bool {
        self.samples * self.tokens * self.width == 0
    }

    /// A grid whose blocks write `piece` dimensions each.
    fn shape(&self, piece: usize) -> LaunchShape {
        let heads = (self.samples * self.heads) as u32;
        let grid = [heads, self.tokens.div_ceil(SIDE) as u32, self.width.div_ceil(piece) as u32];
        LaunchShape { grid, block: [THREADS, 1, 1], shared_bytes: SHARED_BYTES }
    }

    /// The last arguments of a kernel, the factors as the processor rounds them.
    fn given(&self) -> Vec<Given> {
        let scale = 1.0 / (self.width as f32).sqrt();
        let scale2 = scale * std::f32::consts::LOG2_E;
        given![self.tokens as u32, self.heads as u32, self.width as u32, scale, scale2]
    }
}

pub(super) fn causal_attention(op: &CausalAttention, site: &Site<'_>, to: &mut Launches) {
    let sizes = Sizes::of(op, &site.types[0]);
    let [y, sums] = [site.y[0], site.y[1]];
    if sizes.is_empty() {
        return zeros(sums, site.y_len(1), to);
    }
    let (function, piece) = if sizes.width <= 64 { ("causal_attention_64", 64) } else { ("causal_attention_128", 128) };
    let arguments = [given![y, sums, site.x[0]], sizes.given()].concat();
    to.push("causal_attention", function, sizes.shape(piece), arguments);
}

pub(super) fn causal_attention_grad(op: &CausalAttention, site: &Site<'_>, to: &mut Launches) {
    let sizes = Sizes::of(op, &site.types[0]);
    let [qkv, y, sums, dy] = [0, 1, 2, 3].map(|i| site.x[i]);
    if sizes.is_empty() {
        return;
    }
    let file = "causal_attention_grad";
    let rows = site.x_len(2);
    let along = to.room(rows);
    to.push(file, "causal_attention_along", half_warps(rows), given![along, y, dy, rows, sizes.width]);
    let (to_queries, piece) =
        if sizes.width <= 64 { ("causal_attention_grad_q_64", 64) } else { ("causal_attention_grad_q_128", 128) };
    for (function, piece) in [(to_queries, piece), ("causal_attention_grad_kv_64", 64)] {
        let arguments = [given![site.y[0], qkv, sums, dy, along], sizes.given()].concat();
        to.push(file, function, sizes.shape(piece), arguments);
    }
}
