//! The self-test's program as a person runs it, on fakes of driver and compiler: what it says and how it ends.

mod common;

use std::path::Path;
use std::process::{Command, Output};

/// A run that sees these libraries only, and keeps machine code in this folder.
fn selftest(libraries: &Path, kept: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_elastic-selftest"));
    program.args(arguments).envs(environment.iter().copied());
    program.env("ELASTIC_CUDA_LIBS", format!("{}:-", libraries.display())).env("XDG_CACHE_HOME", kept);
    let Output { status, stdout, stderr } = program.output().expect("the program starts");
    let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.code().expect("no signal ended it"), said)
}

#[test]
fn it_compiles_loads_runs_and_compares() {
    let (libraries, kept) = (common::temp(), common::temp());
    common::driver_in(libraries.path());
    common::nvrtc_in(libraries.path(), &[]);
    for how in ["compiled", "kept by an earlier run"] {
        let (code, said) = selftest(libraries.path(), kept.path(), &[], &[]);
        assert_eq!(code, 0, "{said}");
        assert!(said.ends_with("self-test passed\n"), "{said}");
        assert!(said.contains("GPU 0: Fake GPU 0, 9.0, 80.0 GiB"), "{said}");
        let fill = said.lines().find(|line| line.contains("fill.cu")).expect("a line for each kernel");
        assert!(fill.ends_with(how), "{fill}");
    }
}

#[test]
fn a_kernel_that_writes_wrong_numbers_fails() {
    let (libraries, kept) = (common::temp(), common::temp());
    common::make("libcuda.c", &libraries.path().join("libcuda.so.1"), &["-DFILLS_ONE_TOO_MANY"]);
    common::nvrtc_in(libraries.path(), &[]);
    let (code, said) = selftest(libraries.path(), kept.path(), &[], &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("byte 3988 of 3988 and 256 beyond is 0x00, not 0xa5, in run 0"), "{said}");
}

#[test]
fn without_a_gpu_it_says_why_and_ends_with_3() {
    let (libraries, kept) = (common::temp(), common::temp());
    let (code, said) = selftest(libraries.path(), kept.path(), &[], &[]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("no GPU to test: libcuda is not on this machine"), "{said}");
}

#[test]
fn stubs_old_drivers_and_drivers_without_a_gpu_are_lines_with_a_cure() {
    let (libraries, kept) = (common::temp(), common::temp());
    common::driver_in(libraries.path());
    let says = |environment: &[(&str, &str)], wanted: &[&str]| {
        let (code, said) = selftest(libraries.path(), kept.path(), environment, &[]);
        assert_eq!(code, 3, "{environment:?}: {said}");
        let why = said.lines().find_map(|line| line.strip_prefix("no GPU to test: ")).expect("a reason");
        wanted.iter().for_each(|part| assert!(why.contains(part), "{environment:?}: {why}"));
    };
    says(&[("FAKE_CUDA_STUB", "1")], &["cuDriverGetVersion: ", "(34)", "stub for linking", "LD_LIBRARY_PATH"]);
    says(&[("FAKE_CUDA_INIT", "34")], &["cuInit: CUDA_ERROR_STUB_LIBRARY (34)", "stub for linking"]);
    let old = "the CUDA of NVIDIA's driver is version 11.8, and 12.0 is the oldest that works; update NVIDIA's driver";
    says(&[("FAKE_CUDA_VERSION", "11080")], &[old]);
    says(&[("FAKE_CUDA_INIT", "100")], &["cuInit: CUDA_ERROR_NO_DEVICE (100)", "CUDA_VISIBLE_DEVICES"]);
    says(&[("FAKE_CUDA_INIT", "12345")], &["cuInit: an error without a name (12345)", "`nvidia-smi`"]);
    says(&[("FAKE_CUDA_DEVICES", "0")], &["the driver sees no GPU"]);
    let turing = "GPU 0, Fake GPU 0, has compute capability 7.5; 8.0 (Ampere) is the oldest that works";
    says(&[("FAKE_CUDA_CAPABILITY", "75")], &[turing]);
}

#[test]
fn a_driver_for_cuda_12_works_with_the_compiler_of_cuda_12() {
    let (libraries, kept) = (common::temp(), common::temp());
    common::driver_in(libraries.path());
    common::nvrtc_in(libraries.path(), &[]);
    common::make("libnvrtc.c", &libraries.path().join("libnvrtc.so.12"), &["-DVERSION=12"]);
    let (code, said) = selftest(libraries.path(), kept.path(), &[("FAKE_CUDA_VERSION", "12000")], &[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("libnvrtc.so.12\n") && !said.contains("libnvrtc.so.13\n"), "{said}");
}

#[test]
fn without_a_compiler_each_kernel_fails_with_the_way_out() {
    let (libraries, kept) = (common::temp(), common::temp());
    common::driver_in(libraries.path());
    let (code, said) = selftest(libraries.path(), kept.path(), &[("FAKE_CUDA_CAPABILITY", "120")], &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("FAILED: no kernel fill.cu for a GPU of compute capability 12.0"), "{said}");
}

#[test]
fn wrong_words_and_a_missing_compiler_have_codes_of_their_own() {
    let (libraries, kept) = (common::temp(), common::temp());
    let (code, said) = selftest(libraries.path(), kept.path(), &[], &["compile"]);
    assert_eq!(code, 2, "{said}");
    let (code, said) = selftest(libraries.path(), kept.path(), &[], &["compile", "nowhere"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.starts_with("error: libnvrtc is not on this machine"), "{said}");
    let (code, said) = selftest(libraries.path(), kept.path(), &[], &["--help"]);
    assert!(code == 0 && said.contains("Exit codes"), "{said}");
}
