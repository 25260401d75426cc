//! Where a pass is cut: behind each bucket of the leaf that is whole, so that it leaves the GPU while the rest is computed.
//!
//! Gradients are finished in the order of the state (the reverse of the forward pass), so a bucket is a stretch of the leaf.
//! Each segment is a graph of its own: between two of them a collective can be given up, and a bucket handed on. (Li et
//! al., PyTorch Distributed: Experiences on Accelerating Data Parallel Training, 2020, for the sizes of buckets.)

use elastic_tensor::plan::{Place, Plan};
use std::ops::Range;

/// Launches of a pass, and what of the leaf is whole behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Steps of the plan.
    pub steps: Range<usize>,
    /// Floats of the leaf.
    pub ready: Vec<Range<usize>>,
}

/// The segments of a plan that writes a leaf of so many floats, with buckets of at least `bucket` floats.
pub fn segments(plan: &Plan, leaf: usize, bucket: usize) -> Vec<Segment> {
    let mut written: Vec<(Range<usize>, usize)> = Vec::new();
    for (number, step) in plan.steps.iter().enumerate() {
        written.extend(step.outputs.iter().filter_map(|(_, place)| match place {
            Place::Out(range) => Some((range.clone(), number)),
            _ => None,
        }));
    }
    written.sort_by_key(|(range, _)| range.start);
    // Stretches of the leaf, each with the last step that writes to it. What nobody writes goes with what is before it.
    let mut buckets: Vec<(Range<usize>, usize)> = Vec::new();
    for (range, step) in written {
        match buckets.last_mut() {
            Some((last, by)) if last.len() < bucket => (last.end, *by) = (range.end, step.max(*by)),
            Some((last, _)) => {
                let start = last.end;
                buckets.push((start..range.end, step));
            }
            None => buckets.push((0..range.end, step)),
        }
    }
    match buckets.last_mut() {
        Some((last, _)) => last.end = leaf,
        None => buckets.push((0..leaf, plan.steps.len().saturating_sub(1))),
    }
    buckets.sort_by_key(|(range, by)| (*by, range.start));
    let mut out: Vec<Segment> = Vec::new();
    for (range, by) in buckets {
        let start = out.last().map_or(0, |segment| segment.steps.end);
        match out.last_mut() {
            Some(last) if by < last.steps.end => last.ready.push(range),
            _ => out.push(Segment { steps: start..by + 1, ready: vec![range] }),
        }
    }
    if let Some(last) = out.last_mut() {
        last.steps.end = plan.steps.len();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::batch::DataShape;
    use elastic_spec::job::{Activation, ModelKind, Norm, Positions};
    use elastic_tensor::nn::Module;
    use elastic_tensor::passes::Passes;
    use std::cell::RefCell;

    fn passes(kind: &ModelKind, data: &DataShape) -> Passes {
        let made = RefCell::new(None);
        let compile = |module: &dyn Module| {
            *made.borrow_mut() = Some(Passes::new(module, data, 2, 1 << 20).map_err(|error| error.to_string())?);
            Err("only the plans are wanted".to_string())
        };
        assert!(elastic_models::build_by::<()>(kind, data, &compile).is_err());
        made.into_inner().expect("the shapes fit")
    }

    /// Every step runs once and in order, and every float is handed on once, behind the last step that writes it.
    fn check(passes: &Passes, bucket: usize) -> usize {
        let leaf = passes.layout.reduced_floats();
        let mut most = 0;
        for pass in &passes.train {
            let found = segments(&pass.plan, leaf, bucket);
            let steps: Vec<usize> = found.iter().flat_map(|segment| segment.steps.clone()).collect();
            assert_eq!(steps, (0..pass.plan.steps.len()).collect::<Vec<_>>());
            let mut at = vec![usize::MAX; leaf];
            for (number, segment) in found.iter().enumerate() {
                for float in segment.ready.iter().flat_map(Range::clone) {
                    assert_eq!(at[float], usize::MAX, "float {float} is handed on once");
                    at[float] = number;
                }
            }
            assert!(at.iter().all(|number| *number < found.len()), "every float is handed on");
            for (number, step) in pass.plan.steps.iter().enumerate() {
                for (_, place) in &step.outputs {
                    if let Place::Out(range) = place {
                        let by = range.clone().map(|float| at[float]).min().unwrap_or(usize::MAX);
                        assert!(by == usize::MAX || number < found[by].steps.end, "step {number} writes too late");
                    }
                }
            }
            most = most.max(found.len());
        }
        most
    }

    #[test]
    fn every_float_is_handed_on_once_and_when_it_is_whole() {
        let data = DataShape::Tokens { vocab: 31, context: 8 };
        let (norm, positions) = (Norm::Layer, Positions::Learned);
        let kind = ModelKind::Gpt { layers: 4, width: 16, heads: 2, context: 8, dropout: 0.0, norm, positions };
        let gpt = passes(&kind, &data);
        assert!(check(&gpt, 2000) > 3, "a decoder's layers are several buckets");
        assert!(check(&gpt, 1) >= check(&gpt, 2000));
        assert_eq!(check(&gpt, usize::MAX), 1);
        let kind = ModelKind::Mlp { hidden: vec![9, 9], activation: Activation::Relu };
        let mlp = passes(&kind, &DataShape::Features { features: 7, classes: 3 });
        assert_eq!(check(&mlp, 1), mlp.layout.params.len());
        let kind = ModelKind::Cnn { image: [2, 9, 9], channels: vec![5], kernel: 3, hidden: 0, batch_norm: true };
        check(&passes(&kind, &DataShape::Features { features: 162, classes: 3 }), 100);
    }
}
