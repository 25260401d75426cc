//! Where CUDA's libraries may lie, and which files are taken: a pure function of the environment and of what folders
//! hold. Loading what was chosen is `libs`.
//!
//! NVIDIA's libraries come with the driver, with a toolkit, or with a Python package (`nvidia-cuda-nvrtc` and others,
//! which PyTorch brings along). The system's linker knows the first two at best, so the places are looked through here.

use std::path::{Path, PathBuf};

/// What of CUDA is used. The order is that of loading: the later ones look for the earlier ones by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Library {
    Driver,
    NvrtcBuiltins,
    Nvrtc,
    CublasLt,
    Cublas,
    Nccl,
}

pub const ALL: [Library; 6] =
    [Library::Driver, Library::NvrtcBuiltins, Library::Nvrtc, Library::CublasLt, Library::Cublas, Library::Nccl];

impl Library {
    pub fn name(self) -> &'static str {
        match self {
            Library::Driver => "libcuda",
            Library::NvrtcBuiltins => "libnvrtc-builtins",
            Library::Nvrtc => "libnvrtc",
            Library::CublasLt => "libcublasLt",
            Library::Cublas => "libcublas",
            Library::Nccl => "libnccl",
        }
    }

    /// Major versions of the file's name that are known to work, the best first.
    fn majors(self) -> &'static [u32] {
        match self {
            Library::Driver => &[1],
            Library::Nccl => &[2],
            _ => &[13, 12],
        }
    }

    /// What it is for, in a person's words.
    pub fn purpose(self) -> &'static str {
        match self {
            Library::Driver => "NVIDIA's driver",
            Library::NvrtcBuiltins | Library::Nvrtc => "compiles kernels",
            Library::CublasLt | Library::Cublas => "products of large matrices",
            Library::Nccl => "sums between GPUs",
        }
    }

    /// How a machine gets it.
    pub fn cure(self) -> &'static str {
        match self {
            Library::Driver => {
                "install NVIDIA's driver, 525.60 or later, so that `nvidia-smi` works; in a container, start it with access to the GPU"
            }
            Library::NvrtcBuiltins | Library::Nvrtc => {
                "`pip install nvidia-cuda-nvrtc`, or name the folder that has it in ELASTIC_CUDA_LIBS"
            }
            Library::CublasLt | Library::Cublas => {
                "`pip install nvidia-cublas`, or name the folder that has it in ELASTIC_CUDA_LIBS"
            }
            Library::Nccl => "`pip install nvidia-nccl-cu13`, or name the folder that has it in ELASTIC_CUDA_LIBS",
        }
    }

    /// Whether the file is this library of this major version.
    fn is(self, file: &str, major: u32) -> bool {
        let exact = format!("{}.so.{major}", self.name());
        match self {
            // The one whose name has the minor version: libnvrtc-builtins.so.13.0.
            Library::NvrtcBuiltins => file.strip_prefix(&exact).is_some_and(|rest| rest.starts_with('.')),
            _ => file == exact,
        }
    }
}

/// What the environment says about places.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `ELASTIC_CUDA_LIBS`: folders with colons between, looked through before all others. A `-` among them: and
    /// nowhere else.
    pub named: Option<String>,
    /// `LD_LIBRARY_PATH`
    pub linker_path: Option<String>,
    /// `VIRTUAL_ENV` and `CONDA_PREFIX`
    pub python_homes: Vec<PathBuf>,
    /// `CUDA_HOME` and `CUDA_PATH`
    pub toolkits: Vec<PathBuf>,
    /// `PATH`, whose Pythons have packages.
    pub path: Option<String>,
    pub home: Option<PathBuf>,
}

/// Where to look.
#[derive(Clone, Debug, PartialEq)]
pub struct Places {
    /// In the order in which they count.
    pub folders: Vec<Folder>,
    /// Whether the system's linker may be asked for a library by its bare name.
    pub asks_linker: bool,
}

/// A folder that was looked into.
#[derive(Clone, Debug, PartialEq)]
pub struct Folder {
    pub path: PathBuf,
    pub place: Place,
    /// Names of files in it.
    pub files: Vec<String>,
}

/// Why a folder is on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Named,
    LinkerPath,
    Python,
    Toolkit,
    System,
}

impl Place {
    pub fn words(self) -> &'static str {
        match self {
            Place::Named => "ELASTIC_CUDA_LIBS",
            Place::LinkerPath => "LD_LIBRARY_PATH",
            Place::Python => "Python's packages",
            Place::Toolkit => "a CUDA toolkit",
            Place::System => "the system",
        }
    }
}

/// Every folder that is there. `list` gives the names in a folder, or none.
pub fn places(around: &Surroundings, list: &dyn Fn(&Path) -> Vec<String>) -> Places {
    let is_closed = around.named.iter().flat_map(|text| text.split(':')).any(|part| part == "-");
    let mut out: Vec<Folder> = Vec::new();
    for (place, pattern) in patterns(around) {
        if is_closed && place != Place::Named {
            break;
        }
        for path in expand(&pattern, list) {
            let files = list(&path);
            if !files.is_empty() && out.iter().all(|folder| folder.path != path) {
                out.push(Folder { path, place, files });
            }
        }
    }
    Places { folders: out, asks_linker: !is_closed }
}

