//! `elastic profile JOB_FILE`: where the time of a job's step goes, op by op, on this machine.

use crate::args;
use crate::exit::{Exit, Outcome, mistake};
use crate::job_file::{self, Read};
use crate::{inputs, show};
use anyhow::{Context, Result, anyhow};
use elastic_spec::job::JobSpec;
use elastic_worker::memory::size;
use elastic_worker::profile::{Amount, Ask, Profile, Row, profile};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub fn run(args: args::Profile) -> Outcome {
    let mut file = match job_file::read(&args.file, &args.set, None)? {
        Read::Good(file) => *file,
        Read::Bad(mistakes) => {
            mistakes.iter().for_each(|mistake| eprintln!("{mistake}"));
            let count = show::plural(mistakes.len() as u64, "mistake");
            eprintln!("{} has {count}; nothing was measured", args.file.display());
            return Ok(Exit::Mistake);
        }
    };
    elastic_worker::device::take_alone(&file.spec).map_err(|why| mistake(anyhow!(why)))?;
    inputs::find_here(&mut file.spec)?;
    let ask = Ask { threads: threads(&args, &file.spec), steps: args.steps.into() };
    let found = profile(&file.spec, &ask).map_err(mistake)?;
    if let Some(path) = &args.trace {
        let text = serde_json::to_string(&trace(&found)).context("write the trace as JSON")?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display())).map_err(mistake)?;
    }
    match args.json {
        true => show::out(&format!("{}\n", as_json(&found)?))?,
        false => show::out(&words(&found, args.top))?,
    }
    Ok(Exit::Ok)
}

/// As asked, else the job's wish, else one a core.
fn threads(args: &args::Profile, spec: &JobSpec) -> usize {
    let wished = args.threads.into_iter().chain([spec.resources.threads]).find(|threads| *threads > 0);
    wished.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
}

fn words(found: &Profile, top: usize) -> String {
    let Profile { shards, unit, samples, threads, steps, .. } = found;
    let share = |us: f64| format!("{:.1} %", 100.0 * us / found.step_us);
    let mut text = format!(
        "{}: {} a step of {samples} samples, the median of {steps}; {} parameters\n\
         {shards} shards, {unit} in a call; {}, {} GFLOP/s of multiply-adds at most\n\n",
        found.job,
        time(found.step_us),
        show::count(found.params as f64),
        show::plural(*threads as u64, "thread"),
        rate(found.peak_gflops),
    );
    let mut by_time: Vec<&Row> = found.rows.iter().collect();
    by_time.sort_by(|a, b| b.us.total_cmp(&a.us));
    let line = |name: [&str; 3], us: f64, amount: Amount| {
        let gflops = amount.flops as f64 / us / 1e3;
        let [phase, op, place] = name.map(str::to_string);
        let of_peak = format!("{:.0} %", 100.0 * gflops / found.peak_gflops);
        let moved = amount.read_bytes + amount.written_bytes;
        let (moved, speed) = (size(moved), rate(moved as f64 / us / 1e3));
        vec![phase, op, time(us), share(us), rate(gflops), of_peak, moved, speed, place]
    };
    let heads = ["PHASE", "OP", "TIME", "SHARE", "GFLOP/S", "OF PEAK", "MOVED", "GB/S", "MODULE"];
    let shown = by_time.iter().take(top);
    let mut rows: Vec<Vec<String>> = shown.map(|row| line([row.phase, row.op, &row.path], row.us, row.cost)).collect();
    let rest = by_time.get(top..).unwrap_or_default();
    if !rest.is_empty() {
        let (us, amount) = sum(rest);
        let others = format!("{} more", rest.len());
        rows.push(line(["", &others, "--top shows them"], us, amount));
    }
    text += &show::table(&heads, &rows);
    let mut phases: BTreeMap<usize, Vec<&Row>> = BTreeMap::new();
    for row in &found.rows {
        phases.entry(PHASES.iter().position(|p| *p == row.phase).unwrap_or(PHASES.len())).or_default().push(row);
    }
    let mut rows: Vec<Vec<String>> = phases
        .values()
        .map(|rows| {
            let (us, amount) = sum(rows);
            line([rows[0].phase, "all", ""], us, amount)
        })
        .collect();
    rows.push(line(["step", "", ""], found.step_us, found.total));
    text +=
        &format!("\n{}", show::table(&heads[..8], &rows.into_iter().map(|row| row[..8].to_vec()).collect::<Vec<_>>()));
    text + &format!("\nplanned memory besides the data  {}\n", found.memory.words())
}

const PHASES: [&str; 5] = ["data", "forward", "backward", "sum", "update"];

fn sum(rows: &[&Row]) -> (f64, Amount) {
    rows.iter().fold((0.0, Amount::default()), |(us, amount), row| (us + row.us, amount.plus(row.cost)))
}

/// 12 µs, 3.4 ms, 1.2 s.
fn time(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{us:.0} µs"),
        us if us < 9_995.0 => format!("{:.2} ms", us / 1e3),
        us if us < 999_500.0 => format!("{:.1} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Two digits that count.
fn rate(value: f64) -> String {
    match value {
        v if !v.is_finite() => "-".into(),
        v if v < 9.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// The profile, with what follows from time and cost of each row.
fn as_json(found: &Profile) -> Result<Value> {
    let mut value = serde_json::to_value(found).context("write the profile as JSON")?;
    let derived = |us: f64, amount: Amount| {
        let gflops = amount.flops as f64 / us / 1e3;
        let moved = (amount.read_bytes + amount.written_bytes) as f64;
        [
            ("share", us / found.step_us),
            ("gflops", gflops),
            ("of_peak", gflops / found.peak_gflops),
            ("gb_per_second", moved / us / 1e3),
        ]
    };
    for (row, of) in value["rows"].as_array_mut().into_iter().flatten().zip(&found.rows) {
        derived(of.us, of.cost).into_iter().for_each(|(key, number)| row[key] = json!(number));
    }
    derived(found.step_us, found.total)
        .into_iter()
        .skip(1)
        .for_each(|(key, number)| value["total"][key] = json!(number));
    value["memory"]["total_bytes"] = json!(found.memory.total_bytes());
    Ok(value)
}

/// In the form that Perfetto and `chrome://tracing` read: complete events, times in µs.
fn trace(found: &Profile) -> Value {
    let name = |tid: usize, name: &str| json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": name}});
    let mut events: Vec<Value> = PHASES.iter().enumerate().map(|(tid, phase)| name(tid, phase)).collect();
    events.extend(found.events.iter().map(|event| {
        let row = &found.rows[event.row];
        let calls = row.calls.max(1);
        json!({
            "ph": "X",
            "name": row.op,
            "cat": row.phase,
            "pid": 1,
            "tid": PHASES.iter().position(|phase| *phase == row.phase),
            "ts": event.start_us,
            "dur": event.us,
            "args": {
                "module": row.path,
                "step": event.step,
                "flops": row.cost.flops / calls,
                "bytes": (row.cost.read_bytes + row.cost.written_bytes) / calls,
            },
        })
    }));
    json!({ "displayTimeUnit": "ms", "traceEvents": events })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_have_two_to_three_digits() {
        assert_eq!([0.4, 12.0, 3_400.0, 34_000.0, 1.2e6].map(time), ["0 µs", "12 µs", "3.40 ms", "34.0 ms", "1.20 s"]);
        assert_eq!([0.04, 9.9, 117.4, f64::NAN].map(rate), ["0.0", "9.9", "117", "-"]);
    }
}
