//! Parameters that learn at a rate, or with a weight decay, of their own.

use crate::network::StateLayout;
use elastic_spec::job::{Group, group_of};

/// What its group says of a parameter's rates; a parameter in no group has the default, which changes no bit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupRates {
    /// Factor on the rate of every step.
    pub lr_scale: f64,
    /// In place of the optimizer's, whether [`ParamInfo::decay`](crate::ParamInfo::decay) says that it applies or not.
    pub weight_decay: Option<f64>,
}

impl Default for GroupRates {
    fn default() -> GroupRates {
        GroupRates { lr_scale: 1.0, weight_decay: None }
    }
}

/// Gives each parameter the rates of the first of the `groups` (`train.groups`) that matches its name. Tells every
/// pattern that matches none.
pub fn set_groups(layout: &mut StateLayout, groups: &[Group]) -> Result<(), String> {
    let names: Vec<&str> = layout.params.iter().map(|info| info.name.as_str()).collect();
    let found = group_of(groups, &names)?;
    for (info, found) in layout.params.iter_mut().zip(found) {
        let Some(Group { lr_scale, weight_decay, .. }) = found.map(|index| &groups[index]) else { continue };
        info.group = GroupRates { lr_scale: *lr_scale, weight_decay: *weight_decay };
    }
    Ok(())
}
