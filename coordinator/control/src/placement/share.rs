//! How many workers each job may have, given how many there is room for.
//!
//! First comes, first served, for the minimum: what has begun keeps its own, then the queue in its order,
//! and whoever cannot start yet holds up those behind, unless it can never start. What is left is dealt
//! out one by one, so jobs grow evenly. The result is a plain function of the claims: equal claims make
//! equal shares, whatever happened before.

/// What one job asks for, in order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub min: usize,
    pub max: usize,
    /// It has workers or state, so it keeps its minimum before the queue is served.
    pub has_begun: bool,
}

pub(crate) fn share(claims: &[Claim], room: usize) -> Vec<usize> {
    let mut left = room;
    let mut shares = vec![0; claims.len()];
    for (share, claim) in shares.iter_mut().zip(claims).filter(|(_, c)| c.has_begun) {
        *share = claim.min.min(left);
        left -= *share;
    }
    for (share, claim) in shares.iter_mut().zip(claims).filter(|(_, c)| !c.has_begun) {
        if claim.min > room {
            continue;
        }
        if claim.min > left {
            break;
        }
        *share = claim.min;
        left -= claim.min;
    }
    while left > 0 {
        let before = left;
        for (share, claim) in shares.iter_mut().zip(claims) {
            if left > 0 && *share > 0 && *share < claim.max {
                *share += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(min: usize, max: usize) -> Claim {
        Claim { min, max, has_begun: false }
    }
    fn begun(min: usize, max: usize) -> Claim {
        Claim { min, max, has_begun: true }
    }

    #[test]
    fn room_beyond_the_minimum_is_dealt_evenly() {
        assert_eq!(share(&[begun(1, 8), queued(2, 8)], 8), [4, 4]);
        assert_eq!(share(&[begun(1, 2), queued(2, 8)], 8), [2, 6]);
        assert_eq!(share(&[begun(1, 4)], 8), [4]);
    }

    #[test]
    fn the_first_in_the_queue_holds_up_those_behind_unless_it_can_never_start() {
        assert_eq!(share(&[begun(3, 3), queued(2, 2), queued(1, 1)], 4), [3, 0, 0]);
        assert_eq!(share(&[begun(3, 3), queued(9, 9), queued(1, 1)], 4), [3, 0, 1]);
    }

    #[test]
    fn what_has_begun_keeps_its_minimum_when_room_shrinks() {
        assert_eq!(share(&[queued(2, 4), begun(2, 4)], 3), [0, 3]);
    }
}
