//! Bodies: those of requests are read within bounds of size and time, and unpacked; those of answers are one piece or a
//! stream of pieces.

use crate::limits::{BODIES_BYTES_MAX, BODY_BYTES_MAX, BODY_BYTES_SMALL, BODY_SILENCE_MAX};
use crate::refusal::{Refusal, quote};
use bytes::{Bytes, BytesMut};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use futures_util::Stream;
use hyper::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_ENCODING;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

/// What all large bodies together may hold. Small ones are bounded by the number of connections.
#[derive(Debug, Default)]
pub struct Budget {
    held: AtomicUsize,
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub fn take(self: &Arc<Budget>, bytes: usize) -> Result<Share, Refusal> {
        let bytes = if bytes <= BODY_BYTES_SMALL { 0 } else { bytes };
        let fits = |held: usize| held.checked_add(bytes).filter(|all| *all <= BODIES_BYTES_MAX);
        match self.held.fetch_update(Relaxed, Relaxed, fits) {
            Ok(_) => Ok(Share { budget: self.clone(), bytes }),
            Err(held) => Err(Refusal::Full {
                what: format!("bodies of other requests hold {held} bytes already"),
                retry_after_s: 1,
            }),
        }
    }
}

impl Share {
    /// It turned out to be no more than so much.
    fn shrink(&mut self, bytes: usize) {
        let bytes = if bytes <= BODY_BYTES_SMALL { 0 } else { bytes };
        let freed = self.bytes.saturating_sub(bytes);
        self.bytes -= freed;
        self.budget.held.fetch_sub(freed, Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// A request's body, whole and unpacked. Dropped as soon as it is read: what it holds is others' too.
#[derive(Debug)]
pub struct Whole {
    pub bytes: Bytes,
    _share: Share,
}

pub async fn read(body: Incoming, headers: &HeaderMap, budget: &Arc<Budget>) -> Result<Whole, Refusal> {
    let packing = packing(headers)?;
    let said = body.size_hint().exact().map_or(0, |bytes| bytes as usize);
    if said > BODY_BYTES_MAX {
        return Err(too_large(&format!("of {said} bytes")));
    }
    // Without a length, or packed, it may become as large as any.
    let most = match (packing, body.size_hint().exact()) {
        (Packing::None, Some(_)) => said,
        _ => BODY_BYTES_MAX,
    };
    let mut share = budget.take(most)?;
    let bytes = whole(body, said).await?;
    let bytes = match packing {
        Packing::None => bytes,
        packing if bytes.len() <= BODY_BYTES_SMALL / 4 => unpack(packing, &bytes)?,
        packing => tokio::task::spawn_blocking(move || unpack(packing, &bytes))
            .await
            .map_err(|error| Refusal::Internal(format!("unpack a body: {error}")))??,
    };
    share.shrink(bytes.len());
    Ok(Whole { bytes, _share: share })
}

fn too_large(what: &str) -> Refusal {
    Refusal::TooLarge(format!("a body {what} is more than {BODY_BYTES_MAX} bytes"))
}

async fn whole(mut body: Incoming, said: usize) -> Result<Bytes, Refusal> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    loop {
        let next = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        let slow = || Refusal::Slow(format!("no byte of the body came for {} s", BODY_SILENCE_MAX.as_secs()));
        let frame = match tokio::time::timeout(BODY_SILENCE_MAX, next).await.map_err(|_| slow())? {
            None => break,
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Err(Refusal::Invalid(format!("the body ended early: {error}"))),
        };
        let Ok(data) = frame.into_data() else { continue };
        match first.take() {
            None if rest.is_empty() => first = Some(data),
            None => rest.extend_from_slice(&data),
            Some(before) => {
                rest.reserve(said.clamp(before.len() + data.len(), BODY_BYTES_MAX));
                rest.extend_from_slice(&before);
                rest.extend_from_slice(&data);
            }
        }
        if rest.len() > BODY_BYTES_MAX {
            return Err(too_large("without a length"));
        }
    }
    Ok(first.unwrap_or_else(|| rest.freeze()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Deflate,
}

fn packing(headers: &HeaderMap) -> Result<Packing, Refusal> {
    let said = headers.get(CONTENT_ENCODING).map_or("", |value| value.to_str().unwrap_or("?"));
    match said.to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(Packing::None),
        "gzip" | "x-gzip" => Ok(Packing::Gzip),
        "deflate" => Ok(Packing::Deflate),
        _ => {
            Err(Refusal::MediaType(format!("content-encoding '{}' is not served: gzip, deflate or none", quote(said))))
        }
    }
}

/// Stops at the bound, so that a small body cannot fill the memory.
fn unpack(packing: Packing, packed: &[u8]) -> Result<Bytes, Refusal> {
    let mut out = Vec::new();
    let most = BODY_BYTES_MAX as u64 + 1;
    let read = match packing {
        Packing::None => return Ok(Bytes::copy_from_slice(packed)),
        Packing::Gzip => MultiGzDecoder::new(packed).take(most).read_to_end(&mut out),
        Packing::Deflate => ZlibDecoder::new(packed).take(most).read_to_end(&mut out),
    };
    read.map_err(|error| Refusal::Invalid(format!("the packed body cannot be unpacked: {error}")))?;
    match out.len() > BODY_BYTES_MAX {
        true => Err(too_large("that was unpacked")),
        false => Ok(out.into()),
    }
}

/// Pieces of an answer.
pub type Live = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// An answer's body.
pub enum Reply {
    Whole(Option<Bytes>),
    /// As they come. Dropped when the client is gone.
    Live(Live),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Reply::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Reply::Live(pieces) => pieces.as_mut().poll_next(cx).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Reply::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Reply::Live(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_packed_body_is_unpacked_up_to_the_bound() {
        assert_eq!(unpack(Packing::Gzip, &gzip(b"hello")).unwrap(), "hello");
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"hello").unwrap();
        assert_eq!(unpack(Packing::Deflate, &encoder.finish().unwrap()).unwrap(), "hello");
        let bomb = gzip(&vec![0; BODY_BYTES_MAX + 1]);
        assert!(bomb.len() < 100_000);
        assert_eq!(unpack(Packing::Gzip, &bomb).unwrap_err().status(), 413);
    }

    #[test]
    fn a_broken_packing_is_the_clients_mistake() {
        assert_eq!(unpack(Packing::Gzip, b"no gzip").unwrap_err().status(), 400);
        let whole = gzip(b"hello");
        assert_eq!(unpack(Packing::Gzip, &whole[..whole.len() - 4]).unwrap_err().status(), 400);
    }

    #[test]
    fn large_bodies_share_a_budget() {
        let budget = Arc::new(Budget::default());
        let first = budget.take(BODIES_BYTES_MAX).unwrap();
        assert_eq!(budget.take(BODY_BYTES_SMALL + 1).unwrap_err().status(), 429);
        assert!(budget.take(BODY_BYTES_SMALL).is_ok());
        drop(first);
        assert!(budget.take(BODY_BYTES_SMALL + 1).is_ok());
        let mut share = budget.take(BODIES_BYTES_MAX).unwrap();
        for bytes in [BODY_BYTES_MAX, 2 * BODY_BYTES_MAX, BODY_BYTES_SMALL + 1, BODY_BYTES_SMALL] {
            share.shrink(bytes);
            assert_eq!(budget.held.load(Relaxed), share.bytes);
            assert!(share.bytes <= BODY_BYTES_MAX, "it never grows");
        }
        assert_eq!(share.bytes, 0, "a small one is not counted");
    }
}
