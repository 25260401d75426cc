//! A registry in a bucket, as a local directory that is kept in step with it.
//!
//! [`plan`] decides (pure), [`cache`] is the directory, this file carries out, on a thread of its own: it lists, reads
//! labels, copies versions into a hidden directory while it compares every digest, and puts them into place. While the
//! bucket is away what is here goes on answering. The repository looks at the directory after each pass, as it does at any.

mod cache;
mod plan;

use crate::bundled;
use crate::clock::{now_us, unix_ms};
use crate::limits::SMALL_FILE_BYTES_MAX;
use crate::repository::machine::{Found, FoundModel, FoundVersion};
use cache::Cache;
use elastic_objects::blocking::Store;
use elastic_objects::{Address, Error, Patience};
use plan::{Fetch, Labels, Listing, Local, MANIFEST, Tidy};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

/// Of a server's config. Dropped by the last who has it, its temporary directory goes.
pub struct Mirror {
    store: Store,
    address: String,
    /// What a model is called whose versions lie at the address itself.
    own: String,
    cache: Cache,
    status: Mutex<Status>,
    passes: watch::Sender<u64>,
    asks: SyncSender<Ask>,
    asked: Mutex<Option<Receiver<Ask>>>,
}

/// For metrics and answers.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub passes: u64,
    pub failures: u64,
    pub versions: u64,
    pub bytes: u64,
    /// Unix time of the last pass that went well.
    pub last_ms: u64,
    /// Why the last pass came to nothing.
    pub away: Option<String>,
    /// Reasons by model and version, with what changes when they do.
    refused: BTreeMap<(String, u64), (u64, String)>,
    /// Why a model's labels could not be read.
    unread: BTreeMap<String, String>,
}

impl Status {
    pub fn refused(&self) -> usize {
        self.refused.len()
    }
}

/// Somebody waits for a pass that begins after he asked.
type Ask = oneshot::Sender<Result<(), String>>;

const ASKS_MAX: usize = 32;
const OBJECTS_MAX: usize = 100_000;
/// Without polls, until the first pass went well.
const RETRY: Duration = Duration::from_secs(1);

/// Shorter than that of a writer: what is here answers meanwhile, and the next pass comes.
const PATIENCE: Patience = Patience {
    tries: 3,
    first_wait: Duration::from_millis(100),
    longest_wait: Duration::from_secs(1),
    request: Duration::from_secs(30),
    total: Duration::from_secs(60),
};

/// Why a version was not copied.
enum Fault {
    /// It is not as its manifest says.
    Refused(String),
    /// The bucket or the disk: the next pass may do it.
    Passing(String),
}

/// Whether a text is meant for a store on the network rather than for a folder.
pub fn is_address(text: &str) -> bool {
    text.contains("://") && !text.starts_with("file://")
}

impl Mirror {
    /// Nothing is asked of the bucket yet. Without a directory one of this process is made.
    pub fn open(address: &str, dir: Option<PathBuf>) -> Result<Arc<Mirror>, String> {
        let parsed = Address::parse(address).map_err(|error| error.to_string())?;
        let store = elastic_objects::Store::with(&parsed, &|name| std::env::var(name).ok(), PATIENCE);
        let store = store.map_err(|error| error.to_string())?;
        let own = match &parsed {
            Address::S3 { bucket, prefix } if prefix.is_empty() => bucket.clone(),
            Address::S3 { prefix, .. } => prefix.rsplit('/').next().unwrap_or_default().to_string(),
            Address::Folder(path) => path.file_name().map_or("model".into(), |n| n.to_string_lossy().into_owned()),
            Address::Memory => "model".into(),
        };
        let address = parsed.to_string();
        let cache = match dir {
            Some(dir) => Cache::kept(dir, &address)?,
            None => Cache::temporary(&address)?,
        };
        let (asks, asked) = sync_channel(ASKS_MAX);
        let (passes, asked) = (watch::Sender::new(0), Mutex::new(Some(asked)));
        let (store, status) = (Store::from(store), Mutex::default());
        Ok(Arc::new(Mirror { store, address, own, cache, status, passes, asks, asked }))
    }

