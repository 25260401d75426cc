//! The IR: a straight list of nodes over values with static shapes, built by tracing.
//!
//! A node applies one [`Op`] to values made before it, so the list is its own topological order. Gradients
//! are more nodes of the same graph (`autograd`); which nodes run, and where values lie, is decided by `plan`.

use crate::init::Init;
use crate::ops::Op;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub(crate) usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// The run's float type: f32, or f64 in the reference.
    Float,
    /// i32, from the batch only.
    Int,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl Type {
    pub fn float(shape: &[usize]) -> Type {
        Type { dtype: DType::Float, shape: shape.to_vec() }
    }

    pub fn int(shape: &[usize]) -> Type {
        Type { dtype: DType::Int, shape: shape.to_vec() }
    }

    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows and columns when all axes but the last are taken as one; a scalar is (1, 1).
    pub fn rows_cols(&self) -> (usize, usize) {
        let cols = self.shape.last().copied().unwrap_or(1);
        (self.shape[..self.shape.len().max(1) - 1].iter().product(), cols)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        write!(f, "({}){}", axes.join(", "), if self.dtype == DType::Int { " of integers" } else { "" })
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The batch's features, tokens or targets.
    Features,
    Tokens,
    Targets,
    /// Integers from this place on in those that are bound as tokens: a captured graph has several such inputs.
    Integers(usize),
    /// Index into [`Graph::states`].
    State(usize),
    Node {
        node: usize,
        output: usize,
    },
}

#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
    /// The module path that made it: names it in errors and keys its random numbers.
    pub path: String,
    /// In the graph of a unit, where the op is not run on all shards at once.
    pub one_by_one: Option<OneByOne>,
}

/// A node of a unit that is run once a shard.
#[derive(Clone, Debug)]
pub struct OneByOne {
    pub shards: usize,
    /// For each input, whether every shard has its own; they lie one behind the other.
    pub x: Vec<bool>,
    pub y: Vec<Part>,
    /// Of one shard.
    pub types: Vec<Type>,
    pub out_types: Vec<Type>,
}

/// What becomes of the shards' outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    OneBehindTheOther,
    /// Added along the tree.
    Sum,
}

/// A named tensor that outlives the step: a parameter, or a buffer such as a running mean.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub name: String,
    pub shape: Vec<usize>,
    pub init: Init,
    pub role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Param,
    Buffer,
}

/// Why a node cannot be: the op, the module path, and the axes that do not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op} at `{path}`: {message}")]
pub struct ShapeError {
    pub op: &'static str,
    pub path: String,
    pub message: String,
}

/// Elements of the largest tensor: 64 GiB of f32. More is a slip in a job file, and must be an error before it is
/// a failed allocation.
const ELEMENTS_MAX: usize = 1 << 34;

pub(crate) fn fits(op: &'static str, path: &str, ty: &Type) -> Result<(), ShapeError> {
    let len = ty.shape.iter().try_fold(1usize, |len, axis| len.checked_mul(*axis));
    match len {
        Some(..=ELEMENTS_MAX) => Ok(()),
        _ => {
            let message = format!("{ty} would have more than 2^34 elements; make an axis smaller");
            Err(ShapeError { op, path: path.into(), message })
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub(crate) values: Vec<(Type, Source)>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) states: Vec<State>,
}

impl Graph {
    pub fn ty(&self, value: Value) -> &Type {
        &self.values[value.0].0
    }

    pub fn source(&self, value: Value) -> Source {
        self.values[value.0].1
    }

    pub fn states(&self) -> &[State] {
        &self.states
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A value of the batch. One per source: asking twice is the caller's mistake.
    pub fn input(&mut self, source: Source, ty: Type) -> Value {
        assert!(matches!(source, Source::Features | Source::Tokens | Source::Targets), "an input is of the batch");
        self.push(ty, source)
    }

    /// The value of a named state; the same name again is the same tensor (tied), if all else agrees.
    pub fn state(&mut self, state: State) -> Result<Value, ShapeError> {
        let Some(known) = self.states.iter().position(|s| s.name == state.name) else {
            fits("parameter", &state.name, &Type::float(&state.shape))?;
            self.states.push(state.clone());
            return Ok(self.push(Type::float(&state.shape), Source::State(self.states.len() - 1)));
        };
        let first = &self.states[known];
        if first.shape != state.shape || first.role != state.role {
            let message = format!("used with shape {:?} and with shape {:?}", first.shape, state.shape);
            return Err(ShapeError { op: "parameter", path: state.name, message });
        }
        let value = self.values.iter().position(|(_, source)| *source == Source::State(known));
        Ok(Value(value.expect("a known state has its value")))
    }

    /// Adds a node, or says why the op does not take these inputs.
    pub fn apply(&mut self, op: Op, path: &str, inputs: &[Value]) -> Result<Vec<Value>, ShapeError> {
        let types: Vec<&Type> = inputs.iter().map(|v| self.ty(*v)).collect();
        let outputs = op.infer(&types).map_err(|message| ShapeError { op: op.name(), path: path.into(), message })?;
        outputs.iter().try_for_each(|ty| fits(op.name(), path, ty))?;
        Ok(self.push_node(op, path, inputs, outputs, None))
    }

    /// A node whose outputs' types are known.
    pub(crate) fn push_node(
        &mut self,
        op: Op,
        path: &str,
        inputs: &[Value],
        types: Vec<Type>,
        one_by_one: Option<OneByOne>,
    ) -> Vec<Value> {
        let node = self.nodes.len();
        let outputs: Vec<Value> =
            (0..).zip(types).map(|(output, ty)| self.push(ty, Source::Node { node, output })).collect();
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone(), path: path.into(), one_by_one });
        outputs
    }

    /// [`Graph::apply`] for ops with one output.
    pub fn apply1(&mut self, op: Op, path: &str, inputs: &[Value]) -> Result<Value, ShapeError> {
        Ok(self.apply(op, path, inputs)?[0])
    }

    pub(crate) fn push(&mut self, ty: Type, source: Source) -> Value {
        self.values.push((ty, source));
        Value(self.values.len() - 1)
    }
}
