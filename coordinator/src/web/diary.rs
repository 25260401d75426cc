//! What happened to each job lately, from the notes of decisions: faults, restarts, and the history of views.

use elastic_control::{Level, Note, ViewNote};
use elastic_spec::JobId;
use elastic_spec::view::Pace;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
pub(crate) struct Diary(Mutex<Written>);

#[derive(Debug, Default)]
struct Written {
    entries: u64,
    jobs: BTreeMap<JobId, VecDeque<(u64, Value)>>,
}

impl Diary {
    fn locked(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `unix_ms` is for persons.
    pub fn write(&self, note: &Note, unix_ms: u64) {
        let Some(job) = note.job() else { return };
        let level = match note.level() {
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        let entry = json!({
            "unix_ms": unix_ms,
            "level": level,
            "kind": note.kind(),
            "node": note.node(),
            "text": note.to_string(),
            "view": match note { Note::View(made) => Some(view(made)), _ => None },
        });
        let mut written = self.locked();
        written.entries += 1;
        let number = written.entries;
        let entries = written.jobs.entry(job.clone()).or_default();
        if entries.len() >= ENTRIES_MAX {
            entries.pop_front();
        }
        entries.push_back((number, entry));
    }

    /// Entries of a job after the one of that number, oldest first, and the number of the newest.
    pub fn since(&self, job: &JobId, number: u64) -> (Vec<Value>, u64) {
        let written = self.locked();
        let entries = written.jobs.get(job).into_iter().flatten();
        let new = entries.filter(|(n, _)| *n > number).map(|(_, entry)| entry.clone()).collect();
        (new, written.entries)
    }

    /// Forgets jobs that are not known any more.
    pub fn keep(&self, known: &BTreeSet<&JobId>) {
        self.locked().jobs.retain(|job, _| known.contains(job));
    }
}

fn view(made: &ViewNote) -> Value {
    json!({
        "term": made.epoch.term,
        "gen": made.epoch.gen_,
        "pace": match made.pace { Pace::Run => "run", Pace::Pause => "pause" },
        "active": made.active.iter().map(|(worker, shards)| json!([worker.to_string(), shards])).collect::<Vec<_>>(),
        "learners": made.learners.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// Of one job.
const ENTRIES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jobs_entries_are_bounded_in_order_and_forgotten_with_it() {
        let diary = Diary::default();
        let job = JobId::parse("a-1").unwrap();
        for min in 1..=300 {
            diary.write(&Note::Scaled { job: job.clone(), min, max: 400 }, 7);
        }
        let (entries, newest) = diary.since(&job, 0);
        assert_eq!((entries.len(), newest), (ENTRIES_MAX, 300));
        assert_eq!(entries.last().unwrap()["text"], "a-1 scaled to 300 to 400 workers");
        assert_eq!(diary.since(&job, 299).0.len(), 1);
        diary.keep(&BTreeSet::new());
        assert!(diary.since(&job, 0).0.is_empty());
    }
}
