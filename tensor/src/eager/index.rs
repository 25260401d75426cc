//! What a slice takes along an axis, in NumPy's words.

use super::{Result, shape_error};
use crate::ops;
use std::ops::{Range, RangeFrom, RangeFull, RangeTo};

/// One entry of a subscript. Negative places count from the end; ranges that reach out of the axis are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// `x[i]`: one place; the axis goes away. An error if it is not there.
    At(i64),
    /// `x[start:end:step]`, without what is `None`. A step of 0 is an error.
    Range { start: Option<i64>, end: Option<i64>, step: i64 },
    /// `x[np.newaxis]`: a new axis of length 1.
    New,
    /// `x[...]`: all axes that no other entry speaks of; at most once.
    Rest,
}

impl Index {
    pub const ALL: Index = Index::Range { start: None, end: None, step: 1 };

    /// Every `step`th of all; backwards from the end if negative.
    pub fn every(step: i64) -> Index {
        Index::Range { start: None, end: None, step }
    }
}

impl From<i64> for Index {
    fn from(at: i64) -> Index {
        Index::At(at)
    }
}

impl From<Range<i64>> for Index {
    fn from(range: Range<i64>) -> Index {
        Index::Range { start: Some(range.start), end: Some(range.end), step: 1 }
    }
}

impl From<RangeFrom<i64>> for Index {
    fn from(range: RangeFrom<i64>) -> Index {
        Index::Range { start: Some(range.start), end: None, step: 1 }
    }
}

impl From<RangeTo<i64>> for Index {
    fn from(range: RangeTo<i64>) -> Index {
        Index::Range { start: None, end: Some(range.end), step: 1 }
    }
}

impl From<RangeFull> for Index {
    fn from(_: RangeFull) -> Index {
        Index::ALL
    }
}

/// A subscript of a shape: a range for each axis, and the shape after single places went and new axes came.
pub(super) struct Part {
    pub ranges: Vec<ops::Range>,
    pub shape: Vec<usize>,
}

pub(super) fn part(shape: &[usize], indices: &[Index]) -> Result<Part> {
    let spoken = indices.iter().filter(|i| matches!(i, Index::At(_) | Index::Range { .. })).count();
    let rests = indices.iter().filter(|i| **i == Index::Rest).count();
    if spoken > shape.len() || rests > 1 {
        return shape_error("slice", format!("{shape:?} has no place for {indices:?}: one entry an axis, one Rest"));
    }
    let mut part = Part { ranges: Vec::new(), shape: Vec::new() };
    for index in indices {
        let axis = part.ranges.len();
        match *index {
            Index::At(at) => {
                let Some(start) = place(at, shape[axis]) else {
                    let message = format!("there is no place {at} on axis {axis} of {shape:?}");
                    return shape_error("slice", message);
                };
                part.ranges.push(ops::Range { start, step: 1, len: 1 });
            }
            Index::Range { step: 0, .. } => return shape_error("slice", format!("the step on axis {axis} is 0")),
            Index::Range { start, end, step } => part.push(cut(shape[axis], start, end, step)),
            Index::New => part.shape.push(1),
            Index::Rest => part.whole(&shape[axis..axis + shape.len() - spoken]),
        }
    }
    part.whole(&shape[part.ranges.len()..]);
    Ok(part)
}

impl Part {
    fn push(&mut self, range: ops::Range) {
        self.shape.push(range.len);
        self.ranges.push(range);
    }

    fn whole(&mut self, axes: &[usize]) {
        axes.iter().for_each(|len| self.push(ops::Range { start: 0, step: 1, len: *len }));
    }
}

/// A place on an axis, counted from the end if negative.
pub(super) fn place(at: i64, len: usize) -> Option<usize> {
    let at = if at < 0 { at.checked_add(len as i64)? } else { at };
    usize::try_from(at).ok().filter(|at| *at < len)
}

/// Python's rule for `start:end:step` on an axis.
fn cut(len: usize, start: Option<i64>, end: Option<i64>, step: i64) -> ops::Range {
    let len = len as i64;
    // Backwards the places run from len - 1 down, and the end may be "before 0".
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |at: i64| if at < 0 { at.saturating_add(len).max(low) } else { at.min(high) };
    let start = start.map_or(if step > 0 { low } else { high }, bound);
    let end = end.map_or(if step > 0 { high } else { low }, bound);
    let distance = if step > 0 { end - start } else { start - end };
    let count = if distance <= 0 { 0 } else { (distance - 1) / step.saturating_abs() + 1 };
    // The last step of a long one leads nowhere: it may be cut to what an axis can hold.
    let step = step.clamp(-(1 << 40), 1 << 40) as isize;
    ops::Range { start: if count == 0 { 0 } else { start as usize }, step, len: count as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(len: usize, start: Option<i64>, end: Option<i64>, step: i64) -> Vec<i64> {
        let range = cut(len, start, end, step);
        (0..range.len as i64).map(|i| range.start as i64 + i * range.step as i64).collect()
    }

    #[test]
    fn ranges_are_pythons() {
        assert_eq!(places(5, None, None, 1), [0, 1, 2, 3, 4]);
        assert_eq!(places(5, None, None, -1), [4, 3, 2, 1, 0]);
        assert_eq!(places(5, Some(-2), None, 1), [3, 4]);
        assert_eq!(places(5, Some(3), Some(-10), -2), [3, 1]);
        assert_eq!(places(5, Some(10), Some(0), -1), [4, 3, 2, 1]);
        assert_eq!(places(5, Some(1), Some(100), 3), [1, 4]);
        assert_eq!(places(5, Some(4), Some(1), 1), [0; 0]);
        assert_eq!(places(0, None, None, -1), [0; 0]);
        assert_eq!(places(5, Some(i64::MIN), Some(i64::MAX), i64::MAX), [0]);
        assert_eq!(places(5, Some(i64::MAX), Some(i64::MIN), i64::MIN), [4]);
    }

    #[test]
    fn a_wrong_subscript_says_what_is_wrong() {
        let wrong = |indices: &[Index]| part(&[2, 3], indices).err().expect("it is wrong").to_string();
        assert!(wrong(&[Index::At(2)]).contains("no place 2 on axis 0"));
        assert!(wrong(&[Index::ALL, Index::At(-4)]).contains("no place -4 on axis 1"));
        assert!(wrong(&[Index::ALL, Index::ALL, Index::ALL]).contains("no place for"));
        assert!(wrong(&[Index::Rest, Index::Rest]).contains("one Rest"));
        assert!(wrong(&[Index::every(0)]).contains("step on axis 0 is 0"));
    }
}
