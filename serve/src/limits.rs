//! Every bound of the server, with its unit, in one place. What a flag can change is in [`crate::config`].

use std::time::Duration;

/// Largest request body, as it comes and unpacked, in bytes.
pub const BODY_BYTES_MAX: usize = 64 << 20;
/// Bodies of all requests that are being read or wait, in bytes.
pub const BODIES_BYTES_MAX: usize = 512 << 20;
/// A body up to this size is not counted against that.
pub const BODY_BYTES_SMALL: usize = 64 << 10;
/// Largest message of a gRPC call that needs no key, in bytes: it has none.
pub const PROBE_BYTES_MAX: usize = 1 << 10;
/// How deep lists and objects of a JSON text may lie in each other.
pub const JSON_DEPTH_MAX: usize = 100;
/// Headers of a request: how many, and how many bytes with the request line.
pub const HEADERS_MAX: usize = 64;
pub const HEAD_BYTES_MAX: usize = 32 << 10;
/// Connections at once, of both protocols together unless a flag says otherwise.
pub const CONNECTIONS_MAX: usize = 1024;
/// gRPC calls open at once on one connection.
pub const STREAMS_MAX: u32 = 256;
/// Longest time for the head of a request to come, idle time between two of them included.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(75);
/// Longest silence within a body, of the client that sends it.
pub const BODY_SILENCE_MAX: Duration = Duration::from_secs(20);
/// Longest time in which a client reads nothing of its answer: more than a text waits for its reader, so that this one
/// is told in the stream if it reads on, and less than a drain.
pub const UNREAD_TIME_MAX: Duration = Duration::from_secs(25);
/// Longest TLS handshake.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Inputs and outputs that a request may name.
pub const TENSORS_MAX: usize = 64;
/// Dimensions of a tensor.
pub const DIMENSIONS_MAX: usize = 8;
/// Rows of one request.
pub const ROWS_MAX: usize = 1 << 20;
/// Numbers of one answer's output: 64 Mi of them are 256 MiB.
pub const ANSWER_NUMBERS_MAX: usize = 64 << 20;
/// Longest request id, model name or label, in bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// What is quoted of a client's text in an error, in characters.
pub const QUOTE_CHARS_MAX: usize = 80;
/// Longest time that a request can ask for.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Longest time for which a thread that reads requests computes without reading.
pub const QUICK_MAX: Duration = Duration::from_micros(500);
/// Bytes that wait in one model's queue.
pub const QUEUE_BYTES_MAX: usize = 256 << 20;
/// Texts of one request: prompts, each so many times.
pub const TEXTS_MAX: usize = 128;
/// Stops of a request, and the bytes of one.
pub const STOPS_MAX: usize = 16;
pub const STOP_BYTES_MAX: usize = 1024;
/// Likely tokens that are told beside each.
pub const LIKELY_MAX: usize = 5;
/// Words of a request that its listener has not taken yet; who has so many is not told to go on.
pub const WORDS_MAX: usize = 64;
/// Models of a repository, and versions of a model, that are looked at.
pub const MODELS_MAX: usize = 1024;
pub const VERSIONS_MAX: usize = 4096;
/// Largest labels.json and file of API keys, in bytes.
pub const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

const _: () = assert!(BODY_BYTES_SMALL < BODY_BYTES_MAX && BODY_BYTES_MAX < BODIES_BYTES_MAX, "one body fits");
