//! Proves of a finished plan that no two values need the same memory at the same time.
//!
//! It looks at the result alone: which step writes a place, which step reads it last. How the planner came to its
//! places is not asked, so a mistake there cannot hide here.

use super::{Place, Step};
use std::ops::Range;

/// A value in the arena: written by one step, read until another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interval {
    place: Range<usize>,
    written: usize,
    read: usize,
}

/// What is wrong: the steps and the places, or nothing.
///
/// `kept` are places that must hold their values after the last step.
pub(super) fn check(steps: &[Step], arena: usize, kept: &[Range<usize>]) -> Result<(), String> {
    let intervals = intervals(steps, kept)?;
    // Intervals come in the order in which they are written; those that are still read stay.
    let mut live: Vec<&Interval> = Vec::new();
    for new in &intervals {
        if new.place.end > arena {
            return Err(format!("step {} writes {:?}, the arena has {arena} floats", new.written, new.place));
        }
        // A step's outputs are there together with what it reads.
        live.retain(|old| old.read >= new.written);
        if let Some(old) = live.iter().find(|old| overlap(&old.place, &new.place)) {
            return Err(format!(
                "step {} writes {:?} over {:?}, which step {} wrote and step {} reads",
                new.written, new.place, old.place, old.written, old.read
            ));
        }
        live.push(new);
    }
    Ok(())
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Each written place with the last step that reads it before it is written again.
fn intervals(steps: &[Step], kept: &[Range<usize>]) -> Result<Vec<Interval>, String> {
    let mut all: Vec<Interval> = Vec::new();
    // Of the places that were written, the newest of each.
    let newest = |all: &[Interval], place: &Range<usize>| all.iter().rposition(|i| i.place == *place);
    for (at, step) in steps.iter().enumerate() {
        for place in &step.inputs {
            if let Place::Arena(place) = place {
                let value =
                    newest(&all, place).ok_or_else(|| format!("step {at} reads {place:?}, which nobody wrote"))?;
                all[value].read = at;
            }
        }
        for (_, place) in &step.outputs {
            if let Place::Arena(place) = place {
                all.push(Interval { place: place.clone(), written: at, read: at });
            }
        }
    }
    for place in kept {
        let value = newest(&all, place).ok_or_else(|| format!("{place:?} is kept, but nobody wrote it"))?;
        all[value].read = steps.len();
    }
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of places may have one")]
mod tests {
    use super::*;
    use crate::ops::{Op, Relu};

    fn step(inputs: &[Range<usize>], outputs: &[Range<usize>]) -> Step {
        Step {
            op: Op::Relu(Relu),
            path: String::new(),
            inputs: inputs.iter().cloned().map(Place::Arena).collect(),
            types: Vec::new(),
            outputs: outputs.iter().cloned().map(Place::Arena).enumerate().collect(),
            out_types: Vec::new(),
            one_by_one: None,
        }
    }

    fn wrong(steps: &[Step], kept: &[Range<usize>]) -> String {
        check(steps, 100, kept).unwrap_err()
    }

    #[test]
    fn a_place_is_free_again_after_its_last_reader() {
        let steps = [step(&[], &[0..10]), step(&[0..10], &[10..20]), step(&[10..20], &[0..5, 5..10])];
        assert_eq!(check(&steps, 20, &[5..10]), Ok(()));
    }

    #[test]
    fn every_kind_of_overlap_is_found() {
        let over = [step(&[], &[0..10]), step(&[], &[8..12]), step(&[0..10], &[20..30])];
        assert_eq!(wrong(&over, &[]), "step 1 writes 8..12 over 0..10, which step 0 wrote and step 2 reads");
        assert!(wrong(&[step(&[], &[0..10, 9..11])], &[]).contains("over 0..10"), "two outputs of a step");
        let in_place = [step(&[], &[0..10]), step(&[0..10], &[0..10])];
        assert!(wrong(&in_place, &[]).contains("step 1 writes 0..10 over 0..10"), "an output over its input");
        let kept = [step(&[], &[0..10]), step(&[], &[0..4])];
        assert!(wrong(&kept, &[0..10]).contains("over 0..10"), "a kept value");
        assert_eq!(wrong(&[step(&[3..4], &[])], &[]), "step 0 reads 3..4, which nobody wrote");
        assert_eq!(wrong(&[step(&[], &[90..101])], &[]), "step 0 writes 90..101, the arena has 100 floats");
    }
}
