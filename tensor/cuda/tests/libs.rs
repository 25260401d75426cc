//! Machines as they are found: without a driver, with a stub, an old one, one without a GPU, with libraries that are
//! damaged, too old, or for another CUDA. Each ends in a line that says what is wrong and what to do, and never in a panic.

mod common;

use elastic_cuda::libs::Libraries;
use elastic_cuda::libs::search::{Library, Surroundings};
use elastic_cuda::nvrtc::Nvrtc;
use std::path::Path;

/// A machine that has what lies in these folders, and nothing else.
fn machine(folders: &[&Path]) -> Surroundings {
    let mut named: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    named.push("-".into());
    Surroundings { named: Some(named.join(":")), ..Surroundings::default() }
}

fn driver_says(around: &Surroundings) -> String {
    Libraries::open_in(around).driver.err().expect("no driver that works").to_string()
}

#[test]
fn a_machine_without_anything_is_told_how_to_get_each_library() {
    let lines = Libraries::open_in(&machine(&[])).lines();
    let said: Vec<String> =
        lines.iter().map(|line| line.found.as_ref().expect_err("nothing is there").to_string()).collect();
    assert_eq!(said.len(), 6);
    for (line, said) in lines.iter().zip(&said) {
        assert!(said.starts_with(&format!("{} is not on this machine (", line.library.name())), "{said}");
        assert!(said.ends_with(line.library.cure()), "{said}");
    }
    assert!(said[0].contains("ELASTIC_CUDA_LIBS says to look nowhere"), "{}", said[0]);
}

#[test]
fn a_file_that_is_no_library_is_named() {
    let dir = common::temp();
    std::fs::write(dir.path().join("libcuda.so.1"), "no library").expect("a temporary folder can be written");
    let said = driver_says(&machine(&[dir.path()]));
    assert!(said.contains("libcuda.so.1 cannot be loaded: "), "{said}");
    assert!(said.contains("install NVIDIA's driver"), "{said}");
}

#[test]
fn a_library_of_that_name_without_cudas_functions_is_named_with_the_first_that_is_missing() {
    let dir = common::temp();
    common::make("libnvrtc.c", &dir.path().join("libcuda.so.1"), &[]);
    let said = driver_says(&machine(&[dir.path()]));
    assert!(said.contains("libcuda.so.1 has no function cuInit: it is too old, or no such library; install"), "{said}");
}

#[test]
fn a_damaged_library_is_passed_over_for_a_whole_one() {
    let (damaged, whole) = (common::temp(), common::temp());
    std::fs::write(damaged.path().join("libnvrtc.so.13"), "no library").expect("a temporary folder can be written");
    let path = common::nvrtc_in(whole.path(), &[]);
    let libraries = Libraries::open_in(&machine(&[damaged.path(), whole.path()]));
    assert_eq!(libraries.nvrtc.expect("the whole one").path(), path);
}

#[test]
fn a_compiler_from_before_cubins_is_too_old() {
    let dir = common::temp();
    common::nvrtc_in(dir.path(), &["-DBEFORE_CUBINS"]);
    let said = Libraries::open_in(&machine(&[dir.path()])).nvrtc.err().expect("too old").to_string();
    assert!(said.contains("libnvrtc.so.13 has no function nvrtcGetCUBINSize: it is too old"), "{said}");
    assert!(said.ends_with("`pip install nvidia-cuda-nvrtc`, or name the folder that has it in ELASTIC_CUDA_LIBS"));
}

#[test]
fn the_compiler_and_its_builtins_are_found_together() {
    let dir = common::temp();
    common::nvrtc_in(dir.path(), &["-DMINOR=2"]);
    let lines = Libraries::open_in(&machine(&[dir.path()])).lines();
    let found = |library| lines.iter().find(|line| line.library == library).expect("a line each").found.clone();
    let nvrtc = found(Library::Nvrtc).expect("it is there");
    assert_eq!((nvrtc.path, nvrtc.version.as_str()), (dir.path().join("libnvrtc.so.13"), "13.2"));
    assert!(found(Library::NvrtcBuiltins).is_ok_and(|found| found.path.ends_with("libnvrtc-builtins.so.13.0")));
    assert!(found(Library::Driver).is_err());
}

#[test]
fn a_compiler_without_its_builtins_says_what_must_lie_beside_it() {
    let dir = common::temp();
    let path = common::make("libnvrtc.c", &dir.path().join("libnvrtc.so.13"), &[]);
    let nvrtc = Nvrtc::load(&path, None).expect("it loads");
    let source = elastic_cuda::nvrtc::Source { name: "a.cu", text: "CRASH", headers: &[] };
    let said = nvrtc.compile(&source, elastic_cuda::arch::Arch::plain(9, 0)).expect_err("it fails").to_string();
    assert!(
        said.starts_with("nvrtcCompileProgram: NVRTC_ERROR_BUILTIN_OPERATION_FAILURE (7): nvrtc: error: failed"),
        "{said}"
    );
    assert!(said.ends_with("libnvrtc-builtins of the same version must lie beside libnvrtc"), "{said}");
}

#[test]
fn a_source_that_does_not_compile_is_shown_with_the_compilers_words() {
    let dir = common::temp();
    let nvrtc = Nvrtc::load(&common::nvrtc_in(dir.path(), &[]), None).expect("it loads");
    let source = elastic_cuda::nvrtc::Source { name: "a.cu", text: "BROKEN", headers: &[] };
    let said = nvrtc.compile(&source, elastic_cuda::arch::Arch::plain(9, 0)).expect_err("it is broken").to_string();
    assert_eq!(said, "a.cu for sm_90 does not compile:\na.cu(1): error: identifier \"BROKEN\" is undefined\n");
}
