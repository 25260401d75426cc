//! Weights and batch for the other side, as safetensors.

use elastic_spec::batch::Batch;
use elastic_tensor::StateLayout;
use safetensors::tensor::{Dtype, TensorView, serialize};

/// Parameters by name, and the whole batch as `x` and `y`.
pub fn safetensors(layout: &StateLayout, state: &[f32], units: &[Batch]) -> Vec<u8> {
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for info in &layout.params {
        let values = &state[info.offset..info.offset + info.len];
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push((info.name.clone(), Dtype::F32, info.shape.clone(), bytes));
    }
    let all = |part: fn(&Batch) -> &Vec<i32>| -> Vec<u8> {
        units.iter().flat_map(part).flat_map(|x| x.to_le_bytes()).collect()
    };
    let samples = units.iter().map(|unit| unit.slots.len()).sum();
    let (dtype, x) = match units[0].tokens.is_empty() {
        true => (Dtype::F32, units.iter().flat_map(|unit| &unit.features).flat_map(|x| x.to_le_bytes()).collect()),
        false => (Dtype::I32, all(|unit| &unit.tokens)),
    };
    let y = all(|unit| &unit.targets);
    tensors.push(("x".into(), dtype, vec![samples, x.len() / 4 / samples], x));
    tensors.push(("y".into(), Dtype::I32, vec![samples, y.len() / 4 / samples], y));
    let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).expect("sizes agree");
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| (name, view(*dtype, shape, bytes)));
    serialize(views, None).expect("tensors have one name each")
}