    /// The directory to be served.
    pub fn root(&self) -> &Path {
        self.cache.root()
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn status(&self) -> Status {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many passes went well; after the first it is told whenever there may be something new.
    pub(crate) fn passes(&self) -> watch::Receiver<u64> {
        self.passes.subscribe()
    }

    /// A pass now; what was refused is tried again.
    pub(crate) async fn pass(&self) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.asks.try_send(reply).map_err(|_| "too many wait for a look at the registry".to_string())?;
        answer.await.unwrap_or_else(|_| Err("the server is ending".into()))
    }

    /// Looks at the directory while nothing is moved in it. What was refused is found too, so that it is told.
    pub(crate) fn scan(&self, scan: impl FnOnce(&Path) -> Result<Found, String>) -> Result<Found, String> {
        let still = self.cache.still();
        let mut found = scan(self.root())?;
        let status = self.status();
        for ((name, version), (mark, _)) in status.refused {
            let model = found
                .models
                .entry(name)
                .or_insert_with(|| FoundModel { versions: BTreeMap::new(), labels: Ok(BTreeMap::new()) });
            // An earlier copy that is whole goes on.
            model.versions.entry(version).or_insert_with(|| FoundVersion { dir: self.root().to_path_buf(), mark });
        }
        for (name, why) in status.unread {
            if let Some(model) = found.models.get_mut(&name) {
                model.labels = Err(why);
            }
        }
        drop(still);
        Ok(found)
    }

    /// Why this version is not loaded, if it was refused.
    pub(crate) fn refusal(&self, name: &str, version: u64, mark: u64) -> Option<String> {
        let status = self.lock();
        let (of, why) = status.refused.get(&(name.to_string(), version))?;
        (*of == mark).then(|| why.clone())
    }

    /// Begins to follow the bucket, until [`Mirror::end`]. Once.
    pub(crate) fn start(self: &Arc<Mirror>, keep: usize, poll: Option<Duration>) -> std::io::Result<()> {
        let taken = self.asked.lock().unwrap_or_else(PoisonError::into_inner).take();
        let asked = taken.expect("a mirror is of one server");
        // Not the thread's: it ends when nobody can ask any more, and looks whether that is so in between.
        let mirror = Arc::downgrade(self);
        let run = move || {
            let Some(local) = mirror.upgrade().map(|mirror| mirror.cache.read()) else { return };
            let mut follower = Follower { keep, local, failures: 0 };
            let mut asks = Vec::new();
            loop {
                let Some(mirror) = mirror.upgrade() else { return };
                let went = follower.pass(&mirror, !asks.is_empty());
                asks.drain(..).for_each(|ask: Ask| drop(ask.send(went.clone())));
                drop(mirror);
                let wait = match (poll, follower.failures) {
                    (None, 0) => Duration::MAX,
                    (poll, n) => {
                        let poll_ms = poll.unwrap_or(RETRY).as_millis() as u64;
                        Duration::from_millis(plan::wait_ms(poll_ms, n))
                    }
                };
                match asked.recv_timeout(wait) {
                    Ok(ask) => asks.push(ask),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                asks.extend(asked.try_iter());
            }
        };
        std::thread::Builder::new().name("mirror".into()).spawn(run).map(drop)
    }

    /// Nothing comes any more; a temporary directory goes.
    pub fn end(&self) {
        self.cache.end();
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.end();
    }
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mirror({})", self.address)
    }
}

/// What the thread knows.
struct Follower {
    keep: usize,
    local: Local,
    failures: u32,
}

impl Follower {
    fn pass(&mut self, mirror: &Mirror, is_asked: bool) -> Result<(), String> {
        if is_asked {
            let models = self.local.models.values_mut();
            models.flat_map(|model| model.refused.values_mut()).for_each(|refused| refused.again_ms = 0);
        }
        let seen = self.follow(mirror);
        let went = match &seen {
            Ok(faults) => faults.first().map_or(Ok(()), |fault| Err(fault.clone())),
            Err(why) => Err(why.clone()),
        };
        self.failures = if went.is_ok() { 0 } else { self.failures.saturating_add(1) };
        let address = &mirror.address;
        let before = {
            let mut status = mirror.lock();
            status.passes += 1;
            match &went {
                Ok(()) => status.last_ms = unix_ms(),
                Err(_) => status.failures += 1,
            }
            std::mem::replace(&mut status.away, went.clone().err())
        };
        match (before, &went) {
            (None, Err(why)) => {
                warn!(%address, %why, "the registry cannot be followed; what is here goes on answering")
            }
            (Some(_), Ok(())) => info!(%address, "the registry is followed again"),
            _ => {}
        }
        // Before the bucket was first seen nobody looks; one object that cannot be read holds nobody up.
        mirror.passes.send_if_modified(|passes| {
            *passes += u64::from(seen.is_ok());
            *passes > 0
        });
        seen.map(drop)
    }

