//! The forward pass alone, for rows that come as they come: what a server and an evaluation run.
//!
//! A module is planned for 1, 2, 4, … rows. A call of n rows runs as the powers of two that n is made of, so nothing is
//! padded. The scores of a row are those of the evaluation pass of training: bits depend on the row and the state alone,
//! not on how many rows come with it, where it stands among them, or how many threads there are.

use crate::backend;
use crate::exec::{Bound, Scratch, run};
use crate::graph::{Graph, ShapeError, Value};
use crate::mixed::Mixed;
use crate::network::StateLayout;
use crate::nn::{Mode, Module};
use crate::ops::Key;
use crate::passes::{lay_out, trace};
use crate::plan::{Goal, Plan};
use crate::real::Single;
use crate::units::{self, Asked};
use elastic_spec::batch::DataShape;
use elastic_spec::job::Dtype;
use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;

/// Inputs of a call, one row behind the other.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// (n, features), as the transform left them.
    Features(&'a [f32]),
    /// (n, context).
    Tokens(&'a [i32]),
}

/// A module compiled to be asked.
pub trait Forward: Send + Sync {
    fn layout(&self) -> &StateLayout;

    /// Numbers of one row's input: features, or tokens of the context.
    fn input_len(&self) -> usize;

    /// Scores of one row: classes, or context × vocabulary.
    fn scores_len(&self) -> usize;

    /// Most rows that run in one go; more are cut.
    fn rows_max(&self) -> usize;

    /// Writes (n, scores) for the state that the scratch was made with. `rows` holds n rows, `out` n rows of scores.
    fn scores(&self, scratch: &mut dyn Any, rows: Rows<'_>, out: &mut [f32]);

    /// Memory and threads for calls with a state of the layout's length, one at a time. `threads` counts the caller's. The error
    /// says what the device lacks.
    fn new_scratch(&self, state: &Arc<Vec<f32>>, threads: usize) -> Result<Box<dyn Any + Send>, String>;
}

/// Floats of the largest arena: 64 MiB. More rows at once gain nothing that shows.
const ARENA_FLOATS_MAX: usize = 16 << 20;
/// Rows of the largest plan.
pub const ROWS_MAX: usize = 1 << 10;

/// Compiles `module` for rows of `data`, on the device that the process has taken, or on the processor. The error names the
/// op, its place and the axes.
pub fn compile_forward(dtype: Dtype, module: &dyn Module, data: &DataShape) -> Result<Box<dyn Forward>, String> {
    if let Some(device) = backend::taken() {
        return device.compile_forward(dtype, module, data);
    }
    let plans = ForwardPlans::new(module, data).map_err(|error| error.to_string())?;
    Ok(match dtype {
        Dtype::F32 => Box::new(Compiled::<f32> { float: PhantomData, plans }),
        Dtype::Bf16 => Box::new(Compiled::<Mixed> { float: PhantomData, plans }),
    })
}

/// A module's forward passes, whatever runs them.
pub struct ForwardPlans {
    pub layout: StateLayout,
    pub input_len: usize,
    pub scores_len: usize,
    /// For 1, 2, 4, … rows, and where the scores are among the kept values.
    pub plans: Vec<(Plan, Value)>,
}

impl ForwardPlans {
    pub fn new(module: &dyn Module, data: &DataShape) -> Result<ForwardPlans, ShapeError> {
        let trace = trace(module, data, 1, Mode::Evaluate)?;
        let (layout, offsets) = lay_out(&trace);
        let plan_of = |graph: &Graph, keep: &[Value]| Plan::new(graph, &Goal { states: &offsets, out: &[], keep });
        let one = plan_of(&trace.graph, &[trace.scores]);
        let scores_len = one.kept_range(trace.scores).len();
        let mut plans = vec![(one, trace.scores)];
        while 1 << plans.len() <= ROWS_MAX {
            let unit = units::unit(&trace.graph, Asked { out: &[], keep: &[trace.scores] }, 1, 1 << plans.len());
            let plan = plan_of(&unit.graph, &unit.keep);
            if plan.arena > ARENA_FLOATS_MAX {
                break;
            }
            plans.push((plan, unit.keep[0]));
        }
        let input_len = match *data {
            DataShape::Features { features, .. } => features,
            DataShape::Tokens { context, .. } => context,
        };
        Ok(ForwardPlans { layout, input_len, scores_len, plans })
    }

    pub fn rows_max(&self) -> usize {
        1 << (self.plans.len() - 1)
    }

    /// Cuts rows into powers of two, each with its part of `out`.
    pub fn in_parts(&self, rows: Rows<'_>, out: &mut [f32], mut run: impl FnMut(Rows<'_>, &mut [f32])) {
        let len = match rows {
            Rows::Features(features) => features.len(),
            Rows::Tokens(tokens) => tokens.len(),
        };
        let n = len / self.input_len;
        assert_eq!((len, out.len()), (n * self.input_len, n * self.scores_len), "rows and scores are whole");
        let mut done = 0;
        while done < n {
            let count = 1 << (n - done).min(self.rows_max()).ilog2();
            let part = done * self.input_len..(done + count) * self.input_len;
            let rows = match rows {
                Rows::Features(features) => Rows::Features(&features[part]),
                Rows::Tokens(tokens) => Rows::Tokens(&tokens[part]),
            };
            run(rows, &mut out[done * self.scores_len..(done + count) * self.scores_len]);
            done += count;
        }
    }
}

/// On the processor.
struct Compiled<F> {
    float: PhantomData<F>,
    plans: ForwardPlans,
}

/// What a call needs there.
struct Held<F: Single> {
    scratch: Scratch<F>,
    state: Arc<Vec<f32>>,
}

impl<F: Single> Compiled<F> {
    /// A power of two of rows.
    fn run(&self, scratch: &mut Scratch<F>, state: &[f32], rows: Rows<'_>, out: &mut [f32]) {
        let count = out.len() / self.plans.scores_len;
        let (plan, scores) = &self.plans.plans[count.ilog2() as usize];
        let (features, tokens): (&[f32], &[i32]) = match rows {
            Rows::Features(features) => (features, &[]),
            Rows::Tokens(tokens) => (&[], tokens),
        };
        let slots = [0; ROWS_MAX];
        let key = Key { seed: 0, step: 0, scale: 0.0, label_smoothing: 0.0, shards: count, slots: &slots[..count] };
        let (state, features) = (F::of_floats(state), F::of_floats(features));
        let bound = Bound { state, features, tokens, targets: &[], key };
        run(plan, scratch, &bound, &mut []);
        out.copy_from_slice(F::floats(plan.kept(&scratch.arena, *scores)));
    }
}

impl<F: Single> Forward for Compiled<F> {
    fn layout(&self) -> &StateLayout {
        &self.plans.layout
    }

    fn input_len(&self) -> usize {
        self.plans.input_len
    }

    fn scores_len(&self) -> usize {
        self.plans.scores_len
    }

    fn rows_max(&self) -> usize {
        self.plans.rows_max()
    }

    fn scores(&self, scratch: &mut dyn Any, rows: Rows<'_>, out: &mut [f32]) {
        let Held { scratch, state } = scratch.downcast_mut().expect("the scratch is from `new_scratch`");
        self.plans.in_parts(rows, out, |rows, out| self.run(scratch, state, rows, out));
    }

    fn new_scratch(&self, state: &Arc<Vec<f32>>, threads: usize) -> Result<Box<dyn Any + Send>, String> {
        assert_eq!(state.len(), self.plans.layout.floats(), "the state has the layout's length");
        Ok(Box::new(Held { scratch: Scratch::<F>::new(threads), state: state.clone() }))
    }
}
