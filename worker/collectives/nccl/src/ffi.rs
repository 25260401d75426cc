//! NCCL's functions that are used, with `nccl.h`'s own names for their types. Compared with the header by a C compiler in
//! `tests/declarations.rs`.

// The names are nccl.h's, which says what they are.
#![allow(non_camel_case_types)]

use core::ffi::{c_char, c_int, c_uint, c_void};

pub type ncclComm_t = *mut c_void;
pub type cudaStream_t = *mut c_void;
pub type ncclResult_t = c_int;
pub type ncclDataType_t = c_int;
pub type ncclRedOp_t = c_int;

pub const SUCCESS: ncclResult_t = 0;
pub const IN_PROGRESS: ncclResult_t = 7;
pub const UINT8: ncclDataType_t = 1;
pub const FLOAT32: ncclDataType_t = 7;
pub const SUM: ncclRedOp_t = 0;

/// Where the ranks of a communicator find each other. Whoever knows it can take a seat: it travels on our own links only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ncclUniqueId {
    pub internal: [c_char; 128],
}

/// As of 2.28.9; what an older library knows of it is in `config`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ncclConfig_t {
    pub size: usize,
    pub magic: c_uint,
    pub version: c_uint,
    pub blocking: c_int,
    pub cga_cluster_size: c_int,
    pub min_ctas: c_int,
    pub max_ctas: c_int,
    pub net_name: *const c_char,
    pub split_share: c_int,
    pub traffic_class: c_int,
    pub comm_name: *const c_char,
    pub collnet_enable: c_int,
    pub cta_policy: c_int,
    pub shrink_share: c_int,
    pub nvls_ctas: c_int,
    pub channels_per_net_peer: c_int,
    pub nvlink_centric_sched: c_int,
}

elastic_cuda::ffi::functions! {
    /// NCCL since 2.18. Of the optional ones only `revoke` is called; the others say what a library could do.
    NcclFunctions {
        version = "ncclGetVersion"(*mut c_int);
        unique_id = "ncclGetUniqueId"(*mut ncclUniqueId);
        join = "ncclCommInitRankConfig"(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t);
        finalize = "ncclCommFinalize"(ncclComm_t);
        destroy = "ncclCommDestroy"(ncclComm_t);
        abort = "ncclCommAbort"(ncclComm_t);
        async_error = "ncclCommGetAsyncError"(ncclComm_t, *mut ncclResult_t);
        count = "ncclCommCount"(ncclComm_t, *mut c_int);
        user_rank = "ncclCommUserRank"(ncclComm_t, *mut c_int);
        group_start = "ncclGroupStart"();
        group_end = "ncclGroupEnd"();
        send = "ncclSend"(*const c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t);
        receive = "ncclRecv"(*mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t);
        broadcast = "ncclBroadcast"(
            *const c_void, *mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t,
        );
        all_reduce = "ncclAllReduce"(
            *const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t,
        );
        error_string = "ncclGetErrorString"(ncclResult_t) -> *const c_char;
        last_error = "ncclGetLastError"(ncclComm_t) -> *const c_char;
    } optional {
        split = "ncclCommSplit"(ncclComm_t, c_int, c_int, *mut ncclComm_t, *mut ncclConfig_t);
        register = "ncclCommRegister"(ncclComm_t, *mut c_void, usize, *mut *mut c_void);
        deregister = "ncclCommDeregister"(ncclComm_t, *mut c_void);
        window_register = "ncclCommWindowRegister"(ncclComm_t, *mut c_void, usize, *mut ncclWindow_t, c_int);
        shrink = "ncclCommShrink"(
            ncclComm_t, *mut c_int, c_int, *mut ncclComm_t, *mut ncclConfig_t, c_int,
        );
        revoke = "ncclCommRevoke"(ncclComm_t, c_int);
        grow = "ncclCommGrow"(
            ncclComm_t, c_int, *const ncclUniqueId, c_int, *mut ncclComm_t, *mut ncclConfig_t,
        );
        memory = "ncclCommMemStats"(ncclComm_t, ncclCommMemStat_t, *mut uint64_t);
    }
}

pub type ncclWindow_t = *mut c_void;
pub type ncclCommMemStat_t = c_int;
pub type uint64_t = u64;
