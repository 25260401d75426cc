//! Parameters that stay as they are while others train.
//!
//! The optimizer passes over what is not trainable: its bits, its moments and its share of the gradient's norm
//! are as if it were not there. Running statistics are no parameters and go on.

use crate::network::StateLayout;
use elastic_spec::job::names::select;

/// Marks the parameters whose names match one of `patterns` (`model.freeze`) as not trainable. Tells every
/// pattern that matches none, and refuses to leave nothing to train.
pub fn freeze(layout: &mut StateLayout, patterns: &[String]) -> Result<(), String> {
    let names: Vec<&str> = layout.params.iter().map(|info| info.name.as_str()).collect();
    let frozen = select("model.freeze", patterns, &names)?;
    if !frozen.is_empty() && frozen.iter().all(|frozen| *frozen) {
        return Err("model.freeze: its patterns match all parameters, so nothing would be trained".into());
    }
    for (info, frozen) in layout.params.iter_mut().zip(frozen) {
        info.trainable &= !frozen;
    }
    Ok(())
}
