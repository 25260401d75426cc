//! How the labels of a model came to be where they are, and what follows from it. Pure.
//!
//! `MODEL/moves.json` has the moves of its labels, the oldest first; a move is written there before it is made.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// More are forgotten, the oldest first.
pub const MOVES_KEPT: usize = 2048;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub label: String,
    pub from: Option<u64>,
    pub to: u64,
    /// Of the version that it moved to.
    pub content_sha256: String,
    pub by: By,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Push,
    Label,
    Rollback,
}

/// Does a push of this content move the label from `now`? Once: what others did to the label since is not undone by whoever
/// pushes the same again. A push that was cut off between the writing down and the move moves it.
pub fn is_moved_by_push(moves: &[Move], label: &str, now: Option<u64>, content: &str) -> bool {
    let mut own = moves.iter().rev().filter(|step| step.label == label);
    match own.clone().find(|step| step.by == By::Push && step.content_sha256 == content) {
        None => true,
        Some(pushed) => own.next() == Some(pushed) && pushed.from == now,
    }
}

/// Where the label was when this content was first pushed to it: what it is compared with, however often it is asked.
pub fn before_push(moves: &[Move], label: &str, content: &str) -> Option<u64> {
    let is_it = |step: &&Move| step.label == label && step.by == By::Push && step.content_sha256 == content;
    moves.iter().find(is_it)?.from
}

/// The version to go back to from `now`: where the label was before it came there, else the highest below. Never one that it
/// was rolled back from and not brought to again.
pub fn back(moves: &[Move], published: &BTreeSet<u64>, label: &str, now: u64) -> Option<u64> {
    let own = || moves.iter().filter(|step| step.label == label);
    let mut bad = BTreeSet::new();
    for step in own() {
        bad.remove(&step.to);
        if step.by == By::Rollback {
            bad.extend(step.from.filter(|from| *from > step.to));
        }
    }
    let is_good = |version: &u64| published.contains(version) && !bad.contains(version);
    let mut passed = BTreeSet::from([now]);
    let mut at = now;
    let came = |at: u64| own().rfind(|step| step.to == at && step.by != By::Rollback)?.from;
    while let Some(before) = came(at).filter(|before| passed.insert(*before)) {
        if is_good(&before) {
            return Some(before);
        }
        at = before;
    }
    published.range(..now).rev().find(|version| is_good(version)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (by, from, to): the content of version 7 is "7".
    fn moves(all: &[(By, u64, u64)]) -> Vec<Move> {
        let one = |(by, from, to): &(By, u64, u64)| Move {
            label: "live".into(),
            from: Some(*from).filter(|from| *from > 0),
            to: *to,
            content_sha256: to.to_string(),
            by: *by,
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn a_push_moves_a_label_once_and_goes_on_where_it_was_cut_off() {
        let all = moves(&[(By::Push, 0, 1), (By::Push, 1, 2), (By::Rollback, 2, 1)]);
        assert!(is_moved_by_push(&all, "live", Some(1), "3"), "it is new");
        assert!(is_moved_by_push(&all, "canary", None, "2"), "to this label it is new");
        assert!(!is_moved_by_push(&all, "live", Some(1), "2"), "it was rolled back");
        assert!(!is_moved_by_push(&all[..2], "live", Some(2), "2"), "it is there");
        assert!(is_moved_by_push(&all[..2], "live", Some(1), "2"), "it was written down, and not made");
        assert!(is_moved_by_push(&all[..1], "live", None, "1"));
        assert!(!is_moved_by_push(&all[..2], "live", Some(2), "1"), "an older one does not come back");
    }

    #[test]
    fn what_a_content_is_compared_with_stays_the_same() {
        let all = moves(&[(By::Push, 0, 1), (By::Push, 1, 3), (By::Rollback, 3, 1), (By::Push, 1, 4)]);
        assert_eq!(before_push(&all, "live", "3"), Some(1));
        assert_eq!(before_push(&all, "live", "4"), Some(1));
        assert_eq!(before_push(&all, "live", "1"), None);
        assert_eq!(before_push(&all, "canary", "3"), None);
    }

    #[test]
    fn a_rollback_goes_to_where_the_label_was_and_never_to_what_was_rolled_back() {
        let published: BTreeSet<u64> = (1..=6).collect();
        let back = |all: &[(By, u64, u64)], now| super::back(&moves(all), &published, "live", now);
        assert_eq!(back(&[], 6), Some(5), "of whom nothing is known the highest below");
        assert_eq!(back(&[(By::Push, 0, 1), (By::Push, 1, 3)], 3), Some(1), "2 never had the label");
        let twice_bad = [(By::Push, 0, 3), (By::Push, 3, 4), (By::Push, 4, 5), (By::Rollback, 5, 4), (By::Push, 4, 6)];
        assert_eq!(back(&twice_bad, 6), Some(4));
        let further = [&twice_bad[..], &[(By::Rollback, 6, 4)]].concat();
        assert_eq!(back(&further, 4), Some(3), "not to 5 and 6");
        let found_good = [&further[..], &[(By::Label, 4, 5), (By::Push, 5, 6)]].concat();
        assert_eq!(back(&found_good, 6), Some(5), "somebody chose it after all");
        assert_eq!(back(&[(By::Rollback, 5, 4), (By::Label, 4, 6)], 6), Some(4));
        assert_eq!(back(&[(By::Push, 0, 1)], 1), None);
        assert_eq!(back(&[(By::Push, 9, 2)], 2), Some(1), "9 is not there any more");
        assert_eq!(back(&[(By::Label, 2, 1), (By::Label, 1, 2)], 2), Some(1), "it does not go round");
    }
}
