//! Publishing, fencing, cleaning and reporting, on the machine's own file system.

mod common;

use common::{contents, origin, small};
use elastic_checkpoint::{
    Checkpoints, Contents, Disk, DiskFile, Fs, Keep, Origin, PublishError, inspect, list, verify,
};
use elastic_spec::Digest;
use safetensors::SafeTensors;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn names(dir: &Path) -> Vec<String> {
    Fs.names(dir).unwrap()
}

fn keep(newest: usize) -> Keep {
    Keep { newest, in_use: vec![] }
}

#[test]
fn what_is_published_is_restored_and_any_safetensors_reader_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::at(dir.path().join("run/checkpoints"));
    let published = checkpoints.publish(&origin(3, 2), &contents(40)).unwrap();
    assert!(published.fresh);
    assert_eq!(published.path.file_name().unwrap(), "step-00000040.t3.g2");
    let found = checkpoints.newest_verified().unwrap().newest.unwrap();
    assert_eq!((found.contents, found.manifest.clone()), (contents(40), published.manifest));
    assert_eq!(found.manifest.weights_sha256, contents(40).weights_digest());
    let file = std::fs::read(published.path.join("weights.safetensors")).unwrap();
    let read = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(read.tensor("layer.0.bias").unwrap().data(), &contents(40).weights[0].bytes[..]);
}

#[test]
fn an_empty_or_absent_directory_has_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_path_buf(), dir.path().join("absent")] {
        let found = Checkpoints::at(path).newest_verified().unwrap();
        assert!(found.newest.is_none() && found.refused.is_empty());
    }
}

#[test]
fn the_same_state_is_not_written_twice() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::at(dir.path());
    checkpoints.publish(&origin(1, 1), &small(10)).unwrap();
    let again = checkpoints.publish(&origin(1, 2), &small(10)).unwrap();
    assert!(!again.fresh);
    assert_eq!(names(dir.path()), ["step-00000010.t1.g1"]);
}

#[test]
fn a_damaged_one_of_the_same_name_makes_way() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::at(dir.path());
    let path = checkpoints.publish(&origin(1, 1), &small(10)).unwrap().path;
    std::fs::write(path.join("rows.bin"), "torn").unwrap();
    assert!(checkpoints.publish(&origin(1, 1), &small(10)).unwrap().fresh);
    assert_eq!(checkpoints.newest_verified().unwrap().newest.unwrap().contents, small(10));
    checkpoints.publish(&origin(2, 1), &small(20)).unwrap();
    checkpoints.clean(&origin(2, 1), &keep(5)).unwrap();
    assert_eq!(names(dir.path()), ["step-00000010.t1.g1", "step-00000020.t2.g1"]);
}

#[test]
fn another_state_of_the_same_step_and_config_is_an_alarm() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::at(dir.path());
    checkpoints.publish(&origin(1, 1), &small(10)).unwrap();
    let other = Contents { weights: small(11).weights, ..small(10) };
    let error = checkpoints.publish(&origin(1, 2), &other).unwrap_err();
    assert!(matches!(error, PublishError::Diverged { .. }), "{error}");
    let changed = Origin { config: Digest::of(b"another lr"), ..origin(1, 2) };
    assert!(checkpoints.publish(&changed, &other).unwrap().fresh, "another config may have another state");
    let taken = checkpoints.publish(&Origin { config: Digest::of(b"a third"), ..origin(1, 2) }, &other).unwrap_err();
    assert!(matches!(taken, PublishError::Taken { .. }), "{taken}");
}

#[test]
fn a_publisher_of_an_older_term_is_fenced() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::at(dir.path());
    checkpoints.publish(&origin(5, 1), &small(20)).unwrap();
    for step in [10, 20] {
        let error = checkpoints.publish(&origin(4, 9), &small(step)).unwrap_err();
        assert!(error.to_string().contains("a newer leader (term 5, ours is 4)"), "{error}");
    }
    assert!(checkpoints.publish(&origin(4, 9), &small(30)).unwrap().fresh, "a later step harms nobody");
    let elsewhere = Origin { cluster: "cluster-b".to_string(), ..origin(1, 1) };
    let published = checkpoints.publish(&elsewhere, &small(20)).unwrap();
    assert!(!published.fresh, "terms of another cluster are not compared, and the state is the same");
    assert_eq!(names(dir.path()), ["step-00000020.t5.g1", "step-00000030.t4.g9"]);
}

