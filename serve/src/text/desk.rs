//! Where texts wait for a seat: who is admitted, who is next. First come, first served; a function of what was asked.

use super::Policy;
use std::collections::VecDeque;

/// One text that waits.
#[derive(Debug)]
pub struct Waiting<T> {
    pub bytes: usize,
    pub item: T,
}

/// Why a request is not admitted: so much waits already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Texts(usize),
    Bytes(usize),
}

pub struct Desk<T> {
    texts_max: usize,
    bytes_max: usize,
    waiting: VecDeque<Waiting<T>>,
    bytes: usize,
}

impl<T> Desk<T> {
    pub fn new(policy: &Policy) -> Desk<T> {
        Desk { texts_max: policy.waiting_max, bytes_max: policy.bytes_max, waiting: VecDeque::new(), bytes: 0 }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// All texts of a request, or none. One that is too large for an empty desk is admitted when it is empty.
    pub fn admit(&mut self, texts: Vec<Waiting<T>>) -> Result<(), Full> {
        let bytes: usize = texts.iter().map(|text| text.bytes).sum();
        if !self.is_empty() && self.len() + texts.len() > self.texts_max {
            return Err(Full::Texts(self.len()));
        }
        if !self.is_empty() && self.bytes + bytes > self.bytes_max {
            return Err(Full::Bytes(self.bytes));
        }
        self.bytes += bytes;
        self.waiting.extend(texts);
        Ok(())
    }

    /// Those who wait, the next one first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().map(|waiting| &waiting.item)
    }

    /// The next one.
    pub fn take(&mut self) -> Option<T> {
        let Waiting { bytes, item } = self.waiting.pop_front()?;
        self.bytes -= bytes;
        Some(item)
    }

    /// Those that nobody waits for any more leave.
    pub fn sweep(&mut self, is_gone: impl Fn(&T) -> bool) {
        self.waiting.retain(|waiting| !is_gone(&waiting.item));
        self.bytes = self.waiting.iter().map(|waiting| waiting.bytes).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(items: &[u32]) -> Vec<Waiting<u32>> {
        items.iter().map(|item| Waiting { bytes: 10, item: *item }).collect()
    }

    fn desk(waiting_max: usize, bytes_max: usize) -> Desk<u32> {
        Desk::new(&Policy { waiting_max, bytes_max, ..Policy::default() })
    }

    #[test]
    fn a_request_is_admitted_whole_or_not_at_all() {
        let mut desk = desk(3, 1000);
        desk.admit(texts(&[1, 2])).unwrap();
        assert_eq!(desk.admit(texts(&[3, 4])), Err(Full::Texts(2)));
        desk.admit(texts(&[5])).unwrap();
        assert_eq!([desk.take(), desk.take(), desk.take(), desk.take()], [Some(1), Some(2), Some(5), None]);
    }

    #[test]
    fn what_is_larger_than_the_desk_waits_alone() {
        let mut desk = desk(2, 25);
        desk.admit(texts(&[1, 2, 3])).unwrap();
        assert_eq!(desk.admit(texts(&[4])), Err(Full::Texts(3)));
        desk.take();
        desk.take();
        desk.admit(texts(&[5])).unwrap();
        assert_eq!(desk.admit(vec![Waiting { bytes: 16, item: 6 }]), Err(Full::Texts(2)));
        desk.take();
        assert_eq!(desk.admit(vec![Waiting { bytes: 16, item: 6 }]), Err(Full::Bytes(10)));
    }

    proptest! {
        #[test]
        fn everybody_admitted_and_not_gone_is_next_once_in_order(
            requests in prop::collection::vec((1usize..5, any::<bool>()), 1..40),
            gone in 2u32..5,
        ) {
            let mut desk = desk(8, 100);
            let (mut number, mut expected, mut served) = (0u32, VecDeque::new(), Vec::new());
            for (count, takes) in requests {
                let items: Vec<u32> = (number..number + count as u32).collect();
                number += count as u32;
                if desk.admit(texts(&items)).is_ok() {
                    expected.extend(items);
                }
                prop_assert!(desk.len() <= 8 && desk.bytes == desk.len() * 10);
                desk.sweep(|item| item % gone == 0);
                expected.retain(|item| item % gone != 0);
                if takes {
                    let next = desk.take();
                    prop_assert_eq!(next, expected.pop_front());
                    served.extend(next);
                }
            }
            prop_assert!(served.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
