//! Removes checkpoints that are no longer needed, and what crashes have left lying about.

use crate::contents::Origin;
use crate::manifest::Name;
use crate::place::{Place, UNPUBLISHED};
use crate::read;
use std::io;
use std::path::{Path, PathBuf};

/// What must stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// So many of the newest steps that prove whole; at least one.
    pub newest: usize,
    /// Never removed, whatever their age: the one that is being restored or exported.
    pub in_use: Vec<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    pub removed: Vec<PathBuf>,
    /// A newer leader publishes here: cleaning is its business now, and nothing was removed.
    pub outdated: bool,
}

pub(crate) fn clean(place: &dyn Place, dir: &Path, origin: &Origin, keep: &Keep) -> io::Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    let keepers = keepers(place, dir, keep.newest.max(1))?;
    let Some(oldest_kept) = keepers.last() else { return Ok(cleaned) };
    for text in place.names(dir)? {
        let path = dir.join(&text);
        let goes = match Name::parse(&text) {
            // Damaged ones that are newer than the oldest kept stay, for whoever wants to know what happened.
            Some(name) => name < *oldest_kept || is_superseded(name, &keepers),
            None => is_left_over(&text, origin),
        };
        if !goes || keep.in_use.contains(&path) {
            continue;
        }
        // Before each removal: verifying took its time, and a new leader may have begun since.
        if is_outdated(place, dir, origin)? {
            cleaned.outdated = true;
            return Ok(cleaned);
        }
        place.remove(dir, &text)?;
        cleaned.removed.push(path);
    }
    Ok(cleaned)
}

/// The newest verified checkpoint of each of the `count` newest steps, newest first.
fn keepers(place: &dyn Place, dir: &Path, count: usize) -> io::Result<Vec<Name>> {
    let mut keepers: Vec<Name> = Vec::new();
    for name in read::published(place, dir)?.into_iter().rev() {
        if keepers.len() == count {
            break;
        }
        let is_new_step = keepers.last().is_none_or(|kept| kept.step != name.step);
        let path = dir.join(name.to_string());
        let is_whole = || match place.is_far() {
            true => read::look(place, &path).is_ok(),
            false => read::restore(place, &path).is_ok(),
        };
        if is_new_step && is_whole() {
            keepers.push(name);
        }
    }
    Ok(keepers)
}

/// The same step by an older epoch.
fn is_superseded(name: Name, keepers: &[Name]) -> bool {
    keepers.iter().any(|kept| kept.step == name.step && name.epoch < kept.epoch)
}

/// Half written, half removed or moved aside, by an epoch before ours: its maker is gone or will find out.
fn is_left_over(text: &str, origin: &Origin) -> bool {
    let tags = [".tmp-", ".removed-", ".damaged-"];
    let name = tags.iter().find_map(|tag| text.split_once(tag)).and_then(|(name, _)| Name::parse(name));
    // Of our own epoch nobody but us writes there, and we are cleaning.
    let is_ours = |name: Name| text.ends_with(UNPUBLISHED) && name.epoch == origin.epoch;
    name.is_some_and(|name| name.epoch < origin.epoch || is_ours(name))
}

fn is_outdated(place: &dyn Place, dir: &Path, origin: &Origin) -> io::Result<bool> {
    Ok(read::published(place, dir)?.into_iter().filter(|name| name.epoch.term > origin.epoch.term).any(|name| {
        read::manifest(place, &dir.join(name.to_string())).is_ok_and(|manifest| manifest.cluster == origin.cluster)
    }))
}
