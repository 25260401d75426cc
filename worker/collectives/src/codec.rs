//! The byte form of a frame: a fixed header of 64 bytes, then the body.
//!
//! All numbers are little-endian. Header: magic `ELFR`, version u16, kind u8, tree level u8, job u64,
//! config u64, term u64, gen u64, round u64, chunk u32, tree index u16, 2 zero bytes, body length u32, CRC-32
//! of the 60 bytes before it and the body. Bodies: contribution and reduced: the payload. At: published u64,
//! count u16 of lacked chunks (u32 each), count u16 of chunks with missing subtrees (chunk u32, count u16,
//! then level u8 and index u16 each). State wanted: part u16, parts u16. State: part u16, parts u16, last u8,
//! total u64, offset u64, SHA-256 of the part, payload. Gone: at u64. Beat: nothing.
//!
//! Decoding is the door: what it lets through is well formed and within the limits of `spec`. Whether a
//! frame makes sense in the view in force is for `member` to judge.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use elastic_spec::frame::{Body, Frame, Need};
use elastic_spec::layout::CHUNKS_MAX;
use elastic_spec::limits::{FRAME_BYTES_MAX, SHARDS_MAX};
use elastic_spec::tree::TreeNode;
use elastic_spec::{Digest, Epoch, JobId, Round};

pub const HEADER_BYTES: usize = 64;
pub const VERSION: u16 = 1;
/// Largest body, so that the whole frame stays within its limit.
pub const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES;
const MAGIC: [u8; 4] = *b"ELFR";
const STATE_HEAD_BYTES: usize = 2 + 2 + 1 + 8 + 8 + 32;

/// What all frames of one job have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub job: u64,
    pub config: u64,
}

impl Identity {
    pub fn new(job: &JobId, config: Digest) -> Identity {
        Identity { job: Digest::of(job.as_str().as_bytes()).short(), config: config.short() }
    }
}

/// A frame, or a sign of life of the link itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire {
    Beat,
    Frame(Frame),
}