/// Runs something of others' between the writing and the rename.
struct Paused(PathBuf, u64);

impl Disk for Paused {
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
        if path != self.0 {
            Checkpoints::at(&self.0).publish(&origin(self.1, 1), &small(10)).expect("the new leader publishes");
        }
        Fs.sync_dir(path)
    }
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        Fs.rename_new(from, to)
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

#[test]
fn a_publisher_that_was_paused_finds_out_before_it_renames() {
    let dir = tempfile::tempdir().unwrap();
    let paused = Checkpoints::on(Arc::new(Paused(dir.path().to_path_buf(), 2)), dir.path());
    let error = paused.publish(&origin(1, 1), &small(10)).unwrap_err();
    assert!(matches!(error, PublishError::Fenced { .. }), "{error}");
    assert_eq!(names(dir.path()), ["step-00000010.t2.g1"], "and it leaves nothing behind");
}

#[test]
fn a_checkpoint_that_appeared_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let paused = Checkpoints::on(Arc::new(Paused(dir.path().to_path_buf(), 1)), dir.path());
    assert!(!paused.publish(&origin(1, 1), &small(10)).unwrap().fresh);
    assert_eq!(names(dir.path()), ["step-00000010.t1.g1"]);
}

#[test]
fn contents_that_no_reader_could_take_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::at(dir.path());
    let refused = |change: &dyn Fn(&mut Contents)| {
        let mut bad = small(10);
        change(&mut bad);
        checkpoints.publish(&origin(1, 1), &bad).unwrap_err().to_string()
    };
    assert!(refused(&|c| c.weights[0].shape = vec![8]).contains("has 28 bytes"));
    assert!(refused(&|c| c.weights[0].shape = vec![usize::MAX, usize::MAX]).contains("has 28 bytes"));
    assert!(refused(&|c| c.weights[0].name = "w".to_string()).contains("named twice"));
    assert!(refused(&|c| c.optimizer[0].name = "__metadata__".to_string()).contains("reserved"));
    assert!(refused(&|c| c.optimizer[0].name = "a\0b".to_string()).contains("holds a NUL"));
    assert!(refused(&|c| c.meta = [("k".to_string(), "\0".to_string())].into()).contains("meta entry"));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_disk_that_refuses_is_named_and_leaves_nothing_published() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("file");
    std::fs::write(&blocked, "not a directory").unwrap();
    let error = Checkpoints::at(&blocked).publish(&origin(1, 1), &small(10)).unwrap_err().to_string();
    assert!(error.starts_with("create ") && error.contains("file: "), "{error}");
}

#[test]
fn cleaning_keeps_the_newest_whole_ones_and_what_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::at(dir.path());
    for step in [10, 20, 30, 40, 50] {
        checkpoints.publish(&origin(1, 1), &small(step)).unwrap();
    }
    // The newest is damaged: two whole ones stay beside it.
    std::fs::write(dir.path().join("step-00000050.t1.g1/rows.bin"), "torn").unwrap();
    std::fs::create_dir(dir.path().join("step-00000007.t1.g0.tmp-99-0")).unwrap();
    std::fs::create_dir(dir.path().join("step-00000060.t1.g1.tmp-99-0")).unwrap();
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let in_use = vec![dir.path().join("step-00000010.t1.g1")];
    let cleaned = checkpoints.clean(&origin(1, 1), &Keep { newest: 2, in_use }).unwrap();
    assert_eq!(cleaned.removed.len(), 2);
    let left =
        ["notes.txt", "step-00000010.t1.g1", "step-00000030.t1.g1", "step-00000040.t1.g1", "step-00000050.t1.g1"];
    assert_eq!(names(dir.path())[..5], left);
    assert_eq!(names(dir.path())[5..], ["step-00000060.t1.g1.tmp-99-0"], "our own epoch may still be writing");
}

