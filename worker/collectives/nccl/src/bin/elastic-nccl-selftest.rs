//! `elastic-nccl-selftest`: what NCCL does for this project, to be run where there are a GPU and NCCL. One GPU is enough.

use elastic_nccl::selftest::{self, Format, Options, Verdict};
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
Runs the exact reduction over NCCL on this machine's first GPU, in processes that share it: meeting, reducing,
aborting, being killed, meeting again. Says each thing as it is done, with its time.

Usage: elastic-nccl-selftest [OPTIONS]

  --ranks LIST     how many processes share the GPU, each number a test of its own (default: 1,2; at most 8)
  --floats N       length of the gradient (default: 1000003)
  --patience S     seconds that a wait for other ranks may take (default: 20)
  --json           one JSON object a line

Examples:
  elastic-nccl-selftest | tee nccl-selftest.log
  ELASTIC_CUDA_LIBS=~/venv/lib/python3.12/site-packages/nvidia/nccl/lib elastic-nccl-selftest --ranks 1,2,4
  NCCL_DEBUG=INFO elastic-nccl-selftest 2> nccl.log

Exit codes: 0 all passed, 1 something failed, 2 wrong command line, 3 nothing to test here (no GPU, or no NCCL).
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--help" | "-h"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        // A rank, which this program starts itself.
        ["rank", floats] => match floats.parse().map(selftest::run_rank) {
            Ok(Ok(())) => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        },
        words => match options(words) {
            Ok(options) => run(&options),
            Err(why) => {
                eprint!("error: {why}\n\n{HELP}");
                ExitCode::from(2)
            }
        },
    }
}

fn run(options: &Options) -> ExitCode {
    match selftest::run(&mut std::io::stdout(), options) {
        Ok(Verdict::Passed) => ExitCode::SUCCESS,
        Ok(Verdict::Failed) => ExitCode::FAILURE,
        Ok(Verdict::NothingToTest) => ExitCode::from(3),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(words: &[&str]) -> Result<Options, String> {
    let program =
        std::env::current_exe().map_err(|error| format!("this program does not know where it is: {error}"))?;
    let mut options = Options {
        program,
        worlds: vec![1, 2],
        floats: 1_000_003,
        patience: Duration::from_secs(20),
        format: Format::Text,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} wants a value"));
        match *word {
            "--json" => options.format = Format::Json,
            "--floats" => options.floats = number(value()?, 1..=1 << 30)?,
            "--patience" => options.patience = Duration::from_secs(number(value()?, 1..=3600)? as u64),
            "--ranks" => {
                let numbers = value()?.split(',').map(|word| number(word, 1..=8).map(|ranks| ranks as u16));
                options.worlds = numbers.collect::<Result<_, _>>()?;
            }
            other => return Err(format!("unknown argument: {other}")),
        }
    }
    Ok(options)
}

fn number(word: &str, allowed: std::ops::RangeInclusive<usize>) -> Result<usize, String> {
    let (low, high) = (allowed.start(), allowed.end());
    let found = word.parse().ok().filter(|number| allowed.contains(number));
    found.ok_or_else(|| format!("\"{word}\" is no number from {low} to {high}"))
}
