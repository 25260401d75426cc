//! What can go wrong with NCCL, each with the call, the values and what a person does about it. Nothing ends in a panic.

use elastic_cuda::CudaError;
use elastic_spec::Rank;
use thiserror::Error;

pub type Result<T> = std::result::Result<T, NcclError>;

#[derive(Clone, Debug, PartialEq, Error)]
pub enum NcclError {
    #[error(transparent)]
    Library(#[from] CudaError),
    /// The communicator is of no more use: abort it, and let the members meet again.
    #[error("{call}: {name} ({code}){}; {cure}", if text.is_empty() { String::new() } else { format!(": {text}") })]
    Call { call: &'static str, code: i32, name: String, text: String, cure: &'static str },
    /// The same: what did not come may come later, to nobody.
    #[error("{call} was not done after {waited_ms} ms: a rank is missing, hangs or is slow")]
    Late { call: &'static str, waited_ms: u128 },
    #[error("{call}: the communicator was aborted")]
    Aborted { call: &'static str },
    /// The library holds a thread. No call may be made on the communicator any more, not even to free it.
    #[error(
        "{call} has not returned for {waited_ms} ms, and this NCCL has no ncclCommRevoke that would call it back \
         (2.28.7 and later have); this process must end"
    )]
    Stuck { call: &'static str, waited_ms: u128 },
    /// What is on the stream does not end. Memory that it uses is never freed.
    #[error(
        "the GPU is not through with its stream {waited_ms} ms after all that it could wait for ended; this process must end"
    )]
    Hung { waited_ms: u128 },
    #[error("rank {rank} of {world} is no seat")]
    Seat { rank: Rank, world: u16 },
    #[error("an invitation of {0} bytes is none")]
    Invitation(usize),
    #[error("{region} has {room} bytes, and the plan needs {needed}")]
    Room { region: String, room: usize, needed: usize },
    /// Of a wire that is not NCCL's.
    #[error("the links: {0}")]
    Wire(String),
    #[error("the device: {0}")]
    Device(String),
}

impl NcclError {
    pub(crate) fn call(call: &'static str, code: i32, name: String, text: String) -> NcclError {
        NcclError::Call { call, code, name, text, cure: cure_of(code) }
    }
}

/// What a person does about a code. The codes are those of `nccl.h`.
fn cure_of(code: i32) -> &'static str {
    match code {
        1 => "NCCL has no use of the GPU: `elastic devices --need-gpu` says what is wrong with it",
        2 => {
            "a socket or shared memory did not work: look at NCCL_SOCKET_IFNAME, at firewalls between the nodes and at \
             the room in /dev/shm; NCCL_DEBUG=INFO says more"
        }
        3 => {
            "a fault inside NCCL: another version may do (`elastic devices` says which this is); NCCL_DEBUG=INFO says more"
        }
        4 | 5 => "this is a fault of elastic itself; NCCL_DEBUG=WARN says which argument",
        6 => "another rank is lost or has aborted: the members meet again in the next view",
        8 => "NCCL's own time was up: a rank is missing or hangs",
        _ => "NCCL_DEBUG=INFO says more",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_call_the_code_the_text_and_the_cure() {
        let said = |text: &str| NcclError::call("ncclSend", 6, "remote process exited".into(), text.into()).to_string();
        let wanted = "ncclSend: remote process exited (6): peer 2 is gone; another rank is lost";
        assert!(said("peer 2 is gone").starts_with(wanted), "{}", said("peer 2 is gone"));
        assert!(said("").starts_with("ncclSend: remote process exited (6); another rank"), "{}", said(""));
    }
}
