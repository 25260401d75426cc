//! NCCL as machines have it: missing, damaged, old, without newer functions; and NVIDIA's own without a GPU.

mod common;

use elastic_cuda::libs::search::Surroundings;
use elastic_nccl::{Nccl, NcclError, OPTIONAL, Seat, Version};
use elastic_spec::Rank;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is found in these folders, and nowhere else.
fn find(folders: &[&Path]) -> Result<Arc<Nccl>, NcclError> {
    let named: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    Nccl::find_in(&Surroundings { named: Some(format!("{}:-", named.join(":"))), ..Surroundings::default() })
}

fn refusal(folders: &[&Path]) -> String {
    find(folders).err().expect("it is refused").to_string()
}

#[test]
fn a_machine_without_it_is_told_how_to_get_it() {
    let said = refusal(&[common::temp().path()]);
    assert!(said.starts_with("libnccl is not on this machine ("), "{said}");
    assert!(said.contains("`pip install nvidia-nccl-cu13`"), "{said}");
}

#[test]
fn a_version_that_is_too_old_is_named_with_its_place_and_the_oldest_that_works() {
    let dir = common::temp();
    let path = common::fake_in(dir.path(), &["-DVERSION=21605"]);
    let wanted = format!("{} is version 2.16.5, and 2.18.0 is the oldest that works; `pip install", path.display());
    let said = refusal(&[dir.path()]);
    assert!(said.starts_with(&wanted), "{said}");
}

#[test]
fn an_old_one_is_passed_over_for_a_newer_one_elsewhere() {
    let (old, new) = (common::temp(), common::temp());
    common::fake_in(old.path(), &["-DVERSION=21605"]);
    let path = common::fake_in(new.path(), &["-DVERSION=22703", "-DNO_REVOKE"]);
    let nccl = find(&[old.path(), new.path()]).expect("the second works");
    assert_eq!((nccl.version(), nccl.path()), (Version(22_703), path.as_path()));
    assert!(nccl.lacks().contains(&"ncclCommRevoke"));
}

#[test]
fn a_file_that_is_no_library_and_a_library_that_is_no_nccl_are_named() {
    let dir = common::temp();
    let path = dir.path().join("libnccl.so.2");
    std::fs::write(&path, "not a library").expect("the folder can be written");
    let said = refusal(&[dir.path()]);
    assert!(said.starts_with(&format!("{} cannot be loaded: ", path.display())), "{said}");

    let other = common::temp();
    let source = other.path().join("other.c");
    std::fs::write(&source, "int ncclGetVersion(int *v) { *v = 22809; return 0; }").expect("the folder can be written");
    let path = common::compile(&source, other.path(), &[]);
    let said = refusal(&[other.path()]);
    assert!(said.starts_with(&format!("{} has no function ncclGetUniqueId: ", path.display())), "{said}");
}

#[test]
fn a_seat_outside_of_the_world_is_refused() {
    let dir = common::temp();
    common::fake_in(dir.path(), &[]);
    let nccl = find(&[dir.path()]).expect("it was just made");
    let id = elastic_nccl::UniqueId::from_bytes([1; 128]);
    let refused = nccl.join(Seat { rank: Rank(2), world: 2 }, id).err().expect("ranks are counted from 0");
    assert_eq!(refused.to_string(), "rank 2 of 2 is no seat");
}

/// NVIDIA's own library, where `cargo xtask nvidia` could install it.
fn real(test: &str) -> Option<Arc<Nccl>> {
    match common::nccl() {
        Ok(dir) => Some(find(&[&dir.join("lib")]).expect("NVIDIA's library loads")),
        Err(why) => {
            println!("skipped: {test}: {why}");
            None
        }
    }
}

#[test]
fn nvidias_own_library_makes_ids_without_a_gpu() {
    let Some(nccl) = real("nvidias_own_library_makes_ids_without_a_gpu") else { return };
    assert_eq!(nccl.version().to_string(), "2.28.9");
    assert_eq!(nccl.lacks(), ["ncclCommGrow", "ncclCommMemStats"]);
    let newer: Vec<&str> = OPTIONAL.iter().filter(|row| row.1 > nccl.version()).map(|row| row.0).collect();
    assert_eq!(nccl.lacks(), newer, "the table of when each came");
    let (one, other) = (nccl.unique_id().expect("it needs a network interface at most"), nccl.unique_id().unwrap());
    assert_ne!(one.to_bytes(), other.to_bytes());
    assert_eq!(format!("{one:?}"), "UniqueId(..)", "it opens a door, so no log shows it");
}

#[test]
fn nvidias_own_library_without_a_driver_is_an_error_with_a_cure() {
    const TEST: &str = "nvidias_own_library_without_a_driver_is_an_error_with_a_cure";
    if let Ok(gpu) = elastic_cuda::usable() {
        return println!("skipped: {TEST}: there is a GPU, {}", gpu.name);
    }
    let Some(nccl) = real(TEST) else { return };
    let started = Instant::now();
    let id = nccl.unique_id().expect("it needs no GPU");
    let joined = nccl.join(Seat { rank: Rank(0), world: 1 }, id);
    let said = joined.and_then(|joining| joining.ready(Duration::from_secs(20))).err().expect("there is no GPU");
    assert!(matches!(said, NcclError::Call { call: "ncclCommInitRankConfig", code: 1, .. }), "{said:?}");
    assert!(said.to_string().contains("`elastic devices --need-gpu`"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}
