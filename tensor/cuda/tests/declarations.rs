//! The declarations of CUDA's functions against NVIDIA's own headers, by a C compiler: nothing here has run on a GPU, and
//! a wrong argument would not be seen before it does.

mod common;

use elastic_cuda::ffi::{Declared, driver::DriverFunctions, nvrtc::NvrtcFunctions};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// A type as Rust spells it, in C. Names of CUDA's own are alike in both.
fn in_c(rust: &str) -> String {
    let rust = rust.trim();
    if let Some(to) = rust.strip_prefix("*mut ") {
        return format!("{} *", in_c(to));
    }
    if let Some(to) = rust.strip_prefix("*const ") {
        return format!("{} const *", in_c(to));
    }
    match rust {
        "c_void" => "void",
        "c_char" => "char",
        "c_uchar" => "unsigned char",
        "c_int" => "int",
        "c_uint" => "unsigned int",
        "usize" => "size_t",
        "u64" => "unsigned long long",
        "f32" => "float",
        own => own,
    }
    .to_string()
}

/// A file that compiles if each declaration is the header's.
fn file(header: &str, result: &str, declared: &[Declared]) -> String {
    let mut text = format!("#include <stddef.h>\n#include <{header}>\n");
    for Declared { symbols, arguments } in declared {
        let symbol = symbols[0];
        let arguments: Vec<String> = arguments.iter().map(|kind| in_c(kind)).collect();
        let kind = format!("{result} (*)({})", arguments.join(", "));
        let same = format!("__builtin_types_compatible_p(__typeof__(&{symbol}), {kind})");
        writeln!(text, "_Static_assert({same}, \"{symbol} is declared otherwise\");").expect("a string takes any text");
    }
    text
}

fn compile(text: &str, include: &Path) -> Result<(), String> {
    let dir = common::temp();
    let source = dir.path().join("declarations.c");
    std::fs::write(&source, text).expect("a temporary folder can be written");
    let mut cc = Command::new("cc");
    let said =
        cc.args(["-std=gnu11", "-fsyntax-only", "-I"]).arg(include).arg(&source).output().expect("there is a cc");
    if said.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said.stderr).into_owned()) }
}

#[test]
fn the_declarations_are_those_of_nvidias_headers() {
    let include = match common::nvidia() {
        Ok(nvidia) => nvidia.join("include"),
        Err(why) => return println!("skipped: the_declarations_are_those_of_nvidias_headers: {why}"),
    };
    let driver = file("cuda.h", "CUresult", DriverFunctions::DECLARED);
    compile(&driver, &include).expect("cuda.h");
    compile(&file("nvrtc.h", "nvrtcResult", NvrtcFunctions::DECLARED), &include).expect("nvrtc.h");
    // A check that cannot fail proves nothing.
    let wrong = driver.replace("size_t *, CUdevice", "int *, CUdevice");
    assert_ne!(wrong, driver);
    assert!(compile(&wrong, &include).is_err_and(|said| said.contains("cuDeviceTotalMem_v2 is declared otherwise")));
}

#[test]
fn the_fakes_are_declared_as_nvidias_headers_are() {
    let include = match common::nvidia() {
        Ok(nvidia) => nvidia.join("include"),
        Err(why) => return println!("skipped: the_fakes_are_declared_as_nvidias_headers_are: {why}"),
    };
    for (source, define, header) in [("libcuda.c", "WITH_CUDA_H", "cuda.h"), ("libnvrtc.c", "WITH_NVRTC_H", "nvrtc.h")]
    {
        let path = common::folder().join("tests/fake").join(source);
        let text = format!("#define {define}\n#include <{header}>\n#include {path:?}\n");
        compile(&text, &include).expect(source);
    }
}
