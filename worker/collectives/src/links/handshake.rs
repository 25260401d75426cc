//! Proves, before a frame is read, that both ends belong to the same job and know its secret.
//!
//! The dialler sends its hello (version, job, config, both ids, a nonce); the acceptor answers with a verdict,
//! its own nonce and an HMAC-SHA256 over all of it; the dialler answers with its own HMAC and waits for the
//! last verdict. The two HMACs differ by a role word, so neither can be played back as the other. All
//! messages have fixed sizes; nobody allocates on a stranger's word. Without TLS this proves who connects,
//! not that nobody on the path alters bytes later: hence the refusal to bind outside loopback without it.

use super::stream::Stream;
use elastic_spec::{Digest, JobId, WorkerId};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::rustls::crypto::ring;

const MAGIC: [u8; 4] = *b"ELHS";
const VERSION: u16 = 1;
const HELLO_BYTES: usize = 4 + 2 + 32 + 32 + 8 + 8 + 32;
const NONCE_BYTES: usize = 32;
const MAC_BYTES: usize = 32;

/// Who we are and how we prove it.
pub struct Proof {
    job: Digest,
    config: Digest,
    me: WorkerId,
    secret: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("it does not speak this protocol")]
    Stranger,
    #[error("it speaks version {0}, ours is {VERSION}")]
    Version(u16),
    #[error("it belongs to another job")]
    Job,
    #[error("it runs the job under another config")]
    Config,
    #[error("it looks for another worker than {0}")]
    NotMe(WorkerId),
    #[error("its id {0} says that we dial it, not it us")]
    Direction(WorkerId),
    #[error("it does not know the job's secret")]
    Secret,
    #[error("the peer refused us: {0}")]
    ByPeer(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Proof {
    pub fn new(job: &JobId, config: Digest, me: WorkerId, secret: Vec<u8>) -> Proof {
        Proof { job: Digest::of(job.as_str().as_bytes()), config, me, secret }
    }

    fn mac(&self, role: &[u8], hello: &[u8; HELLO_BYTES], answer: &[u8; NONCE_BYTES]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("an HMAC key may have any length");
        mac.update(role);
        mac.update(hello);
        mac.update(answer);
        mac
    }
}

/// One byte that says how it ended for the other side.
mod verdict {
    use super::Refused;

    pub const WELCOME: u8 = 0;

    pub fn of(why: &Refused) -> u8 {
        match why {
            Refused::Version(_) => 1,
            Refused::Job => 2,
            Refused::Config => 3,
            Refused::NotMe(_) => 4,
            Refused::Direction(_) => 5,
            Refused::Secret => 6,
            Refused::Stranger | Refused::ByPeer(_) | Refused::Io(_) => 7,
        }
    }

    pub fn check(byte: u8) -> Result<(), Refused> {
        Err(Refused::ByPeer(match byte {
            WELCOME => return Ok(()),
            1 => "it speaks another version",
            2 => "it belongs to another job",
            3 => "it runs the job under another config",
            4 => "another worker has its address now",
            5 => "it dials us, not we it",
            6 => "our secret is not the job's",
            _ => "without a reason",
        }))
    }
}

pub async fn dial(proof: &Proof, peer: WorkerId, stream: &mut Stream) -> Result<(), Refused> {
    let hello = hello(proof, peer)?;
    stream.write_all(&hello).await?;
    stream.flush().await?;
    verdict::check(stream.read_u8().await?)?;
    let mut answer = [0; NONCE_BYTES];
    stream.read_exact(&mut answer).await?;
    let mut theirs = [0; MAC_BYTES];
    stream.read_exact(&mut theirs).await?;
    proof.mac(b"accept", &hello, &answer).verify_slice(&theirs).map_err(|_| Refused::Secret)?;
    stream.write_all(&proof.mac(b"dial", &hello, &answer).finalize().into_bytes()).await?;
    stream.flush().await?;
    verdict::check(stream.read_u8().await?)
}

/// Who dialled.
pub async fn accept(proof: &Proof, stream: &mut Stream) -> Result<WorkerId, Refused> {
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello).await?;
    let verdict = judge(proof, &hello);
    let peer = match verdict {
        Ok(peer) => peer,
        Err(why) => {
            stream.write_u8(verdict::of(&why)).await?;
            stream.shutdown().await?;
            return Err(why);
        }
    };
    let answer = nonce()?;
    let mut message = vec![verdict::WELCOME];
    message.extend_from_slice(&answer);
    message.extend_from_slice(&proof.mac(b"accept", &hello, &answer).finalize().into_bytes());
    stream.write_all(&message).await?;
    stream.flush().await?;
    let mut theirs = [0; MAC_BYTES];
    stream.read_exact(&mut theirs).await?;
    let verdict = proof.mac(b"dial", &hello, &answer).verify_slice(&theirs).map_err(|_| Refused::Secret);
    stream.write_u8(verdict.as_ref().map_or_else(verdict::of, |()| verdict::WELCOME)).await?;
    stream.flush().await?;
    verdict.map(|()| peer)
}

fn hello(proof: &Proof, peer: WorkerId) -> io::Result<[u8; HELLO_BYTES]> {
    let mut out = Vec::with_capacity(HELLO_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&proof.job.0);
    out.extend_from_slice(&proof.config.0);
    out.extend_from_slice(&proof.me.0.to_le_bytes());
    out.extend_from_slice(&peer.0.to_le_bytes());
    out.extend_from_slice(&nonce()?);
    Ok(out.try_into().expect("the hello's fields make up its size"))
}

fn judge(proof: &Proof, hello: &[u8; HELLO_BYTES]) -> Result<WorkerId, Refused> {
    let (magic, rest) = hello.split_at(4);
    let (version, rest) = rest.split_at(2);
    let (job, rest) = rest.split_at(32);
    let (config, rest) = rest.split_at(32);
    let (from, rest) = rest.split_at(8);
    let id = |bytes: &[u8]| WorkerId(u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
    let (from, to) = (id(from), id(&rest[..8]));
    let version = u16::from_le_bytes([version[0], version[1]]);
    match () {
        () if magic != MAGIC => Err(Refused::Stranger),
        () if version != VERSION => Err(Refused::Version(version)),
        () if job != proof.job.0 => Err(Refused::Job),
        () if config != proof.config.0 => Err(Refused::Config),
        () if to != proof.me => Err(Refused::NotMe(proof.me)),
        () if from >= proof.me => Err(Refused::Direction(from)),
        () => Ok(from),
    }
}

fn nonce() -> io::Result<[u8; NONCE_BYTES]> {
    let mut out = [0; NONCE_BYTES];
    let random = ring::default_provider().secure_random;
    random.fill(&mut out).map_err(|_| io::Error::other("the system gives no random bytes"))?;
    Ok(out)
}
