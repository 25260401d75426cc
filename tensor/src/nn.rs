//! Models as code: a [`Module`] writes its forward pass once, a [`Scope`] names and makes its parameters.
//!
//! ```
//! use elastic_tensor::nn::{Module, Scope};
//! use elastic_tensor::{Result, Tensor};
//!
//! struct TwoLayers { width: usize }
//!
//! impl Module for TwoLayers {
//!     fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
//!         let hidden = nn.linear("hidden", &x, self.width)?.relu();
//!         nn.linear("output", &hidden, nn.outputs())
//!     }
//! }
//! ```
//! Names and default initialisations are PyTorch's (`hidden.weight` is (out, in)), so that weights can be
//! exchanged by name. `compile` makes a network of a module; loss and gradient are added there.

use crate::graph::{Graph, Role, ShapeError, State, Value};
use crate::init::Init;
use crate::ops::{self, Op};
use crate::tensor::{Result, Tensor};
use std::cell::RefCell;
use std::rc::Rc;

/// A model: from one shard's input to its scores.
pub trait Module {
    /// `input`: (sample, feature), or (sample, token) of integers. Returns the scores before softmax:
    /// (sample, class), or (sample, token, vocabulary).
    fn forward(&self, nn: &Scope, input: Tensor) -> Result<Tensor>;
}

/// Which of a module's two forms is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Train,
    /// Running statistics, no dropout.
    Evaluate,
}

/// Running statistics of one batch norm, by the names of its buffers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Running {
    pub mean: Value,
    pub var: Value,
    pub momentum: f64,
    /// The shard's moments, where the trace is for training.
    pub moments: Option<[Value; 2]>,
}

/// A place in the module tree of one trace.
#[derive(Clone)]
pub struct Scope {
    pub(crate) graph: Rc<RefCell<Graph>>,
    pub(crate) running: Rc<RefCell<Vec<Running>>>,
    pub(crate) targets: Value,
    pub(crate) mode: Mode,
    pub(crate) outputs: usize,
    path: String,
}

impl Scope {
    pub(crate) fn new(graph: Rc<RefCell<Graph>>, targets: Value, mode: Mode, outputs: usize) -> Scope {
        Scope { graph, running: Rc::default(), targets, mode, outputs, path: String::new() }
    }

    /// The number of classes, or of tokens in the vocabulary.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The place `name` below this one: `block0` gives `block0.weight` and so on.
    pub fn enter(&self, name: &str) -> Scope {
        Scope { path: self.name(name), ..self.clone() }
    }

    fn name(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// A parameter of this place. The same name again is the same (tied) tensor.
    pub fn param(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        self.state(name, shape, init, Role::Param)
    }

    fn state(&self, name: &str, shape: &[usize], init: Init, role: Role) -> Result<Tensor> {
        let name = self.name(name);
        let value = self.graph.borrow_mut().state(State { name: name.clone(), shape: shape.to_vec(), init, role })?;
        Ok(Tensor { graph: self.graph.clone(), value, path: name.into() })
    }

    /// `op` on `x` at this place; handles made of the result carry the place for their errors.
    fn apply(&self, op: Op, x: &Tensor, others: &[&Tensor]) -> Result<Vec<Tensor>> {
        let here = Tensor { path: self.path.as_str().into(), ..x.clone() };
        here.apply(op, &self.path, others)
    }

    /// x Wᵀ + b over the last axis, with PyTorch's initialisation.
    pub fn linear(&self, name: &str, x: &Tensor, out: usize) -> Result<Tensor> {
        let inner = x.shape().last().copied().unwrap_or(1);
        let bound = bound_of(inner);
        self.linear_init(name, x, out, [Init::Uniform { bound }, Init::Uniform { bound }])
    }

    /// The same with chosen initialisations of weight and bias.
    pub fn linear_init(&self, name: &str, x: &Tensor, out: usize, init: [Init; 2]) -> Result<Tensor> {
        let at = self.enter(name);
        let inner = x.shape().last().copied().unwrap_or(1);
        let weight = at.param("weight", &[out, inner], init[0])?;
        let bias = at.param("bias", &[out], init[1])?;
        Ok(at.apply(Op::Linear(ops::Linear), x, &[&weight, &bias])?.swap_remove(0))
    }

    /// Square convolution of (sample, channel, h, w), with PyTorch's initialisation.
    pub fn conv2d(&self, name: &str, x: &Tensor, conv: Conv) -> Result<Tensor> {
        let inner = x.shape().get(1).copied().unwrap_or(1);
        self.conv2d_init(name, x, conv, Init::Uniform { bound: bound_of(inner * conv.kernel * conv.kernel) })
    }

    /// The same with a chosen initialisation of the weight, and of the bias if there is one.
    pub fn conv2d_init(&self, name: &str, x: &Tensor, conv: Conv, init: Init) -> Result<Tensor> {
        let at = self.enter(name);
        let inner = x.shape().get(1).copied().unwrap_or(1);
        let weight = at.param("weight", &[conv.out, inner, conv.kernel, conv.kernel], init)?;
        let op = Op::Conv2d(ops::Conv2d { stride: conv.stride, pad: conv.pad });
        let outputs = match conv.bias {
            Bias::None => at.apply(op, x, &[&weight])?,
            Bias::PerChannel => at.apply(op, x, &[&weight, &at.param("bias", &[conv.out], init)?])?,
        };
        Ok(outputs.into_iter().next().expect("one output"))
    }

    /// `pad` zeros on each side of every plane of (sample, channel, h, w).
    ///
    /// No op does only that: each plane by itself is convolved with the one weight 1, which adds nothing and is
    /// exact. The weight is a buffer `name.one`, since it is not to be trained.
    pub fn zero_pad(&self, name: &str, x: &Tensor, pad: usize) -> Result<Tensor> {
        let at = self.enter(name);
        let shape = x.shape();
        let &[samples, channels, h, w] = &shape[..] else {
            let message = format!("the input has axes {shape:?}, but needs 4: (sample, channel, height, width)");
            return Err(ShapeError { op: "zero pad", path: at.path, message });
        };
        let one = at.state("one", &[1, 1, 1, 1], Init::Constant(1.0), Role::Buffer)?;
        let planes = x.reshape(&[samples * channels, 1, h, w])?;
        let padded = at.apply(Op::Conv2d(ops::Conv2d { stride: 1, pad }), &planes, &[&one])?.swap_remove(0);
        padded.reshape(&[samples, channels, h + 2 * pad, w + 2 * pad])
    }

    /// Batch norm over axis 1 with the shard's own statistics; running ones with momentum 0.1.
    pub fn batch_norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        self.batch_norm_scaled(name, x, 1.0)
    }

