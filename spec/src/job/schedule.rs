//! What each round of a job does: train a step, or validate after one.
//!
//! A pure function of the job's length, so that members never have to agree on it.

use crate::ids::{Round, Step};

/// The order of training and validation rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub steps: u64,
    /// 0: only after the last step.
    pub validate_every: u64,
    /// Without validation samples there is no validation round at all.
    pub has_validation: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Computes step + 1 from step.
    Train(Step),
    /// Validates the state after so many steps.
    Validate(Step),
}

impl Schedule {
    fn every(self) -> u64 {
        if self.validate_every == 0 { self.steps.max(1) } else { self.validate_every }
    }

    /// Rounds of the whole job.
    pub fn rounds(self) -> Round {
        match self.has_validation {
            true => Round(self.steps + self.steps.div_ceil(self.every())),
            false => Round(self.steps),
        }
    }

    /// What round `round` (below [`Schedule::rounds`]) does.
    pub fn kind(self, round: Round) -> Kind {
        assert!(round < self.rounds(), "round {round} lies within the job");
        if !self.has_validation {
            return Kind::Train(Step(round.0));
        }
        let every = self.every();
        let (cycle, place) = (round.0 / (every + 1), round.0 % (every + 1));
        let step = cycle * every + place;
        if place < every && step < self.steps { Kind::Train(Step(step)) } else { Kind::Validate(Step(step)) }
    }

    /// Steps done in the state of `round`.
    pub fn step_at(self, round: Round) -> Step {
        if round >= self.rounds() {
            return Step(self.steps);
        }
        match self.kind(round) {
            Kind::Train(step) | Kind::Validate(step) => step,
        }
    }

    /// The first round whose state has `step` steps done and, where one is due there, validated.
    pub fn round_after(self, step: Step) -> Round {
        if !self.has_validation {
            return Round(step.0);
        }
        if step.0 >= self.steps {
            return self.rounds();
        }
        Round(step.0 + step.0 / self.every())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_trained_once_and_validation_follows_every_so_many_and_the_last() {
        for (steps, validate_every, has_validation) in
            [(0, 3, true), (7, 3, true), (6, 3, true), (5, 0, true), (5, 9, true), (4, 1, true), (5, 2, false)]
        {
            let schedule = Schedule { steps, validate_every, has_validation };
            let mut trained = 0;
            let mut validated = Vec::new();
            for round in 0..schedule.rounds().0 {
                assert_eq!(schedule.step_at(Round(round)), Step(trained));
                match schedule.kind(Round(round)) {
                    Kind::Train(step) => {
                        assert_eq!(step, Step(trained));
                        trained += 1;
                    }
                    Kind::Validate(step) => {
                        assert_eq!(step, Step(trained));
                        validated.push(step.0);
                    }
                }
                let here = schedule.round_after(Step(trained));
                assert!(here == Round(round + 1) || here == Round(round + 2), "{schedule:?} {round}");
                assert_eq!(schedule.step_at(here), Step(trained));
            }
            assert_eq!(trained, steps);
            if has_validation && steps > 0 {
                assert_eq!(validated.last(), Some(&steps));
                assert!(validated.windows(2).all(|w| w[0] < w[1]));
            }
        }
    }
}
