//! Every bound of the system, with its unit, in one place.

/// Largest job file, in bytes.
pub const JOB_FILE_BYTES_MAX: usize = 1 << 20;
/// Largest V.
pub const SHARDS_MAX: u16 = 1024;
/// Most workers of one job.
pub const WORKERS_MAX: u16 = 1024;
/// Most processes of a command on one node.
pub const PROCESSES_MAX: u16 = 256;
/// Inputs up to this size travel to the coordinator by digest; larger ones must be visible to every worker.
pub const BLOB_BYTES_MAX: usize = 16 << 20;
/// Most that a worker reads of one input file, and holds of it unpacked, in bytes.
pub const DATA_BYTES_MAX: u64 = 16 << 30;
/// Largest data-plane frame: one chunk, its tail and the header.
pub const FRAME_BYTES_MAX: usize = 256 << 20;
/// Largest control message (worker to agent, gRPC).
pub const CONTROL_BYTES_MAX: usize = 24 << 20;

/// Largest resolved spec, as canonical JSON. Quoted into a record it at most doubles, and still fits the
/// smallest store (etcd takes 1.5 MiB a request).
pub const SPEC_BYTES_MAX: usize = 512 << 10;
/// Inputs that travel with one job.
pub const INPUTS_MAX: usize = 64;
/// Jobs that a coordinator keeps, and nodes that it knows.
pub const JOBS_MAX: usize = 1024;
pub const NODES_MAX: usize = 4096;
/// Longest text of a message: a path, a cause, a log's name.
pub const TEXT_BYTES_MAX: usize = 4 << 10;
/// Of the file in which a process of a command says why it failed; a longer one stays where it is.
pub const ERROR_FILE_BYTES_MAX: usize = 32 << 10;
/// Secrets and tokens.
pub const SECRET_BYTES_MAX: usize = 256;
/// Tokens that a coordinator keeps.
pub const TOKENS_MAX: usize = 1_000;
/// Longest life of a token, in ms: ten years.
pub const TOKEN_TTL_MS_MAX: u64 = 3_650 * 24 * 3_600_000;
/// A blob or a log travels in pieces of at most this.
pub const PIECE_BYTES_MAX: usize = 256 << 10;

/// A worker or agent speaks at least this often, in ms.
pub const BEAT_MS: u64 = 100;
/// A worker or agent silent for so long is suspected, in ms.
pub const SUSPECT_MS: u64 = 1_000;
/// A broken peer link makes a silent worker suspect sooner, in ms.
pub const SUSPECT_WITH_EVIDENCE_MS: u64 = 250;
/// A suspected worker that has not come back is killed and replaced after, in ms.
pub const REPLACE_MS: u64 = 15_000;
/// Faults that come close together are answered by one view, in ms.
pub const COALESCE_MS: u64 = 5;
/// From SIGTERM to SIGKILL, in ms.
pub const GRACE_MS: u64 = 10_000;
/// A node that joins a job that runs a command is waited for so long, so that those that come together make one
/// generation, in ms.
pub const JOIN_MS: u64 = 1_000;
/// No progress of one worker while others wait for it, before it is evicted: the larger of this many ms …
pub const HANG_MS_MIN: u64 = 4_000;
/// … and so many median steps.
pub const HANG_STEPS: u64 = 20;
/// A member that waits asks again after this many ms, doubling up to `RESEND_MS_MAX`.
pub const RESEND_MS: u64 = 50;
pub const RESEND_MS_MAX: u64 = 1_000;
/// Reduced rounds that a member keeps for those behind: at least two, at most so many …
pub const LOG_ROUNDS_MAX: usize = 256;
/// … and so many bytes.
pub const LOG_BYTES_MAX: usize = 256 << 20;
/// Stall samples that a worker keeps for its status.
pub const STALLS_MAX: usize = 64;

const _: () = assert!(BEAT_MS * 2 < SUSPECT_WITH_EVIDENCE_MS, "one lost beat is no evidence");
const _: () = assert!(SUSPECT_WITH_EVIDENCE_MS < SUSPECT_MS && SUSPECT_MS < REPLACE_MS, "suspect before replace");
const _: () = assert!(FRAME_BYTES_MAX > crate::layout::BLOCK_FLOATS * 4 * 2, "a chunk fits a frame");
