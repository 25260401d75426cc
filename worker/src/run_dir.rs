//! Which run directory this worker sees: a random number in a file of it, left by whoever comes first.
//!
//! Two nodes that read the same number share the directory; two that read different ones have each their own. The
//! number is only reported (`elastic status` and the coordinator's log say what follows).

use std::io::{self, Read, Write};
use std::path::Path;

const NAME: &str = ".directory-id";

/// None where the directory cannot be read or made: then nothing is claimed, and the first checkpoint says what is wrong.
pub fn id(run_dir: &Path) -> Option<u64> {
    match found_or_left(run_dir) {
        Ok(id) => Some(id),
        Err(error) => {
            tracing::warn!(dir = %run_dir.display(), %error, "whether the run directory is shared is not known");
            None
        }
    }
}

fn found_or_left(run_dir: &Path) -> io::Result<u64> {
    let path = run_dir.join(NAME);
    match read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    std::fs::create_dir_all(run_dir)?;
    let id = random()?;
    // Written aside and linked, so that nobody reads half of it and the first one stays.
    let aside = run_dir.join(format!("{NAME}.{id:016x}"));
    let mut file = std::fs::File::create_new(&aside)?;
    let linked =
        write!(file, "{id:016x}").and_then(|()| file.sync_all()).and_then(|()| std::fs::hard_link(&aside, &path));
    std::fs::remove_file(&aside)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => read(&path),
    }
}

fn read(path: &Path) -> io::Result<u64> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(64).read_to_string(&mut text)?;
    u64::from_str_radix(&text, 16)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no number")))
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_see_one_directory_read_one_number_and_others_another() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = a.path().join("runs/j");
        let ids: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| id(&run))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(ids[0].is_some() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_ne!(id(b.path()), ids[0]);
        let left: Vec<_> = std::fs::read_dir(&run).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, [NAME], "nothing else is left");
    }

    #[test]
    fn a_directory_that_cannot_be_made_claims_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("runs"), "in the way").unwrap();
        assert_eq!(id(&dir.path().join("runs/j")), None);
    }
}