/// Paths in which a part may hold one `*`.
fn patterns(around: &Surroundings) -> Vec<(Place, PathBuf)> {
    let split = |text: &Option<String>| -> Vec<PathBuf> {
        let parts = text.iter().flat_map(|text| text.split(':')).filter(|part| part.starts_with('/'));
        parts.map(PathBuf::from).collect()
    };
    let mut out: Vec<(Place, PathBuf)> = Vec::new();
    out.extend(split(&around.named).into_iter().map(|path| (Place::Named, path)));
    out.extend(split(&around.linker_path).into_iter().map(|path| (Place::LinkerPath, path)));
    let of_path = split(&around.path).into_iter().filter_map(|bin| Some(bin.parent()?.to_path_buf()));
    let local = around.home.iter().map(|home| home.join(".local"));
    let pyenv = around.home.iter().map(|home| home.join(".pyenv/versions/*"));
    for home in around.python_homes.iter().cloned().chain(of_path).chain(local).chain(pyenv) {
        for packages in ["site-packages", "dist-packages"] {
            out.push((Place::Python, home.join("lib/python3*").join(packages).join("nvidia/*/lib")));
        }
    }
    // Conda keeps CUDA's libraries with all others.
    out.extend(around.python_homes.iter().map(|home| (Place::Python, home.join("lib"))));
    let usual = ["/usr/local/cuda", "/usr/local/cuda-13*", "/usr/local/cuda-12*", "/opt/cuda"].map(PathBuf::from);
    for toolkit in around.toolkits.iter().cloned().chain(usual) {
        out.extend(["lib64", "targets/*/lib"].map(|lib| (Place::Toolkit, toolkit.join(lib))));
    }
    let system =
        ["/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib", "/usr/local/nvidia/lib64", "/run/opengl-driver/lib"];
    out.extend(system.map(|path| (Place::System, PathBuf::from(path))));
    out
}

/// The paths that are there for a pattern, by name.
fn expand(pattern: &Path, list: &dyn Fn(&Path) -> Vec<String>) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::new()];
    for part in pattern.components().map(|part| part.as_os_str().to_string_lossy().into_owned()) {
        let Some((head, tail)) = part.split_once('*') else {
            paths.iter_mut().for_each(|path| path.push(&part));
            continue;
        };
        let fits =
            |name: &String| name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail);
        let below = |path: &PathBuf| {
            let mut names: Vec<String> = list(path).into_iter().filter(fits).collect();
            names.sort();
            names.into_iter().map(|name| path.join(name)).collect::<Vec<_>>()
        };
        paths = paths.iter().flat_map(below).collect();
    }
    paths
}

/// The files to try for a library, the best first; the last ones are names that the system's linker may know.
///
/// A library for CUDA 13 needs a driver for CUDA 13, so `driver_major` bounds the choice where it is known. What a
/// person has named counts before what is newer.
pub fn candidates(library: Library, driver_major: Option<u32>, places: &Places) -> Vec<PathBuf> {
    let is_cuda = !matches!(library, Library::Driver | Library::Nccl);
    let fits = |major: &&u32| !is_cuda || driver_major.is_none_or(|driver| **major <= driver);
    let majors: Vec<u32> = library.majors().iter().filter(fits).copied().collect();
    let (named, others): (Vec<&Folder>, Vec<&Folder>) =
        places.folders.iter().partition(|folder| folder.place == Place::Named);
    let mut out = Vec::new();
    for group in [named, others] {
        for major in &majors {
            for folder in &group {
                let files = folder.files.iter().filter(|file| library.is(file, *major));
                out.extend(files.map(|file| folder.path.join(file)));
            }
        }
    }
    if places.asks_linker && library != Library::NvrtcBuiltins {
        out.extend(majors.iter().map(|major| PathBuf::from(format!("{}.so.{major}", library.name()))));
    }
    out
}

