//! Cheap values are made again in the backward pass instead of being kept for it.
//!
//! The output of a GELU or a norm is read once more in the backward pass, by the weight gradient of the linear layer
//! behind it, while its own input has to be kept for its own gradient anyway. Making it again costs one pass over the
//! input and frees the memory for the whole time between: of a decoder's sixteen values a layer and channel, six. The
//! same op on the same inputs has the same bits, so only memory and time change.
//! (Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174, for values that cost next to nothing.)

use crate::graph::{Graph, Source, Value};
use crate::ops::Op;

/// Rebuilds a graph whose backward pass begins behind node `forward_end`. Values keep their numbers.
pub(crate) fn recompute(graph: &mut Graph, forward_end: usize) {
    let mut last_read = vec![0usize; graph.values.len()];
    for (at, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|v| last_read[v.0] = at);
    }
    let nodes = std::mem::take(&mut graph.nodes);
    // What a value is called from some node on.
    let mut again: Vec<Option<Value>> = vec![None; graph.values.len()];
    let mut is_read = vec![false; graph.values.len()];
    for (at, node) in nodes.iter().enumerate() {
        let mut node = node.clone();
        for input in &mut node.inputs {
            if at > forward_end && again[input.0].is_none() && !is_read[input.0] {
                is_read[input.0] = true;
                if let Source::Node { node: maker, output: 0 } = graph.values[input.0].1 {
                    // Makers lie before the backward pass: their numbers are still those of the old list.
                    let maker = (maker <= forward_end).then(|| &nodes[maker]);
                    if maker.is_some_and(|maker| is_worth_it(graph, maker, &last_read, at)) {
                        again[input.0] = Some(make_again(graph, maker.expect("just seen")));
                    }
                }
            }
            if at > forward_end {
                *input = again[input.0].unwrap_or(*input);
            }
        }
        let number = graph.nodes.len();
        for (output, value) in node.outputs.iter().enumerate() {
            graph.values[value.0].1 = Source::Node { node: number, output };
        }
        graph.nodes.push(node);
    }
}

/// Whether a node is cheap, and its inputs are there at node `at` without it.
fn is_worth_it(graph: &Graph, maker: &crate::graph::Node, last_read: &[usize], at: usize) -> bool {
    let is_cheap = matches!(maker.op, Op::Gelu(_) | Op::LayerNorm(_) | Op::RmsNorm(_));
    let is_there = |v: &Value| !matches!(graph.source(*v), Source::Node { .. }) || last_read[v.0] > at;
    is_cheap && maker.inputs.iter().all(is_there)
}

/// Another node with the same op; its first output.
fn make_again(graph: &mut Graph, maker: &crate::graph::Node) -> Value {
    let types = maker.outputs.iter().map(|v| graph.ty(*v).clone()).collect();
    graph.push_node(maker.op.clone(), &maker.path, &maker.inputs, types, None)[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{Bound, Scratch, run};
    use crate::nn::{Mode, Module, Scope, Table};
    use crate::ops::{Key, Seed};
    use crate::plan::{Goal, Plan};
    use crate::tensor::{Result, Tensor};
    use crate::{Init, autograd, passes};
    use elastic_spec::batch::DataShape;

    struct Text;

    impl Module for Text {
        fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
            let table = Table { rows: nn.outputs(), width: 16, init: Init::Normal { std: 0.5 } };
            let (mut x, weight) = nn.embedding("table", &x, table)?;
            for layer in 0..4 {
                let at = nn.enter(&layer.to_string());
                let y = at.linear("wide", &at.layer_norm("norm", &x)?, 64)?.gelu();
                x = x.add(&at.linear("narrow", &y, 16)?)?;
            }
            x.linear_with(&weight)
        }
    }

    #[test]
    fn values_made_again_have_their_bits_and_need_less_memory() {
        let data = DataShape::Tokens { vocab: 16, context: 8 };
        let trace = passes::trace(&Text, &data, 4, Mode::Train).unwrap();
        let mut graph = trace.graph;
        let forward_end = graph.nodes.len() - 1;
        let shape = graph.ty(trace.loss).shape.clone();
        let seed = graph.apply1(Op::Seed(Seed { shape }), "loss", &[]).unwrap();
        let mut states = vec![0; graph.states().len()];
        let (mut params, mut floats) = (Vec::new(), 0);
        for value in (0..graph.values.len()).map(Value) {
            if let Source::State(state) = graph.source(value) {
                states[state] = floats;
                params.push(value);
                floats += graph.ty(value).len();
            }
        }
        let grads = autograd::backward(&mut graph, trace.loss, seed, &params).unwrap();
        let mut end = 0;
        let out: Vec<(Value, usize)> = grads
            .into_iter()
            .zip(&params)
            .map(|(grad, param)| {
                end += graph.ty(*param).len();
                (grad.unwrap(), end - graph.ty(*param).len())
            })
            .collect();
        let mut smaller = graph.clone();
        recompute(&mut smaller, forward_end);
        let made_again = smaller.nodes.len() - graph.nodes.len();
        assert_eq!(made_again, 8, "four norms and four GELUs");
        let result = |graph: &Graph| {
            let plan = Plan::new(graph, &Goal { states: &states, out: &out, keep: &[trace.loss] });
            let state: Vec<f32> = (0..floats).map(|i| ((i * 7919) % 101) as f32 / 80.0 - 0.6).collect();
            let tokens: Vec<i32> = (0..32).map(|i| i * 5 % 16).collect();
            let key = Key { seed: 1, step: 2, scale: 0.1, label_smoothing: 0.0, shards: 1, slots: &[0, 1, 2, 3] };
            let bound = Bound { state: &state, features: &[], tokens: &tokens, targets: &tokens, key };
            let mut out = vec![0.0; end];
            run(&plan, &mut Scratch::new(1), &bound, &mut out);
            (out.into_iter().map(f32::to_bits).collect::<Vec<_>>(), plan.arena)
        };
        let (before, after) = (result(&graph), result(&smaller));
        assert_eq!(before.0, after.0);
        assert!(after.1 * 4 < before.1 * 3, "{} floats, and {} with values made again", before.1, after.1);
    }
}
