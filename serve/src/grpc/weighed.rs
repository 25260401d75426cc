//! Messages of calls count against the budget of all bodies while they come, as those of HTTP do
//! ([`crate::http::body`]): a message is as large as the five bytes before it say. What waits behind that is bounded by
//! the models' queues.

use crate::http::body::{Budget, Share};
use bytes::Bytes;
use hyper::body::Frame;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tonic::Status;
use tonic::codegen::{Body, StdError};

/// A call's body.
pub(super) struct Weighed<B> {
    body: B,
    budget: Arc<Budget>,
    scale: Scale,
    /// Of the message that comes now.
    share: Option<Share>,
    /// Larger ones are refused by whoever reads them, before they are read.
    most: usize,
}

impl<B> Weighed<B> {
    pub fn new(body: B, budget: Arc<Budget>, most: usize) -> Weighed<B> {
        Weighed { body, budget, scale: Scale::default(), share: None, most }
    }
}

impl<B: Body<Data = Bytes, Error: Into<StdError>> + Unpin> Body for Weighed<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else { return Poll::Ready(None) };
        let frame = frame.map_err(|error| Status::from_error(error.into()))?;
        let begun = frame.data_ref().and_then(|data| self.scale.pass(data));
        if let Some(bytes) = begun.filter(|bytes| *bytes <= self.most) {
            // Its predecessor has been read.
            self.share = None;
            self.share = Some(self.budget.take(bytes)?);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// Where in a call's bytes we are.
#[derive(Default)]
struct Scale {
    /// A flag, and the length: what of it has come.
    head: [u8; 5],
    have: usize,
    /// Of the message behind it, still to come.
    left: usize,
}

impl Scale {
    /// The length of the largest message that begins in these bytes.
    fn pass(&mut self, mut bytes: &[u8]) -> Option<usize> {
        let mut begun = None;
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                self.left -= taken;
                bytes = &bytes[taken..];
                continue;
            }
            let taken = (self.head.len() - self.have).min(bytes.len());
            self.head[self.have..][..taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == self.head.len() {
                let [_, length @ ..] = self.head;
                self.left = u32::from_be_bytes(length) as usize;
                self.have = 0;
                begun = begun.max(Some(self.left));
            }
        }
        begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_weighed_however_their_bytes_are_cut() {
        let message = |length: usize| [&[0][..], &(length as u32).to_be_bytes(), &vec![7; length]].concat();
        let bytes = [message(3), message(0), message(300), message(70_000)].concat();
        for cut in [1, 2, 4, 5, 7, 64, 4096, bytes.len()] {
            let mut scale = Scale::default();
            let begun: Vec<usize> = bytes.chunks(cut).filter_map(|piece| scale.pass(piece)).collect();
            assert_eq!(begun.last(), Some(&70_000), "cut at {cut}");
            assert_eq!((scale.left, scale.have), (0, 0), "cut at {cut}");
            assert!(cut > 5 || begun == [3, 0, 300, 70_000], "cut at {cut}: {begun:?}");
        }
    }
}