/// A frame as it is written: the payload is not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The header and the body up to the payload.
    pub head: Bytes,
    pub payload: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("a body of {0} bytes is above the limit of {BODY_BYTES_MAX}")]
    TooLarge(usize),
    #[error("a list of {0} entries does not fit a frame")]
    TooMany(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("not a frame: it begins with {0:02x?}")]
    Magic([u8; 4]),
    #[error("frame version {0}, and this program speaks version {VERSION}")]
    Version(u16),
    #[error("a frame of job {found:016x}, ours is {ours:016x}")]
    Job { found: u64, ours: u64 },
    #[error("a frame of config {found:016x}, ours is {ours:016x}")]
    Config { found: u64, ours: u64 },
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    #[error("a body of {0} bytes is above the limit of {BODY_BYTES_MAX}")]
    TooLarge(usize),
    #[error("the checksum does not match: wrote {wrote:08x}, read {read:08x}")]
    Checksum { wrote: u32, read: u32 },
    #[error("{what} is not zero in a frame that does not use it")]
    Unused { what: &'static str },
    #[error("chunk {0}: a round has at most {CHUNKS_MAX}")]
    Chunk(u32),
    #[error("tree node (level {}, index {}) lies in no tree of at most {SHARDS_MAX} shards", .0.level, .0.index)]
    Node(TreeNode),
    #[error("{count} {what}: at most {most} are allowed")]
    Count { what: &'static str, count: usize, most: usize },
    #[error("the body ends inside {what}")]
    Short { what: &'static str },
    #[error("{0} bytes follow the body's end")]
    Trailing(usize),
    #[error("part {part} of {parts}")]
    Part { part: u16, parts: u16 },
    #[error("{bytes} bytes of state at offset {offset} of {total}")]
    Offset { offset: u64, bytes: usize, total: u64 },
    #[error("{0} is neither 0 nor 1")]
    Flag(u8),
}

mod kind {
    pub const BEAT: u8 = 0;
    pub const CONTRIBUTION: u8 = 1;
    pub const REDUCED: u8 = 2;
    pub const AT: u8 = 3;
    pub const STATE_WANTED: u8 = 4;
    pub const STATE: u8 = 5;
    pub const GONE: u8 = 6;
}

pub fn encode(identity: Identity, wire: &Wire) -> Result<Encoded, EncodeError> {
    let (kind, round, chunk, node) = address(wire);
    let (fields, payload) = body(wire)?;
    let length = fields.len() + payload.len();
    if length > BODY_BYTES_MAX {
        return Err(EncodeError::TooLarge(length));
    }
    let epoch = match wire {
        Wire::Beat => Epoch::default(),
        Wire::Frame(frame) => frame.epoch,
    };
    let mut head = BytesMut::with_capacity(HEADER_BYTES + fields.len());
    head.put_slice(&MAGIC);
    head.put_u16_le(VERSION);
    head.put_u8(kind);
    head.put_u8(node.level);
    head.put_u64_le(identity.job);
    head.put_u64_le(identity.config);
    head.put_u64_le(epoch.term.0);
    head.put_u64_le(epoch.gen_.0);
    head.put_u64_le(round.0);
    head.put_u32_le(chunk);
    head.put_u16_le(node.index);
    head.put_u16_le(0);
    head.put_u32_le(length as u32);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head);
    crc.update(&fields);
    crc.update(&payload);
    head.put_u32_le(crc.finalize());
    head.put_slice(&fields);
    Ok(Encoded { head: head.freeze(), payload })
}

/// (kind, round, chunk, tree node) of the header.
fn address(wire: &Wire) -> (u8, Round, u32, TreeNode) {
    let none = TreeNode { level: 0, index: 0 };
    let Wire::Frame(frame) = wire else { return (kind::BEAT, Round(0), 0, none) };
    match &frame.body {
        Body::Contribution { round, chunk, node, .. } => (kind::CONTRIBUTION, *round, *chunk, *node),
        Body::Reduced { round, chunk, .. } => (kind::REDUCED, *round, *chunk, none),
        Body::At { round, .. } => (kind::AT, *round, 0, none),
        Body::StateWanted { round, .. } => (kind::STATE_WANTED, *round, 0, none),
        Body::State { round, .. } => (kind::STATE, *round, 0, none),
        Body::Gone { wanted, .. } => (kind::GONE, *wanted, 0, none),
    }
}

/// The body: small fields, and the payload as it is.
fn body(wire: &Wire) -> Result<(BytesMut, Bytes), EncodeError> {
    let mut out = BytesMut::new();
    let Wire::Frame(frame) = wire else { return Ok((out, Bytes::new())) };
    match &frame.body {
        Body::Contribution { payload, .. } | Body::Reduced { payload, .. } => return Ok((out, payload.clone())),
        Body::At { published, need, .. } => {
            out.put_u64_le(published.0);
            put_need(&mut out, need)?;
        }
        Body::StateWanted { part, parts, .. } => {
            out.put_u16_le(*part);
            out.put_u16_le(*parts);
        }
        Body::State { part, parts, total, offset, payload, sha256_of_part, last, .. } => {
            out.put_u16_le(*part);
            out.put_u16_le(*parts);
            out.put_u8(u8::from(*last));
            out.put_u64_le(*total);
            out.put_u64_le(*offset);
            out.put_slice(sha256_of_part);
            return Ok((out, payload.clone()));
        }
        Body::Gone { at, .. } => out.put_u64_le(at.0),
    }
    Ok((out, Bytes::new()))
}

fn put_need(out: &mut BytesMut, need: &Need) -> Result<(), EncodeError> {
    let count = |n: usize, most: usize| match n <= most {
        true => Ok(n as u16),
        false => Err(EncodeError::TooMany(n)),
    };
    out.put_u16_le(count(need.reduced.len(), CHUNKS_MAX)?);
    need.reduced.iter().for_each(|chunk| out.put_u32_le(*chunk));
    out.put_u16_le(count(need.nodes.len(), CHUNKS_MAX)?);
    for (chunk, nodes) in &need.nodes {
        out.put_u32_le(*chunk);
        out.put_u16_le(count(nodes.len(), SHARDS_MAX as usize)?);
        for node in nodes {
            out.put_u8(node.level);
            out.put_u16_le(node.index);
        }
    }
    Ok(())
}

/// A header that was read: of our job and config, of a known kind and a bearable length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    kind: u8,
    epoch: Epoch,
    round: Round,
    chunk: u32,
    node: TreeNode,
    length: usize,
    crc: u32,
    /// Of the header alone; the body's goes on from here.
    crc_of_head: u32,
}

