//! Kernels from CUDA source to machine code, in this process, by NVIDIA's runtime compiler.
//!
//! The options are the ones that exactness needs: no product is contracted with a sum unless the source says `fmaf`,
//! no fast approximations, no denormal flushed. Keeping what was compiled is `cache`'s business.

use crate::arch::Arch;
use crate::error::{CudaError, Result};
use crate::ffi;
use crate::ffi::nvrtc::{ERROR_COMPILATION, NvrtcFunctions, SUCCESS, nvrtcProgram, nvrtcResult};
use crate::libs::search::Library;
use core::ffi::{c_char, c_int};
use std::ffi::CString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

/// Beside `--gpu-architecture`. Part of the cache's key.
pub const OPTIONS: &[&str] = &[
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    // Registers and spills of each function, in the log.
    "--ptxas-options=-v",
];

/// A source with the headers that it may include, by the names under which it does.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub name: &'a str,
    pub text: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
}

/// Machine code for one architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct Cubin {
    pub bytes: Vec<u8>,
    pub usage: Vec<Usage>,
    /// What the compiler said.
    pub log: String,
}

/// What a thread of a function needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub function: String,
    pub registers: u32,
    pub stack_bytes: u32,
    pub spill_store_bytes: u32,
    pub spill_load_bytes: u32,
}

/// Of the compiler; its minor versions may give other machine code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NvrtcVersion {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for NvrtcVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The compiler, loaded.
pub struct Nvrtc {
    functions: NvrtcFunctions,
    path: PathBuf,
    version: NvrtcVersion,
    builtins: Option<PathBuf>,
}

