//! The suite: one story a promise, in a place of its own.

use elastic_objects::{Blobs, Cause, Error, Store, blocking};
use elastic_spec::Digest;
use std::io::Read;

const MIB: usize = 1 << 20;

pub async fn all(store: &Store) {
    what_is_put_is_got(&at(store, "put")).await;
    large_ones_go_in_parts_and_come_in_pieces(&at(store, "large")).await;
    a_name_is_taken_once(&at(store, "new")).await;
    of_many_at_once_one_takes_a_name(&at(store, "race")).await;
    an_object_is_replaced_as_it_was_read_or_not_at_all(&at(store, "over")).await;
    ranges_are_whole_or_refused(&at(store, "range")).await;
    listings_are_bounded_and_by_whole_parts(&at(store, "list")).await;
    deleted_and_copied(&at(store, "copy")).await;
    an_upload_appears_when_it_is_finished(&at(store, "upload")).await;
    blobs_are_named_by_their_bytes(&at(store, "blobs")).await;
    bad_names_are_refused(store).await;
    let store = store.clone();
    tokio::task::spawn_blocking(move || threads_may_wait(&at(&store, "blocking"))).await.unwrap();
}

fn at(store: &Store, place: &str) -> Store {
    store.under(place).unwrap()
}

fn bytes(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2654435761) >> 7) as u8 ^ seed as u8).collect()
}

async fn what_is_put_is_got(store: &Store) {
    for (name, length) in [("empty", 0), ("one", 1), ("d/e/e.p", 70_000)] {
        store.put(name, bytes(length, 1)).await.unwrap();
        assert_eq!(store.get(name, 1 << 20).await.unwrap(), bytes(length, 1));
        assert_eq!(store.head(name).await.unwrap().unwrap().bytes, length as u64);
    }
    store.put("one", "another").await.unwrap();
    assert_eq!(store.get("one", 7).await.unwrap(), "another", "putting replaces");
    let refused = store.get("one", 6).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge { bytes: 7, limit: 6, .. }), "{refused}");
    let missing = store.get("none", 1).await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    assert_eq!(missing.to_string(), format!("there is no {}", store.place("none")));
    assert_eq!(store.head("none").await.unwrap(), None);
    assert_eq!(store.head("d").await.unwrap(), None, "a part of a name is no object");
}

async fn large_ones_go_in_parts_and_come_in_pieces(store: &Store) {
    let large = bytes(20 * MIB + 3, 2);
    store.put("large", large.clone()).await.unwrap();
    assert_eq!(Digest::of(&store.get("large", 1 << 30).await.unwrap()), Digest::of(&large));
    let dir = tempfile::tempdir().unwrap();
    let copied = store.get_file("large", &dir.path().join("copy"), 1 << 30).await.unwrap();
    assert_eq!(copied, (large.len() as u64, Digest::of(&large)));
    assert!(std::fs::read(dir.path().join("copy")).unwrap() == large);
    let refused = store.get_file("large", &dir.path().join("other"), 20 << 20).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge { .. }) && !dir.path().join("other").exists(), "{refused}");
    assert!(store.get_file("none", &dir.path().join("none"), 1).await.unwrap_err().is_not_found());
    let exact = bytes(16 * MIB, 3);
    store.put("exact", exact.clone()).await.unwrap();
    assert_eq!(Digest::of(&store.get("exact", 16 << 20).await.unwrap()), Digest::of(&exact));
}

async fn a_name_is_taken_once(store: &Store) {
    assert!(store.put_new("lock", "first").await.unwrap());
    assert!(!store.put_new("lock", "second").await.unwrap());
    assert_eq!(store.get("lock", 100).await.unwrap(), "first");
    store.delete("lock").await.unwrap();
    assert!(store.put_new("lock", "third").await.unwrap());
}

async fn of_many_at_once_one_takes_a_name(store: &Store) {
    for round in 0..5 {
        let name = format!("round-{round}");
        let tries = (0..8).map(|i| {
            let (store, name) = (store.clone(), name.clone());
            tokio::spawn(async move { store.put_new(&name, format!("by {i}")).await.unwrap().then_some(i) })
        });
        let mut winners = Vec::new();
        for tried in tries.collect::<Vec<_>>() {
            winners.extend(tried.await.unwrap());
        }
        let [winner] = winners[..] else { panic!("one takes it: {winners:?}") };
        assert_eq!(store.get(&name, 100).await.unwrap(), format!("by {winner}"));
    }
}

