//! `cargo xtask test`: everything that holds the promises, in one command that needs nothing set up before.
//!
//! One release build, one `cargo test`; the programs that end-to-end tests start are named by `ELASTIC_BIN` and
//! `ELASTIC_OWN_MODEL_BIN`. The whole output is kept in `target/xtask-test.log`, a person sees
//! one line a program and, where something failed, all that this program said.

use crate::bench;
use crate::tally::{Counts, Said, Tally, skip_entry};
use crate::tools;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// A run that is not done after so long hangs: 40 minutes, or 6 hours of `--full`.
const LIMIT: Duration = Duration::from_secs(40 * 60);
const LIMIT_FULL: Duration = Duration::from_secs(6 * 3600);
/// Simulated worlds of `--full`, unless `ELASTIC_SEEDS` says otherwise.
const SEEDS_FULL: &str = "200000";
/// Lines read ahead of what was printed.
const LINES_AHEAD: usize = 1024;

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
    tools::run(tools::cargo().args(["build", "--release", "--workspace", "--bins", "--tests"]))?;
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

fn test_command(plan: &Plan) -> Command {
    let program = |name: &str| plan.release_dir.join(name);
    let mut command = tools::cargo();
    command.args(["test", "--release", "--workspace", "--no-fail-fast"]);
    // Passing tests are shown too, because a test that skips itself passes and says why.
    command.args(["--", "--show-output"]).args(&plan.filters);
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
    command
}

fn run_tests(plan: &Plan, start: Instant, tally: &mut Tally) -> Result<bool> {
    let (reader, writer) = std::io::pipe().context("create a pipe")?;
    let mut command = test_command(plan);
    command.stdin(Stdio::null()).stdout(writer.try_clone().context("share a pipe")?).stderr(writer);
    let owns_group = !std::io::stdin().is_terminal();
    if owns_group {
        // So that a hung run can be ended as a whole; at a terminal Ctrl-C must reach it instead.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
    }
    let mut child = command.spawn().context("start cargo test")?;
    drop(command); // holds the pipe's writing end
    let lines = lines_of(reader);
    let log_path = plan.release_dir.with_file_name("xtask-test.log");
    let log = File::create(&log_path).with_context(|| format!("create {}", log_path.display()))?;
    let limit = if plan.full { LIMIT_FULL } else { LIMIT };
    let in_time = Watch { start, until: start + limit, tally, log }.follow(&lines)?;
    if !in_time {
        end(&mut child, owns_group);
        tally.failed.push(format!("the run was not done after {} min and was ended", limit.as_secs() / 60));
    }
    let status = child.wait().context("wait for cargo test")?;
    println!("the whole output: {}", shown(&log_path));
    Ok(status.success() && in_time)
}

/// Where the lines of a run go.
struct Watch<'a> {
    start: Instant,
    until: Instant,
    tally: &'a mut Tally,
    log: File,
}

impl Watch<'_> {
    /// Reads lines until the end of the output; `false` if the time was up before.
    fn follow(&mut self, lines: &Receiver<String>) -> Result<bool> {
        loop {
            match lines.recv_timeout(self.until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.take(&line)?,
                Err(RecvTimeoutError::Disconnected) => return Ok(true),
                Err(RecvTimeoutError::Timeout) => {
                    self.tally.program_output().iter().for_each(|line| println!("    {line}"));
                    return Ok(false);
                }
            }
        }
    }

    fn take(&mut self, line: &str) -> Result<()> {
        writeln!(self.log, "{line}").context("write the log")?;
        let at = self.start.elapsed().as_secs_f64();
        match self.tally.line(line) {
            Said::Result { failed: 0, passed: 0, .. } => {}
            Said::Result { program, passed, failed } => {
                println!("[{at:>6.1} s] {program}: {passed} passed{}", failed_text(failed));
                if failed > 0 {
                    self.tally.program_output().iter().for_each(|line| println!("    {line}"));
                }
            }
            Said::Nothing if is_news(line) => println!("[{at:>6.1} s] {}", line.trim()),
            Said::Nothing => {}
        }
        Ok(())
    }
}

fn failed_text(failed: u64) -> String {
    if failed == 0 { String::new() } else { format!(", {failed} FAILED") }
}

/// Of cargo's own lines, those that a person waits for: what is compiled, what is wrong.
fn is_news(line: &str) -> bool {
    let word = line.trim_start();
    ["Compiling elastic", "Finished ", "error", "warning: unused"].iter().any(|start| word.starts_with(start))
        || word.contains("has been running for over")
}

fn lines_of(source: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(LINES_AHEAD);
    std::thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut bytes = Vec::new();
        while matches!(source.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_string();
            bytes.clear();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn end(child: &mut Child, owns_group: bool) {
    if owns_group {
        let group = format!("-{}", child.id());
        // Errors are of no use here: the child is waited for next in any case.
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
    }
    let _ = child.kill();
}

fn shown(path: &Path) -> String {
    path.strip_prefix(tools::root()).unwrap_or(path).display().to_string()
}
