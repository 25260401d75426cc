//! `elastic-selftest`: what is to be run once where there is a GPU, in one file that needs no other.
//!
//! `cargo xtask gpu-bundle` makes a folder of it with all machine code inside.

use elastic_cuda::cache::Cache;
use elastic_cuda::selftest::{self, Verdict};
use std::path::Path;
use std::process::ExitCode;

const HELP: &str = "\
Runs elastic's kernels on this machine's GPU and compares what they give.

Usage: elastic-selftest             run everything
       elastic-selftest compile DIR write every kernel's machine code into DIR, without a GPU

Examples:
  elastic-selftest | tee selftest.log
  ELASTIC_CUDA_LIBS=~/venv/lib/python3.12/site-packages/nvidia/cu13/lib elastic-selftest

Exit codes: 0 all passed, 1 something failed, 2 wrong command line, 3 there is no GPU to test.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => match selftest::run(&mut std::io::stdout(), &Cache::of_user()) {
            Ok(Verdict::Passed) => ExitCode::SUCCESS,
            Ok(Verdict::Failed) => ExitCode::FAILURE,
            Ok(Verdict::NoGpu) => ExitCode::from(3),
            Err(error) => failed(&error.to_string()),
        },
        ["compile", dir] => match selftest::compile(&mut std::io::stdout(), Path::new(dir)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error.to_string()),
        },
        ["--help" | "-h"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("error: unknown arguments: {}\n\n{HELP}", words.join(" "));
            ExitCode::from(2)
        }
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::FAILURE
}