/// In a folder it is refused: there processes have locks.
async fn an_object_is_replaced_as_it_was_read_or_not_at_all(store: &Store) {
    let etag = |name: &'static str| async move { store.head(name).await.unwrap().and_then(|meta| meta.etag) };
    assert!(store.put_over("counts", "0", None).await.unwrap());
    assert!(!store.put_over("counts", "1", None).await.unwrap(), "it is there by now");
    let first = etag("counts").await;
    if store.place("").starts_with('/') {
        let refused = store.put_over("counts", "1", first).await.unwrap_err();
        assert!(matches!(refused, Error::Failed { cause: Cause::Unsupported, .. }), "{refused}");
        return;
    }
    assert!(store.put_over("counts", "1", first.clone()).await.unwrap());
    assert!(!store.put_over("counts", "one", first.clone()).await.unwrap(), "it is another by now");
    assert_eq!(store.get("counts", 10).await.unwrap(), "1");
    assert!(!store.put_over("none", "1", first).await.unwrap(), "what is gone is another");
    // Nothing that anybody adds is lost. Each leaves his mark, so that he knows his own after a lost answer.
    let add = |store: Store, mark: usize| async move {
        loop {
            let etag = store.head("counts").await.unwrap().unwrap().etag;
            let text = String::from_utf8(store.get("counts", 10).await.unwrap().to_vec()).unwrap();
            let count: u32 = text.split(' ').next().unwrap().parse().unwrap();
            if store.put_over("counts", format!("{} {mark}", count + 1), etag).await.unwrap() {
                return;
            }
        }
    };
    let adding: Vec<_> = (0..6).map(|mark| tokio::spawn(add(store.clone(), mark))).collect();
    for one in adding {
        one.await.unwrap();
    }
    let counted = store.get("counts", 10).await.unwrap();
    assert!(counted.starts_with(b"7 "), "{counted:?}");
}

async fn ranges_are_whole_or_refused(store: &Store) {
    store.put("ten", "0123456789").await.unwrap();
    assert_eq!(store.get_range("ten", 2..5).await.unwrap(), "234");
    assert_eq!(store.get_range("ten", 0..10).await.unwrap(), "0123456789");
    assert_eq!(store.get_range("ten", 4..4).await.unwrap(), "");
    for beyond in [8..11, 10..11, 50..60] {
        assert!(store.get_range("ten", beyond.clone()).await.is_err(), "{beyond:?}");
    }
    let etag = store.head("ten").await.unwrap().unwrap().etag;
    assert_eq!(store.get_range_of("ten", 1..2, etag.clone()).await.unwrap(), "1");
    store.put("ten", "another text").await.unwrap();
    let replaced = store.get_range_of("ten", 1..2, etag).await.unwrap_err();
    assert!(matches!(replaced, Error::Replaced { .. }), "{replaced}");
}

async fn listings_are_bounded_and_by_whole_parts(store: &Store) {
    for name in ["a/1", "a/2", "a/b/3", "ab/4", "z"] {
        store.put(name, name).await.unwrap();
    }
    let names = async |prefix: &str| -> Vec<String> {
        store.list(prefix, 100).await.unwrap().into_iter().map(|entry| entry.name).collect()
    };
    assert_eq!(names("").await, ["a/1", "a/2", "a/b/3", "ab/4", "z"]);
    assert_eq!(names("a").await, ["a/1", "a/2", "a/b/3"]);
    assert_eq!(names("a/b").await, ["a/b/3"]);
    assert!(names("nothing").await.is_empty());
    let entry = store.list("ab", 1).await.unwrap().remove(0);
    assert_eq!((entry.name.as_str(), entry.bytes), ("ab/4", 4));
    let refused = store.list("a", 2).await.unwrap_err();
    assert!(matches!(refused, Error::TooMany { limit: 2, .. }), "{refused}");
}

async fn deleted_and_copied(store: &Store) {
    store.put("from", "bytes").await.unwrap();
    store.copy("from", "to/there").await.unwrap();
    store.delete("from").await.unwrap();
    store.delete("from").await.unwrap();
    assert_eq!(store.head("from").await.unwrap(), None);
    assert_eq!(store.get("to/there", 9).await.unwrap(), "bytes");
    assert!(store.copy("from", "nowhere").await.unwrap_err().is_not_found());
}

