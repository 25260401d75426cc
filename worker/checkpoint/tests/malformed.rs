//! Checkpoints that are not what they claim: each is refused with its reason, and the one before is taken.

mod common;

use common::{contents, origin};
use elastic_checkpoint::simulated::SimDisk;
use elastic_checkpoint::{Checkpoints, Disk};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIR: &str = "/checkpoints";
const BLOCK: usize = 256 << 10;

/// Two whole checkpoints, of which the newer one is then damaged.
fn two() -> (SimDisk, Checkpoints) {
    let disk = SimDisk::default();
    let checkpoints = Checkpoints::on(Arc::new(disk.clone()), DIR);
    checkpoints.publish(&origin(1, 1), &contents(10)).unwrap();
    checkpoints.publish(&origin(1, 1), &contents(20)).unwrap();
    (disk, checkpoints)
}

fn newer(file: &str) -> PathBuf {
    Path::new(DIR).join("step-00000020.t1.g1").join(file)
}

/// Damages `file` of the newer checkpoint: it is refused for `expected`, and step 10 is taken.
fn check(file: &str, damage: impl FnOnce(&mut Vec<u8>), expected: &str) {
    let (disk, checkpoints) = two();
    disk.change(&newer(file), damage);
    let found = checkpoints.newest_verified().unwrap();
    let why = found.refused.iter().map(|r| r.why.to_string()).collect::<Vec<_>>().join("; ");
    assert!(why.contains(expected), "{why:?} does not say {expected:?}");
    assert_eq!(found.newest.expect("the one before is whole").contents, contents(10));
}

/// Changes the text of the manifest, and signs it again.
fn forge(change: impl FnOnce(String) -> String) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let rest = change(text[86..].to_string());
        let digest = elastic_spec::Digest::of(rest.as_bytes());
        *bytes = format!("{{\"manifest_sha256\":\"{digest}\",{rest}").into_bytes();
    }
}

fn replace(from: &'static str, to: &'static str) -> impl FnOnce(&mut Vec<u8>) {
    forge(move |text| {
        assert!(text.contains(from), "{from:?} is in {text:.300}");
        text.replacen(from, to, 1)
    })
}

#[test]
fn an_undamaged_one_is_taken() {
    let found = two().1.newest_verified().unwrap();
    assert!(found.refused.is_empty());
    assert_eq!(found.newest.unwrap().contents.state_digest(), contents(20).state_digest());
}

#[test]
fn a_flipped_bit_is_named_by_its_block_and_tensor() {
    check(
        "weights.safetensors",
        |b| *b.last_mut().unwrap() ^= 4,
        "block 0 of \"scale\" in weights.safetensors is damaged",
    );
    let big = |block: usize| {
        move |b: &mut Vec<u8>| {
            let start = b.len() - 4 - (BLOCK * 2 + 20);
            b[start + block * BLOCK + 9] ^= 1;
        }
    };
    check("weights.safetensors", big(0), "block 0 of \"layer.0.weight\"");
    check("weights.safetensors", big(1), "block 1 of \"layer.0.weight\"");
    check("weights.safetensors", big(2), "block 2 of \"layer.0.weight\"");
    check("optimizer.safetensors", |b| *b.last_mut().unwrap() ^= 1, "\"flags\" in optimizer.safetensors");
}

#[test]
fn a_flipped_bit_in_a_header_is_named() {
    check("weights.safetensors", |b| b[20] ^= 1, "the header of weights.safetensors is damaged");
    check("weights.safetensors", |b| b[7] = 0xff, "the header of weights.safetensors is damaged");
}

#[test]
fn damaged_rows_are_named() {
    check("rows.bin", |b| b[3] ^= 1, "block 0 of rows.bin is damaged");
}

#[test]
fn a_truncated_file_is_named() {
    check("weights.safetensors", |b| b.truncate(b.len() - 1), "weights.safetensors has");
    check("optimizer.safetensors", |b| b.clear(), "has 0 bytes instead of");
    check("rows.bin", |b| b.truncate(1), "it is truncated");
}

#[test]
fn a_file_that_is_too_long_is_named() {
    check("weights.safetensors", |b| b.push(0), "it is too long");
}

#[test]
fn an_empty_manifest_is_named() {
    check("manifest.json", Vec::clear, "it has 0 bytes");
}

#[test]
fn a_truncated_manifest_is_named() {
    check("manifest.json", |b| b.truncate(40), "it ends within manifest_sha256");
    check("manifest.json", |b| b.truncate(500), "manifest.json is damaged");
}

#[test]
fn a_manifest_that_is_something_else_is_named() {
    check("manifest.json", |b| *b = b"{}".to_vec(), "it does not begin with manifest_sha256");
    check("manifest.json", |b| *b = vec![0xff; 300], "it is not UTF-8");
}

#[test]
fn a_flipped_bit_in_the_manifest_is_seen() {
    check("manifest.json", |b| b[30] ^= 1, "manifest.json is damaged");
    check("manifest.json", |b| b[300] ^= 1, "manifest.json is damaged");
}

#[test]
fn another_version_is_named() {
    check("manifest.json", replace("\"format_version\":1", "\"format_version\":7"), "its format version is 7");
}

#[test]
fn another_format_is_named() {
    check("manifest.json", replace("elastic-checkpoint", "tar"), "its format is \"tar\"");
}

