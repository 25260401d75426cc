//! What lets several ranks share one GPU, which NCCL does not mean to be done: for tests on a machine with one.
//!
//! NCCL refuses two ranks with the same host and the same device, and takes NCCL_HOSTID for the host where it is set. With an id
//! of its own each rank looks like a machine of its own, and speaks by sockets. It is read once in a process, while a
//! worker's rank changes with the view: so the id is made of the worker's, which stays. The kernels of such ranks
//! take turns on the GPU, ms each: good for showing what is right, not for speed. From 2.30 on there is also
//! NCCL_MULTI_RANK_GPU_ENABLE, which is experimental; this way is one for all versions.

use elastic_spec::WorkerId;

/// Where the ranks of a job are that shares GPUs between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranks {
    /// All on this machine: loopback carries what they say.
    OneMachine,
    /// On several: NCCL chooses the interface, or NCCL_SOCKET_IFNAME of the person who started them.
    SeveralMachines,
}

/// The environment of one of several workers on one GPU: to be set before NCCL is loaded.
pub fn of_worker_on_shared_gpu(worker: WorkerId, ranks: Ranks) -> Vec<(&'static str, String)> {
    let mut out = vec![
        ("NCCL_HOSTID", format!("elastic-{:016x}", worker.0)),
        ("NCCL_NET", "Socket".to_string()),
        ("NCCL_IB_DISABLE", "1".to_string()),
        // In-network sums and shared handles of memory suppose one rank to a GPU.
        ("NCCL_NVLS_ENABLE", "0".to_string()),
        ("NCCL_CUMEM_ENABLE", "0".to_string()),
        // Few blocks each, or the kernels of one rank leave no room for those that they wait for.
        ("NCCL_MAX_CTAS", "2".to_string()),
    ];
    if ranks == Ranks::OneMachine {
        // Without it NCCL takes loopback last, and a machine without a network has nothing else.
        out.push(("NCCL_SOCKET_IFNAME", "lo".to_string()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(worker: u64, ranks: Ranks, name: &str) -> Option<String> {
        let all = of_worker_on_shared_gpu(WorkerId(worker), ranks);
        all.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    #[test]
    fn no_two_workers_are_of_one_host_to_nccl() {
        // Ids whose short forms, as `Display` shows them, are alike.
        let ids = [1, 1 << 32, 2].map(|worker| value(worker, Ranks::OneMachine, "NCCL_HOSTID"));
        assert_eq!(ids[0].as_deref(), Some("elastic-0000000000000001"));
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    }

    #[test]
    fn loopback_is_named_only_where_it_reaches_everyone() {
        assert_eq!(value(1, Ranks::OneMachine, "NCCL_SOCKET_IFNAME").as_deref(), Some("lo"));
        assert_eq!(value(1, Ranks::SeveralMachines, "NCCL_SOCKET_IFNAME"), None);
    }
}
