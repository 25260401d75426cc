//! The functions of NVIDIA's runtime compiler (`libnvrtc`) that are used, with `nvrtc.h`'s own names for their types.

// The names are nvrtc.h's: see `ffi::driver`.
#![allow(non_camel_case_types)]

use core::ffi::{c_char, c_int, c_void};

pub type nvrtcProgram = *mut c_void;
pub type nvrtcResult = c_int;

pub const SUCCESS: nvrtcResult = 0;
pub const ERROR_COMPILATION: nvrtcResult = 6;

crate::ffi::functions! {
    /// NVIDIA's runtime compiler. Versions before 11.1 make no cubins and lack the functions for them.
    NvrtcFunctions {
        version = "nvrtcVersion"(*mut c_int, *mut c_int);
        create = "nvrtcCreateProgram"(
            *mut nvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char,
        );
        destroy = "nvrtcDestroyProgram"(*mut nvrtcProgram);
        compile = "nvrtcCompileProgram"(nvrtcProgram, c_int, *const *const c_char);
        log_size = "nvrtcGetProgramLogSize"(nvrtcProgram, *mut usize);
        log = "nvrtcGetProgramLog"(nvrtcProgram, *mut c_char);
        cubin_size = "nvrtcGetCUBINSize"(nvrtcProgram, *mut usize);
        cubin = "nvrtcGetCUBIN"(nvrtcProgram, *mut c_char);
    }
}

/// The name of a result, as in `nvrtc.h`.
pub fn name(result: nvrtcResult) -> String {
    let names = [
        "NVRTC_SUCCESS",
        "NVRTC_ERROR_OUT_OF_MEMORY",
        "NVRTC_ERROR_PROGRAM_CREATION_FAILURE",
        "NVRTC_ERROR_INVALID_INPUT",
        "NVRTC_ERROR_INVALID_PROGRAM",
        "NVRTC_ERROR_INVALID_OPTION",
        "NVRTC_ERROR_COMPILATION",
        "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE",
    ];
    let named = usize::try_from(result).ok().and_then(|at| names.get(at));
    named.map_or_else(|| format!("NVRTC_ERROR {result}"), |name| name.to_string())
}
