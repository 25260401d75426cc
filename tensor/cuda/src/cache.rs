//! Cubins that are kept: on disk from one run to the next, and those that were made beforehand, embedded when the program
//! was built or brought along in a folder (`ELASTIC_CUBINS`).
//!
//! A cubin's name is the digest of all that decides it. A file is written beside its place and then renamed, and
//! carries a digest of itself: one that is damaged is noticed, and made again. That the cache cannot be written is no
//! error, only slow: a kernel then compiles in each process.

use crate::arch::{Arch, Capability};
use crate::error::{CudaError, Result};
use crate::kernels;
use crate::nvrtc::{Nvrtc, NvrtcVersion, OPTIONS, Source};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Names the format; another one is another file.
const MAGIC: &[u8] = b"elastic cubin 1\n";
const DIGEST_BYTES: usize = 32;

/// Where cubins are kept.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: Option<PathBuf>,
    /// Made elsewhere, by whatever compiler; only read.
    brought: Option<PathBuf>,
}

/// A cubin that can be loaded, and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    pub bytes: Vec<u8>,
    pub arch: Arch,
    pub from: From,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    Embedded,
    Brought,
    Disk,
    /// Compiled now; if it could not be kept, why.
    Compiled {
        unkept: Option<String>,
    },
}

impl Cache {
    pub fn in_dir(dir: impl Into<PathBuf>) -> Cache {
        Cache { dir: Some(dir.into()), brought: None }
    }

    /// Keeps nothing.
    pub fn none() -> Cache {
        Cache { dir: None, brought: None }
    }

    /// The same with a folder of cubins that were made elsewhere.
    pub fn with_brought(self, folder: impl Into<PathBuf>) -> Cache {
        Cache { brought: Some(folder.into()), ..self }
    }

    /// `elastic/cubins` in `XDG_CACHE_HOME`, or in `~/.cache`, and what `ELASTIC_CUBINS` names.
    pub fn of_user() -> Cache {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        Cache { dir: caches.map(|caches| caches.join("elastic/cubins")), brought: absolute("ELASTIC_CUBINS") }
    }

    /// Machine code of a kernel for a GPU: embedded, or brought along, or kept, or compiled now.
    ///
    /// What was made beforehand comes first, so that a program with cubins does the same with and without a compiler.
    pub fn get(
        &self,
        source: &Source,
        gpu: Capability,
        nvrtc: std::result::Result<&Nvrtc, &CudaError>,
    ) -> Result<Ready> {
        let targets = kernels::targets(source).map_err(|why| CudaError::Compile {
            what: source.name.into(),
            arch: gpu.to_string(),
            log: why,
        })?;
        let embedded = kernels::embedded_cubins();
        if let Some((arch, bytes)) = best_for(source, &targets, gpu, &|start| embedded_file(embedded, start)) {
            return Ok(Ready { bytes, arch, from: From::Embedded });
        }
        let brought = |start: &str| self.brought.as_ref().and_then(|folder| brought_file(folder, start));
        if let Some((arch, bytes)) = best_for(source, &targets, gpu, &brought) {
            return Ok(Ready { bytes, arch, from: From::Brought });
        }
        let nvrtc = nvrtc.map_err(|why| CudaError::NoCubin {
            kernel: source.name.into(),
            major: gpu.major,
            minor: gpu.minor,
            embedded: match embedded.len() {
                0 => "none".into(),
                many => format!("{many} of other kernels, sources or GPUs"),
            },
            nvrtc: why.to_string(),
        })?;
        // A GPU newer than all targets gets code of its own.
        let arch = Arch::best(targets, gpu).unwrap_or(Arch { capability: gpu, specific: false });
        self.compiled(source, arch, nvrtc)
    }

    /// Machine code for one target: kept, or compiled now.
    pub fn compiled(&self, source: &Source, arch: Arch, nvrtc: &Nvrtc) -> Result<Ready> {
        let file = self.dir.as_ref().map(|dir| dir.join(file_name(source, arch, nvrtc.version())));
        if let Some(bytes) = file.as_ref().and_then(|file| unpack(&std::fs::read(file).ok()?)) {
            return Ok(Ready { bytes, arch, from: From::Disk });
        }
        let bytes = nvrtc.compile(source, arch)?.bytes;
        let unkept = file.and_then(|file| write(&file, &bytes).err()).map(|error| error.to_string());
        Ok(Ready { bytes, arch, from: From::Compiled { unkept } })
    }
}

/// Writes a cubin so that a build can embed it, and [`Cache::with_brought`] finds it.
pub fn write_into(dir: &Path, source: &Source, arch: Arch, version: NvrtcVersion, cubin: &[u8]) -> Result<PathBuf> {
    let file = dir.join(file_name(source, arch, version));
    write(&file, cubin)?;
    Ok(file)
}

