//! A mirror of a folder, as of a bucket: what is put into place, what is refused, what is left of an earlier process.

use super::*;
use std::fs;

/// A bundle in all but what it says: the mirror compares bytes with the manifest, the server reads them.
fn publish(dir: &Path, version: &str, weights: &[u8]) {
    use elastic_bundle::{FileEntry, Manifest};
    use elastic_spec::Digest;
    let dir = dir.join(version);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("weights.safetensors"), weights).unwrap();
    let bytes = weights.len() as u64;
    let file = FileEntry { name: "weights.safetensors".into(), bytes, sha256: Digest::of(weights) };
    fs::write(dir.join(MANIFEST), Manifest::of(Digest::of(b""), vec![file]).to_json()).unwrap();
}

struct World {
    bucket: tempfile::TempDir,
    local: tempfile::TempDir,
    mirror: Arc<Mirror>,
    follower: Follower,
}

impl World {
    fn new() -> World {
        let (bucket, local) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mirror = Mirror::open(bucket.path().to_str().unwrap(), Some(local.path().join("cache"))).unwrap();
        World { bucket, local, mirror, follower: Follower { keep: 1, local: Local::default(), failures: 0 } }
    }

    fn pass(&mut self) -> Result<(), String> {
        self.follower.pass(&self.mirror, false)
    }

    /// What a server would see.
    fn seen(&self) -> Vec<String> {
        let found = self.mirror.scan(crate::repository::scan::scan).unwrap();
        let models = found.models.into_iter();
        models.flat_map(|(name, m)| m.versions.into_keys().map(move |v| format!("{name}/{v}"))).collect()
    }
}

#[test]
fn a_damaged_version_is_refused_with_the_reason_and_nothing_of_it_is_put_into_place() {
    let mut world = World::new();
    publish(world.bucket.path(), "m/1", b"one");
    world.pass().unwrap();
    publish(world.bucket.path(), "m/2", b"two");
    fs::write(world.bucket.path().join("m/2/weights.safetensors"), b"tow").unwrap();
    publish(world.bucket.path(), "m/3", b"three");
    fs::write(world.bucket.path().join("m/3/weights.safetensors"), b"thre").unwrap();
    world.follower.keep = 2;
    world.pass().unwrap();
    assert_eq!(world.seen(), ["m/1", "m/2", "m/3"], "refused ones are seen, to be told");
    assert!(!world.mirror.root().join("m/2").exists() && !world.mirror.root().join("m/3").exists());
    let found = world.mirror.scan(crate::repository::scan::scan).unwrap();
    let why = |version| world.mirror.refusal("m", version, found.models["m"].versions[&version].mark);
    assert!(why(2).unwrap().contains("m/2/weights.safetensors is damaged: its SHA-256 is"), "{:?}", why(2));
    assert!(why(3).unwrap().contains("has 4 bytes, and manifest.json says 5"), "{:?}", why(3));
    assert_eq!((why(1), world.mirror.status().refused()), (None, 2));
}

#[test]
fn a_start_with_the_newest_damaged_copies_the_next_and_a_whole_copy_is_not_hidden_by_a_refusal() {
    let mut world = World::new();
    publish(world.bucket.path(), "m/1", b"one");
    publish(world.bucket.path(), "m/2", b"two");
    fs::write(world.bucket.path().join("m/2/weights.safetensors"), b"tow").unwrap();
    world.pass().unwrap();
    assert!(world.mirror.root().join("m/1").exists());
    fs::write(world.bucket.path().join("m/1/weights.safetensors"), b"eno").unwrap();
    fs::remove_dir_all(world.bucket.path().join("m/2")).unwrap();
    world.pass().unwrap();
    let found = world.mirror.scan(crate::repository::scan::scan).unwrap();
    let version = &found.models["m"].versions[&1];
    assert_eq!((version.dir.clone(), world.mirror.status().refused()), (world.mirror.root().join("m/1"), 1));
    assert_eq!(world.mirror.refusal("m", 1, version.mark), None);
}

