//! API keys: who may ask, and who may also load and unload. Kept as digests, and read again when their file changes.
//!
//! A line is a key, or the role of a key and the key: `viewer` asks, which is what a key alone does; `admin` loads and
//! unloads models, too. Empty lines and lines that begin with # count for nothing.

use crate::limits::SMALL_FILE_BYTES_MAX;
use crate::refusal::Refusal;
use elastic_spec::Digest;
use elastic_spec::access::{Role, same_digest};
use hyper::header::HeaderMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Without any, everybody may do everything. Clones share what was read.
#[derive(Clone, Default)]
pub struct Keys(Option<Arc<Ring>>);

struct Ring {
    /// None: they stay as they are.
    file: Option<PathBuf>,
    now: Mutex<Held>,
}

struct Held {
    known: Arc<[Key]>,
    /// Of the file that they were read from.
    written: Option<Written>,
    looked: Instant,
    /// Why the file as it is now is not taken, as it was told.
    told: Option<String>,
}

struct Key {
    digest: Digest,
    role: Role,
}

/// Another one: the file was written anew, exchanged, or given to somebody else.
type Written = [i64; 6];

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            None => f.write_str("Keys(none)"),
            Some(ring) => write!(f, "Keys({})", ring.known().len()),
        }
    }
}

impl Keys {
    /// Of a file, which may be exchanged at any time. One that is wrong then is not taken, and the keys before stay.
    pub fn open(file: &Path) -> Result<Keys, String> {
        let written = written(file);
        let known = read(file)?;
        let now = Mutex::new(Held { known, written, looked: Instant::now(), told: None });
        Ok(Keys(Some(Arc::new(Ring { file: Some(file.to_path_buf()), now }))))
    }

