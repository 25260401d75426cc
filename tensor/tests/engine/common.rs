//! One op (or a few) as a function of float inputs, run with its gradient in f32 or f64.

use elastic_tensor::autograd::backward;
use elastic_tensor::exec::{Bound, Scratch, run};
use elastic_tensor::graph::{Graph, Role, Source, State, Type, Value};
use elastic_tensor::ops::{Key, Op};
use elastic_tensor::philox::{Stream, unit};
use elastic_tensor::plan::{Goal, Plan};
use elastic_tensor::real::Real;
use elastic_tensor::{Init, ShapeError};

/// Integers that an op may read beside its float inputs.
#[derive(Clone, Debug, Default)]
pub struct Ints {
    pub shape: Vec<usize>,
    pub values: Vec<i32>,
}

impl Ints {
    pub fn new(shape: &[usize], values: &[i32]) -> Ints {
        Ints { shape: shape.to_vec(), values: values.to_vec() }
    }
}

pub type Build = fn(&mut Graph, &[Value], Value) -> Result<Value, ShapeError>;

/// A function under test: inputs, then the integers, to one output.
pub struct Case {
    pub shapes: Vec<Vec<usize>>,
    pub ints: Ints,
    pub smoothing: f32,
    pub build: Build,
}

pub struct Outcome<F> {
    pub y: Vec<F>,
    /// Of each input; zeros where the output does not depend on it.
    pub dx: Vec<Vec<F>>,
}

/// The build function of one op: its inputs in order.
pub fn apply(graph: &mut Graph, op: Op, inputs: &[Value]) -> Result<Value, ShapeError> {
    graph.apply1(op, "test", inputs)
}

/// Numbers in -1 to 1.
pub fn random(name: &str, len: usize) -> Vec<f64> {
    let stream = Stream::new(11, name);
    (0..len).map(|i| unit(stream.words([i as u32, 0, 0, 0])[0]) as f64 * 2.0 - 1.0).collect()
}

impl Case {
    pub fn inputs(&self) -> Vec<Vec<f64>> {
        self.shapes.iter().enumerate().map(|(i, s)| random(&format!("x{i}"), s.iter().product())).collect()
    }

    /// Output and gradient for the output's gradient `dy` (its length is the output's).
    pub fn run<F: Real>(&self, inputs: &[Vec<f64>], dy: &[f64]) -> Outcome<F> {
        let mut graph = Graph::default();
        let ints = graph.input(Source::Targets, Type::int(&self.ints.shape));
        let state = |graph: &mut Graph, name: String, shape: &[usize]| {
            let state = State { name, shape: shape.to_vec(), init: Init::Constant(0.0), role: Role::Param };
            graph.state(state).expect("a new name")
        };
        let x: Vec<Value> =
            self.shapes.iter().enumerate().map(|(i, s)| state(&mut graph, format!("x{i}"), s)).collect();
        let y = (self.build)(&mut graph, &x, ints).expect("the case's shapes fit");
        let shape = graph.ty(y).shape.clone();
        let seed = state(&mut graph, "dy".into(), &shape);
        let grads = backward(&mut graph, y, seed, &x).expect("every op under test has a gradient");

        let mut values: Vec<F> = Vec::new();
        let mut offsets = Vec::new();
        let dy: Vec<f64> = if dy.is_empty() { vec![0.0; graph.ty(y).len()] } else { dy.to_vec() };
        for input in inputs.iter().chain([&dy]) {
            offsets.push(values.len());
            values.extend(input.iter().map(|x| F::of(*x)));
        }
        let mut out = vec![(y, 0)];
        let mut end = graph.ty(y).len();
        let mut places = Vec::new();
        for (x, grad) in x.iter().zip(&grads) {
            places.push(end..end + graph.ty(*x).len());
            out.extend(grad.map(|g| (g, end)));
            end += graph.ty(*x).len();
        }
        let plan = Plan::new(&graph, &Goal { states: &offsets, out: &out, keep: &[] });
        let slots: Vec<u64> = (0..64).collect();
        let key = Key { seed: 1, step: 2, scale: 1.0, label_smoothing: self.smoothing, shards: 1, slots: &slots };
        let bound = Bound { state: &values, features: &[], tokens: &[], targets: &self.ints.values, key };
        let mut written = vec![F::ZERO; end];
        // What was in the memory before must not matter: it starts as NaN.
        let mut scratch = Scratch::new(1);
        scratch.arena = vec![F::of(f64::NAN); plan.arena];
        run(&plan, &mut scratch, &bound, &mut written);
        Outcome { y: written[..dy.len()].to_vec(), dx: places.into_iter().map(|p| written[p].to_vec()).collect() }
    }

    pub fn output_len(&self) -> usize {
        self.run::<f64>(&self.inputs(), &[]).y.len()
    }
}

/// Largest difference, relative to the largest wanted value.
pub fn distance<F: Real>(got: &[F], wanted: &[f64]) -> f64 {
    assert_eq!(got.len(), wanted.len(), "as many values as wanted");
    let size = wanted.iter().fold(1e-3f64, |a, b| a.max(b.abs()));
    let off = got.iter().zip(wanted).map(|(g, w)| (g.f64() - w).abs() / size);
    // A NaN is as far off as can be; `max` would pass over it.
    off.map(|d| if d.is_nan() { f64::INFINITY } else { d }).fold(0.0, f64::max)
}