    /// The error is for a bucket that cannot be listed; faults are those of single objects, or of the disk.
    fn follow(&mut self, mirror: &Mirror) -> Result<Vec<String>, String> {
        let entries = mirror.store.list("", OBJECTS_MAX).map_err(|error| error.to_string())?;
        let listing = Listing::of(&entries, &mirror.own);
        self.local.heed(&listing);
        self.tell(mirror);
        let (mut faults, mut unread) = (Vec::new(), BTreeMap::new());
        for (name, labels) in plan::labels_to_read(&listing, &self.local) {
            let read = mirror.store.get(&labels.object, SMALL_FILE_BYTES_MAX);
            let bytes = match read.map_err(Fault::of) {
                Ok(bytes) => bytes,
                Err(Fault::Passing(why)) => {
                    unread.insert(name, why.clone());
                    faults.push(why);
                    continue;
                }
                // Too large, or gone by now: nothing that could be understood.
                Err(Fault::Refused(_)) => bytes::Bytes::new(),
            };
            let model = self.local.models.entry(name).or_default();
            let before = model.labels.take().map(|labels| labels.named).unwrap_or_default();
            // What cannot be understood is put into place all the same: there it is told.
            let named = serde_json::from_slice(&bytes).unwrap_or(before);
            model.labels = Some(Labels { mark: labels.mark, bytes: bytes.to_vec(), named, is_placed: false });
        }
        mirror.lock().unread = unread;
        faults.extend(self.tidy(mirror, &listing).err());
        let mut tried = BTreeSet::new();
        // Asked each time: where one is refused a lower one may be wanted.
        let keep = self.keep;
        let next = |local: &Local, tried: &BTreeSet<(String, u64)>| {
            let fetches = plan::fetches(&listing, local, keep, now_us() / 1000);
            fetches.into_iter().find(|fetch| !tried.contains(&(fetch.model.clone(), fetch.version)))
        };
        while let Some(fetch) = next(&self.local, &tried) {
            tried.insert((fetch.model.clone(), fetch.version));
            match self.fetch(mirror, &listing, &fetch) {
                Ok(()) => faults.extend(self.tidy(mirror, &listing).err()),
                // The others may do well: one object that cannot be read holds nobody up.
                Err(why) => faults.push(why),
            }
        }
        Ok(faults)
    }

    fn tidy(&mut self, mirror: &Mirror, listing: &Listing) -> Result<(), String> {
        for act in plan::tidy(listing, &self.local, self.keep) {
            match act {
                Tidy::PlaceLabels(name) => {
                    let model = self.local.models.get_mut(&name).expect("labels are of a model");
                    let labels = model.labels.as_ref().expect("labels that were read are placed");
                    mirror.cache.place_labels(&name, &labels.bytes)?;
                    model.placed();
                }
                Tidy::RemoveLabels(name) => {
                    mirror.cache.remove_labels(&name)?;
                    self.local.models.entry(name).or_default().labels = None;
                }
                Tidy::RemoveVersion(name, version) => {
                    mirror.cache.remove(&name, Some(version))?;
                    self.local.models.entry(name).or_default().versions.remove(&version);
                }
                Tidy::RemoveModel(name) => {
                    mirror.cache.remove(&name, None)?;
                    self.local.models.remove(&name);
                }
            }
        }
        // One that comes later in the same pass may take long.
        mirror.passes.send_if_modified(|passes| *passes > 0);
        Ok(())
    }

