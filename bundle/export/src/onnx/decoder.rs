//! The graph of a `gpt`, as elastic-models builds it, for any number of tokens up to the context.

use super::builder::{Builder, Name};
use super::gelu;
use super::proto::AttributeProto;
use elastic_bundle::{LOGITS, TOKENS};
use elastic_spec::job::{Norm, Positions};

pub struct Decoder {
    pub layers: usize,
    pub heads: usize,
    pub width: usize,
    pub context: usize,
    pub norm: Norm,
    pub positions: Positions,
}

/// What all layers share.
struct Shared {
    /// (token, token), whether the second stands behind the first.
    hidden: Name,
    /// Cosines and sines, (token, pair), if positions are turned.
    turns: Option<[Name; 2]>,
}

impl Decoder {
    pub fn build(&self, b: &mut Builder<'_>) {
        let table = b.weight("wte.weight");
        let mut x = b.node("Gather", "wte.out", &[&table, TOKENS], vec![AttributeProto::int("axis", 0)]);
        let ends = [AttributeProto::int("start", 1), AttributeProto::int("end", 2)];
        // (1): how many tokens there are.
        let count = b.node("Shape", "count", &[TOKENS], ends.to_vec());
        let shared = Shared { hidden: hidden(b, &count), turns: self.turns(b, &count) };
        if self.positions == Positions::Learned {
            let places = b.weight("wpe.weight");
            let places = first_rows(b, "wpe.out", &places, &count);
            x = b.node("Add", "embedded", &[&x, &places], vec![]);
        }
        for i in 0..self.layers {
            x = self.block(b, &shared, &format!("h.{i}"), x);
        }
        x = self.norm(b, "ln_f", &x);
        let head = b.node("Transpose", "wte.swapped", &[&table], vec![AttributeProto::ints("perm", &[1, 0])]);
        b.node("MatMul", LOGITS, &[&x, &head], vec![]);
    }

    fn turns(&self, b: &mut Builder<'_>, count: &str) -> Option<[Name; 2]> {
        if self.positions != Positions::Rotary {
            return None;
        }
        let pairs = self.width / self.heads / 2;
        let (cosines, sines): (Vec<f32>, Vec<f32>) = turns_of(self.context, pairs).unzip();
        let mut rows = |word: &str, floats: &[f32]| {
            let table = b.floats(&format!("rotary.{word}"), &[self.context, pairs], floats);
            first_rows(b, &format!("rotary.{word}.out"), &table, count)
        };
        Some([rows("cosines", &cosines), rows("sines", &sines)])
    }

    fn block(&self, b: &mut Builder<'_>, shared: &Shared, at: &str, x: Name) -> Name {
        let y = self.norm(b, &format!("{at}.ln_1"), &x);
        let y = self.attention(b, shared, &format!("{at}.attn"), &y);
        let x = b.node("Add", &format!("{at}.attn.sum"), &[&x, &y], vec![]);
        let y = self.norm(b, &format!("{at}.ln_2"), &x);
        let y = linear(b, &format!("{at}.mlp.c_fc"), &y);
        let y = gelu(b, &format!("{at}.mlp"), &y);
        let y = linear(b, &format!("{at}.mlp.c_proj"), &y);
        b.node("Add", &format!("{at}.mlp.sum"), &[&x, &y], vec![])
    }

    /// softmax(Q Kᵀ / √d) V for each head over the tokens that it sees.
    fn attention(&self, b: &mut Builder<'_>, shared: &Shared, at: &str, x: &str) -> Name {
        let per_head = self.width / self.heads;
        let qkv = linear(b, &format!("{at}.c_attn"), x);
        let parts = b.split(at, ["q", "k", "v"], &qkv, self.width);
        let sides = b.ints("attn.heads", &[4], &[0, 0, self.heads as i64, per_head as i64]);
        let perm = |perm: [i64; 4]| vec![AttributeProto::ints("perm", &perm)];
        // (sample, head, token, channel)
        let [q, k, v] = parts.map(|part| {
            let heads = b.node("Reshape", &format!("{part}.heads"), &[&part, &sides], vec![]);
            b.node("Transpose", &format!("{part}.by_head"), &[&heads], perm([0, 2, 1, 3]))
        });
        let [q, k] = match &shared.turns {
            None => [q, k],
            Some(turns) => [turned(b, &q, turns, per_head), turned(b, &k, turns, per_head)],
        };
        let k = b.node("Transpose", &format!("{at}.k.swapped"), &[&k], perm([0, 1, 3, 2]));
        let products = b.node("MatMul", &format!("{at}.products"), &[&q, &k], vec![]);
        let scale = b.floats("attn.scale", &[], &[(1.0 / (per_head as f64).sqrt()) as f32]);
        let scaled = b.node("Mul", &format!("{at}.scaled"), &[&products, &scale], vec![]);
        // The smallest number, not -inf: some runtimes make NaN of that.
        let least = b.floats("attn.least", &[], &[f32::MIN]);
        let seen = b.node("Where", &format!("{at}.seen"), &[&shared.hidden, &least, &scaled], vec![]);
        let shares = b.node("Softmax", &format!("{at}.shares"), &[&seen], vec![AttributeProto::int("axis", -1)]);
        let y = b.node("MatMul", &format!("{at}.mixed"), &[&shares, &v], vec![]);
        let y = b.node("Transpose", &format!("{at}.by_token"), &[&y], perm([0, 2, 1, 3]));
        let sides = b.ints("attn.width", &[3], &[0, 0, self.width as i64]);
        let y = b.node("Reshape", &format!("{at}.out"), &[&y, &sides], vec![]);
        linear(b, &format!("{at}.c_proj"), &y)
    }