impl Header {
    pub fn decode(identity: Identity, bytes: &[u8; HEADER_BYTES]) -> Result<Header, DecodeError> {
        let mut b = &bytes[..];
        let mut magic = [0; 4];
        b.copy_to_slice(&mut magic);
        if magic != MAGIC {
            return Err(DecodeError::Magic(magic));
        }
        let version = b.get_u16_le();
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let (kind, level, job, config) = (b.get_u8(), b.get_u8(), b.get_u64_le(), b.get_u64_le());
        let epoch = Epoch::new(b.get_u64_le(), b.get_u64_le());
        let (round, chunk, index, zero) = (Round(b.get_u64_le()), b.get_u32_le(), b.get_u16_le(), b.get_u16_le());
        let (length, crc) = (b.get_u32_le() as usize, b.get_u32_le());
        if job != identity.job {
            return Err(DecodeError::Job { found: job, ours: identity.job });
        }
        if config != identity.config {
            return Err(DecodeError::Config { found: config, ours: identity.config });
        }
        if length > BODY_BYTES_MAX {
            return Err(DecodeError::TooLarge(length));
        }
        let node = TreeNode { level, index };
        let header =
            Header { kind, epoch, round, chunk, node, length, crc, crc_of_head: crc32fast::hash(&bytes[..60]) };
        header.check(zero)?;
        Ok(header)
    }

    /// Bytes of the body.
    pub fn body_bytes(&self) -> usize {
        self.length
    }

    fn check(&self, zero: u16) -> Result<(), DecodeError> {
        let unused = |what, is_zero| if is_zero { Ok(()) } else { Err(DecodeError::Unused { what }) };
        unused("padding", zero == 0)?;
        if self.kind > kind::GONE {
            return Err(DecodeError::Kind(self.kind));
        }
        match self.kind {
            kind::CONTRIBUTION => check_node(self.node)?,
            _ => unused("the tree node", self.node == TreeNode { level: 0, index: 0 })?,
        }
        match self.kind {
            kind::CONTRIBUTION | kind::REDUCED => check_chunk(self.chunk),
            _ => unused("the chunk", self.chunk == 0),
        }
    }

    /// The frame. `body` has exactly [`Header::body_bytes`] bytes.
    pub fn frame(self, body: Bytes) -> Result<Wire, DecodeError> {
        assert_eq!(body.len(), self.length, "the body's length is the header's");
        let mut crc = crc32fast::Hasher::new_with_initial(self.crc_of_head);
        crc.update(&body);
        let read = crc.finalize();
        if read != self.crc {
            return Err(DecodeError::Checksum { wrote: self.crc, read });
        }
        let Header { kind, epoch, round, chunk, node, .. } = self;
        let mut rest = Reader(body);
        let body = match kind {
            kind::CONTRIBUTION => Body::Contribution { round, chunk, node, payload: rest.all() },
            kind::REDUCED => Body::Reduced { round, chunk, payload: rest.all() },
            kind::AT => Body::At { round, published: Round(rest.u64("published")?), need: rest.need()? },
            kind::STATE_WANTED => {
                let (part, parts) = rest.part()?;
                Body::StateWanted { round, part, parts }
            }
            kind::STATE => rest.state(round)?,
            kind::GONE => Body::Gone { wanted: round, at: Round(rest.u64("at")?) },
            _ => {
                rest.end()?;
                return Ok(Wire::Beat);
            }
        };
        rest.end()?;
        Ok(Wire::Frame(Frame { epoch, body }))
    }
}

