//! How the active members of a view come to one communicator: pure, on frames of our own links.
//!
//! A communicator is bound to its members, so each view has its own, and none outlives its view. The lowest rank makes
//! the [`UniqueId`] and sends it to the others in an [`Invitation`], once each of them has said `At` in that view. Then all are known
//! to have left their old communicator, and the newest round among them is where the wire begins: who is behind gets
//! what it lacks over the links, as in any view (docs/protocol.md), and nobody enters with a round of its own.
//!
//! An invitation is the one frame that is fenced by the view. It says nothing of the job's values, and one that is lost
//! or late costs time only: who waits for it says `At` again, as waiting members do, and is told again.

use crate::error::{NcclError, Result};
use crate::library::UniqueId;
use elastic_spec::view::View;
use elastic_spec::{Epoch, Rank, Round, WorkerId};
use std::collections::BTreeMap;

/// What the lowest rank tells the others of its view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// The view whose active members meet, in rank order.
    pub epoch: Epoch,
    /// The first round on this wire.
    pub first: Round,
    pub id: UniqueId,
}

impl Invitation {
    pub const BYTES: usize = 24 + UniqueId::BYTES;

    pub fn to_bytes(&self) -> [u8; Invitation::BYTES] {
        let mut out = [0; Invitation::BYTES];
        let words = [self.epoch.term.0, self.epoch.gen_.0, self.first.0];
        for (slot, word) in out.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        out[24..].copy_from_slice(&self.id.to_bytes());
        out
    }

    /// The door for what came on a link.
    pub fn from_bytes(bytes: &[u8]) -> Result<Invitation> {
        let whole: &[u8; Invitation::BYTES] = bytes.try_into().map_err(|_| NcclError::Invitation(bytes.len()))?;
        let word = |i: usize| u64::from_le_bytes(whole[i * 8..i * 8 + 8].try_into().expect("eight bytes"));
        let id = UniqueId::from_bytes(whole[24..].try_into().expect("the rest is the id"));
        Ok(Invitation { epoch: Epoch::new(word(0), word(1)), first: Round(word(2)), id })
    }
}

/// What is to be done next, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// [`crate::Nccl::unique_id`], then [`Meeting::made`].
    MakeId,
    Tell {
        to: WorkerId,
        invitation: Invitation,
    },
    /// Get to round `first`, then [`crate::Nccl::join`].
    Join {
        rank: Rank,
        world: u16,
        invitation: Invitation,
    },
}

/// One member's part in the meeting of one view. A new view is a new meeting.
#[derive(Clone, Debug)]
pub struct Meeting {
    epoch: Epoch,
    me: WorkerId,
    /// Active members in rank order.
    ranks: Vec<WorkerId>,
    /// Where each was when it took this view; the newest of what it said.
    at: BTreeMap<WorkerId, Round>,
    id: Id,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Id {
    Unknown,
    Asked,
    Known(Invitation),
}

impl Meeting {
    /// For an active member that has aborted its communicator of before and is at `round`. None for a learner: it gets
    /// reduced chunks over the links.
    pub fn of(view: &View, me: WorkerId, round: Round) -> Option<(Meeting, Vec<Act>)> {
        view.rank_of(me)?;
        let ranks = view.active().map(|member| member.worker).collect();
        let mut meeting = Meeting { epoch: view.epoch, me, ranks, at: BTreeMap::new(), id: Id::Unknown };
        let acts = meeting.at(me, view.epoch, round);
        Some((meeting, acts))
    }

    fn host(&self) -> WorkerId {
        self.ranks[0]
    }

    /// A peer has said `At`, acting on the view of `epoch`.
    pub fn at(&mut self, from: WorkerId, epoch: Epoch, round: Round) -> Vec<Act> {
        if epoch != self.epoch || self.me != self.host() || !self.ranks.contains(&from) {
            return Vec::new();
        }
        let newest = self.at.entry(from).or_insert(round);
        *newest = round.max(*newest);
        match self.id {
            // It says so again, so it waits: the invitation was lost, or is on its way, which does no harm.
            Id::Known(invitation) if from != self.me => vec![Act::Tell { to: from, invitation }],
            Id::Unknown if self.at.len() == self.ranks.len() => {
                self.id = Id::Asked;
                vec![Act::MakeId]
            }
            _ => Vec::new(),
        }
    }

