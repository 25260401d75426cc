//! Writes checkpoints and the event log in the background, from copies: training goes on meanwhile.
//!
//! One is written at a time; of those that wait, only the newest is kept, and the older ones are answered
//! when it is done (a newer state is published, which serves them all). What is published, and who does
//! it, the member decides; the bytes on the disk are `elastic-checkpoint`'s.

use crate::about::Beside;
use crate::bucket::Bucket;
use crate::fail;
use crate::fault::Alarm;
use crate::job::Job;
use crate::pool::Shared;
use crate::rows;
use crate::state::State;
use crate::tensorboard::Board;
use anyhow::{Context, Result};
use elastic_checkpoint::{Checkpoints, Disk, DiskFile, Fs, Keep, Manifest, Origin};
use elastic_member::Event;
use elastic_spec::facts::{Published, Unpublished};
use elastic_spec::{Epoch, Round};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::Sender;

/// What is written: copied by the training thread, in its turn.
pub struct Copy {
    pub state: State,
    /// Of the view in force.
    pub epoch: Epoch,
}

/// Where it goes, and in whose name.
pub struct Place {
    pub checkpoints: Checkpoints,
    pub origin: Origin,
    pub keep: Keep,
    pub events: PathBuf,
    /// Where the event log, and what the run is, lie too, beside the checkpoints, if these are in a bucket.
    pub bucket: Option<Arc<Bucket>>,
    pub beside: Beside,
    pub board: Board,
}

/// The newest checkpoint that this worker knows the place of.
pub type Newest = Arc<Mutex<Option<Published>>>;

/// Why the newest try did not come off; none once one did.
pub type Failing = Arc<Mutex<Option<Unpublished>>>;

pub struct Publisher {
    pub failing: Failing,
    waiting: Arc<(Mutex<Waiting>, Condvar)>,
}

#[derive(Default)]
struct Waiting {
    copy: Option<Copy>,
    /// Rounds whose copies gave way to a newer one.
    superseded: Vec<Round>,
}

impl Publisher {
    pub fn start(place: Place, shared: Arc<Shared>, newest: Newest, alarm: &Alarm, events: Sender<Event>) -> Publisher {
        let waiting: Arc<(Mutex<Waiting>, Condvar)> = Arc::default();
        let failing = Failing::default();
        let (theirs, told) = (waiting.clone(), (newest, failing.clone()));
        alarm.thread("publish", move || run(&theirs, place, &shared, &told, &events));
        Publisher { failing, waiting }
    }

    /// Has `copy` published once what is being written now is done. Does not wait.
    pub fn publish(&self, copy: Copy) {
        let (waiting, woken) = &*self.waiting;
        let mut waiting = waiting.lock().expect("no one panics with this lock");
        let older = waiting.copy.replace(copy).map(|copy| copy.state.round);
        waiting.superseded.extend(older);
        woken.notify_one();
    }
}

fn run(
    waiting: &(Mutex<Waiting>, Condvar),
    mut place: Place,
    shared: &Shared,
    (newest, failing): &(Newest, Failing),
    events: &Sender<Event>,
) {
    loop {
        let (copy, superseded) = next(waiting);
        let round = copy.state.round;
        let done = match place.write(&shared.job, &copy) {
            Ok(published) => {
                *newest.lock().expect("no one panics with this lock") = Some(published);
                *failing.lock().expect("no one panics with this lock") = None;
                true
            }
            Err(error) => {
                tracing::warn!(%round, error = format!("{error:#}"), "a checkpoint was not published; it is tried again");
                let mut failing = failing.lock().expect("no one panics with this lock");
                let since_unix_ms = failing.as_ref().map_or_else(unix_ms, |before| before.since_unix_ms);
                *failing = Some(Unpublished { round, error: format!("{error:#}"), since_unix_ms });
                false
            }
        };
        for round in superseded.into_iter().chain([round]) {
            if events.blocking_send(Event::Published { round, done }).is_err() {
                return;
            }
        }
    }
}

/// For persons only.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn next((waiting, woken): &(Mutex<Waiting>, Condvar)) -> (Copy, Vec<Round>) {
    let mut waiting = waiting.lock().expect("no one panics with this lock");
    loop {
        if let Some(copy) = waiting.copy.take() {
            return (copy, std::mem::take(&mut waiting.superseded));
        }
        waiting = woken.wait(waiting).expect("no one panics with this lock");
    }
}

impl Place {
    /// The event log first: once the last manifest is there, the run may be taken for complete.
    pub fn write(&mut self, job: &Job, copy: &Copy) -> Result<Published> {
        fail::point("publish-begin");
        rows::write(&self.events, &copy.state.rows, copy.epoch)
            .with_context(|| format!("write {}", self.events.display()))?;
        if let Some(bucket) = &self.bucket {
            rows::write_to(bucket, &copy.state.rows).context("write the event log beside the checkpoints")?;
            self.beside.write(bucket).context("write what the run is beside the checkpoints")?;
        }
        // Curves are for looking at: a job does not wait for them as it does for its log.
        if let Err(error) = self.board.write(&copy.state.rows, copy.epoch) {
            tracing::warn!(%error, file = %self.board.path().display(), "TensorBoard's file could not be written");
        }
        self.origin.epoch = copy.epoch;
        let published =
            self.checkpoints.publish(&self.origin, &job.contents(&copy.state)).context("publish a checkpoint")?;
        if let Err(error) = self.checkpoints.clean(&self.origin, &self.keep) {
            tracing::warn!(%error, dir = %self.checkpoints.dir().display(), "older checkpoints could not be removed");
        }
        Ok(known(&published.path, &published.manifest))
    }
}

/// What the status says of a checkpoint.
pub fn known(path: &Path, manifest: &Manifest) -> Published {
    Published {
        round: manifest.round,
        step: manifest.step,
        path: path.display().to_string(),
        weights_sha256: manifest.weights_sha256,
        state_sha256: manifest.state_sha256,
    }
}

/// The machine's file system with fail points around the one rename that publishes.
pub struct PointedFs;

impl Disk for PointedFs {
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        fail::point("publish-before-rename");
        Fs.rename_new(from, to)?;
        fail::point("publish-after-rename");
        Ok(())
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        Fs.create_dir_all(path)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Fs.create_dir(path)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Fs.create(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Fs.sync_dir(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        Fs.remove_dir_all(path)
    }
    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        Fs.names(dir)
    }
    fn len(&self, path: &Path) -> io::Result<u64> {
        Fs.len(path)
    }
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        Fs.read(path, limit)
    }
}
