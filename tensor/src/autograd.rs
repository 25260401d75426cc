//! Reverse mode on the IR: the gradient of a graph is more nodes in the same graph.
//!
//! Each op says how its gradient is written (`Rule::gradient`, beside its kernel). Here the nodes are walked
//! backwards, and what several users of a value contribute is added in that fixed order.

use crate::graph::{Graph, ShapeError, Source, Value};
use crate::ops::{Add, Op};

/// The gradients of `wrt`, given the gradient `seed` of `root`. `None`: `root` does not depend on it.
pub fn backward(graph: &mut Graph, root: Value, seed: Value, wrt: &[Value]) -> Result<Vec<Option<Value>>, ShapeError> {
    let wanted = depends_on(graph, wrt);
    let mut grads: Vec<Option<Value>> = vec![None; graph.values.len()];
    grads[root.0] = Some(seed);
    for at in (0..graph.nodes.len()).rev() {
        let node = graph.nodes[at].clone();
        let dy: Vec<Option<Value>> = node.outputs.iter().map(|v| grads[v.0]).collect();
        if dy.iter().all(Option::is_none) || !node.inputs.iter().any(|v| wanted[v.0]) {
            continue;
        }
        let dx = node.op.gradient(graph, &node, &dy)?;
        for (input, dx) in node.inputs.iter().zip(dx) {
            let (true, Some(dx)) = (wanted[input.0], dx) else { continue };
            grads[input.0] = Some(match grads[input.0] {
                None => dx,
                Some(sum) => graph.apply1(Op::Add(Add), &node.path, &[sum, dx])?,
            });
        }
    }
    Ok(wrt.iter().map(|v| grads[v.0]).collect())
}

/// Which values depend on one of `wrt`.
fn depends_on(graph: &Graph, wrt: &[Value]) -> Vec<bool> {
    let mut wanted = vec![false; graph.values.len()];
    wrt.iter().for_each(|v| wanted[v.0] = true);
    for (value, (_, source)) in graph.values.iter().enumerate() {
        if let Source::Node { node, .. } = source {
            wanted[value] = graph.nodes[*node].inputs.iter().any(|v| wanted[v.0]);
        }
    }
    wanted
}
