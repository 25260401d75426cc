//! CUDA's libraries on this machine: looked for, loaded by their absolute paths, and said where, or why not.
//!
//! Which file is taken is decided in `search`. Loading by absolute path also lets the libraries find each other:
//! the linker gives them what is loaded already under the name that they ask for.

pub mod search;

use crate::driver::Driver;
use crate::error::{CudaError, Result, version};
use crate::ffi;
use crate::nvrtc::Nvrtc;
use core::ffi::c_int;
use search::{ALL, Library, Places, Surroundings};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// All that was found. What is missing is an error with its cure, not a failure: a machine without a GPU has none of it.
pub struct Libraries {
    pub driver: Result<Arc<Driver>>,
    pub nvrtc: Result<Nvrtc>,
    places: Places,
}

/// One line of what was found.
#[derive(Clone, Debug, PartialEq)]
pub struct LibraryLine {
    pub library: Library,
    pub found: Result<Loaded>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub path: PathBuf,
    pub version: String,
}

impl Surroundings {
    /// What this process's environment says.
    pub fn of_process() -> Surroundings {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let paths = |names: [&str; 2]| names.into_iter().filter_map(text).map(PathBuf::from).collect();
        Surroundings {
            named: text("ELASTIC_CUDA_LIBS"),
            linker_path: text("LD_LIBRARY_PATH"),
            python_homes: paths(["VIRTUAL_ENV", "CONDA_PREFIX"]),
            toolkits: paths(["CUDA_HOME", "CUDA_PATH"]),
            path: text("PATH"),
            home: text("HOME").map(PathBuf::from),
        }
    }
}

/// The names in a folder; none where there is no such folder, or it may not be read.
fn list(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

impl Libraries {
    /// Looks for the driver and the compiler. Loads nothing else: the other libraries are large.
    pub fn open() -> Libraries {
        Libraries::open_in(&Surroundings::of_process())
    }

    pub fn open_in(around: &Surroundings) -> Libraries {
        let places = search::places(around, &list);
        let driver = first_that_loads(Library::Driver, None, &places, Driver::load);
        let major = driver.as_ref().ok().map(|driver| driver.version() / 1000);
        let nvrtc = first_that_loads(Library::Nvrtc, major, &places, |path| {
            Nvrtc::load(path, search::builtins_of(path, &places).as_deref())
        });
        Libraries { driver, nvrtc, places }
    }

    fn driver_major(&self) -> Option<u32> {
        self.driver.as_ref().ok().map(|driver| driver.version() / 1000)
    }

    /// What there is of each library, with those loaded that no kernel of ours needs.
    pub fn lines(&self) -> Vec<LibraryLine> {
        ALL.into_iter().map(|library| LibraryLine { library, found: self.found(library) }).collect()
    }

    fn found(&self, library: Library) -> Result<Loaded> {
        let other =
            |load: fn(&Path) -> Result<Loaded>| first_that_loads(library, self.driver_major(), &self.places, load);
        match library {
            Library::Driver => self.driver.as_ref().map_err(CudaError::clone).map(|driver| Loaded {
                path: driver.path().into(),
                version: format!("for CUDA {}", version(driver.version())),
            }),
            Library::Nvrtc => self
                .nvrtc
                .as_ref()
                .map_err(CudaError::clone)
                .map(|nvrtc| Loaded { path: nvrtc.path().into(), version: nvrtc.version().to_string() }),
            Library::NvrtcBuiltins => match &self.nvrtc {
                Ok(nvrtc) => match nvrtc.builtins() {
                    Some(path) => Ok(Loaded { path: path.into(), version: nvrtc.version().to_string() }),
                    None => Err(missing(library, &self.places)),
                },
                Err(_) => Err(missing(library, &self.places)),
            },
            Library::CublasLt => other(cublas_lt),
            Library::Cublas => other(cublas),
            Library::Nccl => other(nccl),
        }
    }
}

/// The first file of a library that loads, among those that its places hold. For a library that is not opened with
/// the others.
pub fn load<T>(library: Library, around: &Surroundings, load: impl Fn(&Path) -> Result<T>) -> Result<T> {
    first_that_loads(library, None, &search::places(around, &list), load)
}

/// Tries the candidates in their order. Where none loads, the first file that was there says why it does not.
fn first_that_loads<T>(
    library: Library,
    driver_major: Option<u32>,
    places: &Places,
    load: impl Fn(&Path) -> Result<T>,
) -> Result<T> {
    let mut first = None;
    for path in search::candidates(library, driver_major, places) {
        match load(&path) {
            Ok(loaded) => return Ok(loaded),
            // The linker's not knowing a bare name is no news.
            Err(CudaError::Unloadable { .. }) if !path.is_absolute() => {}
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| missing(library, places)))
}

fn missing(library: Library, places: &Places) -> CudaError {
    let mut names: Vec<&str> = Vec::new();
    for name in places.folders.iter().map(|folder| folder.place.words()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let folders = match places.folders.len() {
        0 => String::new(),
        1 => format!("looked in 1 folder of {}", names.join(", ")),
        many => format!("looked in {many} folders of {}", names.join(", ")),
    };
    let looked = match (folders.is_empty(), places.asks_linker) {
        (true, true) => "asked the system's linker".to_string(),
        (false, true) => format!("{folders}, and asked the system's linker"),
        (true, false) => "ELASTIC_CUDA_LIBS says to look nowhere".to_string(),
        (false, false) => format!("{folders} and nowhere else, as ELASTIC_CUDA_LIBS says"),
    };
    CudaError::NoLibrary { name: library.name().into(), looked, cure: library.cure() }
}

ffi::functions! {
    /// What cuBLAS says of itself without a GPU.
    CublasFunctions { property = "cublasGetProperty"(c_int, *mut c_int); }
}

ffi::functions! {
    /// What cuBLASLt says of itself without a GPU.
    CublasLtFunctions { property = "cublasLtGetProperty"(c_int, *mut c_int); }
}

ffi::functions! {
    /// What NCCL says of itself without a GPU.
    NcclFunctions { version = "ncclGetVersion"(*mut c_int); }
}

fn cublas(path: &Path) -> Result<Loaded> {
    let functions = CublasFunctions::load(path, Library::Cublas.cure())?;
    // SAFETY: the function writes one int, and needs no handle.
    Ok(Loaded { path: path.into(), version: three(|part, to| unsafe { (functions.property)(part, to) }) })
}

fn cublas_lt(path: &Path) -> Result<Loaded> {
    let functions = CublasLtFunctions::load(path, Library::CublasLt.cure())?;
    // SAFETY: the function writes one int, and needs no handle.
    Ok(Loaded { path: path.into(), version: three(|part, to| unsafe { (functions.property)(part, to) }) })
}

/// Major, minor and patch are the properties 0 to 2.
fn three(property: impl Fn(c_int, *mut c_int) -> c_int) -> String {
    let part = |part| {
        let mut value = 0;
        match property(part, &mut value) {
            0 => value.to_string(),
            _ => "?".to_string(),
        }
    };
    [0, 1, 2].map(part).join(".")
}

/// NCCL counts 2.28.9 as 22809.
fn nccl(path: &Path) -> Result<Loaded> {
    let functions = NcclFunctions::load(path, Library::Nccl.cure())?;
    let mut number = 0;
    // SAFETY: the function writes one int.
    let version = match unsafe { (functions.version)(&mut number) } {
        0 => format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100),
        code => format!("? (ncclGetVersion gave {code})"),
    };
    Ok(Loaded { path: path.into(), version })
}