#[test]
fn one_object_that_cannot_be_read_holds_nobody_up() {
    let mut world = World::new();
    publish(world.bucket.path(), "m/1", b"one");
    publish(world.bucket.path(), "n/1", b"two");
    fs::write(world.bucket.path().join("m/labels.json"), "{}").unwrap();
    // A directory in its way: the copy of this model meets an error of the disk.
    fs::write(world.mirror.root().join("m"), "in the way").unwrap();
    world.pass().unwrap();
    assert_eq!((world.seen(), *world.mirror.passes.borrow()), (vec!["n/1".to_string()], 1));
    assert_eq!((world.mirror.status().failures, world.mirror.status().away.is_some()), (1, true));
}

#[test]
fn a_bucket_that_is_away_changes_nothing_and_is_counted() {
    let mut world = World::new();
    publish(world.bucket.path(), "m/1", b"one");
    fs::write(world.bucket.path().join("m/labels.json"), r#"{"live": 1}"#).unwrap();
    world.pass().unwrap();
    assert_eq!(fs::read_to_string(world.mirror.root().join("m/labels.json")).unwrap(), r#"{"live": 1}"#);
    let here = std::mem::replace(&mut Arc::get_mut(&mut world.mirror).unwrap().store, nowhere());
    let why = world.pass().unwrap_err();
    assert!(why.contains("cannot be reached"), "{why}");
    assert_eq!((world.mirror.status().failures, world.mirror.status().away), (1, Some(why)));
    assert_eq!(world.seen(), ["m/1"]);
    Arc::get_mut(&mut world.mirror).unwrap().store = here;
    publish(world.bucket.path(), "m/2", b"two");
    world.pass().unwrap();
    assert_eq!((world.seen(), world.mirror.status().away), (vec!["m/1".into(), "m/2".into()], None));
}

/// A bucket behind a port where nobody listens.
fn nowhere() -> Store {
    let env = |name: &str| {
        let value = match name {
            "AWS_ENDPOINT_URL" => "http://127.0.0.1:1",
            "AWS_ALLOW_HTTP" => "true",
            "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => "none",
            _ => return None,
        };
        Some(value.to_string())
    };
    let address = Address::parse("s3://nowhere/registry").unwrap();
    elastic_objects::Store::with(&address, &env, Patience { tries: 1, ..PATIENCE }).unwrap().into()
}

#[test]
fn labels_that_cannot_be_used_are_told_and_hold_nothing_up() {
    let mut world = World::new();
    publish(world.bucket.path(), "m/1", b"one");
    let labels = world.bucket.path().join("m/labels.json");
    fs::write(&labels, vec![b' '; 2 << 20]).unwrap();
    world.pass().unwrap();
    let told = || world.mirror.scan(crate::repository::scan::scan).unwrap().models.remove("m").unwrap().labels;
    assert!(told().unwrap_err().contains("labels.json"));
    assert_eq!(world.seen(), ["m/1"]);
}

#[test]
fn a_directory_of_somebody_elses_is_not_touched_and_one_is_of_one_process_and_one_address() {
    let World { bucket, local, mirror, .. } = World::new();
    let open = |address: &Path, dir: &str| Mirror::open(address.to_str().unwrap(), Some(local.path().join(dir)));
    fs::create_dir_all(local.path().join("models/digits")).unwrap();
    assert!(open(bucket.path(), "models").unwrap_err().contains("name an empty directory"));
    assert!(open(bucket.path(), "cache").unwrap_err().contains("is used by another process"));
    assert!(open(local.path(), "cache").unwrap_err().contains("name another directory"));
    drop(mirror);
    assert!(open(bucket.path(), "cache").is_ok());
}

#[test]
fn what_an_earlier_process_left_half_done_goes_and_a_temporary_directory_ends_with_its_mirror() {
    let mut world = World::new();
    publish(world.bucket.path(), "m/1", b"one");
    world.pass().unwrap();
    let root = world.mirror.root().to_path_buf();
    fs::create_dir_all(root.join(".part")).unwrap();
    // No bundle that a server could read: it does not count, and is copied anew.
    assert_eq!(world.mirror.cache.read().models["m"].versions.len(), 0);
    assert!(!root.join("m/1").exists() && !root.join(".part").exists());
    let mirror = Mirror::open(world.bucket.path().to_str().unwrap(), None).unwrap();
    let root = mirror.root().to_path_buf();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&root).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700, "nobody else reads it");
    drop(mirror);
    assert!(!root.exists());
}
