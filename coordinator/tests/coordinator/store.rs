//! What every store promises, run on all three; and what only some can be asked.

use crate::etcd_server::EtcdServer;
use bytes::Bytes;
use elastic_control::Record;
use elastic_coordinator::store::{Candidate, Embedded, Etcd, Leadership, Memory, Store, StoreError};
use elastic_spec::{Digest, Term};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

fn candidate(address: &str) -> Candidate {
    Candidate { address: address.into(), above: Term(0) }
}

fn put(key: &str, value: &str) -> Record {
    Record { key: key.into(), value: Some(value.into()) }
}

fn delete(key: &str) -> Record {
    Record { key: key.into(), value: None }
}

/// Elected, or the test fails: no election with a free seat takes longer.
async fn lead(store: &dyn Store, address: &str) -> Leadership {
    let elected = tokio::time::timeout(Duration::from_secs(20), store.campaign(&candidate(address))).await;
    elected.expect("elected in time").expect("elected")
}

/// `one` and `other` are two coordinators' ways to the same store.
async fn conforms(one: Arc<dyn Store>, other: Arc<dyn Store>) {
    records_are_read_back_as_written_and_deleted(&*one).await;
    a_second_candidate_waits_and_then_has_a_higher_term(&*one, &*other).await;
    a_term_that_is_over_writes_nothing(&*one, &*other).await;
    a_new_term_is_above_one_that_was_seen_elsewhere(&*one).await;
    many_and_large_records_land_in_one_commit(&*one).await;
    blobs_are_found_by_digest_and_swept_when_unwanted(&*one, &*other).await;
}

async fn records_are_read_back_as_written_and_deleted(store: &dyn Store) {
    assert_eq!(store.load().await.unwrap(), []);
    let leader = lead(store, "a:1").await;
    store.commit(leader.term, &[put("job/b", "2"), put("job/a", "1"), put("node/x", "{}")]).await.unwrap();
    store.commit(leader.term, &[put("job/a", "3"), delete("node/x"), delete("never/was")]).await.unwrap();
    assert_eq!(store.load().await.unwrap(), [put("job/a", "3"), put("job/b", "2")], "sorted by key");
    store.commit(leader.term, &[]).await.unwrap();
    store.resign(leader.term).await;
}

async fn a_second_candidate_waits_and_then_has_a_higher_term(one: &dyn Store, other: &dyn Store) {
    let mut first = lead(one, "first:1").await;
    assert_eq!(other.leader().await.unwrap().as_deref(), Some("first:1"));
    let waiting = tokio::time::timeout(Duration::from_millis(600), other.campaign(&candidate("second:1"))).await;
    assert!(waiting.is_err(), "one leads at a time");
    one.resign(first.term).await;
    first.ended().await;
    let second = lead(other, "second:1").await;
    assert!(second.term > first.term, "{} comes after {}", second.term, first.term);
    assert_eq!(one.leader().await.unwrap().as_deref(), Some("second:1"));
    other.resign(second.term).await;
    assert_eq!(one.leader().await.unwrap(), None);
}

async fn a_term_that_is_over_writes_nothing(one: &dyn Store, other: &dyn Store) {
    let old = lead(one, "old:1").await;
    one.commit(old.term, &[put("fence", "old")]).await.unwrap();
    one.resign(old.term).await;
    let fenced = Err(StoreError::Fenced(old.term));
    assert_eq!(one.commit(old.term, &[put("fence", "nobody leads")]).await, fenced);
    let new = lead(other, "new:1").await;
    other.commit(new.term, &[put("fence", "new")]).await.unwrap();
    assert_eq!(one.commit(old.term, &[put("fence", "late"), put("extra", "late")]).await, fenced);
    let all = other.load().await.unwrap();
    assert!(all.contains(&put("fence", "new")), "{all:?}");
    assert!(!all.iter().any(|r| r.key == "extra"), "{all:?}");
    other.resign(new.term).await;
}

async fn a_new_term_is_above_one_that_was_seen_elsewhere(store: &dyn Store) {
    let seen = Term(1_000_000);
    let elected = store.campaign(&Candidate { address: "a:1".into(), above: seen }).await.unwrap();
    assert!(elected.term > seen);
    store.commit(elected.term, &[put("above", "1")]).await.unwrap();
    store.resign(elected.term).await;
    let next = lead(store, "a:1").await;
    assert!(next.term > elected.term, "the raised count is kept");
    store.resign(next.term).await;
}