    fn norm(&self, b: &mut Builder<'_>, at: &str, x: &str) -> Name {
        let scale = b.weight(&format!("{at}.weight"));
        let name = |word: &str| format!("{at}.{word}");
        match self.norm {
            Norm::Layer => {
                let shift = b.weight(&name("bias"));
                let attributes = vec![AttributeProto::int("axis", -1), AttributeProto::float("epsilon", 1e-5)];
                b.node("LayerNormalization", &name("out"), &[x, &scale, &shift], attributes)
            }
            Norm::Rms => {
                let eps = b.floats("rms.eps", &[], &[1e-5]);
                let squares = b.node("Mul", &name("squares"), &[x, x], vec![]);
                let mean = vec![AttributeProto::ints("axes", &[-1]), AttributeProto::int("keepdims", 1)];
                let mean = b.node("ReduceMean", &name("mean"), &[&squares], mean);
                let sum = b.node("Add", &name("sum"), &[&mean, &eps], vec![]);
                let root = b.node("Sqrt", &name("root"), &[&sum], vec![]);
                let y = b.node("Div", &name("normal"), &[x, &root], vec![]);
                b.node("Mul", &name("out"), &[&y, &scale], vec![])
            }
        }
    }
}

/// x Wᵀ + b over the last axis of (sample, token, channel).
fn linear(b: &mut Builder<'_>, at: &str, x: &str) -> Name {
    let (weight, bias) = (b.swapped(&format!("{at}.weight")), b.weight(&format!("{at}.bias")));
    let product = b.node("MatMul", &format!("{at}.product"), &[x, &weight], vec![]);
    b.node("Add", &format!("{at}.out"), &[&product, &bias], vec![])
}

/// The first `count` rows of a table.
fn first_rows(b: &mut Builder<'_>, name: &str, table: &str, count: &str) -> Name {
    let zero = b.ints("first", &[1], &[0]);
    b.node("Slice", name, &[table, &zero, count, &zero], vec![])
}

fn hidden(b: &mut Builder<'_>, count: &str) -> Name {
    let (zero, one) = (b.ints("zero", &[], &[0]), b.ints("one", &[], &[1]));
    let (rows, cols) = (b.ints("rows", &[1], &[1]), b.ints("cols", &[1], &[0]));
    let count = b.node("Squeeze", "count.number", &[count], vec![]);
    let places = b.node("Range", "places", &[&zero, &count, &one], vec![]);
    let rows = b.node("Unsqueeze", "places.rows", &[&places, &rows], vec![]);
    let cols = b.node("Unsqueeze", "places.cols", &[&places, &cols], vec![]);
    b.node("Greater", "hidden", &[&cols, &rows], vec![])
}

/// Cosine and sine of each token and pair, as the engine has them: rounded once, from scalars that are the same everywhere.
fn turns_of(tokens: usize, pairs: usize) -> impl Iterator<Item = (f32, f32)> {
    (0..tokens * pairs).map(move |at| {
        let (token, pair) = (at / pairs, at % pairs);
        let angle = token as f64 * libm::pow(1e4, -(pair as f64) / pairs as f64);
        (libm::cos(angle) as f32, libm::sin(angle) as f32)
    })
}

/// Pair i of a head's channels is (i, i + d/2).
fn turned(b: &mut Builder<'_>, x: &str, [cosines, sines]: &[Name; 2], per_head: usize) -> Name {
    let [x0, x1] = b.split(x, ["first", "second"], x, per_head / 2);
    let name = |word: &str| format!("{x}.{word}");
    let mut part = |word: &str, [by_cosine, by_sine]: [&str; 2], op: &str| {
        let cosine = b.node("Mul", &name(&format!("{word}.cosine")), &[by_cosine, cosines], vec![]);
        let sine = b.node("Mul", &name(&format!("{word}.sine")), &[by_sine, sines], vec![]);
        b.node(op, &name(&format!("{word}.turned")), &[&cosine, &sine], vec![])
    };
    let y0 = part("first", [&x0, &x1], "Sub");
    let y1 = part("second", [&x1, &x0], "Add");
    b.node("Concat", &name("turned"), &[&y0, &y1], vec![AttributeProto::int("axis", -1)])
}
