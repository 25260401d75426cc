//! A model that is asked: transform, network, logits.
//!
//! The bits of an answer depend on its row alone, not on the batch that it came in or its place there.

use crate::description::{Description, Shape};
use crate::generator::{Generator, GeneratorSize};
use crate::{Model, Tensor};
use elastic_models::build_forward;
use elastic_spec::job::ModelKind;
use elastic_spec::weights::Dtype;
use elastic_tensor::{Forward, Rows, StateLayout};
use elastic_transform::{Transform, scaled};
use std::any::Any;
use std::sync::Arc;

/// One that computes on its own threads; a copy ([`Predictor::another`]) shares the weights.
pub struct Predictor {
    network: Arc<dyn Forward>,
    state: Arc<Vec<f32>>,
    scratch: Box<dyn Any + Send>,
    description: Arc<Description>,
    /// Features as the network reads them.
    scaled: Vec<f32>,
}

impl Predictor {
    /// The error names the tensor that does not fit, or what the network cannot be built of.
    pub fn new(model: &Model, threads: usize) -> Result<Predictor, String> {
        let description = &model.description;
        fits_table(model)?;
        let network: Arc<dyn Forward> =
            build_forward(description.dtype, &description.model, &description.data.into())?.into();
        let state = Arc::new(state_of(model, network.layout())?);
        let scratch = network.new_scratch(&state, threads)?;
        let description = Arc::new(description.clone());
        Ok(Predictor { network, state, scratch, description, scaled: Vec::new() })
    }

    /// One more of the same, for another thread. The error says what the device lacks.
    pub fn another(&self, threads: usize) -> Result<Predictor, String> {
        Ok(Predictor {
            network: self.network.clone(),
            state: self.state.clone(),
            scratch: self.network.new_scratch(&self.state, threads)?,
            description: self.description.clone(),
            scaled: Vec::new(),
        })
    }

    /// What continues texts with the same weights; it keeps its own copy of them, packed for single tokens.
    pub fn generator(&self, size: GeneratorSize) -> Result<Generator, String> {
        Generator::start(&self.description, size, |layout| match layout == self.network.layout() {
            true => Ok(self.state.clone()),
            false => Err("the tensors of single tokens are not those of whole rows".into()),
        })
    }

    /// Numbers of one row's input: features, or tokens of the whole context.
    pub fn input_len(&self) -> usize {
        self.network.input_len()
    }

    /// Logits of one row: classes, or context × vocabulary.
    pub fn logits_len(&self) -> usize {
        self.network.scores_len()
    }

    /// Most rows that run in one go; more are cut, which changes no bit.
    pub fn rows_max(&self) -> usize {
        self.network.rows_max()
    }

    /// What cannot be computed with, before it is: the place of a feature that is not finite once scaled, or of a token
    /// that the model does not know.
    pub fn check(&self, rows: Rows<'_>) -> Result<(), usize> {
        let wrong = match (rows, self.description.data) {
            (Rows::Features(numbers), _) => numbers.iter().position(|x| scaled(*x, self.scale()).is_none()),
            (Rows::Tokens(tokens), Shape::Tokens { vocab, .. }) => {
                tokens.iter().position(|token| usize::try_from(*token).map_or(true, |token| token >= vocab))
            }
            (Rows::Tokens(_), Shape::Features { .. }) => Some(0),
        };
        wrong.map_or(Ok(()), Err)
    }

    fn scale(&self) -> f32 {
        match self.description.transform {
            Transform::Scale { scale } => scale,
            Transform::Bytes | Transform::Tokenizer => 1.0,
        }
    }

    /// Writes the logits, (n, classes) or (n, context, vocab). `rows` holds n rows of raw features or tokens, checked.
    pub fn logits(&mut self, rows: Rows<'_>, out: &mut [f32]) {
        let scale = self.scale();
        let rows = match rows {
            Rows::Features(numbers) => {
                self.scaled.clear();
                self.scaled.extend(numbers.iter().map(|x| x * scale));
                Rows::Features(&self.scaled)
            }
            tokens => tokens,
        };
        self.network.scores(&mut *self.scratch, rows, out);
    }

    /// Logits of one sequence of 1 to `context` tokens, (tokens, vocab): what is behind a token changes nothing before it.
    pub fn sequence_logits(&mut self, tokens: &[i32]) -> Vec<f32> {
        let mut row = tokens.to_vec();
        row.resize(self.input_len(), 0);
        let mut out = vec![0.0; self.logits_len()];
        self.logits(Rows::Tokens(&row), &mut out);
        out.truncate(self.logits_len() / self.input_len() * tokens.len());
        out
    }
}

/// A model's tensors as the layout wants them. The error names the one that does not fit.
pub(crate) fn state_of(model: &Model, layout: &StateLayout) -> Result<Vec<f32>, String> {
    let named = layout.params.len() + layout.buffers.len();
    // All of them before there is memory for their numbers, of which a wrong description may ask for any amount.
    let mut tensors = Vec::with_capacity(named);
    for info in layout.params.iter().chain(&layout.buffers) {
        let tensor = model.weights.iter().find(|tensor| tensor.name == info.name);
        let tensor = tensor.ok_or_else(|| format!("tensor {:?} of the model is not there", info.name))?;
        fits(tensor, &info.shape)?;
        tensors.push((info, tensor));
    }
    if model.weights.len() != named {
        return Err(format!("there are {} tensors where the model has {named}", model.weights.len()));
    }
    let mut state = vec![0.0; layout.floats()];
    for (info, tensor) in tensors {
        let floats = tensor.floats().expect("it is F32");
        state[info.offset..info.offset + info.len].copy_from_slice(&floats);
    }
    Ok(state)
}

/// A decoder's first tensor before the network is built: tables of turns, which no tensor has, are made with it.
pub(crate) fn fits_table(model: &Model) -> Result<(), String> {
    let (ModelKind::Gpt { width, .. }, Shape::Tokens { vocab, .. }) =
        (&model.description.model, model.description.data)
    else {
        return Ok(());
    };
    match model.weights.iter().find(|tensor| tensor.name == "wte.weight") {
        Some(table) => fits(table, &[vocab, *width as usize]),
        None => Err("tensor \"wte.weight\" of the model is not there".into()),
    }
}

fn fits(tensor: &Tensor, shape: &[usize]) -> Result<(), String> {
    let Tensor { name, dtype, bytes, .. } = tensor;
    if *dtype != Dtype::F32 || tensor.shape != shape {
        return Err(format!("tensor {name:?} is {dtype} {:?} where the model has F32 {shape:?}", tensor.shape));
    }
    match shape.iter().product::<usize>() * dtype.bytes() == bytes.len() {
        true => Ok(()),
        false => Err(format!("tensor {name:?} has {} bytes, which are no F32 {shape:?}", bytes.len())),
    }
}

/// Probabilities of one row's logits: softmax in f64, rounded once.
pub fn softmax(logits: &[f32], out: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp = |x: f32| f64::from(x - largest).exp();
    let sum: f64 = logits.iter().map(|x| exp(*x)).sum();
    for (p, x) in out.iter_mut().zip(logits) {
        *p = (exp(*x) / sum) as f32;
    }
}

/// The first of the largest logits.
pub fn class_of(logits: &[f32]) -> usize {
    let mut best = 0;
    for (at, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = at;
        }
    }
    best
}