/// The best of the cubins that were made of this very source; `file` gives the file whose name begins so.
fn best_for(
    source: &Source,
    targets: &[Arch],
    gpu: Capability,
    file: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> Option<(Arch, Vec<u8>)> {
    let runs = targets.iter().filter(|arch| arch.runs_on(gpu));
    let found = runs.filter_map(|arch| Some((*arch, unpack(&file(&format!("{}-", key(source, *arch)))?)?)));
    let mut found: Vec<(Arch, Vec<u8>)> = found.collect();
    let best = Arch::best(found.iter().map(|(arch, _)| *arch), gpu)?;
    found.iter().position(|(arch, _)| *arch == best).map(|at| found.swap_remove(at))
}

fn embedded_file(embedded: &[(&str, &[u8])], start: &str) -> Option<Vec<u8>> {
    embedded.iter().find(|(name, _)| name.starts_with(start)).map(|(_, bytes)| bytes.to_vec())
}

fn brought_file(folder: &Path, start: &str) -> Option<Vec<u8>> {
    let mut entries = std::fs::read_dir(folder).ok()?.flatten();
    let file = entries.find(|entry| entry.file_name().to_string_lossy().starts_with(start))?;
    std::fs::read(file.path()).ok()
}

/// `<digest>-nvrtc13.0.cubin`: what was made beforehand is found whatever compiler made it, what is kept by all of it.
fn file_name(source: &Source, arch: Arch, version: NvrtcVersion) -> String {
    format!("{}-nvrtc{version}.cubin", key(source, arch))
}

/// Digest of all that decides a cubin but the compiler's version.
fn key(source: &Source, arch: Arch) -> String {
    let mut sha = Sha256::new();
    let mut add = |part: &str| {
        sha.update((part.len() as u64).to_le_bytes());
        sha.update(part.as_bytes());
    };
    add(source.name);
    add(source.text);
    for (name, text) in source.headers {
        add(name);
        add(text);
    }
    OPTIONS.iter().for_each(|option| add(option));
    add(&arch.to_string());
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Magic, digest of the rest, the rest.
fn pack(cubin: &[u8]) -> Vec<u8> {
    [MAGIC, Sha256::digest(cubin).as_slice(), cubin].concat()
}

/// None: not such a file, or damaged.
fn unpack(file: &[u8]) -> Option<Vec<u8>> {
    let (digest, cubin) = file.strip_prefix(MAGIC)?.split_at_checked(DIGEST_BYTES)?;
    (Sha256::digest(cubin).as_slice() == digest).then(|| cubin.to_vec())
}

/// Whole or not at all: other processes may write the same file at the same time.
fn write(file: &Path, cubin: &[u8]) -> Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let dir = file.parent().expect("a file lies in a folder");
    let failed =
        |what| move |error: std::io::Error| CudaError::File { path: file.into(), what, why: error.to_string() };
    std::fs::create_dir_all(dir).map_err(failed("make its folder"))?;
    let unique = format!(".{}.{}.tmp", std::process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed));
    let beside = dir.join(unique);
    let written = std::fs::write(&beside, pack(cubin)).and_then(|()| std::fs::rename(&beside, file));
    if written.is_err() {
        // Nothing is lost if this does not succeed either.
        let _ = std::fs::remove_file(&beside);
    }
    written.map_err(failed("write it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: &[(&str, &str)] = &[("a.cuh", "int a;")];
    const SOURCE: Source = Source { name: "a.cu", text: "#include \"a.cuh\"", headers: HEADERS };

    #[test]
    fn all_that_decides_a_cubin_is_in_its_name() {
        let arch = Arch::plain(9, 0);
        let one = key(&SOURCE, arch);
        assert_eq!(one, key(&SOURCE.clone(), arch));
        let others = [
            key(&Source { text: "#include \"a.cuh\" ", ..SOURCE }, arch),
            key(&Source { headers: &[("a.cuh", "int b;")], ..SOURCE }, arch),
            key(&Source { headers: &[("a.cuhi", "nt a;")], ..SOURCE }, arch),
            key(&SOURCE, Arch { specific: true, ..arch }),
            key(&SOURCE, Arch::plain(8, 0)),
        ];
        assert!(others.iter().all(|other| *other != one));
        let made_by = |major, minor| file_name(&SOURCE, arch, NvrtcVersion { major, minor });
        assert_ne!(made_by(13, 0), made_by(12, 9));
    }

    #[test]
    fn any_byte_that_is_changed_or_lost_is_noticed() {
        let whole = pack(b"cubin");
        assert_eq!(unpack(&whole).as_deref(), Some(&b"cubin"[..]));
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert_eq!(unpack(&changed), None, "byte {at} changed");
            assert_eq!(unpack(&whole[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn the_best_embedded_cubin_of_the_very_source_is_taken() {
        let targets: Vec<Arch> =
            ["sm_80", "sm_90", "sm_90a"].iter().map(|text| text.parse().expect("a target")).collect();
        let version = NvrtcVersion { major: 13, minor: 0 };
        let files: Vec<(String, Vec<u8>)> = targets
            .iter()
            .map(|arch| (file_name(&SOURCE, *arch, version), pack(arch.to_string().as_bytes())))
            .collect();
        let embedded: Vec<(&str, &[u8])> =
            files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        let taken = |source: &Source, major, minor| {
            best_for(source, &targets, Capability { major, minor }, &|start| embedded_file(&embedded, start))
                .map(|(_, bytes)| String::from_utf8(bytes).expect("a text"))
        };
        assert_eq!(taken(&SOURCE, 9, 0).as_deref(), Some("sm_90a"));
        assert_eq!(taken(&SOURCE, 8, 6).as_deref(), Some("sm_80"));
        assert_eq!(taken(&SOURCE, 10, 0), None);
        assert_eq!(taken(&Source { text: "another", ..SOURCE }, 9, 0), None);
    }
}