#[test]
fn an_unknown_key_is_named() {
    check("manifest.json", replace("\"step\":20", "\"step\":20,\"stop\":1"), "unknown field `stop`");
}

#[test]
fn a_missing_key_is_named() {
    check("manifest.json", replace("\"step\":20,", ""), "missing field `step`");
}

#[test]
fn a_name_that_tells_another_step_is_refused() {
    check("manifest.json", replace("\"step\":20", "\"step\":21"), "its manifest says step-00000021.t1.g1");
}

#[test]
fn a_tensor_that_claims_more_than_there_can_be_is_named_before_anything_is_allocated() {
    let huge = replace("\"shape\":[131077]", "\"shape\":[4611686018427387904,131077]");
    check("manifest.json", huge, "tensor \"layer.0.weight\" of F32 [4611686018427387904, 131077] claims 524308 bytes");
    let all = replace("\"bytes\":524308", "\"bytes\":18446744073709551615");
    check("manifest.json", all, "claims 18446744073709551615 bytes");
}

#[test]
fn checksums_that_do_not_cover_the_tensor_are_named() {
    check(
        "manifest.json",
        forge(|text| {
            let at = text.find("\"crc32\":[").unwrap() + "\"crc32\":[".len();
            format!("{}1,{}", &text[..at], &text[at..])
        }),
        "checksums for",
    );
}

#[test]
fn a_tensor_out_of_place_is_named() {
    check("manifest.json", replace("\"offset\":28", "\"offset\":24"), "claims offset 24 where 28 follows");
}

#[test]
fn a_tensor_named_twice_is_named() {
    check("manifest.json", replace("\"name\":\"scale\"", "\"name\":\"nothing\""), "is named twice");
}

#[test]
fn a_header_that_describes_other_tensors_is_refused() {
    check(
        "manifest.json",
        replace("\"name\":\"scale\"", "\"name\":\"scape\""),
        "not the safetensors file that the manifest describes",
    );
}

#[test]
fn rows_with_other_lengths_than_their_checksums_are_named() {
    check(
        "manifest.json",
        forge(|text| text.replacen("\"rows\":{\"bytes\":", "\"rows\":{\"bytes\":9999999", 1)),
        "rows.bin has 1 checksums",
    );
}

#[test]
fn weights_of_another_digest_are_refused() {
    let wrong = |key: &'static str| {
        forge(move |text| {
            let at = text.find(key).unwrap() + key.len() + 3;
            let flipped = if &text[at..=at] == "0" { "1" } else { "0" };
            format!("{}{flipped}{}", &text[..at], &text[at + 1..])
        })
    };
    check("manifest.json", wrong("weights_sha256"), "the weights digest is");
    check("manifest.json", wrong("state_sha256"), "the state digest is");
}

#[test]
fn a_changed_step_or_cursor_shows_in_the_state_digest() {
    check("manifest.json", replace("epoch 0 step 20", "epoch 1 step 20"), "the state digest is");
    check("manifest.json", replace("\"round\":22", "\"round\":23"), "the state digest is");
}

#[test]
fn files_that_are_missing_are_named() {
    for (file, expected) in [("manifest.json", "it has no manifest.json"), ("rows.bin", "rows.bin is missing")] {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::at(dir.path());
        checkpoints.publish(&origin(1, 1), &contents(10)).unwrap();
        let newer = checkpoints.publish(&origin(1, 1), &contents(20)).unwrap().path;
        std::fs::remove_file(newer.join(file)).unwrap();
        let found = checkpoints.newest_verified().unwrap();
        assert!(found.refused[0].why.to_string().contains(expected), "{}", found.refused[0].why);
        assert_eq!(found.newest.unwrap().contents, contents(10));
    }
}

#[test]
fn a_directory_where_a_file_should_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::at(dir.path());
    let path = checkpoints.publish(&origin(1, 1), &contents(10)).unwrap().path;
    std::fs::remove_file(path.join("manifest.json")).unwrap();
    std::fs::create_dir(path.join("manifest.json")).unwrap();
    let found = checkpoints.newest_verified().unwrap();
    assert!(found.newest.is_none() && found.refused.len() == 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_anywhere_is_ever_loaded(file in 0usize..4, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let (disk, checkpoints) = two();
        let file = ["manifest.json", "weights.safetensors", "optimizer.safetensors", "rows.bin"][file];
        let before = disk.read(&newer(file), u64::MAX).unwrap();
        disk.change(&newer(file), |bytes| {
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
        });
        let changed = disk.read(&newer(file), u64::MAX).unwrap() != before;
        let found = checkpoints.newest_verified().unwrap();
        prop_assert_eq!(found.refused.len(), usize::from(changed));
        prop_assert_eq!(found.newest.unwrap().contents, contents(if changed { 10 } else { 20 }));
    }

    #[test]
    fn no_signed_nonsense_makes_the_reader_panic(at in any::<prop::sample::Index>(), piece in "[0-9\\[\\]{},\":a-z-]{0,12}") {
        let (disk, checkpoints) = two();
        disk.change(&newer("manifest.json"), forge(|mut text| {
            let at = at.index(text.len());
            text.replace_range(at..at + 1, &piece);
            text
        }));
        prop_assert!(checkpoints.newest_verified().unwrap().newest.is_some());
    }
}
