//! `cargo xtask test`: everything that holds the promises, in one command that needs nothing set up before.
//!
//! One release build, then every program with tests; those that end-to-end tests start are named by `ELASTIC_BIN` and
//! `ELASTIC_OWN_MODEL_BIN`. The whole output is kept in `target/xtask-test.log`, a person sees
//! one line a program and, where something failed, all that this program said.

use crate::bench;
use crate::programs::{self, Crew, Event};
use crate::tally::{Counts, Said, Tally, skip_entry};
use crate::tools;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// A run that is not done after so long hangs: 75 minutes, or 6 hours of `--full`.
const LIMIT: Duration = Duration::from_secs(75 * 60);
const LIMIT_FULL: Duration = Duration::from_secs(6 * 3600);
/// Simulated worlds of `--full`, unless `ELASTIC_SEEDS` says otherwise.
const SEEDS_FULL: &str = "200000";

struct Plan<'a> {
    full: bool,
    filters: Vec<&'a str>,
    release_dir: PathBuf,
    skip_file: PathBuf,
}

pub fn run(args: &[&str]) -> Result<ExitCode> {
    let start = Instant::now();
    let (flags, filters): (Vec<&str>, Vec<&str>) = args.iter().partition(|arg| arg.starts_with('-'));
    if let Some(unknown) = flags.iter().find(|flag| **flag != "--full") {
        bail!("unknown option {unknown}; there is only --full");
    }
    tools::install_missing();
    let release_dir = tools::release_dir()?;
    std::fs::create_dir_all(&release_dir).with_context(|| format!("create {}", release_dir.display()))?;
    let skip_file = release_dir.with_file_name("xtask-skipped.txt");
    File::create(&skip_file).with_context(|| format!("create {}", skip_file.display()))?;
    let plan = Plan { full: flags.contains(&"--full"), filters, release_dir, skip_file };

    // Programs and tests in one go: asked for apart, some libraries would get other features and be compiled twice.
    println!("building the programs and their tests");
    tools::run(tools::cargo().args(["build", "--release", "--workspace", "--bins", "--tests", "--examples"]))?;
    println!("[{:>6.1} s] running the tests", start.elapsed().as_secs_f64());

    let mut tally = Tally::default();
    let succeeded = run_tests(&plan, start, &mut tally)?;
    let said = std::fs::read_to_string(&plan.skip_file).unwrap_or_default();
    said.lines().filter_map(skip_entry).for_each(|(name, reason)| tally.skip(name, reason));
    if plan.full && plan.filters.is_empty() {
        run_benches(&plan, start, &mut tally);
    }
    Ok(report(&mut tally, succeeded, start))
}