    pub fn parse(text: &str) -> Result<Keys, String> {
        let now = Mutex::new(Held { known: parse(text)?, written: None, looked: Instant::now(), told: None });
        Ok(Keys(Some(Arc::new(Ring { file: None, now }))))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether who sends these headers may do what needs `needed`; None: anybody may.
    pub fn admit(&self, headers: &HeaderMap, needed: Option<Role>) -> Result<(), Refusal> {
        let Some(needed) = needed else { return Ok(()) };
        let bytes = |name: &str| headers.get(name).map(|value| value.as_bytes());
        self.check(bytes("authorization"), bytes("x-api-key"), needed)
    }

    /// `authorization` as `Bearer KEY`, or the bare key of another header, for what needs `needed`.
    fn check(&self, authorization: Option<&[u8]>, bare: Option<&[u8]>, needed: Role) -> Result<(), Refusal> {
        let Some(ring) = &self.0 else { return Ok(()) };
        let bearer = authorization.and_then(|value| {
            let (word, key) = value.split_at_checked(7)?;
            word.eq_ignore_ascii_case(b"bearer ").then_some(key)
        });
        let Some(shown) = bearer.or(bare) else {
            return Err(Refusal::Unauthenticated("this server wants an API key: 'Authorization: Bearer KEY'".into()));
        };
        let shown = Digest::of(shown);
        // All are compared: the time tells nothing of them but their number.
        let role = ring.known().iter().fold(None, |found, key| match same_digest(&key.digest, &shown) {
            true => Some(key.role),
            false => found,
        });
        match role {
            None => Err(Refusal::Unauthenticated("the API key is not one of this server's".into())),
            Some(role) if role.covers(needed) => Ok(()),
            Some(role) => {
                let text = format!("this API key (role {role}) may not do this: the role {needed} is needed");
                Err(Refusal::Forbidden(text))
            }
        }
    }
}

impl Ring {
    /// The keys in force. A change of the file is seen here, when somebody shows a key.
    fn known(&self) -> Arc<[Key]> {
        let mut held = self.held();
        if let Some(file) = self.file.as_deref().filter(|_| held.looked.elapsed() >= LOOK_PERIOD) {
            held.look(file);
        }
        held.known.clone()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn look(&mut self, file: &Path) {
        self.looked = Instant::now();
        // Asked before the file is read: what is written meanwhile is seen the next time.
        let written = written(file);
        if written == self.written {
            return;
        }
        match read(file) {
            Ok(known) => {
                info!(keys = known.len(), "the API keys were exchanged");
                (self.known, self.written, self.told) = (known, written, None);
            }
            // Tried again with every look: the file may be as it is, and the reason gone.
            Err(error) if self.told.as_ref() == Some(&error) => {}
            Err(error) => {
                warn!(%error, "the new API keys are not taken; those before stay");
                self.told = Some(error);
            }
        }
    }
}

fn written(file: &Path) -> Option<Written> {
    let about = std::fs::metadata(file).ok()?;
    let (inode, bytes) = (about.ino() as i64, about.len() as i64);
    Some([about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec(), inode, bytes])
}

fn read(file: &Path) -> Result<Arc<[Key]>, String> {
    let named = |why: String| format!("{}: {why}", file.display());
    let cannot = |error: std::io::Error| format!("read {}: {error}", file.display());
    let bytes = std::fs::metadata(file).map_err(cannot)?.len();
    if bytes > SMALL_FILE_BYTES_MAX {
        return Err(named(format!("it has {bytes} bytes; a file of keys has at most {SMALL_FILE_BYTES_MAX}")));
    }
    parse(&std::fs::read_to_string(file).map_err(cannot)?).map_err(named)
}

/// Says the line of a mistake, and nothing of what stands there.
fn parse(text: &str) -> Result<Arc<[Key]>, String> {
    let mut keys: Vec<(Key, usize)> = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |why: &str| Err(format!("line {number}: {why}"));
        let words: Vec<&str> = line.split_whitespace().collect();
        let (role, key) = match words[..] {
            [key] => (Role::Viewer, key),
            [word, key] => match Role::parse(word).filter(|role| ROLES.contains(role)) {
                Some(role) => (role, key),
                None => return wrong("the word before a key is its role: viewer asks, admin loads and unloads, too"),
            },
            _ => return wrong("a line is a key, or a role and a key; a key has no spaces"),
        };
        if !key.bytes().all(|b| b.is_ascii_graphic()) {
            return wrong("a key has printable ASCII characters only, and no spaces");
        }
        if key.len() < KEY_BYTES_MIN {
            return wrong(&format!("a key has at least {KEY_BYTES_MIN} characters"));
        }
        let digest = Digest::of(key.as_bytes());
        if let Some((_, before)) = keys.iter().find(|(known, _)| known.digest == digest) {
            return wrong(&format!("the key stands in line {before} already"));
        }
        keys.push((Key { digest, role }, number));
    }
    match keys.is_empty() {
        true => Err("there is no key in it".into()),
        false => Ok(keys.into_iter().map(|(key, _)| key).collect()),
    }
}

/// Those of a server's keys; the others are a cluster's.
const ROLES: [Role; 2] = [Role::Viewer, Role::Admin];
const KEY_BYTES_MIN: usize = 16;
/// How often the file is looked at, at most.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const ASKS: &str = "0123456789abcdef";
    const LOADS: &str = "fedcba9876543210";

    fn status(keys: &Keys, key: &str, needed: Role) -> u16 {
        keys.check(None, Some(key.as_bytes()), needed).map_or_else(|refusal| refusal.status(), |()| 200)
    }

    #[test]
    fn without_keys_everybody_may_do_everything() {
        assert!(Keys::default().check(None, None, Role::Admin).is_ok());
    }

    #[test]
    fn with_keys_one_of_them_must_be_shown() {
        let keys = Keys::parse(&format!("# team a\n{ASKS}\n\n  {LOADS}\n")).unwrap();
        let check = |authorization, bare| keys.check(authorization, bare, Role::Viewer);
        assert!(check(Some(b"Bearer fedcba9876543210"), None).is_ok());
        assert!(check(None, Some(ASKS.as_bytes())).is_ok());
        for wrong in [&b"Bearer "[..], b"Bearer 0123456789abcdeX", b"Basic 0123456789abcdef", b""] {
            assert_eq!(check(Some(wrong), None).unwrap_err().status(), 401);
        }
        assert_eq!(check(None, None).unwrap_err().status(), 401);
    }

