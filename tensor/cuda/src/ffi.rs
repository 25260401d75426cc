//! Tables of C functions that are looked up when a library is loaded, so that a function that is not there is an
//! error of the load and not a crash of the call. The declarations are compared with NVIDIA's headers by
//! `tests/declarations.rs`, from the text that each table keeps of itself.

pub mod driver;
pub mod nvrtc;

use crate::error::{CudaError, Result};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::mem::ManuallyDrop;
use std::path::Path;

/// A function as declared here: the names that it has in libraries, the newest first, its arguments' types, and what
/// it returns where that is not the library's code.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    pub symbols: &'static [&'static str],
    pub arguments: &'static [&'static str],
    pub returns: Option<&'static str>,
}

/// Makes a struct of function pointers, each returning a C `int`, 0 for success, or what is named behind an arrow.
/// All are needed but those under `optional`, which older libraries may lack.
#[macro_export]
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident {
        $($field:ident = $($symbol:literal)|+ ($($type:ty),* $(,)?) $(-> $returns:ty)?;)*
    } $(optional { $($maybe:ident = $maybe_symbol:literal ($($maybe_type:ty),* $(,)?);)* })?) => {
        $(#[$doc])*
        pub struct $table {
            $(pub $field: unsafe extern "C" fn($($type),*) -> $crate::ffi::functions!(@returns $($returns)?),)*
            $($(pub $maybe: Option<unsafe extern "C" fn($($maybe_type),*) -> core::ffi::c_int>,)*)?
        }

        impl $table {
            pub const DECLARED: &[$crate::ffi::Declared] = &[
                $($crate::ffi::Declared {
                    symbols: &[$($symbol),+],
                    arguments: &[$(stringify!($type)),*],
                    returns: $crate::ffi::functions!(@spelled $($returns)?),
                },)*
                $($($crate::ffi::Declared {
                    symbols: &[$maybe_symbol],
                    arguments: &[$(stringify!($maybe_type)),*],
                    returns: None,
                },)*)?
            ];

            /// Loads the library and looks up every function.
            pub fn load(path: &std::path::Path, cure: &'static str) -> $crate::Result<$table> {
                let library = $crate::ffi::open(path, cure)?;
                Ok($table {
                    // SAFETY: the type is that of NVIDIA's header, which `tests/declarations.rs` compares; the library,
                    // and with it the function, stays for as long as the process does.
                    $($field: unsafe { $crate::ffi::find(&library, path, &[$($symbol),+], cure)? },)*
                    // SAFETY: as above.
                    $($($maybe: unsafe { $crate::ffi::find(&library, path, &[$maybe_symbol], cure) }.ok(),)*)?
                })
            }
        }
    };
    (@returns) => { core::ffi::c_int };
    (@returns $returns:ty) => { $returns };
    (@spelled) => { None };
    (@spelled $returns:ty) => { Some(stringify!($returns)) };
}
pub use functions;

/// Loads a library for good. Names without a folder are looked up by the system.
///
/// It is never unloaded: CUDA's libraries leave threads and handlers for the process's end, which would then lead nowhere.
pub fn open(path: &Path, cure: &'static str) -> Result<ManuallyDrop<Library>> {
    // SAFETY: the code that a library runs when it is loaded is NVIDIA's, from a place that the search list names.
    // Global: what is loaded later (nvrtc's builtins, cuBLAS's kernels) finds it by its name.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    library.map(ManuallyDrop::new).map_err(|error| CudaError::Unloadable {
        path: path.into(),
        why: cause(&error),
        cure,
    })
}

/// The linker's own words, where it has any.
fn cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| source.to_string())
}

/// The first of the symbols that is there.
///
/// # Safety
/// `F` is the type of the function that the symbols name, a function pointer.
pub unsafe fn find<F: Copy>(library: &Library, path: &Path, symbols: &[&'static str], cure: &'static str) -> Result<F> {
    // SAFETY: the caller knows the type.
    let found = symbols.iter().find_map(|symbol| unsafe { library.get::<F>(symbol.as_bytes()) }.ok());
    match found {
        Some(function) => Ok(*function),
        None => Err(CudaError::NoFunction { path: path.into(), symbol: symbols[0], cure }),
    }
}
