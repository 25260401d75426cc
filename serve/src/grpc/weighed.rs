//! Messages of calls count against the budget of all bodies while they come, as those of HTTP do
//! ([`crate::http::body`]): a message is as large as the five bytes before it say. What waits behind that is bounded by
//! the models' queues. A message that does not go on ends its call, so that nobody holds a part of the budget for good.

use crate::http::body::{Budget, Share};
use crate::limits::BODY_SILENCE_MAX;
use crate::refusal::Refusal;
use bytes::Bytes;
use hyper::body::Frame;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;
use tonic::codegen::{Body, StdError};

/// A call's body.
pub(super) struct Weighed<B> {
    body: B,
    budget: Arc<Budget>,
    scale: Scale,
    /// Of the message that comes now.
    share: Option<Share>,
    /// Larger ones are refused before they are read.
    most: usize,
    /// Longest silence within a message, and when it is over.
    silence: Duration,
    end: Option<Pin<Box<Sleep>>>,
    waits: bool,
}

impl<B> Weighed<B> {
    pub fn new(body: B, budget: Arc<Budget>, most: usize) -> Weighed<B> {
        let silence = BODY_SILENCE_MAX;
        Weighed { body, budget, scale: Scale::default(), share: None, most, silence, end: None, waits: false }
    }

    /// Nothing came. Between messages that is nobody's business.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Status>>> {
        if !self.scale.is_within() {
            return Poll::Pending;
        }
        let end = self.end.get_or_insert_with(|| Box::pin(sleep(self.silence)));
        if !self.waits {
            self.waits = true;
            end.as_mut().reset(Instant::now() + self.silence);
        }
        ready!(end.as_mut().poll(cx));
        self.share = None;
        let what = format!("no byte of the message came for {} s", self.silence.as_secs_f64());
        Poll::Ready(Some(Err(Refusal::Slow(what).into())))
    }
}

impl<B: Body<Data = Bytes, Error: Into<StdError>> + Unpin> Body for Weighed<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.scale.is_within() {
            // Who asks for more has read what there was.
            self.share = None;
        }
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => return self.wait(cx),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(frame)) => frame.map_err(|error| Status::from_error(error.into()))?,
        };
        self.waits = false;
        let begun = frame.data_ref().and_then(|data| self.scale.pass(data));
        if let Some(bytes) = begun {
            if bytes > self.most {
                let what = format!("a message of {bytes} bytes is too large: at most {}", self.most);
                return Poll::Ready(Some(Err(Status::out_of_range(what))));
            }
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
    fn is_within(&self) -> bool {
        self.left > 0 || self.have > 0
    }

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
    use crate::http::body::Reply;
    use crate::limits::{BODIES_BYTES_MAX, BODY_BYTES_MAX};
    use std::future::poll_fn;
    use tonic::Code;

    const SILENCE: Duration = Duration::from_millis(100);

    /// What comes of a body with these bytes, in one piece, and then nothing.
    async fn after(bytes: Vec<u8>, budget: &Arc<Budget>) -> Option<Status> {
        let pieces = tokio_stream::StreamExt::chain(tokio_stream::once(Bytes::from(bytes)), tokio_stream::pending());
        let body = Reply::Live(Box::pin(pieces));
        let mut weighed = Weighed { silence: SILENCE, ..Weighed::new(body, budget.clone(), BODY_BYTES_MAX) };
        let mut next = async || poll_fn(|cx| Pin::new(&mut weighed).poll_frame(cx)).await;
        assert!(next().await.unwrap().is_ok());
        let more = tokio::time::timeout(SILENCE * 5, next()).await;
        more.ok().map(|more| more.unwrap().unwrap_err())
    }

    #[test]
    fn a_message_that_does_not_go_on_ends_its_call_and_one_that_is_read_holds_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let budget = Arc::new(Budget::default());
            let announced = [&[0][..], &(BODY_BYTES_MAX as u32).to_be_bytes(), &[7; 100]].concat();
            for bytes in [announced, vec![0, 0]] {
                let status = after(bytes, &budget).await.expect("it ends");
                assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
                assert!(status.message().contains("no byte of the message came for 0.1 s"), "{status}");
            }
            let whole = [&[0][..], &100_000u32.to_be_bytes(), &[7; 100_000]].concat();
            let waits = async { after(whole, &budget).await };
            let freed = async {
                tokio::time::sleep(SILENCE).await;
                budget.take(BODIES_BYTES_MAX).is_ok()
            };
            let (ended, is_freed) = futures_util::join!(waits, freed);
            assert!(ended.is_none() && is_freed, "between messages nothing is held, and nobody waited for");
        });
    }

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