impl Nvrtc {
    /// Loads the compiler, and its builtins before it: it looks for them by their bare name.
    pub fn load(path: &Path, builtins: Option<&Path>) -> Result<Nvrtc> {
        let cure = Library::Nvrtc.cure();
        builtins.map(|path| ffi::open(path, cure)).transpose()?;
        let functions = NvrtcFunctions::load(path, cure)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the function writes two ints.
        check("nvrtcVersion", unsafe { (functions.version)(&mut major, &mut minor) })?;
        let version = NvrtcVersion { major: major.unsigned_abs(), minor: minor.unsigned_abs() };
        Ok(Nvrtc { functions, path: path.into(), version, builtins: builtins.map(Path::to_path_buf) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn builtins(&self) -> Option<&Path> {
        self.builtins.as_deref()
    }

    pub fn version(&self) -> NvrtcVersion {
        self.version
    }

    /// Machine code of a source for one architecture. What does not compile is an error with the compiler's log.
    pub fn compile(&self, source: &Source, arch: Arch) -> Result<Cubin> {
        let program = Program::create(self, source)?;
        let arch_option = format!("--gpu-architecture={arch}");
        let options: Vec<CString> = OPTIONS
            .iter()
            .copied()
            .chain([arch_option.as_str()])
            .map(|option| CString::new(option).expect("our own options have no NUL"))
            .collect();
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program lives, and so do the options until the end of the call.
        let code = unsafe { (self.functions.compile)(program.raw, pointers.len() as c_int, pointers.as_ptr()) };
        let log = program.log()?;
        if code == ERROR_COMPILATION {
            return Err(CudaError::Compile { what: source.name.into(), arch: arch.to_string(), log });
        }
        check("nvrtcCompileProgram", code).map_err(|error| with_log(error, &log))?;
        Ok(Cubin { bytes: program.cubin()?, usage: usage_of(&log), log })
    }
}

/// The log says more than the code, such as that the builtins are not there.
fn with_log(error: CudaError, log: &str) -> CudaError {
    match error {
        CudaError::Call { call, code, name, cure, .. } => {
            let text = log.split_whitespace().collect::<Vec<_>>().join(" ");
            CudaError::Call { call, code, name, text, cure }
        }
        other => other,
    }
}

fn check(call: &'static str, code: nvrtcResult) -> Result<()> {
    match code {
        SUCCESS => Ok(()),
        code => Err(CudaError::Call {
            call,
            code,
            name: ffi::nvrtc::name(code),
            text: String::new(),
            cure: match code {
                1 => "the compiler ran out of memory",
                5 => "this version of the compiler does not know an option: take libnvrtc of CUDA 12 or 13",
                7 => "libnvrtc-builtins of the same version must lie beside libnvrtc",
                _ => "a newer libnvrtc may do better: `pip install -U nvidia-cuda-nvrtc`",
            },
        }),
    }
}

fn text(what: &str, value: &str) -> Result<CString> {
    CString::new(value).map_err(|_| CudaError::Nul { what: what.into() })
}

/// A program of the compiler's, destroyed at its end.
struct Program<'a> {
    nvrtc: &'a Nvrtc,
    raw: nvrtcProgram,
}

impl<'a> Program<'a> {
    fn create(nvrtc: &'a Nvrtc, source: &Source) -> Result<Program<'a>> {
        let (name, body) = (text("a kernel's name", source.name)?, text(source.name, source.text)?);
        let names: Vec<CString> =
            source.headers.iter().map(|(name, _)| text("a header's name", name)).collect::<Result<_>>()?;
        let bodies: Vec<CString> = source.headers.iter().map(|(name, body)| text(name, body)).collect::<Result<_>>()?;
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (names, bodies) = (pointers(&names), pointers(&bodies));
        let mut raw = null_mut();
        let count = names.len() as c_int;
        let or_null = |list: &Vec<*const c_char>| if list.is_empty() { null() } else { list.as_ptr() };
        // SAFETY: all texts live until the end of the call, which copies them; the lists have `count` entries.
        let code = unsafe {
            (nvrtc.functions.create)(&mut raw, body.as_ptr(), name.as_ptr(), count, or_null(&bodies), or_null(&names))
        };
        check("nvrtcCreateProgram", code)?;
        Ok(Program { nvrtc, raw })
    }

    fn log(&self) -> Result<String> {
        let mut bytes = 0;
        // SAFETY: the program lives; the function writes one size.
        check("nvrtcGetProgramLogSize", unsafe { (self.nvrtc.functions.log_size)(self.raw, &mut bytes) })?;
        let mut log = vec![0u8; bytes];
        // SAFETY: the room is as large as the compiler asked for, the closing NUL included.
        check("nvrtcGetProgramLog", unsafe { (self.nvrtc.functions.log)(self.raw, log.as_mut_ptr().cast()) })?;
        log.truncate(log.iter().position(|byte| *byte == 0).unwrap_or(log.len()));
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: the program lives; the function writes one size.
        check("nvrtcGetCUBINSize", unsafe { (self.nvrtc.functions.cubin_size)(self.raw, &mut bytes) })?;
        let mut cubin = vec![0u8; bytes];
        // SAFETY: the room is as large as the compiler asked for.
        check("nvrtcGetCUBIN", unsafe { (self.nvrtc.functions.cubin)(self.raw, cubin.as_mut_ptr().cast()) })?;
        Ok(cubin)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: made by this compiler, and destroyed once. A failure here loses memory and nothing else.
        unsafe { (self.nvrtc.functions.destroy)(&mut self.raw) };
    }
}

/// Reads what `ptxas -v` says of each function.
fn usage_of(log: &str) -> Vec<Usage> {
    let mut out: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if let Some(name) = line.split("Compiling entry function '").nth(1).and_then(|rest| rest.split('\'').next()) {
            out.push(Usage { function: name.into(), ..Usage::default() });
        }
        let Some(last) = out.last_mut() else { continue };
        for (what, to) in [
            (" bytes stack frame", &mut last.stack_bytes),
            (" bytes spill stores", &mut last.spill_store_bytes),
            (" bytes spill loads", &mut last.spill_load_bytes),
            (" registers", &mut last.registers),
        ] {
            // The functions that it calls without inlining have lines of their own; the largest counts.
            if let Some(number) = number_before(line, what) {
                *to = number.max(*to);
            }
        }
    }
    out
}

fn number_before(line: &str, what: &str) -> Option<u32> {
    let (before, _) = line.split_once(what)?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_and_spills_are_read_from_the_log() {
        let log = "ptxas info    : 0 bytes gmem\n\
                   ptxas info    : Compiling entry function 'fill' for 'sm_90'\n\
                   ptxas info    : Function properties for fill\n\
                   ptxas         .     8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads\n\
                   ptxas info    : Used 10 registers, used 0 barriers\n\
                   ptxas info    : Compiling entry function 'zero' for 'sm_90'\n\
                   ptxas info    : Used 255 registers, used 1 barriers, 4096 bytes smem\n";
        let fill = Usage {
            function: "fill".into(),
            registers: 10,
            stack_bytes: 8,
            spill_store_bytes: 16,
            spill_load_bytes: 24,
        };
        let zero = Usage { function: "zero".into(), registers: 255, ..Usage::default() };
        assert_eq!(usage_of(log), [fill, zero]);
        assert_eq!(usage_of("nothing of the kind"), []);
    }
}
