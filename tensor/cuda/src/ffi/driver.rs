//! The functions of NVIDIA's driver (`libcuda.so.1`) that are used, with `cuda.h`'s own names for their types.
//!
//! Only what every driver since CUDA 12.0 has: a newer name stands before the older one where there are two.

// The names are cuda.h's, so that a reader finds them there and `tests/declarations.rs` can hand them to a C compiler.
#![allow(non_camel_case_types)]

use core::ffi::{c_char, c_int, c_uchar, c_uint, c_void};

/// What a handle points to is the driver's business.
macro_rules! handles {
    ($($name:ident)*) => { $(pub type $name = *mut c_void;)* };
}

handles!(CUcontext CUmodule CUfunction CUstream CUevent CUgraph CUgraphExec);

pub type CUdevice = c_int;
/// An address in the GPU's memory.
pub type CUdeviceptr = u64;
pub type CUresult = c_int;
pub type CUdevice_attribute = c_int;
pub type CUfunction_attribute = c_int;
pub type CUstreamCaptureMode = c_int;

pub const SUCCESS: CUresult = 0;
pub const ERROR_NOT_READY: CUresult = 600;
pub const ATTRIBUTE_MULTIPROCESSOR_COUNT: CUdevice_attribute = 16;
pub const ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: CUdevice_attribute = 75;
pub const ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: CUdevice_attribute = 76;
pub const ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: CUdevice_attribute = 97;
pub const FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: CUfunction_attribute = 1;
pub const FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: CUfunction_attribute = 3;
pub const FUNC_ATTRIBUTE_NUM_REGS: CUfunction_attribute = 4;
pub const FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: CUfunction_attribute = 8;
pub const STREAM_NON_BLOCKING: c_uint = 1;
pub const EVENT_DEFAULT: c_uint = 0;
pub const CAPTURE_MODE_THREAD_LOCAL: CUstreamCaptureMode = 1;

crate::ffi::functions! {
    /// NVIDIA's driver.
    DriverFunctions {
        init = "cuInit"(c_uint);
        driver_version = "cuDriverGetVersion"(*mut c_int);
        error_name = "cuGetErrorName"(CUresult, *mut *const c_char);
        error_text = "cuGetErrorString"(CUresult, *mut *const c_char);

        device_count = "cuDeviceGetCount"(*mut c_int);
        device = "cuDeviceGet"(*mut CUdevice, c_int);
        device_name = "cuDeviceGetName"(*mut c_char, c_int, CUdevice);
        device_memory = "cuDeviceTotalMem_v2"(*mut usize, CUdevice);
        device_attribute = "cuDeviceGetAttribute"(*mut c_int, CUdevice_attribute, CUdevice);

        context_retain = "cuDevicePrimaryCtxRetain"(*mut CUcontext, CUdevice);
        context_release = "cuDevicePrimaryCtxRelease_v2"(CUdevice);
        context_set_current = "cuCtxSetCurrent"(CUcontext);

        module_load = "cuModuleLoadData"(*mut CUmodule, *const c_void);
        module_unload = "cuModuleUnload"(CUmodule);
        module_function = "cuModuleGetFunction"(*mut CUfunction, CUmodule, *const c_char);
        function_attribute = "cuFuncGetAttribute"(*mut c_int, CUfunction_attribute, CUfunction);
        function_set_attribute = "cuFuncSetAttribute"(CUfunction, CUfunction_attribute, c_int);

        memory_info = "cuMemGetInfo_v2"(*mut usize, *mut usize);
        memory_alloc = "cuMemAlloc_v2"(*mut CUdeviceptr, usize);
        memory_free = "cuMemFree_v2"(CUdeviceptr);
        host_alloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
        host_free = "cuMemFreeHost"(*mut c_void);

        stream_create = "cuStreamCreate"(*mut CUstream, c_uint);
        stream_destroy = "cuStreamDestroy_v2"(CUstream);
        stream_synchronize = "cuStreamSynchronize"(CUstream);
        stream_query = "cuStreamQuery"(CUstream);
        stream_wait_event = "cuStreamWaitEvent"(CUstream, CUevent, c_uint);
        copy_in = "cuMemcpyHtoDAsync_v2"(CUdeviceptr, *const c_void, usize, CUstream);
        copy_out = "cuMemcpyDtoHAsync_v2"(*mut c_void, CUdeviceptr, usize, CUstream);
        copy_within = "cuMemcpyDtoDAsync_v2"(CUdeviceptr, CUdeviceptr, usize, CUstream);
        set_bytes = "cuMemsetD8Async"(CUdeviceptr, c_uchar, usize, CUstream);

        event_create = "cuEventCreate"(*mut CUevent, c_uint);
        event_destroy = "cuEventDestroy_v2"(CUevent);
        event_record = "cuEventRecord"(CUevent, CUstream);
        event_synchronize = "cuEventSynchronize"(CUevent);
        event_query = "cuEventQuery"(CUevent);
        event_elapsed = "cuEventElapsedTime_v2" | "cuEventElapsedTime"(*mut f32, CUevent, CUevent);

        launch = "cuLaunchKernel"(
            CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void,
            *mut *mut c_void,
        );

        capture_begin = "cuStreamBeginCapture_v2"(CUstream, CUstreamCaptureMode);
        capture_end = "cuStreamEndCapture"(CUstream, *mut CUgraph);
        graph_instantiate = "cuGraphInstantiateWithFlags"(*mut CUgraphExec, CUgraph, u64);
        graph_destroy = "cuGraphDestroy"(CUgraph);
        graph_launch = "cuGraphLaunch"(CUgraphExec, CUstream);
        graph_exec_destroy = "cuGraphExecDestroy"(CUgraphExec);
    }
}
