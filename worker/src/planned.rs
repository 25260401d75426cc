//! What is known of a job before it runs: the memory of a worker, and whether the names that the job file gives are there.

use crate::memory::Memory;
use elastic_spec::job::names::select;
use elastic_spec::job::{Device, JobSpec, ModelKind, group_of, idle};
use elastic_tensor::Network;
use std::path::PathBuf;

#[derive(Clone, Debug)]
pub struct Planned {
    pub memory: Memory,
    /// What is wrong with patterns of parameter names (`model.freeze`, `model.init_except`, `train.groups`).
    pub names: Result<(), String>,
    /// Groups that do nothing: a job that runs has always gone on with them.
    pub warnings: Vec<String>,
}

/// Of a job whose model `elastic` builds; None of one of the user's own. `files` says where on this machine an input
/// lies. The error is what a worker would find wrong with model and data together.
pub fn planned(spec: &JobSpec, files: &dyn Fn(&str) -> PathBuf) -> anyhow::Result<Option<Planned>> {
    if let ModelKind::Own { .. } | ModelKind::Command(_) = spec.model.kind {
        return Ok(None);
    }
    let shape = elastic_loader::shape(spec, files)?;
    let samples = elastic_loader::Plan::from(&spec.train).shard_samples() as usize;
    let mut network =
        elastic_models::build_in(spec.train.dtype, &spec.model.kind, &shape, samples).map_err(anyhow::Error::msg)?;
    let mut memory = Memory::plan(spec, &shape, &*network);
    if spec.resources.device == Device::Cuda {
        // Activations lie in the GPU's memory.
        memory.arena_bytes = 0;
    }
    let known: Vec<&str> = network.layout().params.iter().map(|info| info.name.as_str()).collect();
    let found = group_of(&spec.train.groups, &known);
    let warnings = found.map(|found| idle(&spec.train.groups, &found)).unwrap_or_default();
    Ok(Some(Planned { memory, names: names(spec, &mut *network), warnings }))
}

/// All mistakes at once.
fn names(spec: &JobSpec, network: &mut dyn Network) -> Result<(), String> {
    let known: Vec<&str> = network.layout().params.iter().map(|info| info.name.as_str()).collect();
    let except = select("model.init_except", &spec.model.init_except, &known).map(drop);
    let layout = network.layout_mut();
    let all = [
        except,
        elastic_tensor::freeze(layout, &spec.model.freeze),
        elastic_tensor::set_groups(layout, &spec.train.groups),
    ];
    let mistakes: Vec<String> = all.into_iter().filter_map(Result::err).collect();
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes.join("; ")) }
}
