//! What can be wrong with CUDA on a machine, each with the values that were found and what a person does about it.
//!
//! Nothing that comes from outside (a library, a driver, a device, a source) ends in a panic: it ends here.

use std::path::PathBuf;
use thiserror::Error;

pub type Result<T> = std::result::Result<T, CudaError>;

#[derive(Clone, Debug, PartialEq, Error)]
pub enum CudaError {
    #[error("{name} is not on this machine ({looked}); {cure}")]
    NoLibrary { name: String, looked: String, cure: &'static str },
    #[error("{} cannot be loaded: {why}; {cure}", path.display())]
    Unloadable { path: PathBuf, why: String, cure: &'static str },
    #[error("{} has no function {symbol}: it is too old, or no such library; {cure}", path.display())]
    NoFunction { path: PathBuf, symbol: &'static str, cure: &'static str },
    #[error("{what} is version {found}, and {needed} is the oldest that works; {cure}", found = version(*found), needed = version(*needed))]
    TooOld { what: &'static str, found: u32, needed: u32, cure: &'static str },
    #[error("{} is version {found}, and {needed} is the oldest that works; {cure}", path.display())]
    OldLibrary { path: PathBuf, found: String, needed: String, cure: &'static str },
    #[error("{call}: {name} ({code}){}; {cure}", if text.is_empty() { String::new() } else { format!(": {text}") })]
    Call { call: &'static str, code: i32, name: String, text: String, cure: &'static str },
    #[error("{what} for {arch} does not compile:\n{log}")]
    Compile { what: String, arch: String, log: String },
    #[error("machine code of {bytes} bytes is not whole: {why}; remove what is kept of it (docs/gpu.md says where)")]
    NotWhole { bytes: u64, why: String },
    #[error("{what}: {found} bytes from {at} on, of {room} that are there")]
    OutOfRange { what: &'static str, at: u64, found: u64, room: u64 },
    #[error("there is no GPU {asked}: {there} found, counted from 0; `elastic devices` lists them")]
    NoDevice { asked: u32, there: u32 },
    #[error("{what} has a NUL byte inside, which no C text can have")]
    Nul { what: String },
    #[error("no kernel {kernel} for a GPU of compute capability {major}.{minor}: embedded are {embedded}, and {nvrtc}")]
    NoCubin { kernel: String, major: u32, minor: u32, embedded: String, nvrtc: String },
    #[error("{}: {what}: {why}", path.display())]
    File { path: PathBuf, what: &'static str, why: String },
}

/// 13020 as CUDA counts is version 13.2.
pub fn version(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// What a person does about a code of the driver. The codes are those of `cuda.h`.
pub(crate) fn cure_of(code: i32) -> &'static str {
    match code {
        2 => "less must fit: a smaller train.global_batch or model, or a GPU with more free memory (`nvidia-smi`)",
        34 => {
            "this libcuda.so.1 is the toolkit's stub for linking: take its `stubs` folder out of LD_LIBRARY_PATH and \
             install NVIDIA's driver"
        }
        35 | 36 => "update NVIDIA's driver",
        46 => "another process may hold the GPU alone: see the compute mode in `nvidia-smi`",
        100 => {
            "the driver sees no GPU: `nvidia-smi` should list one; look at CUDA_VISIBLE_DEVICES, or start the \
             container with access to the GPU"
        }
        101 => "`elastic devices` lists the GPUs that there are",
        200 | 209 | 218 | 222 => "the kernel was compiled for another GPU or a newer driver: update NVIDIA's driver",
        214 | 220 => "the GPU's memory or link is damaged: take it out of service (`nvidia-smi -q -d ECC`)",
        500 => "the kernel's file has no function of that name: this is a fault of elastic itself",
        700..=720 => {
            "the GPU's context is lost, so this process must end: this is a fault of elastic itself, unless \
             `dmesg` shows an Xid of the hardware"
        }
        802 | 803 => {
            "the driver's kernel module and libraries differ, or are not up yet: reboot, or reinstall the driver"
        }
        804 => "this driver's compatibility package is not for this GPU: install a driver of the same major version",
        900..=908 => "something that cannot be captured ran while a graph was: this is a fault of elastic itself",
        _ => "`nvidia-smi` and `dmesg` may say more",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_call_the_code_and_the_cure() {
        let call = |text: &str| CudaError::Call {
            call: "cuInit",
            code: 100,
            name: "CUDA_ERROR_NO_DEVICE".into(),
            text: text.into(),
            cure: cure_of(100),
        };
        let said = call("no CUDA-capable device is detected").to_string();
        let opens = "cuInit: CUDA_ERROR_NO_DEVICE (100): no CUDA-capable device is detected; the driver sees no GPU";
        assert!(said.starts_with(opens), "{said}");
        assert!(call("").to_string().starts_with("cuInit: CUDA_ERROR_NO_DEVICE (100); the driver"));
    }

    #[test]
    fn versions_are_said_as_people_say_them() {
        assert_eq!([12000, 12080, 13020].map(version), ["12.0", "12.8", "13.2"]);
    }
}