/// The end of the output, and the exit status. The counts are the very last line.
fn report(tally: &mut Tally, succeeded: bool, start: Instant) -> ExitCode {
    let Counts { passed, failed, skipped } = tally.counts(succeeded);
    println!("\ntests took {:.0} s", start.elapsed().as_secs_f64());
    tally.failed.iter().for_each(|name| println!("failed: {name}"));
    tally.skipped.iter().for_each(|(name, reason)| println!("skipped: {name}: {reason}"));
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 && succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The comparison with peers, each in an environment of its own. Counted like tests: a bench that breaks is a failure.
fn run_benches(plan: &Plan, start: Instant, tally: &mut Tally) {
    for name in bench::NAMES {
        let test = format!("bench::{name}");
        println!("[{:>6.1} s] bench {name}", start.elapsed().as_secs_f64());
        match tools::which("python3") {
            None => tally.leave_out(&test, "no python3 on PATH"),
            Some(_) => match bench::start(name, &[], &plan.release_dir.join("elastic")) {
                Ok(()) => tally.pass(),
                Err(error) => tally.failed.push(format!("{test}: {error:#}")),
            },
        }
    }
}

/// How each program with tests is started.
fn arrange(plan: &Plan, command: &mut Command) {
    let program = |name: &str| plan.release_dir.join(name);
    // Passing tests are shown too, because a test that skips itself passes and says why.
    command.arg("--show-output").args(&plan.filters);
    command.env("ELASTIC_BIN", program("elastic")).env("ELASTIC_OWN_MODEL_BIN", program("own-model"));
    command.env("ELASTIC_SKIP_FILE", &plan.skip_file).env("CARGO_TERM_COLOR", "never").env("RUST_BACKTRACE", "1");
    // Nothing of the person's own set-up may steer a test.
    command.env_remove("ELASTIC_COORDINATOR").env_remove("ELASTIC_TOKEN").env_remove("ELASTIC_FAIL");
    match plan.full {
        true => {
            let seeds = std::env::var_os("ELASTIC_SEEDS").unwrap_or_else(|| SEEDS_FULL.into());
            command.env("ELASTIC_FULL", "1").env("ELASTIC_SEEDS", seeds)
        }
        false => command.env_remove("ELASTIC_FULL"),
    };
}

/// Runs the programs with tests, and then the examples in docs, which only cargo can run.
fn run_tests(plan: &Plan, start: Instant, tally: &mut Tally) -> Result<bool> {
    let limit = if plan.full { LIMIT_FULL } else { LIMIT };
    let log_path = plan.release_dir.with_file_name("xtask-test.log");
    let log = File::create(&log_path).with_context(|| format!("create {}", log_path.display()))?;
    let mut watch = Watch { start, tally, log };
    let arrange = |command: &mut Command| arrange(plan, command);
    let mut crew = Crew::new(programs::list()?, start + limit, &arrange);
    let mut succeeded = true;
    while let Some(event) = crew.next()? {
        match event {
            Event::News(line) => watch.say(&line),
            Event::Ended { lines, status } => {
                watch.take(&lines)?;
                succeeded &= status.success();
            }
            Event::TimeUp(said) => {
                for lines in said {
                    watch.take(&lines)?;
                    lines.iter().for_each(|line| println!("    {line}"));
                }
                watch
                    .tally
                    .failed
                    .push(format!("the run was not done after {} min and was ended", limit.as_secs() / 60));
                succeeded = false;
            }
        }
    }
    let mut docs = tools::cargo();
    docs.args(["test", "--release", "--workspace", "--doc", "--"]).args(&plan.filters);
    let docs = docs.stdin(Stdio::null()).output().context("start cargo test --doc")?;
    let said = String::from_utf8_lossy(&docs.stdout);
    let lines = std::iter::once("   Doc-tests all").chain(said.lines()).map(str::to_string);
    watch.take(&lines.collect::<Vec<String>>())?;
    if !docs.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&docs.stderr));
    }
    println!("the whole output: {}", shown(&log_path));
    Ok(succeeded && docs.status.success())
}

/// Where the lines of a run go.
struct Watch<'a> {
    start: Instant,
    tally: &'a mut Tally,
    log: File,
}

impl Watch<'_> {
    fn say(&self, line: &str) {
        println!("[{:>6.1} s] {line}", self.start.elapsed().as_secs_f64());
    }

    /// All that a program said.
    fn take(&mut self, lines: &[String]) -> Result<()> {
        for line in lines {
            writeln!(self.log, "{line}").context("write the log")?;
            match self.tally.line(line) {
                Said::Result { passed: 0, failed: 0, .. } | Said::Nothing => {}
                Said::Result { program, passed, failed } => {
                    self.say(&format!("{program}: {passed} passed{}", failed_text(failed)));
                    if failed > 0 {
                        self.tally.program_output().iter().for_each(|line| println!("    {line}"));
                    }
                }
            }
        }
        Ok(())
    }
}

fn failed_text(failed: u64) -> String {
    if failed == 0 { String::new() } else { format!(", {failed} FAILED") }
}

fn shown(path: &Path) -> String {
    path.strip_prefix(tools::root()).unwrap_or(path).display().to_string()
}