    /// The error is one of the bucket or the disk; a version that is wrong is noted, and no error.
    fn fetch(&mut self, mirror: &Mirror, listing: &Listing, fetch: &Fetch) -> Result<(), String> {
        let Fetch { model: name, version } = fetch;
        let listed = &listing.models[name].versions[version];
        let copied = copy(mirror, name, *version, listed);
        let model = self.local.models.entry(name.clone()).or_default();
        match copied {
            Ok(bytes) => {
                info!(model = %name, version, bytes, "a version has come from the registry");
                model.versions.insert(*version, listed.mark);
                model.refused.remove(version);
                let mut status = mirror.lock();
                status.versions += 1;
                status.bytes += bytes;
            }
            Err(Fault::Refused(why)) => {
                // The repository tells of those that have no copy.
                if model.versions.contains_key(version) {
                    warn!(model = %name, version, %why, "a version was changed in the registry and is refused; its copy goes on");
                }
                let refused = plan::refuse(model.refused.get(version), listed.mark, why, now_us() / 1000);
                model.refused.insert(*version, refused);
            }
            Err(Fault::Passing(why)) => return Err(why),
        }
        self.tell(mirror);
        Ok(())
    }

    /// The reasons, to where the repository finds them; it says them.
    fn tell(&self, mirror: &Mirror) {
        let mut refused = BTreeMap::new();
        for (name, model) in &self.local.models {
            for (version, r) in &model.refused {
                let mut hasher = DefaultHasher::new();
                (r.mark, &r.why).hash(&mut hasher);
                refused.insert((name.clone(), *version), (hasher.finish(), r.why.clone()));
            }
        }
        mirror.lock().refused = refused;
    }
}

/// Copies a version into place. Gives its bytes.
fn copy(mirror: &Mirror, name: &str, version: u64, listed: &plan::ListedVersion) -> Result<u64, Fault> {
    let object = |file: &str| format!("{}{file}", listed.prefix);
    let place = |file: &str| mirror.store.place(&object(file));
    let manifest = mirror.store.get(&object(MANIFEST), SMALL_FILE_BYTES_MAX).map_err(Fault::of)?;
    let files = bundled::files(&manifest)
        .map_err(|why| Fault::Refused(format!("{} cannot be used: {why}", place(MANIFEST))))?;
    // Before anything is copied: lengths are listed.
    for (file, bytes, _) in &files {
        match listed.files.get(file) {
            None => return Err(Fault::Refused(format!("{} is missing; publish the version again", place(file)))),
            Some(found) if found != bytes => {
                let place = place(file);
                return Err(Fault::Refused(format!("{place} has {found} bytes, and {MANIFEST} says {bytes}")));
            }
            Some(_) => {}
        }
    }
    let part = mirror.cache.begin().map_err(Fault::Passing)?;
    let mut copied = 0;
    for (file, bytes, digest) in &files {
        let (length, found) = mirror.store.get_file(&object(file), &part.join(file), *bytes).map_err(Fault::of)?;
        if (length, found) != (*bytes, *digest) {
            let place = place(file);
            let why = format!("{place} is damaged: its SHA-256 is {found}, and {MANIFEST} says {digest}");
            return Err(Fault::Refused(format!("{why}; publish the version again")));
        }
        copied += length;
    }
    mirror.cache.place(name, version, &manifest, &listed.mark).map_err(Fault::Passing)?;
    Ok(copied)
}

impl Fault {
    fn of(error: Error) -> Fault {
        match error {
            Error::NotFound { .. } | Error::TooLarge { .. } | Error::Short { .. } | Error::Replaced { .. } => {
                Fault::Refused(error.to_string())
            }
            error => Fault::Passing(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
