//! Stretches of the flat vector whose elements have the same rates.

use super::RateClass;
use crate::network::ParamInfo;
use std::ops::Range;

/// Trainable parameters side by side, all of one class.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Places in the flat vector.
    pub at: Range<usize>,
    pub class: RateClass,
}

/// The runs of `params`, or what of them lies in `part` of the flat vector, in their order. Neighbours of one class are one.
pub fn runs_in(params: &[ParamInfo], part: Range<usize>, mut each: impl FnMut(Run)) {
    let mut open: Option<Run> = None;
    let first = params.partition_point(|info| info.offset + info.len <= part.start);
    let here = params[first..].iter().take_while(|info| info.offset < part.end).filter(|info| info.trainable);
    for info in here {
        let at = info.offset.max(part.start)..(info.offset + info.len).min(part.end);
        let class = RateClass::from(info);
        match &mut open {
            Some(run) if run.at.end == at.start && run.class == class => run.at.end = at.end,
            _ => open.replace(Run { at, class }).into_iter().for_each(&mut each),
        }
    }
    open.into_iter().for_each(each);
}
