//! Declarations of C functions, as they are spelled here, handed to a C compiler together with the library's header.
//! Also for the tests of other crates that have tables of `elastic_cuda::ffi`.

use elastic_cuda::ffi::Declared;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// A type as Rust spells it, in C. Names of the library's own are alike in both.
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
pub fn file(header: &str, result: &str, declared: &[Declared]) -> String {
    let mut text = format!("#include <stddef.h>\n#include <{header}>\n");
    for Declared { symbols, arguments, returns } in declared {
        let symbol = symbols[0];
        let arguments: Vec<String> = arguments.iter().map(|kind| in_c(kind)).collect();
        let result = returns.map_or_else(|| result.to_string(), in_c);
        let kind = format!("{result} (*)({})", arguments.join(", "));
        let same = format!("__builtin_types_compatible_p(__typeof__(&{symbol}), {kind})");
        writeln!(text, "_Static_assert({same}, \"{symbol} is declared otherwise\");").expect("a string takes any text");
    }
    text
}

/// What the compiler says against it.
pub fn compile(text: &str, includes: &[&Path]) -> Result<(), String> {
    let dir = tempfile::tempdir().expect("the system has room for a folder");
    let source = dir.path().join("declarations.c");
    std::fs::write(&source, text).expect("a temporary folder can be written");
    let mut cc = Command::new("cc");
    for include in includes {
        cc.arg("-I").arg(include);
    }
    let said = cc.args(["-std=gnu11", "-fsyntax-only"]).arg(&source).output().expect("there is a cc");
    if said.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said.stderr).into_owned()) }
}
