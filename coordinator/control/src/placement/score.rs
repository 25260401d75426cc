//! The policy of placement and of who goes first, readable as two structs: field order is the policy.

use elastic_spec::NodeId;

/// A node for one more worker of a job; the smallest is taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    /// A node known to compute other bits would most likely be kept out after all.
    pub numerics: NumericsFit,
    /// Restarts that the node gave cause for lately.
    pub strikes: u32,
    /// Fewer of the job's workers on one node: less is lost with it.
    pub of_this_job: usize,
    pub occupied: usize,
    /// Ties are stable.
    pub node: NodeId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NumericsFit {
    Same,
    Unknown,
    Other,
}

/// A worker that one less could do without; the smallest goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Dispensable {
    pub place: InView,
    /// Most strikes first.
    pub strikes: std::cmp::Reverse<u32>,
    /// From the node with most of the job's workers first.
    pub of_this_job: std::cmp::Reverse<usize>,
    /// The newest slot first.
    pub slot: std::cmp::Reverse<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum InView {
    Not,
    Learner,
    Active,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(numerics: NumericsFit, strikes: u32, of_this_job: usize, node: &str) -> Score {
        Score { numerics, strikes, of_this_job, occupied: 0, node: NodeId::parse(node).unwrap() }
    }

    #[test]
    fn the_same_numerics_weigh_more_than_strikes_and_these_more_than_spread() {
        let mut scores = [
            score(NumericsFit::Unknown, 0, 0, "a"),
            score(NumericsFit::Same, 1, 0, "b"),
            score(NumericsFit::Same, 0, 3, "c"),
            score(NumericsFit::Same, 0, 2, "e"),
            score(NumericsFit::Same, 0, 2, "d"),
        ];
        scores.sort();
        assert_eq!(scores.map(|s| s.node.to_string()), ["d", "e", "c", "b", "a"]);
    }
}