/// A whole frame from its bytes.
pub fn decode(identity: Identity, mut bytes: Bytes) -> Result<Wire, DecodeError> {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(DecodeError::Short { what: "the header" });
    };
    let header = Header::decode(identity, head)?;
    bytes.advance(HEADER_BYTES);
    match bytes.len().checked_sub(header.length) {
        None => Err(DecodeError::Short { what: "the body" }),
        Some(0) => header.frame(bytes),
        Some(more) => Err(DecodeError::Trailing(more)),
    }
}

fn check_node(node: TreeNode) -> Result<(), DecodeError> {
    if node.is_within(SHARDS_MAX) { Ok(()) } else { Err(DecodeError::Node(node)) }
}

fn check_chunk(chunk: u32) -> Result<(), DecodeError> {
    if (chunk as usize) < CHUNKS_MAX { Ok(()) } else { Err(DecodeError::Chunk(chunk)) }
}

/// Reads fields off the front; every length is checked against what is there before anything is allocated.
struct Reader(Bytes);

impl Reader {
    fn take(&mut self, bytes: usize, what: &'static str) -> Result<Bytes, DecodeError> {
        if self.0.len() < bytes { Err(DecodeError::Short { what }) } else { Ok(self.0.split_to(bytes)) }
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take(1, what)?.get_u8())
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        Ok(self.take(2, what)?.get_u16_le())
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(self.take(4, what)?.get_u32_le())
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(self.take(8, what)?.get_u64_le())
    }

    fn all(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }

    fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.0.len())) }
    }

    /// A count of things of `size` bytes each, all of which must be there.
    fn count(&mut self, what: &'static str, most: usize, size: usize) -> Result<usize, DecodeError> {
        let count = self.u16(what)? as usize;
        if count > most {
            return Err(DecodeError::Count { what, count, most });
        }
        if self.0.len() < count * size { Err(DecodeError::Short { what }) } else { Ok(count) }
    }

    fn chunk(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        let chunk = self.u32(what)?;
        check_chunk(chunk).map(|()| chunk)
    }

    fn node(&mut self) -> Result<TreeNode, DecodeError> {
        let node = TreeNode { level: self.u8("a tree node")?, index: self.u16("a tree node")? };
        check_node(node).map(|()| node)
    }

    fn need(&mut self) -> Result<Need, DecodeError> {
        let reduced = self.count("lacked chunks", CHUNKS_MAX, 4)?;
        let reduced = (0..reduced).map(|_| self.chunk("lacked chunks")).collect::<Result<_, _>>()?;
        let owned = self.count("chunks with missing subtrees", CHUNKS_MAX, 6)?;
        let mut nodes = Vec::with_capacity(owned);
        for _ in 0..owned {
            let chunk = self.chunk("a chunk with missing subtrees")?;
            let missing = self.count("missing subtrees", SHARDS_MAX as usize, 3)?;
            nodes.push((chunk, (0..missing).map(|_| self.node()).collect::<Result<_, _>>()?));
        }
        Ok(Need { reduced, nodes })
    }

    fn part(&mut self) -> Result<(u16, u16), DecodeError> {
        let (part, parts) = (self.u16("part")?, self.u16("parts")?);
        if part < parts { Ok((part, parts)) } else { Err(DecodeError::Part { part, parts }) }
    }

    fn state(&mut self, round: Round) -> Result<Body, DecodeError> {
        if self.0.len() < STATE_HEAD_BYTES {
            return Err(DecodeError::Short { what: "a state's head" });
        }
        let (part, parts) = self.part()?;
        let last = match self.u8("last")? {
            flag @ 0..=1 => flag == 1,
            flag => return Err(DecodeError::Flag(flag)),
        };
        let (total, offset) = (self.u64("total")?, self.u64("offset")?);
        let sha256_of_part = self.take(32, "sha256")?[..].try_into().expect("32 bytes were taken");
        let payload = self.all();
        if offset.checked_add(payload.len() as u64).is_none_or(|end| end > total) {
            return Err(DecodeError::Offset { offset, bytes: payload.len(), total });
        }
        Ok(Body::State { round, part, parts, total, offset, payload, sha256_of_part, last })
    }
}
