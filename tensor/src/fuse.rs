//! Ops that become one when nobody else reads what is between them: the same bits with fewer trips to memory.
//!
//! A fused kernel rounds in registers where the ops by themselves would, so this only ever changes the time.

use crate::graph::{Graph, Node, Source, Value};
use crate::ops::{BatchNorm, MaxPool, Op};

/// Before the gradients are derived, which follow the fused ops. `kept` are values that are read from outside.
pub(crate) fn fuse(graph: &mut Graph, kept: &[Value]) {
    let mut readers = vec![0usize; graph.values.len()];
    graph.nodes.iter().flat_map(|node| &node.inputs).chain(kept).for_each(|v| readers[v.0] += 1);
    for at in 0..graph.nodes.len() {
        let Node { op: second, inputs, .. } = &graph.nodes[at];
        let second = match second {
            Op::Relu(_) => Second::Relu,
            Op::MaxPool(pool) if (pool.kernel, pool.stride) == (2, 2) => Second::Pool(*pool),
            _ => continue,
        };
        let before = inputs[0];
        let Source::Node { node, output: 0 } = graph.source(before) else { continue };
        if readers[before.0] == 1 && takes(&mut graph.nodes[node].op, second) {
            swap(graph, node, at);
        }
    }
}

/// What another op may take in.
#[derive(Clone, Copy)]
enum Second {
    Relu,
    Pool(MaxPool),
}

/// Makes the second op part of the first, if the first can do that.
fn takes(first: &mut Op, second: Second) -> bool {
    match (first, second) {
        (Op::BatchNorm(BatchNorm { relu: relu @ false, pool: None, .. }), Second::Relu) => *relu = true,
        (Op::BatchNorm(BatchNorm { pool: pool @ None, .. }), Second::Pool(second)) => *pool = Some(second),
        _ => return false,
    }
    true
}

/// The first node makes what the second one made. The second, which nobody reads any more, makes the value between
/// them: the list stays whole, and what is not read is not run.
fn swap(graph: &mut Graph, first: usize, second: usize) {
    let (between, made) = (graph.nodes[first].outputs[0], graph.nodes[second].outputs[0]);
    (graph.nodes[first].outputs[0], graph.nodes[second].outputs[0]) = (made, between);
    graph.nodes[second].inputs[0] = made;
    graph.values[made.0].1 = Source::Node { node: first, output: 0 };
    graph.values[between.0].1 = Source::Node { node: second, output: 0 };
}

#[cfg(test)]
mod tests {
    use crate::nn::{Module, Scope};
    use crate::ops::Op;
    use crate::tensor::{Result, Tensor};
    use crate::{LeafKey, compile, passes};
    use elastic_spec::batch::{Batch, DataShape};

    /// Norm, ReLU and pool of an image with odd sides; with `reads`, what is between them is read a second time, times
    /// zero.
    struct Net {
        reads: bool,
    }

    impl Module for Net {
        fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
            let again = |x: Tensor| if self.reads { x.add(&x.scale(0.0)) } else { Ok(x) };
            let x = nn.linear("in", &x, 70)?.reshape(&[x.shape()[0], 2, 5, 7])?;
            let x = again(nn.batch_norm("norm", &x)?)?;
            let x = again(x.relu())?.max_pool(2, 2)?.flatten()?;
            let x = nn.batch_norm("flat", &x)?;
            let x = again(x)?.relu();
            nn.linear("out", &x, nn.outputs())
        }
    }

    const DATA: DataShape = DataShape::Features { features: 6, classes: 3 };

    /// Norms that took in a ReLU, and a pool.
    fn fused(net: &Net) -> (usize, usize) {
        let graph = passes::trace(net, &DATA, 4, crate::nn::Mode::Train).unwrap().graph;
        let norms = || {
            graph.nodes.iter().filter_map(|n| match &n.op {
                Op::BatchNorm(norm) => Some(norm),
                _ => None,
            })
        };
        (norms().filter(|norm| norm.relu).count(), norms().filter(|norm| norm.pool.is_some()).count())
    }

    #[test]
    fn a_relu_and_a_pool_behind_a_norm_become_part_of_it_with_the_same_bits() {
        assert_eq!(fused(&Net { reads: false }), (2, 1));
        assert_eq!(fused(&Net { reads: true }), (0, 0), "what others read stays");
        let run = |net: &Net| {
            let network = compile(net, &DATA, 4).unwrap();
            let batch = Batch {
                features: (0..24).map(|i| ((i * 7) % 11) as f32 - 5.0).collect(),
                targets: vec![0, 2, 1, 1],
                slots: vec![0, 1, 2, 3],
                ..Batch::default()
            };
            let mut leaf = vec![0.0; network.layout().reduced_floats()];
            let key = LeafKey { seed: 1, step: 0, scale: 0.25, label_smoothing: 0.0 };
            let state = network.init(1);
            let tail = network.sum(&mut *network.new_scratch(1), &state, &batch, key, &mut leaf);
            // + 0 makes -0 to 0: what is added times zero may do that as well.
            (leaf.iter().map(|x| (x + 0.0).to_bits()).collect::<Vec<_>>(), tail)
        };
        assert_eq!(run(&Net { reads: false }), run(&Net { reads: true }));
    }
}