    /// The id that was to be made.
    pub fn made(&mut self, id: UniqueId) -> Vec<Act> {
        if self.id != Id::Asked {
            return Vec::new();
        }
        let first = self.at.values().copied().max().unwrap_or_default();
        let invitation = Invitation { epoch: self.epoch, first, id };
        self.id = Id::Known(invitation);
        let others = self.ranks.iter().filter(|worker| **worker != self.me);
        let mut acts: Vec<Act> = others.map(|to| Act::Tell { to: *to, invitation }).collect();
        acts.push(self.join(invitation));
        acts
    }

    /// A peer has sent an invitation.
    pub fn invited(&mut self, from: WorkerId, invitation: Invitation) -> Vec<Act> {
        if invitation.epoch != self.epoch || from != self.host() || from == self.me || self.id != Id::Unknown {
            return Vec::new();
        }
        self.id = Id::Known(invitation);
        vec![self.join(invitation)]
    }

    fn join(&self, invitation: Invitation) -> Act {
        let rank = self.ranks.iter().position(|worker| *worker == self.me).expect("only an active member meets");
        Act::Join { rank: Rank(rank as u16), world: self.ranks.len() as u16, invitation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::view::{Pace, Role, ViewMember};
    use elastic_spec::{JobId, NodeId};
    use proptest::prelude::*;

    fn view(epoch: u64, active: &[u64], learners: &[u64]) -> View {
        let member = |role: Role| {
            move |id: &u64| ViewMember {
                worker: WorkerId(*id),
                node: NodeId::parse("n").unwrap(),
                address: String::new(),
                role,
            }
        };
        let members = active.iter().map(member(Role::Active)).chain(learners.iter().map(member(Role::Learner)));
        View {
            job: JobId::parse("j").unwrap(),
            epoch: Epoch::new(1, epoch),
            pace: Pace::Run,
            members: members.collect(),
            shard_map: vec![Rank(0); 4],
        }
    }

    fn id(seed: u8) -> UniqueId {
        UniqueId::from_bytes([seed; UniqueId::BYTES])
    }

    #[test]
    fn an_invitation_reads_back_as_written_and_other_bytes_are_none() {
        let invitation = Invitation { epoch: Epoch::new(7, 9), first: Round(1 << 40), id: id(3) };
        assert_eq!(Invitation::from_bytes(&invitation.to_bytes()), Ok(invitation));
        assert_eq!(Invitation::from_bytes(&[0; 151]), Err(NcclError::Invitation(151)));
    }

    #[test]
    fn a_member_alone_meets_itself() {
        let (mut meeting, acts) = Meeting::of(&view(1, &[5], &[6]), WorkerId(5), Round(3)).unwrap();
        assert_eq!(acts, [Act::MakeId]);
        let acts = meeting.made(id(1));
        let invitation = Invitation { epoch: Epoch::new(1, 1), first: Round(3), id: id(1) };
        assert_eq!(acts, [Act::Join { rank: Rank(0), world: 1, invitation }]);
    }

    #[test]
    fn learners_and_strangers_do_not_meet() {
        let view = view(1, &[5], &[6]);
        assert!(Meeting::of(&view, WorkerId(6), Round(0)).is_none());
        assert!(Meeting::of(&view, WorkerId(7), Round(0)).is_none());
    }

    #[test]
    fn what_belongs_to_another_view_or_comes_from_another_than_the_lowest_rank_is_not_heard() {
        let (mut meeting, _) = Meeting::of(&view(2, &[1, 2, 3], &[]), WorkerId(2), Round(0)).unwrap();
        let of = |epoch| Invitation { epoch: Epoch::new(1, epoch), first: Round(0), id: id(1) };
        assert_eq!(meeting.invited(WorkerId(1), of(1)), []);
        assert_eq!(meeting.invited(WorkerId(3), of(2)), []);
        assert_eq!(meeting.invited(WorkerId(1), of(2)).len(), 1);
        assert_eq!(meeting.invited(WorkerId(1), of(2)), [], "once");
    }

    #[test]
    fn the_lowest_rank_waits_for_every_member() {
        let (mut meeting, acts) = Meeting::of(&view(2, &[1, 2, 3], &[4]), WorkerId(1), Round(8)).unwrap();
        assert_eq!(acts, []);
        let epoch = Epoch::new(1, 2);
        assert_eq!(meeting.at(WorkerId(2), epoch, Round(9)), []);
        assert_eq!(meeting.at(WorkerId(4), epoch, Round(9)), [], "a learner");
        assert_eq!(meeting.at(WorkerId(3), Epoch::new(1, 1), Round(9)), [], "an older view");
        assert_eq!(meeting.at(WorkerId(3), epoch, Round(8)), [Act::MakeId]);
        assert_eq!(meeting.at(WorkerId(3), epoch, Round(8)), [], "it is being made");
        let acts = meeting.made(id(1));
        assert!(matches!(acts.last(), Some(Act::Join { invitation: Invitation { first: Round(9), .. }, .. })));
        assert_eq!(acts.len(), 3);
    }

    proptest! {
        /// Frames are lost, doubled and overtaken; who waits says `At` again. All come to one invitation.
        #[test]
        fn all_members_come_to_one_communicator(world in 1usize..9, seed in any::<u64>()) {
            let workers: Vec<u64> = (10..10 + world as u64).collect();
            let view = view(4, &workers, &[99]);
            let mut state = seed;
            let mut draw = move |below: usize| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) as usize % below
            };
            enum Mail { At(WorkerId, Round), Invited(WorkerId, Invitation) }
            let rounds: Vec<Round> = (0..world).map(|_| Round(5 + draw(2) as u64)).collect();
            let mut mail: Vec<(usize, Mail)> = Vec::new();
            let mut joined = vec![None; world];
            let mut todo = Vec::new();
            let mut meetings = Vec::new();
            for i in 0..world {
                let (meeting, acts) = Meeting::of(&view, WorkerId(workers[i]), rounds[i]).unwrap();
                meetings.push(meeting);
                todo.extend(acts.into_iter().map(|act| (i, act)));
            }
            let mut left = 100_000;
            while joined.iter().any(Option::is_none) {
                left -= 1;
                prop_assert!(left > 0, "nobody waits for ever");
                if let Some((i, act)) = todo.pop() {
                    match act {
                        Act::MakeId => todo.extend(meetings[i].made(id(draw(256) as u8)).into_iter().map(|act| (i, act))),
                        Act::Tell { to, invitation } => {
                            let to = workers.iter().position(|w| *w == to.0).unwrap();
                            for _ in 0..draw(3) {
                                mail.push((to, Mail::Invited(WorkerId(workers[i]), invitation)));
                            }
                        }
                        Act::Join { rank, world: seats, invitation } => {
                            prop_assert_eq!((rank.0 as usize, seats as usize), (i, world));
                            prop_assert!(joined[i].replace(invitation).is_none(), "one joins once");
                        }
                    }
                } else if mail.is_empty() || draw(4) == 0 {
                    // Whoever waits says so to everyone.
                    let i = draw(world);
                    if joined[i].is_none() {
                        for to in (0..world).filter(|to| *to != i) {
                            mail.push((to, Mail::At(WorkerId(workers[i]), rounds[i])));
                        }
                    }
                } else {
                    let (to, letter) = mail.swap_remove(draw(mail.len()));
                    let acts = match letter {
                        Mail::At(from, round) => meetings[to].at(from, view.epoch, round),
                        Mail::Invited(from, invitation) => meetings[to].invited(from, invitation),
                    };
                    todo.extend(acts.into_iter().map(|act| (to, act)));
                }
            }
            prop_assert!(joined.iter().all(|one| *one == joined[0]));
            prop_assert_eq!(joined[0].unwrap().first, *rounds.iter().max().unwrap());
        }
    }
}