/// The builtins that belong to a compiler: those beside it.
pub fn builtins_of(nvrtc: &Path, places: &Places) -> Option<PathBuf> {
    let major: u32 = nvrtc.to_str()?.rsplit_once(".so.")?.1.parse().ok()?;
    let beside = places.folders.iter().find(|folder| Some(folder.path.as_path()) == nvrtc.parent())?;
    let file = beside.files.iter().find(|file| Library::NvrtcBuiltins.is(file, major))?;
    Some(beside.path.join(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Folders made of the paths of files.
    fn listing(files: &[&str]) -> impl Fn(&Path) -> Vec<String> {
        let mut tree: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
        for file in files {
            let mut path = Path::new(file);
            while let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
                let names = tree.entry(parent.into()).or_default();
                let name = name.to_string_lossy().into_owned();
                if !names.contains(&name) {
                    names.push(name);
                }
                path = parent;
            }
        }
        move |path| tree.get(path).cloned().unwrap_or_default()
    }

    fn first(library: Library, driver: Option<u32>, around: &Surroundings, files: &[&str]) -> String {
        let found = places(around, &listing(files));
        candidates(library, driver, &found)[0].display().to_string()
    }

    const WHEEL_13: &str = "/venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13";
    const WHEEL_12: &str = "/opt/py/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12";

    fn around() -> Surroundings {
        Surroundings {
            python_homes: vec!["/venv".into()],
            path: Some("/opt/py/bin:relative:/usr/bin".into()),
            ..Surroundings::default()
        }
    }

    #[test]
    fn wheels_of_a_virtual_environment_and_of_a_python_on_the_path_are_found() {
        assert_eq!(first(Library::Nvrtc, None, &around(), &[WHEEL_13]), WHEEL_13);
        assert_eq!(first(Library::Nvrtc, None, &around(), &[WHEEL_12]), WHEEL_12);
        assert_eq!(first(Library::Nvrtc, None, &around(), &[WHEEL_12, WHEEL_13]), WHEEL_13);
    }

    #[test]
    fn a_driver_for_cuda_12_gets_libraries_for_cuda_12() {
        assert_eq!(first(Library::Nvrtc, Some(12), &around(), &[WHEEL_12, WHEEL_13]), WHEEL_12);
        assert_eq!(first(Library::Nvrtc, Some(13), &around(), &[WHEEL_12, WHEEL_13]), WHEEL_13);
        assert_eq!(first(Library::Nvrtc, Some(14), &around(), &[WHEEL_12, WHEEL_13]), WHEEL_13);
    }

    #[test]
    fn a_named_folder_counts_before_a_newer_library_elsewhere() {
        let named = Surroundings { named: Some("/mine:/also".into()), ..around() };
        let files = ["/also/libnvrtc.so.12", WHEEL_13];
        assert_eq!(first(Library::Nvrtc, None, &named, &files), "/also/libnvrtc.so.12");
    }

    #[test]
    fn a_list_that_is_closed_leaves_all_else_out() {
        let closed = Surroundings { named: Some("/mine:-".into()), ..around() };
        let found = places(&closed, &listing(&["/mine/libnvrtc.so.12", WHEEL_13]));
        assert_eq!(candidates(Library::Nvrtc, None, &found), [PathBuf::from("/mine/libnvrtc.so.12")]);
        assert!(candidates(Library::Driver, None, &found).is_empty());
    }

    #[test]
    fn without_any_file_the_linker_is_asked_by_name() {
        assert_eq!(first(Library::Driver, None, &around(), &["/usr/bin/python3"]), "libcuda.so.1");
        assert_eq!(first(Library::Nvrtc, Some(12), &around(), &[]), "libnvrtc.so.12");
        assert!(candidates(Library::NvrtcBuiltins, None, &places(&Surroundings::default(), &listing(&[]))).is_empty());
    }

    #[test]
    fn only_the_names_of_a_librarys_major_versions_count() {
        let files = ["/usr/lib64/libcuda.so", "/usr/lib64/libnccl.so.2.28.9", "/usr/lib64/libnvrtc.so.11.2"];
        for library in [Library::Driver, Library::Nccl, Library::Nvrtc] {
            let found = places(&Surroundings::default(), &listing(&files));
            assert!(candidates(library, None, &found).iter().all(|path| !path.is_absolute()), "{library:?}");
        }
    }

    #[test]
    fn the_toolkit_the_system_and_conda_are_looked_through() {
        let conda = Surroundings { python_homes: vec!["/conda".into()], ..Surroundings::default() };
        for file in [
            "/usr/local/cuda/lib64/libcublas.so.13",
            "/usr/local/cuda-12.8/targets/x86_64-linux/lib/libcublas.so.12",
            "/usr/lib/x86_64-linux-gnu/libcublas.so.12",
            "/conda/lib/libcublas.so.12",
        ] {
            assert_eq!(first(Library::Cublas, None, &conda, &[file]), file);
        }
    }

    #[test]
    fn builtins_are_those_beside_the_compiler() {
        let files = [
            "/a/libnvrtc-builtins.so.13.2",
            "/b/libnvrtc.so.13",
            "/b/libnvrtc-builtins.so.12.8",
            "/b/libnvrtc-builtins.so.13.0",
        ];
        let named = Surroundings { named: Some("/a:/b".into()), ..Surroundings::default() };
        let found = places(&named, &listing(&files));
        let wanted = PathBuf::from("/b/libnvrtc-builtins.so.13.0");
        assert_eq!(builtins_of(Path::new("/b/libnvrtc.so.13"), &found), Some(wanted));
        assert_eq!(builtins_of(Path::new("libnvrtc.so.13"), &found), None);
    }
}