    /// The same, whose scale starts at `scale`.
    pub fn batch_norm_scaled(&self, name: &str, x: &Tensor, scale: f32) -> Result<Tensor> {
        let at = self.enter(name);
        let channels = [x.shape().get(1).copied().unwrap_or(1)];
        let scale = at.param("weight", &channels, Init::Constant(scale))?;
        let shift = at.param("bias", &channels, Init::Constant(0.0))?;
        let mean = at.state("running_mean", &channels, Init::Constant(0.0), Role::Buffer)?;
        let var = at.state("running_var", &channels, Init::Constant(1.0), Role::Buffer)?;
        let mut running = Running { mean: mean.value, var: var.value, momentum: 0.1, moments: None };
        let eps = 1e-5;
        let outputs = match self.mode {
            Mode::Evaluate => {
                at.apply(Op::BatchNormEval(ops::BatchNormEval { eps }), x, &[&scale, &shift, &mean, &var])?
            }
            Mode::Train => {
                let targets = x.with(self.targets);
                let outputs = at.apply(
                    Op::BatchNorm(ops::BatchNorm { eps, relu: false, pool: None }),
                    x,
                    &[&scale, &shift, &mean, &targets],
                )?;
                running.moments = Some([outputs[3].value, outputs[4].value]);
                outputs
            }
        };
        self.running.borrow_mut().push(running);
        Ok(outputs.into_iter().next().expect("one output"))
    }

    /// Layer norm over the last axis.
    pub fn layer_norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let at = self.enter(name);
        let width = [x.shape().last().copied().unwrap_or(1)];
        let scale = at.param("weight", &width, Init::Constant(1.0))?;
        let shift = at.param("bias", &width, Init::Constant(0.0))?;
        Ok(at.apply(Op::LayerNorm(ops::LayerNorm { eps: 1e-5 }), x, &[&scale, &shift])?.swap_remove(0))
    }

    /// RMS norm over the last axis: a scale and no shift.
    pub fn rms_norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let at = self.enter(name);
        let width = [x.shape().last().copied().unwrap_or(1)];
        let scale = at.param("weight", &width, Init::Constant(1.0))?;
        Ok(at.apply(Op::RmsNorm(ops::RmsNorm { eps: 1e-5 }), x, &[&scale])?.swap_remove(0))
    }

    /// Rows of a (rows, width) table named by integer tokens; also the table, for tying.
    pub fn embedding(&self, name: &str, tokens: &Tensor, table: Table) -> Result<(Tensor, Tensor)> {
        let at = self.enter(name);
        let weight = at.param("weight", &[table.rows, table.width], table.init)?;
        let rows = at.apply(Op::Embedding(ops::Embedding), &weight, &[tokens])?.swap_remove(0);
        Ok((rows, weight))
    }

    /// Zeroes elements with probability `p` while training. The name keys the random numbers.
    pub fn dropout(&self, name: &str, x: &Tensor, p: f32) -> Result<Tensor> {
        if self.mode == Mode::Evaluate || p == 0.0 {
            return Ok(x.clone());
        }
        Ok(self.enter(name).apply(Op::Dropout(ops::Dropout { p }), x, &[])?.swap_remove(0))
    }
}

/// A square convolution.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    pub out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub pad: usize,
    pub bias: Bias,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    None,
    PerChannel,
}

/// An embedding's table.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    pub rows: usize,
    pub width: usize,
    pub init: Init,
}

/// PyTorch's default for linear and convolution weights and biases: uniform within 1/√fan_in.
fn bound_of(fan_in: usize) -> f64 {
    1.0 / libm::sqrt(fan_in.max(1) as f64)
}
