//! A step whose gradient is not finite: what is said of it, and the search for where it began.
//!
//! Whether it is so is seen in the reduced vector (`elastic_tensor::apply_on`), which is the same on every member, so
//! all of them come to the same end, or leave out the same step, without a word between them. The search computes the
//! step's shards once more, one by one and in order, so it tells the same on every member, too.

use crate::job::Job;
use elastic_spec::tree::TreeNode;
use elastic_spec::{Shard, Step};
use elastic_tensor::exec::{At, Phase, Watch};
use elastic_tensor::{ParamInfo, StateLayout};
use std::any::Any;
use std::fmt;

/// The step, and the first number of the reduced vector that is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFinite {
    /// Steps done before it.
    pub step: Step,
    pub tensor: String,
    /// Whether it is a running statistic, not a gradient.
    pub is_buffer: bool,
    pub element: usize,
    pub shape: Vec<usize>,
    /// Mean over the batch.
    pub loss: f64,
    pub lr: f64,
}

impl NotFinite {
    /// Of place `at` of the reduced vector.
    pub fn at(layout: &StateLayout, at: usize) -> NotFinite {
        let ParamInfo { name, shape, offset, .. } = layout.tensor_at(at).expect("the place is some tensor's");
        NotFinite {
            step: Step(0),
            tensor: name.clone(),
            is_buffer: at >= layout.param_floats(),
            element: at - offset,
            shape: shape.clone(),
            loss: 0.0,
            lr: 0.0,
        }
    }

    /// What ends the job: where it began, in words, and what may be done.
    pub fn told(&self, origin: &str) -> String {
        format!(
            "{self}; {origin}; lower train.lr ({}), set train.clip_norm, or leave such steps out with train.non_finite = \"skip\"",
            self.lr
        )
    }
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NotFinite { step, tensor, element, shape, loss, .. } = self;
        let what = if self.is_buffer { "running statistic" } else { "gradient of" };
        write!(f, "step {}: the {what} `{tensor}` is not finite (element {element} of {shape:?}); ", step.0 + 1)?;
        match loss.is_finite() {
            true => write!(f, "the loss was finite ({loss})"),
            false => write!(f, "the loss was not finite either ({loss})"),
        }
    }
}

/// The first op whose result is not finite.
#[derive(Default)]
struct First(Option<(&'static str, String, Phase)>);

impl Watch for First {
    fn after(&mut self, at: At<'_>, written: &mut dyn Iterator<Item = &[f32]>) {
        if self.0.is_none() && written.flatten().any(|x| !x.is_finite()) {
            self.0 = Some((at.step.op.name(), at.step.path.clone(), at.phase));
        }
    }
}

/// Looks through the shards of `step`, computed from `floats`, for where it began. `alive` is called after each.
pub fn origin(job: &Job, scratch: &mut (dyn Any + Send), floats: &[f32], step: Step, alive: impl Fn()) -> String {
    let layout = job.network.layout();
    if let Some(at) = floats.iter().position(|x| !x.is_finite()) {
        let name = layout.tensor_at(at).map_or("?", |info| &info.name);
        return format!("`{name}` itself was not finite before this step");
    }
    let mut leaf = vec![0.0; layout.reduced_floats()];
    for shard in 0..job.plan.shards {
        let mut first = First::default();
        let batch = job.batch(step, TreeNode::leaf(Shard(shard)));
        if job.sum_seen(scratch, floats, (step, &batch), &mut leaf, &mut first).is_none() {
            return "which op it came from, this model cannot show".into();
        }
        alive();
        if let Some((op, path, phase)) = first.0 {
            let phase = phase.word();
            return format!("the first value that is not finite came out of {op} at `{path}` ({phase}, shard {shard})");
        }
    }
    "every shard's gradient is finite by itself, and their sum is not".into()
}
