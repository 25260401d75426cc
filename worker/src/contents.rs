//! The state as a checkpoint's contents, and back: here flat vectors get their tensors' names.

use crate::job::Job;
use crate::rows::Row;
use crate::state::State;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use elastic_checkpoint::{Contents, TensorBytes};
use elastic_spec::Step;
use elastic_spec::weights::Dtype;
use elastic_tensor::{ParamInfo, moments_of};
use std::collections::BTreeMap;

impl Job {
    pub fn contents(&self, state: &State) -> Contents {
        let layout = self.network.layout();
        let step = self.schedule.step_at(state.round);
        let weights = layout.params.iter().chain(&layout.buffers).map(|p| tensor(p.name.clone(), p, &state.floats));
        let moments = state.moments.iter().enumerate();
        let moments =
            moments.flat_map(|(i, m)| layout.params.iter().map(move |p| tensor(self.vector_name(p, i), p, m)));
        Contents {
            step,
            round: state.round,
            meta: self.cursor(step),
            weights: weights.collect(),
            optimizer: moments.collect(),
            rows: state.rows.iter().flat_map(|row| row.to_bytes()).collect::<Vec<u8>>().into(),
        }
    }

    /// Takes the state up from a checkpoint, of this job or of one whose model and optimizer are the same.
    pub fn restore(&self, state: &mut State, contents: &Contents) -> Result<()> {
        let layout = self.network.layout();
        let named = |tensors: &[TensorBytes]| tensors.iter().map(|t| (t.name.clone(), t.clone())).collect();
        let weights: BTreeMap<String, TensorBytes> = named(&contents.weights);
        let optimizer: BTreeMap<String, TensorBytes> = named(&contents.optimizer);
        ensure!(
            contents.round <= self.schedule.rounds() && self.schedule.step_at(contents.round) == contents.step,
            "the checkpoint is of step {} and round {}, which this job (of {} steps) does not have; keep train.steps, \
             train.validate_every and data.validation as they were, or start a new run",
            contents.step,
            contents.round,
            self.schedule.steps,
        );
        for param in layout.params.iter().chain(&layout.buffers) {
            fill(&weights, &param.name, param, &mut state.floats)?;
        }
        for (i, moment) in state.moments.iter_mut().enumerate() {
            for param in &layout.params {
                let name = self.vector_name(param, i);
                ensure!(
                    !name.ends_with(AVERAGE) || optimizer.contains_key(&name),
                    "the checkpoint keeps no average of the weights; leave out train.ema, or start a new run"
                );
                fill(&optimizer, &name, param, moment)?;
            }
        }
        let rows = contents.rows.chunks_exact(Row::BYTES);
        ensure!(
            rows.remainder().is_empty() && rows.len() as u64 == contents.step.0,
            "the checkpoint of step {} has {} bytes of event rows",
            contents.step,
            contents.rows.len()
        );
        state.rows = rows.map(|b| Row::from_bytes(b.try_into().expect("a row's bytes"))).collect();
        state.round = contents.round;
        Ok(())
    }

    /// Of the vectors beside the weights: the optimizer's moments, then the average.
    fn vector_name(&self, param: &ParamInfo, i: usize) -> String {
        match i < moments_of(&self.spec.train.optimizer) {
            true => format!("{}.moment{i}", param.name),
            false => format!("{}{AVERAGE}", param.name),
        }
    }

    /// Where the loader stands after `step` steps.
    fn cursor(&self, step: Step) -> BTreeMap<String, String> {
        let (epoch, batch) = elastic_loader::epoch_of(step, self.data.train_samples(), self.plan.global_batch);
        [("loader.epoch".to_string(), epoch.to_string()), ("loader.batch".to_string(), batch.to_string())].into()
    }
}

const AVERAGE: &str = ".average";

fn tensor(name: String, param: &ParamInfo, floats: &[f32]) -> TensorBytes {
    let floats = &floats[param.offset..param.offset + param.len];
    let mut bytes = vec![0; floats.len() * 4];
    for (slot, x) in bytes.chunks_exact_mut(4).zip(floats) {
        slot.copy_from_slice(&x.to_le_bytes());
    }
    TensorBytes { name, dtype: Dtype::F32, shape: param.shape.clone(), bytes: Bytes::from(bytes) }
}

fn fill(tensors: &BTreeMap<String, TensorBytes>, name: &str, param: &ParamInfo, floats: &mut [f32]) -> Result<()> {
    let tensor = tensors.get(name).with_context(|| format!("tensor \"{name}\" of the model is not there"))?;
    if (tensor.dtype, &tensor.shape) != (Dtype::F32, &param.shape) {
        bail!("tensor \"{name}\" is {} {:?} where the model has F32 {:?}", tensor.dtype, tensor.shape, param.shape);
    }
    for (x, b) in floats[param.offset..param.offset + param.len].iter_mut().zip(tensor.bytes.chunks_exact(4)) {
        *x = f32::from_le_bytes(b.try_into().expect("four bytes"));
    }
    Ok(())
}