async fn many_and_large_records_land_in_one_commit(store: &dyn Store) {
    let leader = lead(store, "a:1").await;
    let large = "x".repeat(900 << 10);
    let many: Vec<Record> = (0..300).map(|i| put(&format!("many/{i:03}"), "{}")).collect();
    let mut all = many.clone();
    all.extend((0..3).map(|i| put(&format!("large/{i}"), &large)));
    store.commit(leader.term, &all).await.unwrap();
    let found = store.load().await.unwrap();
    assert!(all.iter().all(|r| found.contains(r)));
    let gone: Vec<Record> = all.iter().map(|r| delete(&r.key)).collect();
    store.commit(leader.term, &gone).await.unwrap();
    assert!(!store.load().await.unwrap().iter().any(|r| r.key.starts_with("many/")));
    store.resign(leader.term).await;
}

async fn blobs_are_found_by_digest_and_swept_when_unwanted(one: &dyn Store, other: &dyn Store) {
    for bytes in [Bytes::new(), Bytes::from_static(b"abc"), Bytes::from(vec![7; (3 << 20) + 5])] {
        let digest = Digest::of(&bytes);
        assert_eq!(other.blob_bytes(digest).await.unwrap(), None);
        assert_eq!(other.get_blob(digest).await.unwrap(), None);
        one.put_blob(digest, bytes.clone()).await.unwrap();
        one.put_blob(digest, bytes.clone()).await.unwrap();
        assert_eq!(other.blob_bytes(digest).await.unwrap(), Some(bytes.len() as u64));
        assert_eq!(other.get_blob(digest).await.unwrap(), Some(bytes));
    }
    let kept = Digest::of(b"abc");
    one.sweep_blobs(&BTreeSet::new(), Duration::from_secs(3600)).await.unwrap();
    assert!(one.blob_bytes(Digest::of(b"")).await.unwrap().is_some(), "a young blob waits for its job");
    one.sweep_blobs(&BTreeSet::from([kept]), Duration::ZERO).await.unwrap();
    assert_eq!(one.get_blob(Digest::of(b"")).await.unwrap(), None);
    assert_eq!(one.get_blob(kept).await.unwrap(), Some(Bytes::from_static(b"abc")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_store_conforms() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    conforms(store.clone(), store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Embedded::open(dir.path()).unwrap());
    conforms(store.clone(), store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_etcd_store_conforms() {
    let Some(etcd) = EtcdServer::start("the_etcd_store_conforms").await else { return };
    let one = Arc::new(Etcd::connect(&[&etcd.host()], "test", None).await.unwrap());
    let other = Arc::new(Etcd::connect(&[&etcd.host()], "test", None).await.unwrap());
    conforms(one, other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_store_opened_again_has_its_records_and_a_higher_term() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let before = lead(&store, "a:1").await;
    store.commit(before.term, &[put("job/a", "1")]).await.unwrap();
    drop(store);
    let store = Embedded::open(dir.path()).unwrap();
    let after = lead(&store, "a:1").await;
    assert!(after.term > before.term);
    assert_eq!(store.load().await.unwrap(), [put("job/a", "1")]);
    let fenced = store.commit(before.term, &[put("job/a", "2")]).await;
    assert_eq!(fenced, Err(StoreError::Fenced(before.term)));
}

#[test]
fn an_embedded_store_in_use_is_named_with_the_cure() {
    let dir = tempfile::tempdir().unwrap();
    let _open = Embedded::open(dir.path()).unwrap();
    let words = format!("{:#}", Embedded::open(dir.path()).unwrap_err());
    assert!(words.contains("another coordinator") && words.contains("another folder"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_away_ends_no_leadership_and_a_lease_that_is_over_does() {
    let Some(mut etcd) = EtcdServer::start("etcd_away_ends_no_leadership_and_a_lease_that_is_over_does").await else {
        return;
    };
    let store = Etcd::connect(&[&etcd.host()], "test", None).await.unwrap();
    let mut leader = lead(&store, "a:1").await;
    etcd.kill();
    let written = store.commit(leader.term, &[put("a", "1")]).await;
    assert!(matches!(written, Err(StoreError::Away(_))), "{written:?}");
    assert!(store.trouble().is_some());
    assert!(tokio::time::timeout(Duration::from_secs(1), leader.ended()).await.is_err(), "it leads on");
    etcd.start_again().await;
    store.commit(leader.term, &[put("a", "1")]).await.unwrap();
    assert_eq!(store.trouble(), None);
    store.resign(leader.term).await;
    tokio::time::timeout(Duration::from_secs(10), leader.ended()).await.expect("told by etcd");
}
