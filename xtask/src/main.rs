//! Chores of this repository: `cargo xtask test | lint | bench | nvidia | gpu-bundle`.
//!
//! Each chore is a file here; `tally` (reading what test programs print) is the only one that decides anything
//! and is tested by itself. The product is not linked: chores start it like a person would.

mod bench;
mod gpu_bundle;
mod lint;
mod nvidia;
mod programs;
mod tally;
mod test;
mod tools;

use std::process::ExitCode;

const HELP: &str = "\
Chores of the elastic repository.

Usage: cargo xtask <chore>

  test [--full] [FILTER…]  install what is missing, build, run every test; ends with the counts
                           --full: also long chaos runs and many seeds; FILTER: only tests whose names contain it
  nvidia                   install NVIDIA's compiler, headers and NCCL below target; tests of kernels and of NCCL need them
  gpu-bundle               a folder to carry to a machine with a GPU: the self-test with all machine code inside, run.sh
  lint                     clippy with warnings denied, and the format check
  bench <name> [ARG…]      stall     stall of the survivors when one of 3 workers is killed
                           torchrun  the same toy under torchrun, in a pinned environment of its own
                           step      a training step beside PyTorch's
                           serve     `elastic serve` beside Triton and FastAPI, one core each for server and load
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["test", rest @ ..] => test::run(rest),
        ["lint"] => lint::run(),
        ["nvidia"] => nvidia::run(),
        ["gpu-bundle"] => gpu_bundle::run(),
        ["bench", name, rest @ ..] => bench::run(name, rest),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("unknown chore: {}\n\n{HELP}", words.join(" "));
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
