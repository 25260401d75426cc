//! A real server behind a proxy that is busy, breaks off and loses answers.

use crate::faulty_http::{Fault, FaultyHttp, Request};
use crate::s3_server::S3Server;
use crate::{bucket, conformance, open, server};
use elastic_objects::{Error, Store};
use elastic_spec::Digest;

fn faulty(
    server: &S3Server,
    name: &str,
    plan: impl Fn(&Request) -> Fault + Send + Sync + 'static,
) -> (FaultyHttp, Store) {
    let proxy = FaultyHttp::start(server.address(), plan);
    let store = bucket(server, name, proxy.address());
    (proxy, store)
}

#[tokio::test]
async fn a_store_that_is_busy_every_third_time_keeps_the_promises() {
    let Some(server) = server("a_store_that_is_busy_every_third_time_keeps_the_promises") else { return };
    let (proxy, store) =
        faulty(server, "busy", |request| if request.before % 3 == 1 { Fault::Busy } else { Fault::None });
    conformance::all(&store).await;
    assert!(proxy.faults() > 30, "{} faults", proxy.faults());
}

#[tokio::test]
async fn connections_that_break_in_mid_upload_cost_only_a_part() {
    let Some(server) = server("connections_that_break_in_mid_upload_cost_only_a_part") else { return };
    let breaks = |request: &Request| match request.method == "PUT" && request.before % 2 == 1 {
        true => Fault::Broken,
        false => Fault::None,
    };
    let (proxy, store) = faulty(server, "broken", breaks);
    let bytes: Vec<u8> = (0..30 << 20).map(|i: u32| (i.wrapping_mul(40503) >> 9) as u8).collect();
    store.put("large", bytes.clone()).await.unwrap();
    store.put("small", "small").await.unwrap();
    assert_eq!(Digest::of(&store.get("large", 1 << 30).await.unwrap()), Digest::of(&bytes));
    assert_eq!(store.get("small", 10).await.unwrap(), "small");
    let parts = proxy.seen().iter().filter(|(request, _)| request.target.contains("partNumber")).count();
    assert!(proxy.faults() > 1 && parts < 4 + 4 * 3, "{} faults, {parts} parts", proxy.faults());
}

/// The store has made it, and the answer is lost: the caller learns that it was he.
#[tokio::test]
async fn a_name_taken_with_a_lost_answer_is_known_to_be_ours() {
    let Some(server) = server("a_name_taken_with_a_lost_answer_is_known_to_be_ours") else { return };
    let loses = |request: &Request| match request.method == "PUT" && request.before == 0 {
        true => Fault::AnswerLost,
        false => Fault::None,
    };
    let (proxy, store) = faulty(server, "lost", loses);
    assert!(store.put_new("lock", "mine").await.unwrap());
    assert_eq!(proxy.faults(), 1);
    let other = open(&server.env(&server.address()), "lost");
    assert!(!other.put_new("lock", "theirs").await.unwrap());
    assert_eq!(other.get("lock", 10).await.unwrap(), "mine");
}

#[tokio::test]
async fn an_upload_whose_last_answer_is_lost_is_there_once() {
    let Some(server) = server("an_upload_whose_last_answer_is_lost_is_there_once") else { return };
    let lost = std::sync::atomic::AtomicBool::new(false);
    let loses = move |request: &Request| {
        let is_last = request.method == "POST" && request.target.contains("uploadId");
        match is_last && !lost.swap(true, std::sync::atomic::Ordering::Relaxed) {
            true => Fault::AnswerLost,
            false => Fault::None,
        }
    };
    let (proxy, store) = faulty(server, "completed", loses);
    let bytes = vec![7; 9 << 20];
    store.put("large", bytes.clone()).await.unwrap();
    assert_eq!(proxy.faults(), 1);
    assert_eq!(store.get("large", 1 << 30).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_store_that_stays_busy_is_given_up_and_nothing_appears() {
    let Some(server) = server("a_store_that_stays_busy_is_given_up_and_nothing_appears") else { return };
    let busy = |request: &Request| match request.target.contains("partNumber=2") {
        true => Fault::Busy,
        false => Fault::None,
    };
    let (_proxy, store) = faulty(server, "gone", busy);
    let error = store.put("large", vec![1; 30 << 20]).await.unwrap_err();
    assert!(error.is_passing(), "{error}");
    assert!(error.to_string().contains("s3://gone/deep/prefix/large: the store asks for fewer requests"), "{error}");
    let other = open(&server.env(&server.address()), "gone");
    assert_eq!(other.head("large").await.unwrap(), None);
    assert!(other.list("", 10).await.unwrap().is_empty());
    assert!(matches!(other.get("large", 1).await, Err(Error::NotFound { .. })));
}
