//! Writes, publishes, verifies and restores checkpoints. Knows bytes and names, not tensors' meaning.
//!
//! A checkpoint is a directory `step-<8 digits>.t<term>.g<gen>` that appears at once, whole or not at all: by one rename
//! in a folder, by its manifest in a store of objects ([`Place`]); `docs/checkpoint-format.md` is its specification. All tensors are stored whole, so it can be restored
//! at any world size. Nothing here is believed because it is there: every byte read is covered by a checksum
//! of the manifest, and a damaged checkpoint is refused with its reason and the one before is taken.
//!
//! When to publish, and who does it, is decided by `member`; turning a model into [`Contents`] and back is
//! the trainer's work. These functions block: call them off the event loop.

mod clean;
mod contents;
mod disk;
mod grid;
mod manifest;
mod place;
mod read;
mod report;
pub mod simulated;
mod write;

pub use clean::{Cleaned, Keep};
pub use contents::{BadContents, Contents, Origin, TensorBytes};
pub use disk::{Disk, DiskFile, Fs};
pub use manifest::{FORMAT_VERSION, MANIFEST, Manifest, Name, RowFile, StoredTensor, TensorFile};
pub use place::{Place, Revealed, Staged, UNPUBLISHED};
pub use read::{Found, Refusal, Refused, Restored};
pub use report::{
    InspectError, Inspection, Listed, Verification, inspect, inspect_in, list, list_in, newest_whole, newest_whole_in,
    verify, verify_in,
};
pub use write::{PublishError, Published};

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The checkpoints of one run: a directory that holds nothing else.
#[derive(Clone)]
pub struct Checkpoints {
    place: Arc<dyn Place>,
    dir: PathBuf,
}

impl Checkpoints {
    /// On the machine's own file system.
    pub fn at(dir: impl Into<PathBuf>) -> Checkpoints {
        Checkpoints::on(Arc::new(Fs), dir)
    }

    pub fn on(disk: Arc<dyn Disk>, dir: impl Into<PathBuf>) -> Checkpoints {
        Checkpoints::in_place(Arc::new(place::ByRename(disk)), dir)
    }

    /// Where there is no file system: `dir` is as the place calls it.
    pub fn in_place(place: Arc<dyn Place>, dir: impl Into<PathBuf>) -> Checkpoints {
        Checkpoints { place, dir: dir.into() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes `contents` and publishes it; when this returns `Ok`, it survives a power failure.
    ///
    /// After an error nothing is published under the new name and whatever was published before still is.
    /// The one exception is an error from the very last sync, after which it may or may not be there; both
    /// are sound, and publishing again finds out.
    pub fn publish(&self, origin: &Origin, contents: &Contents) -> Result<Published, PublishError> {
        write::publish(&*self.place, &self.dir, origin, contents)
    }

    /// The newest checkpoint that proves whole, and why newer ones (if any) were refused.
    pub fn newest_verified(&self) -> std::io::Result<Found> {
        read::newest_verified(&*self.place, &self.dir)
    }

    /// One line for each, newest first; only the manifests are read.
    pub fn list(&self) -> std::io::Result<Vec<Listed>> {
        report::list_in(&*self.place, &self.dir)
    }

    /// Removes what is no longer needed, on behalf of the publisher `origin`; see [`Keep`].
    pub fn clean(&self, origin: &Origin, keep: &Keep) -> std::io::Result<Cleaned> {
        clean::clean(&*self.place, &self.dir, origin, keep)
    }
}