async fn an_upload_appears_when_it_is_finished(store: &Store) {
    for (name, length) in [("small", 10), ("parts", 9 * MIB)] {
        let wanted = bytes(length, 5);
        let mut upload = store.upload(name, None).unwrap();
        for piece in wanted.chunks(300_001) {
            upload.write(piece).await.unwrap();
        }
        assert_eq!(store.head(name).await.unwrap(), None, "not before");
        assert!(store.list("", 10).await.unwrap().iter().all(|entry| entry.name != name));
        upload.finish().await.unwrap();
        assert_eq!(Digest::of(&store.get(name, 1 << 30).await.unwrap()), Digest::of(&wanted));
    }
    let mut given_up = store.upload("given-up", None).unwrap();
    given_up.write(&bytes(9 * MIB, 6)).await.unwrap();
    given_up.abort().await;
    assert_eq!(store.head("given-up").await.unwrap(), None);
}

async fn blobs_are_named_by_their_bytes(store: &Store) {
    let blobs = store.blobs();
    let digest = blobs.put("some bytes").await.unwrap();
    assert_eq!(blobs.put("some bytes").await.unwrap(), digest);
    assert_eq!(digest, Digest::of(b"some bytes"));
    assert_eq!(blobs.exists(&digest).await.unwrap(), Some(10));
    assert_eq!(blobs.get(&digest, 10).await.unwrap(), "some bytes");
    let none = Digest::of(b"others");
    assert_eq!(blobs.exists(&none).await.unwrap(), None);
    assert!(blobs.open(&none).await.unwrap_err().is_not_found());
    let empty = blobs.put("").await.unwrap();
    assert_eq!(blobs.open(&empty).await.unwrap().next().await.unwrap(), None);

    let dir = tempfile::tempdir().unwrap();
    let (file, copy) = (dir.path().join("file"), dir.path().join("copy"));
    std::fs::write(&file, bytes(17 * MIB + 1, 8)).unwrap();
    let (large, length) = blobs.put_file(&file).await.unwrap();
    assert_eq!((large, length), (Digest::of(&bytes(17 * MIB + 1, 8)), 17 * MIB as u64 + 1));
    assert_eq!(blobs.get_file(&large, &copy).await.unwrap(), length);
    assert_eq!(Digest::of(&std::fs::read(&copy).unwrap()), large);
    let mut listed: Vec<_> = blobs.list(10).await.unwrap().into_iter().map(|(digest, _)| digest).collect();
    listed.sort();
    let mut wanted = vec![digest, empty, large];
    wanted.sort();
    assert_eq!(listed, wanted);

    // Damage of the same length, and of another.
    for damage in [&b"some bytez"[..], b"some byt"] {
        store.put(&Blobs::name(&digest), damage.to_vec()).await.unwrap();
        let refused = blobs.get(&digest, 10).await.unwrap_err();
        assert!(matches!(&refused, Error::Damaged { place, .. } if *place == blobs.place(&digest)), "{refused}");
        let refused = blobs.get_file(&digest, &dir.path().join("damaged")).await.unwrap_err();
        assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "nothing of a damaged blob is left: {left:?}");
    blobs.delete(&digest).await.unwrap();
    assert_eq!(blobs.exists(&digest).await.unwrap(), None);
}

async fn bad_names_are_refused(store: &Store) {
    for bad in ["", "/etc/passwd", "../x", "a//b", "a/./b", "a b", "a#1"] {
        let refused = store.put(bad, "x").await.unwrap_err();
        assert!(matches!(refused, Error::Name { .. }), "{bad:?}: {refused}");
        assert!(store.under(bad).is_err());
    }
}

fn threads_may_wait(store: &Store) {
    let store = blocking::Store::from(store.clone());
    store.put("a/b", "bytes").unwrap();
    assert!(!store.put_new("a/b", "others").unwrap());
    assert_eq!(store.get("a/b", 10).unwrap(), "bytes");
    assert_eq!(store.list("a", 10).unwrap().len(), 1);
    let mut upload = store.upload("long", None).unwrap();
    bytes(9 * MIB, 9).chunks(MIB).for_each(|piece| upload.write(piece).unwrap());
    upload.finish().unwrap();
    let blobs = store.blobs();
    let digest = blobs.put(store.get("long", 1 << 30).unwrap()).unwrap();
    let mut read = Vec::new();
    blobs.open(&digest).unwrap().read_to_end(&mut read).unwrap();
    assert_eq!(Digest::of(&read), digest);
    store.put(&Blobs::name(&digest), bytes(9 * MIB, 10)).unwrap();
    let refused = blobs.open(&digest).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidData, "{refused}");
}
