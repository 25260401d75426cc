//! The cache of machine code, with a compiler that counts.

mod common;

use elastic_cuda::arch::{Arch, Capability};
use elastic_cuda::cache::{Cache, From};
use elastic_cuda::nvrtc::{Nvrtc, Source};
use elastic_cuda::{CudaError, kernels};
use std::path::Path;
use tempfile::TempDir;

const SOURCE: Source = Source { name: "a.cu", text: "KERNEL(fill, float*)", headers: &[] };
const HOPPER: Capability = Capability { major: 9, minor: 0 };

fn compiler() -> (TempDir, Nvrtc) {
    let dir = common::temp();
    let nvrtc = Nvrtc::load(&common::nvrtc_in(dir.path(), &[]), None).expect("the fake loads");
    (dir, nvrtc)
}

fn from(cache: &Cache, nvrtc: &Nvrtc) -> From {
    cache.get(&SOURCE, HOPPER, Ok(nvrtc)).expect("a cubin").from
}

fn only_file(dir: &Path) -> std::path::PathBuf {
    let files: Vec<_> = std::fs::read_dir(dir).expect("a folder").flatten().map(|entry| entry.path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn what_was_compiled_is_kept_and_a_damaged_file_is_made_again() {
    let (_lib, nvrtc) = compiler();
    let dir = common::temp();
    let cache = Cache::in_dir(dir.path().join("deep/cubins"));
    assert_eq!(from(&cache, &nvrtc), From::Compiled { unkept: None });
    assert_eq!(from(&cache, &nvrtc), From::Disk);
    let file = only_file(&dir.path().join("deep/cubins"));
    let whole = std::fs::read(&file).expect("the file is there");
    for damaged in [vec![], whole[..whole.len() - 1].to_vec(), [whole.as_slice(), b"x"].concat()] {
        std::fs::write(&file, damaged).expect("a temporary folder can be written");
        assert_eq!(from(&cache, &nvrtc), From::Compiled { unkept: None });
        assert_eq!(std::fs::read(&file).expect("the file is there"), whole);
    }
    assert_eq!(from(&cache, &nvrtc), From::Disk);
}

#[test]
fn other_versions_of_the_compiler_do_not_take_each_others_code() {
    let (_lib, nvrtc) = compiler();
    let other = common::temp();
    let newer = Nvrtc::load(&common::nvrtc_in(other.path(), &["-DMINOR=3"]), None).expect("the fake loads");
    let dir = common::temp();
    let cache = Cache::in_dir(dir.path());
    assert_eq!(from(&cache, &nvrtc), From::Compiled { unkept: None });
    assert_eq!(from(&cache, &newer), From::Compiled { unkept: None });
    assert_eq!((from(&cache, &nvrtc), from(&cache, &newer)), (From::Disk, From::Disk));
}

#[test]
fn a_folder_that_cannot_be_written_costs_time_and_says_so() {
    let (_lib, nvrtc) = compiler();
    let dir = common::temp();
    std::fs::write(dir.path().join("file"), "").expect("a temporary folder can be written");
    let cache = Cache::in_dir(dir.path().join("file/cubins"));
    let From::Compiled { unkept: Some(why) } = from(&cache, &nvrtc) else { panic!("it cannot be kept") };
    assert!(why.contains("file/cubins") && why.contains("make its folder"), "{why}");
    assert_eq!(from(&Cache::none(), &nvrtc), From::Compiled { unkept: None });
}

#[test]
fn a_gpu_newer_than_every_target_gets_code_of_its_own() {
    let (_lib, nvrtc) = compiler();
    let ready = Cache::none().get(&SOURCE, Capability { major: 12, minor: 1 }, Ok(&nvrtc)).expect("a cubin");
    assert_eq!(ready.arch, Arch::plain(12, 1));
    let ready = Cache::none().get(&SOURCE, Capability { major: 8, minor: 9 }, Ok(&nvrtc)).expect("a cubin");
    assert_eq!(ready.arch, Arch::plain(8, 0));
}

#[test]
fn without_a_compiler_and_without_embedded_code_the_way_out_is_said() {
    let why = CudaError::NoLibrary {
        name: "libnvrtc".into(),
        looked: "asked the system's linker".into(),
        cure: "install it",
    };
    let source = kernels::named("fill").expect("a kernel");
    let gpu = Capability { major: 12, minor: 0 };
    let said = Cache::none().get(&source, gpu, Err(&why)).expect_err("nothing to load").to_string();
    assert!(said.starts_with("no kernel fill.cu for a GPU of compute capability 12.0: embedded are "), "{said}");
    assert!(said.ends_with("and libnvrtc is not on this machine (asked the system's linker); install it"), "{said}");
}

#[test]
fn cubins_that_are_brought_along_need_no_compiler_and_no_file_of_its_version() {
    let (_lib, nvrtc) = compiler();
    let (brought, kept) = (common::temp(), common::temp());
    let why = CudaError::NoLibrary { name: "libnvrtc".into(), looked: "nowhere".into(), cure: "install it" };
    let cache = Cache::in_dir(kept.path()).with_brought(brought.path());
    assert!(cache.get(&SOURCE, HOPPER, Err(&why)).is_err(), "the folder is empty");
    assert_eq!(from(&Cache::in_dir(brought.path()), &nvrtc), From::Compiled { unkept: None });
    let ready = cache.get(&SOURCE, HOPPER, Err(&why)).expect("what the folder holds");
    assert_eq!((ready.from, ready.arch), (From::Brought, Arch::plain(9, 0)));
    assert_eq!(from(&cache, &nvrtc), From::Brought, "with a compiler as without one");
    std::fs::write(only_file(brought.path()), "damaged").expect("a temporary folder can be written");
    assert_eq!(from(&cache, &nvrtc), From::Compiled { unkept: None });
}

#[test]
fn many_threads_that_compile_the_same_leave_one_whole_file() {
    let (_lib, nvrtc) = compiler();
    let dir = common::temp();
    let cache = Cache::in_dir(dir.path());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| cache.get(&SOURCE, HOPPER, Ok(&nvrtc)).expect("a cubin"));
        }
    });
    only_file(dir.path());
    assert_eq!(from(&cache, &nvrtc), From::Disk);
}
