//! `elastic status JOB --watch`: one job until it is over.
//!
//! On a terminal the whole status is drawn again in place, with the curve of the loss. Elsewhere a line is
//! added for each change that a person would tell, and every few seconds while the job gets on.

use super::words;
use crate::exit::{Exit, Outcome};
use crate::reach::Cluster;
use crate::result::exit_of;
use crate::{args, json, show, signals};
use anyhow::{Result, anyhow};
use elastic_proto::Refusal;
use elastic_proto::client::Coordinator;
use elastic_spec::api::JobStatus;
use elastic_spec::{JobId, Step};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

pub async fn run(args: &args::Status, job: JobId) -> Outcome {
    let cluster = Cluster::needed(&args.reach)?;
    let mut coordinator = cluster.connect().await?;
    let mut screen = match (args.json, std::io::stdout().is_terminal()) {
        (true, _) => Screen::Objects { last: None },
        (false, true) => Screen::InPlace { drawn: 0, curve: Sparks::default() },
        (false, false) => Screen::Lines(Lines::default()),
    };
    let watched = async {
        loop {
            let Some(status) = ask(&cluster, &mut coordinator, &job, &mut screen).await? else { continue };
            screen.show(&status)?;
            if status.state.is_over() {
                return anyhow::Ok(exit_of(&status));
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::select! {
        ended = watched => Ok(ended?),
        () = signals::interrupted() => Ok(Exit::Interrupted),
    }
}

/// None: the coordinator is away, and was waited for.
async fn ask(
    cluster: &Cluster,
    coordinator: &mut Coordinator,
    job: &JobId,
    screen: &mut Screen,
) -> anyhow::Result<Option<JobStatus>> {
    match coordinator.status(job).await {
        Ok(status) => Ok(Some(status)),
        Err(refusal) if refusal.is_passing() => {
            screen.say_away(&refusal)?;
            tokio::time::sleep(AGAIN_EVERY).await;
            if let Ok(found) = cluster.connect().await {
                *coordinator = found;
            }
            Ok(None)
        }
        Err(refusal @ Refusal::NotFound(_)) => Err(refusal.into()),
        Err(refusal) => Err(anyhow!(refusal).context("ask for the job")),
    }
}

enum Screen {
    Objects { last: Option<JobStatus> },
    InPlace { drawn: usize, curve: Sparks },
    Lines(Lines),
}

impl Screen {
    fn show(&mut self, status: &JobStatus) -> Result<()> {
        match self {
            Screen::Objects { last } => {
                let mut status = status.clone();
                // Silence alone is no change.
                status.members.iter_mut().for_each(|member| member.silent_ms = 0);
                if last.as_ref() != Some(&status) {
                    show::out(&format!("{}\n", json::job(&status)))?;
                    *last = Some(status);
                }
                Ok(())
            }
            Screen::InPlace { drawn, curve } => {
                curve.look(status);
                let frame = frame(status, curve);
                show::out(&in_place(*drawn, &frame))?;
                *drawn = frame.lines().count();
                Ok(())
            }
            Screen::Lines(lines) => lines.changes(status, Instant::now()).iter().try_for_each(|line| show::out(line)),
        }
    }

    fn say_away(&mut self, why: &Refusal) -> Result<()> {
        let line = format!("the coordinator is away ({why}); the job goes on\n");
        match self {
            Screen::Objects { .. } => Ok(()),
            Screen::InPlace { drawn, .. } => {
                let text = in_place(*drawn, &line);
                *drawn = 1;
                show::out(&text)
            }
            Screen::Lines(lines) => match std::mem::replace(&mut lines.is_away, true) {
                true => Ok(()),
                false => show::out(&line),
            },
        }
    }
}

/// Back to where the last frame began, what follows is cleared, and long lines are cut by the terminal instead of
/// being broken, which would make the next way back too short.
fn in_place(drawn: usize, frame: &str) -> String {
    let back = if drawn > 0 { format!("\x1b[{drawn}A\r") } else { String::new() };
    format!("{back}\x1b[J\x1b[?7l{frame}\x1b[?7h")
}

fn frame(status: &JobStatus, curve: &Sparks) -> String {
    let mut short = status.clone();
    let left_out = short.members.len().saturating_sub(MEMBERS_SHOWN);
    short.members.truncate(MEMBERS_SHOWN);
    let mut text = progress(status);
    if let Some(line) = curve.line() {
        text += &format!("{line}\n");
    }
    text += "\n";
    text += &words(&short);
    if left_out > 0 {
        text += &format!("… and {}\n", show::plural(left_out as u64, "more member"));
    }
    text
}

fn progress(status: &JobStatus) -> String {
    let (step, steps) = (status.step.0, status.steps_total);
    if steps == 0 {
        return format!("{}  {}\n", status.job, status.state.as_str());
    }
    let full = (step.min(steps) * BAR_WIDTH / steps) as usize;
    let bar = format!("{}{}", "━".repeat(full), "─".repeat(BAR_WIDTH as usize - full));
    format!("{bar}  {}{}\n", show::percent(step as f64 / steps as f64), left(status))
}

fn left(status: &JobStatus) -> String {
    let steps = status.steps_total.saturating_sub(status.step.0);
    let ms = steps * status.metrics.map_or(0, |m| m.step_us) / 1_000;
    let runs = status.samples_per_second > 0.0 && ms > 0;
    if runs { format!("  {} left", show::span(ms)) } else { String::new() }
}

/// The loss since the watch began, as a line of little bars.
#[derive(Default)]
struct Sparks {
    losses: VecDeque<f64>,
    step: Step,
}

impl Sparks {
    fn look(&mut self, status: &JobStatus) {
        let Some(metrics) = status.metrics.filter(|m| m.step > self.step) else { return };
        self.step = metrics.step;
        let Some(loss) = show::mean_loss(metrics.train).filter(|loss| loss.is_finite()) else { return };
        if self.losses.len() == LOSSES_MAX {
            self.losses.pop_front();
        }
        self.losses.push_back(loss);
    }

    fn line(&self) -> Option<String> {
        let losses: Vec<f64> = self.losses.iter().copied().collect();
        if losses.len() < 2 {
            return None;
        }
        let columns = losses.len().min(SPARKS);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let column = |i: usize| mean(&losses[i * losses.len() / columns..(i + 1) * losses.len() / columns]);
        let means: Vec<f64> = (0..columns).map(column).collect();
        let low = means.iter().copied().fold(f64::INFINITY, f64::min);
        let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let level = |mean: &f64| if high > low { ((mean - low) / (high - low) * 7.0).round() as usize } else { 3 };
        let bars: String = means.iter().map(|mean| BARS[level(mean)]).collect();
        Some(format!("{bars}  loss {} to {}", show::loss(losses[0]), show::loss(losses[losses.len() - 1])))
    }
}

/// What was said, so that only changes are said again.
#[derive(Default)]
struct Lines {
    last: Option<JobStatus>,
    said: Option<Instant>,
    is_away: bool,
}

impl Lines {
    fn changes(&mut self, status: &JobStatus, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        if std::mem::take(&mut self.is_away) {
            lines.push("the coordinator is back\n".to_string());
        }
        let last = self.last.replace(status.clone());
        let is_new = |of: &dyn Fn(&JobStatus) -> String| last.as_ref().is_none_or(|last| of(last) != of(status));
        let fault = |status: &JobStatus| {
            let fault = status.last_fault.as_ref();
            fault.map(|f| format!("lost worker {} on {}: {}", f.worker, f.node, f.cause)).unwrap_or_default()
        };
        let is_same_fault = last.as_ref().is_none_or(|last| last.last_fault == status.last_fault);
        if !is_same_fault && status.last_fault.is_some() {
            lines.push(format!("step {}: {}\n", status.step, fault(status)));
        }
        if is_new(&|s| format!("{:?} {}", s.state, if s.state.is_over() { "" } else { &s.reason })) {
            lines.push(
                format!("step {}: {}  {}", status.step, status.state.as_str(), status.reason).trim_end().to_string()
                    + "\n",
            );
        }
        if is_new(&|s| format!("{:?}", s.epoch))
            && let Some(view) = status.epoch
        {
            let workers = status.members.iter().filter(|m| m.rank.is_some()).count();
            lines.push(format!("step {}: view {view} of {}\n", status.step, show::plural(workers as u64, "worker")));
        }
        if is_new(&|s| format!("{:?}", s.published.as_ref().map(|p| p.step)))
            && let Some(published) = &status.published
        {
            lines.push(format!("step {}: checkpoint of step {}\n", status.step, published.step));
        }
        let is_due = self.said.is_none_or(|said| now.duration_since(said) >= LINE_EVERY) || status.state.is_over();
        if is_due && status.step.0 > 0 {
            self.said = Some(now);
            lines.push(measures(status));
        }
        lines
    }
}

fn measures(status: &JobStatus) -> String {
    let mut line = format!("step {}/{}", status.step, status.steps_total);
    if let Some(loss) = status.metrics.and_then(|m| show::mean_loss(m.train)) {
        line += &format!("  loss {}", show::loss(loss));
    }
    if status.samples_per_second > 0.0 {
        line += &format!("  {} samples/s", show::count(status.samples_per_second));
    }
    format!("{line}{}\n", left(status))
}

const EVERY: Duration = Duration::from_millis(250);
/// For a coordinator that is away.
const AGAIN_EVERY: Duration = Duration::from_millis(500);
const LINE_EVERY: Duration = Duration::from_secs(5);
/// A frame must fit a terminal of 40 lines.
const MEMBERS_SHOWN: usize = 16;
const BAR_WIDTH: u64 = 40;
const SPARKS: usize = 48;
const LOSSES_MAX: usize = 2_400;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::api::JobState;
    use elastic_spec::facts::Metrics;
    use elastic_spec::layout::Tail;
    use elastic_spec::{Epoch, Round};

    fn status(step: u64, loss: f64) -> JobStatus {
        let train = Tail { loss, count: 1, correct: 0 };
        JobStatus {
            job: JobId::parse("digits-1").unwrap(),
            name: "digits".into(),
            state: JobState::Running,
            reason: "1 of at most 2 workers".into(),
            epoch: Some(Epoch::new(1, 1)),
            members: Vec::new(),
            round: Round(step),
            step: Step(step),
            steps_total: 100,
            metrics: Some(Metrics { step: Step(step), train, step_us: 1_000_000, ..Metrics::default() }),
            samples_per_second: 32.0,
            restarts: 0,
            views: 1,
            last_fault: None,
            published: None,
            run_dir: "/runs/digits-1".into(),
            min_workers: 1,
            max_workers: 2,
            stalls_ms: Vec::new(),
            submitted_unix_ms: 0,
            published_on: None,
            run_dir_differs: None,
            unpublished: None,
            exit_code: None,
            error_file: None,
            is_command: false,
        }
    }

    #[test]
    fn the_curve_falls_as_the_loss_does() {
        let mut curve = Sparks::default();
        (1..=8).for_each(|step| curve.look(&status(step, 9.0 - step as f64)));
        assert_eq!(curve.line().unwrap(), "█▇▆▅▄▃▂▁  loss 8.0000 to 1.0000");
        (9..=4_000).for_each(|step| curve.look(&status(step, 1.0)));
        assert_eq!(curve.line().unwrap().chars().take_while(|c| BARS.contains(c)).count(), SPARKS);
    }

    #[test]
    fn a_frame_is_drawn_over_the_one_before() {
        let frame = frame(&status(25, 1.0), &Sparks::default());
        assert!(frame.starts_with("━━━━━━━━━━──────────────────────────────  25.00 %  75 s left\n"), "{frame}");
        assert!(in_place(0, &frame).starts_with("\x1b[J\x1b[?7l"));
        assert!(in_place(12, &frame).starts_with("\x1b[12A\r\x1b[J") && in_place(12, &frame).ends_with("\x1b[?7h"));
    }

    #[test]
    fn lines_come_with_changes_and_else_every_few_seconds() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let first = lines.changes(&status(1, 2.0), start);
        assert_eq!(first[0], "step 1: running  1 of at most 2 workers\n");
        assert_eq!(first.last().unwrap(), "step 1/100  loss 2.0000  32 samples/s  99 s left\n");
        assert!(lines.changes(&status(2, 2.0), start).is_empty());
        assert_eq!(lines.changes(&status(7, 2.0), start + LINE_EVERY).len(), 1);
        let viewed = JobStatus { epoch: Some(Epoch::new(1, 2)), ..status(8, 2.0) };
        assert_eq!(lines.changes(&viewed, start + LINE_EVERY), ["step 8: view 1.2 of 0 workers\n"]);
        let over = JobStatus { state: JobState::Succeeded, ..viewed };
        assert_eq!(lines.changes(&over, start + LINE_EVERY)[0], "step 8: succeeded  1 of at most 2 workers\n");
    }
}