    #[test]
    fn a_key_alone_asks_and_an_admins_loads_too() {
        let keys = Keys::parse(&format!("{ASKS}\nadmin {LOADS}\nviewer another-key-that-asks")).unwrap();
        for (key, needed, expected) in [
            (ASKS, Role::Viewer, 200),
            (ASKS, Role::Admin, 403),
            ("another-key-that-asks", Role::Viewer, 200),
            ("another-key-that-asks", Role::Admin, 403),
            (LOADS, Role::Viewer, 200),
            (LOADS, Role::Admin, 200),
            ("nobodys-key-at-all", Role::Admin, 401),
        ] {
            assert_eq!(status(&keys, key, needed), expected, "{key} for {needed}");
        }
    }

    #[test]
    fn a_file_of_bad_keys_is_refused_with_its_line_and_without_the_key() {
        let check = |text: &str, says: &str| {
            let why = Keys::parse(text).unwrap_err();
            assert!(why.contains(says), "{text:?}: {why}");
            assert!(!why.contains("secret"), "{why}");
        };
        check("0123456789abcdef\nsecret", "line 2: a key has at least 16");
        check("submitter secret-0123456789", "line 1: the word before a key is its role");
        check("secret secret-0123456789", "line 1: the word before a key is its role");
        check("\nadmin secret 0123456789abcdef", "line 2: a line is a key, or a role and a key");
        check("secret-0123456789-ü", "line 1: a key has printable ASCII");
        check("secret-0123456789\n\nadmin secret-0123456789", "line 3: the key stands in line 1 already");
        check("# nothing\n", "no key");
    }

    /// The file is as it should be, and reading it came to nothing once.
    #[test]
    fn a_file_that_could_not_be_read_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        std::fs::write(&file, ASKS).unwrap();
        let keys = Keys::open(&file).unwrap();
        std::fs::write(&file, LOADS).unwrap();
        let mut held = keys.0.as_ref().unwrap().held();
        held.look(&dir.path().join("none"));
        assert!(held.told.as_ref().is_some_and(|told| told.contains("No such file")), "{:?}", held.told);
        held.look(&file);
        assert!(held.told.is_none());
        drop(held);
        assert_eq!((status(&keys, ASKS, Role::Viewer), status(&keys, LOADS, Role::Viewer)), (401, 200));
    }

    #[test]
    fn a_file_that_was_written_again_is_taken_and_a_wrong_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        std::fs::write(&file, ASKS).unwrap();
        let keys = Keys::open(&file).unwrap();
        let look = || keys.0.as_ref().unwrap().held().look(&file);
        std::fs::write(&file, format!("{ASKS}\nshort")).unwrap();
        look();
        assert_eq!((status(&keys, ASKS, Role::Viewer), status(&keys, LOADS, Role::Viewer)), (200, 401));
        std::fs::remove_file(&file).unwrap();
        look();
        assert_eq!(status(&keys, ASKS, Role::Viewer), 200);
        std::fs::write(&file, format!("admin {LOADS}")).unwrap();
        look();
        assert_eq!((status(&keys, ASKS, Role::Viewer), status(&keys, LOADS, Role::Admin)), (401, 200));
        // As long, and as old: copied with its times.
        let (other, time) = (dir.path().join("other"), std::fs::metadata(&file).unwrap().modified().unwrap());
        std::fs::write(&other, format!("admin {ASKS}")).unwrap();
        std::fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
        std::fs::rename(&other, &file).unwrap();
        look();
        assert_eq!((status(&keys, ASKS, Role::Admin), status(&keys, LOADS, Role::Viewer)), (200, 401));
        let why = Keys::open(&dir.path().join("none")).unwrap_err();
        assert!(why.contains("none") && why.contains("No such file"), "{why}");
    }
}
