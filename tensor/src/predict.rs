//! The forward pass alone, for rows that come as they come: what a server and an evaluation run.
//!
//! A module is planned for 1, 2, 4, … rows. A call of n rows runs as the powers of two that n is made of, so nothing is
//! padded. The scores of a row are those of the evaluation pass of training: bits depend on the row and the state alone,
//! not on how many rows come with it, where it stands among them, or how many threads there are.

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

    /// Writes (n, scores). `state` has the layout's length, `rows` n rows, `out` n rows of scores.
    fn scores(&self, scratch: &mut dyn Any, state: &[f32], rows: Rows<'_>, out: &mut [f32]);

    /// Memory and threads for calls, one at a time. `threads` counts the caller's.
    fn new_scratch(&self, threads: usize) -> Box<dyn Any + Send>;
}

/// Floats of the largest arena: 64 MiB. More rows at once gain nothing that shows.
const ARENA_FLOATS_MAX: usize = 16 << 20;
/// Rows of the largest plan.
const ROWS_MAX: usize = 1 << 10;

/// Compiles `module` for rows of `data`, on the processor. The error names the op, its place and the axes.
pub fn compile_forward(dtype: Dtype, module: &dyn Module, data: &DataShape) -> Result<Box<dyn Forward>, String> {
    Ok(match dtype {
        Dtype::F32 => Box::new(Compiled::<f32>::new(module, data).map_err(|e| e.to_string())?),
        Dtype::Bf16 => Box::new(Compiled::<Mixed>::new(module, data).map_err(|e| e.to_string())?),
    })
}

struct Compiled<F> {
    float: PhantomData<F>,
    layout: StateLayout,
    input_len: usize,
    scores_len: usize,
    /// For 1, 2, 4, … rows, and where the scores are among the kept values.
    plans: Vec<(Plan, Value)>,
}

impl<F: Single> Compiled<F> {
    fn new(module: &dyn Module, data: &DataShape) -> Result<Compiled<F>, ShapeError> {
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
        Ok(Compiled { float: PhantomData, layout, input_len, scores_len, plans })
    }

    /// A power of two of rows.
    fn run(&self, scratch: &mut Scratch<F>, state: &[f32], rows: Rows<'_>, out: &mut [f32]) {
        let count = out.len() / self.scores_len;
        let (plan, scores) = &self.plans[count.ilog2() as usize];
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
        &self.layout
    }

    fn input_len(&self) -> usize {
        self.input_len
    }

    fn scores_len(&self) -> usize {
        self.scores_len
    }

    fn rows_max(&self) -> usize {
        1 << (self.plans.len() - 1)
    }

    fn scores(&self, scratch: &mut dyn Any, state: &[f32], rows: Rows<'_>, out: &mut [f32]) {
        assert_eq!(state.len(), self.layout.floats(), "the state has the layout's length");
        let scratch = scratch.downcast_mut::<Scratch<F>>().expect("the scratch is from `new_scratch`");
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
            self.run(scratch, state, rows, &mut out[done * self.scores_len..(done + count) * self.scores_len]);
            done += count;
        }
    }

    fn new_scratch(&self, threads: usize) -> Box<dyn Any + Send> {
        Box::new(Scratch::<F>::new(threads))
    }
}
