//! Fail points: real kills, stops, spins and pauses at named places of the protocol, for tests.
//!
//! Off unless [`arm`] was given a list (from ELASTIC_FAIL); then a point costs one counter, else one load.
//! `docs/fail-points.md` lists the points and the grammar.

use crate::stderr;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

static ARMED: OnceLock<Armed> = OnceLock::new();
static SPINNING: AtomicBool = AtomicBool::new(false);

struct Armed {
    points: Vec<Point>,
    /// A folder in which the first process to reach a point leaves its mark; those after it pass.
    once: Option<PathBuf>,
}

#[derive(Debug)]
struct Point {
    name: String,
    hit: Hit,
    action: Action,
    slot: Option<u16>,
    passed: AtomicU64,
}

/// At which of its passes a point acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hit {
    Every,
    /// Counted from 1.
    Once(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
    Spin,
    Exit(i32),
    Sleep(Duration),
}

/// Arms the points of `text` that are meant for the worker in `slot`.
pub fn arm(text: &str, once: Option<PathBuf>, slot: u16) -> Result<()> {
    let points: Vec<Point> = text.split(',').map(parse).collect::<Result<_>>()?;
    let points = points.into_iter().filter(|p| p.slot.is_none_or(|s| s == slot)).collect();
    let _ = ARMED.set(Armed { points, once });
    Ok(())
}

/// A place where a test may want this process to fail.
pub fn point(name: &str) {
    let Some(armed) = ARMED.get() else { return };
    for point in armed.points.iter().filter(|p| p.name == name) {
        let passed = point.passed.fetch_add(1, Ordering::Relaxed) + 1;
        match point.hit {
            Hit::Every => act(point.action),
            Hit::Once(hit) if hit == passed && armed.is_first(name, hit) => {
                stderr::say(format_args!("fail point {name}:{hit}: {:?}", point.action));
                act(point.action);
            }
            Hit::Once(_) => {}
        }
    }
}

/// The same on the training thread, which is the one that [`Action::Spin`] lets spin.
pub fn point_in_training(name: &str) {
    point(name);
    while SPINNING.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

impl Armed {
    fn is_first(&self, name: &str, hit: u64) -> bool {
        let Some(folder) = &self.once else { return true };
        std::fs::OpenOptions::new().write(true).create_new(true).open(folder.join(format!("{name}-{hit}"))).is_ok()
    }
}

fn act(action: Action) {
    use rustix::process::{Signal, getpid, kill_process};
    let signal = |signal| kill_process(getpid(), signal).expect("a process may signal itself");
    match action {
        Action::Kill => signal(Signal::KILL),
        Action::Stop => signal(Signal::STOP),
        Action::Spin => SPINNING.store(true, Ordering::Relaxed),
        Action::Exit(code) => std::process::exit(code),
        Action::Sleep(time) => std::thread::sleep(time),
    }
}

fn parse(text: &str) -> Result<Point> {
    let (text, slot) = match text.trim().split_once('@') {
        Some((text, slot)) => (text, Some(slot.parse().with_context(|| format!("fail point slot \"{slot}\""))?)),
        None => (text.trim(), None),
    };
    let mut fields = text.splitn(3, ':');
    let (Some(name), Some(hit), Some(action)) = (fields.next(), fields.next(), fields.next()) else {
        bail!("fail point \"{text}\" is not point:hit:action[@slot]");
    };
    let hit = match hit {
        "every" => Hit::Every,
        _ => Hit::Once(hit.parse().with_context(|| format!("fail point \"{text}\": hit \"{hit}\""))?),
    };
    let action = match action.split_once(':') {
        None if action == "kill" => Action::Kill,
        None if action == "stop" => Action::Stop,
        None if action == "spin" => Action::Spin,
        Some(("exit", code)) => Action::Exit(code.parse().with_context(|| format!("fail point \"{text}\""))?),
        Some(("sleep", ms)) => {
            let ms = ms.parse().with_context(|| format!("fail point \"{text}\": \"{ms}\" ms"))?;
            Action::Sleep(Duration::from_millis(ms))
        }
        _ => bail!("fail point \"{text}\": action \"{action}\" is not kill, stop, spin, exit:N or sleep:MS"),
    };
    if !POINTS.contains(&name) {
        bail!("fail point \"{name}\" does not exist; there are {}", POINTS.join(", "));
    }
    Ok(Point { name: name.into(), hit, action, slot, passed: AtomicU64::new(0) })
}

/// Every point there is, in the order of a step and then of a publication.
pub const POINTS: &[&str] = &[
    "view-received",
    "before-compute",
    "before-input",
    "after-leaf",
    "after-compute",
    "after-contribute",
    "owner-summed",
    "after-reduced-sent",
    "before-apply",
    "after-apply",
    "at-sent",
    "state-taken",
    "before-install",
    "after-install",
    "publish-begin",
    "publish-before-rename",
    "publish-after-rename",
    "finished",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_read() {
        let point = parse("after-contribute:3:kill@1").unwrap();
        assert_eq!(
            (point.name.as_str(), point.hit, point.action, point.slot),
            ("after-contribute", Hit::Once(3), Action::Kill, Some(1))
        );
        assert_eq!(parse("finished:1:exit:7").unwrap().action, Action::Exit(7));
        let pace = parse("before-apply:every:sleep:3").unwrap();
        assert_eq!((pace.hit, pace.action), (Hit::Every, Action::Sleep(Duration::from_millis(3))));
    }

    #[test]
    fn an_unknown_point_or_action_is_refused_with_what_there_is() {
        for (bad, says) in [
            ("nowhere:1:kill", "there are view-received"),
            ("finished:1:explode", "kill, stop, spin, exit:N or sleep:MS"),
            ("finished:1:sleep:long", "\"long\" ms"),
            ("finished", "point:hit:action"),
            ("finished:x:kill", "hit \"x\""),
        ] {
            assert!(format!("{:#}", parse(bad).unwrap_err()).contains(says), "{bad}");
        }
    }

    #[test]
    fn every_point_is_documented() {
        let page = include_str!("../../docs/fail-points.md");
        for name in POINTS {
            assert!(page.contains(&format!("`{name}`")), "docs/fail-points.md says nothing of {name}");
        }
    }
}