#[test]
fn an_outdated_publisher_cleans_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::at(dir.path());
    for (step, term) in [(10, 1), (20, 1), (30, 2)] {
        checkpoints.publish(&origin(term, 1), &small(step)).unwrap();
    }
    let cleaned = checkpoints.clean(&origin(1, 1), &keep(1)).unwrap();
    assert!(cleaned.outdated && cleaned.removed.is_empty());
    assert_eq!(names(dir.path()).len(), 3);
    assert_eq!(checkpoints.clean(&origin(2, 1), &keep(1)).unwrap().removed.len(), 2);
}

#[test]
fn nothing_is_removed_while_nothing_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::at(dir.path());
    let path = checkpoints.publish(&origin(1, 1), &small(10)).unwrap().path;
    std::fs::write(path.join("rows.bin"), "torn").unwrap();
    assert!(checkpoints.clean(&origin(1, 1), &keep(1)).unwrap().removed.is_empty());
}

#[test]
fn reports_say_what_is_there_and_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::at(dir.path().join("checkpoints"));
    checkpoints.publish(&origin(1, 1), &small(10)).unwrap();
    let path = checkpoints.publish(&origin(1, 1), &small(20)).unwrap().path;
    std::fs::write(path.join("rows.bin"), "torn").unwrap();
    // By run directory, by checkpoint directory, by checkpoint.
    for at in [dir.path(), checkpoints.dir()] {
        let listed = list(at).unwrap();
        assert_eq!(listed.iter().map(|l| l.step.0).collect::<Vec<_>>(), [20, 10]);
        assert!(listed.iter().all(|l| l.refused.is_none()), "the manifests are whole");
        let verified = verify(at).unwrap();
        assert!(!verified[0].whole && verified[1].whole);
        assert!(verified[0].refused.as_ref().unwrap().contains("rows.bin has 4 bytes"));
    }
    let inspected = inspect(&path).unwrap();
    assert_eq!((inspected.step.0, inspected.weights.len(), inspected.files.len()), (20, 4, 3));
    assert_eq!(inspected.weights[0].name, "layer.0.bias");
    let json = serde_json::to_value(&inspected).unwrap();
    assert_eq!((&json["gen"], &json["meta"]["cursor"]), (&1.into(), &"epoch 0 step 20".into()));
    let error = inspect(&dir.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.starts_with("there is no checkpoint at"), "{error}");
    std::fs::remove_file(path.join("manifest.json")).unwrap();
    assert!(list(dir.path()).unwrap()[0].refused.as_ref().unwrap().contains("no manifest.json"));
}

#[test]
fn a_checkpoint_of_format_version_1_still_loads() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1");
    let found = Checkpoints::at(&dir).newest_verified().unwrap();
    assert!(found.refused.is_empty(), "{:?}", found.refused);
    let restored = found.newest.expect("the fixture is there");
    assert_eq!(restored.manifest.format_version, 1);
    assert_eq!(restored.contents, small(40));
    assert_eq!(restored.manifest.weights_sha256.to_string(), WEIGHTS_V1);
    assert_eq!(restored.manifest.state_sha256.to_string(), STATE_V1);
}

#[test]
fn what_is_written_today_is_the_fixture_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = Checkpoints::at(dir.path()).publish(&origin(3, 2), &small(40)).unwrap().path;
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/step-00000040.t3.g2");
    assert_eq!(names(&path), names(&fixture));
    for name in names(&path) {
        assert!(
            std::fs::read(path.join(&name)).unwrap() == std::fs::read(fixture.join(&name)).unwrap(),
            "{name} differs"
        );
    }
}

const WEIGHTS_V1: &str = "4e6f971656be90b679e6acd43884bf7780f72d531641cb62a25251939e312ad2";
const STATE_V1: &str = "6157ad47d036f81ae168bb8488970a4cd955c09153fb8257f320d4490619b625";
