//! Messages one behind the other on a byte stream: each stands behind its length, a varint.
//!
//! Knows no transport. The worker and its agent speak so over their Unix socket:
//! `WorkerUp` up, `WorkerOrder` down, each whole.

use crate::WireError;
use crate::convert::Wire;
use bytes::{Buf, BytesMut};
use elastic_spec::facts::WorkerUp;
use elastic_spec::limits::CONTROL_BYTES_MAX;
use elastic_spec::view::WorkerOrder;
use prost::Message;

/// A domain type that has a framed form.
pub trait Framed: Sized + sealed::Sealed {
    /// Puts the message behind what is in `out`.
    fn encode(self, out: &mut BytesMut);

    /// Takes the first message out of `bytes`; `None` while it is not whole yet. After an error the
    /// stream is lost: its sender is broken.
    fn decode(bytes: &mut BytesMut) -> Result<Option<Self>, FrameError>;
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a message of {0} bytes is announced, the most is {CONTROL_BYTES_MAX}")]
    TooLong(u64),
    #[error("its length is not a varint")]
    Length,
    #[error("its bytes are no message: {0}")]
    Garbled(String),
    #[error(transparent)]
    Wire(#[from] WireError),
}

macro_rules! framed {
    ($domain:ty) => {
        impl sealed::Sealed for $domain {}
        impl Framed for $domain {
            fn encode(self, out: &mut BytesMut) {
                // BytesMut grows, so the only error of prost (no room) cannot happen.
                self.write().encode_length_delimited(out).expect("a growing buffer has room");
            }
            fn decode(bytes: &mut BytesMut) -> Result<Option<$domain>, FrameError> {
                let Some(frame) = take(bytes)? else { return Ok(None) };
                let pb = <$domain as Wire>::Pb::decode(frame).map_err(|e| FrameError::Garbled(e.to_string()))?;
                Ok(Some(pb.try_into()?))
            }
        }
    };
}

framed!(WorkerUp);
framed!(WorkerOrder);

/// The bytes of the first message, if they are all there.
fn take(bytes: &mut BytesMut) -> Result<Option<BytesMut>, FrameError> {
    let Some((length, prefix)) = length(bytes)? else { return Ok(None) };
    if length > CONTROL_BYTES_MAX as u64 {
        return Err(FrameError::TooLong(length));
    }
    if bytes.len() < prefix + length as usize {
        return Ok(None);
    }
    bytes.advance(prefix);
    Ok(Some(bytes.split_to(length as usize)))
}

/// The varint in front and how many bytes it takes.
fn length(bytes: &[u8]) -> Result<Option<(u64, usize)>, FrameError> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().take(LENGTH_BYTES_MAX).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((value, i + 1)));
        }
    }
    if bytes.len() >= LENGTH_BYTES_MAX { Err(FrameError::Length) } else { Ok(None) }
}

/// Five bytes hold 35 bits: more than the bound has.
const LENGTH_BYTES_MAX: usize = 5;

mod sealed {
    pub trait Sealed {}
}
