//! Wrong settings, against a real server and against none: each error names the cause and the cure.

use crate::{bucket, open, server};
use elastic_objects::{Address, Cause, Error, Patience, Store};
use std::time::{Duration, Instant};

fn with(env: &[(String, String)], name: &str, value: &str) -> Vec<(String, String)> {
    let change = |(key, old): &(String, String)| (key.clone(), if key == name { value.into() } else { old.clone() });
    env.iter().map(change).collect()
}

#[track_caller]
fn check(error: Error, wanted: Cause, says: &str) {
    let text = error.to_string();
    assert!(matches!(error, Error::Failed { cause, .. } if cause == wanted), "{text}");
    assert!(text.contains(says), "{text}");
}

#[tokio::test]
async fn wrong_buckets_keys_and_secrets_are_named_with_their_cure() {
    let Some(server) = server("wrong_buckets_keys_and_secrets_are_named_with_their_cure") else { return };
    let env = server.env(&server.address());
    bucket(server, "strangers", &server.address()).put("a", "a").await.unwrap();

    let nowhere = open(&env, "nowhere");
    check(
        nowhere.put("a", "a").await.unwrap_err(),
        Cause::NoBucket,
        "s3://nowhere/deep/prefix/a: there is no such bucket",
    );
    check(nowhere.get("a", 1).await.unwrap_err(), Cause::NoBucket, "create it");
    check(nowhere.list("", 1).await.unwrap_err(), Cause::NoBucket, "create it");
    check(nowhere.put_new("a", "a").await.unwrap_err(), Cause::NoBucket, "create it");

    let secret = open(&with(&env, "AWS_SECRET_ACCESS_KEY", "wrong"), "strangers");
    check(secret.get("a", 1).await.unwrap_err(), Cause::WrongSecret, "check AWS_SECRET_ACCESS_KEY");
    let key = open(&with(&env, "AWS_ACCESS_KEY_ID", "nobody"), "strangers");
    check(key.get("a", 1).await.unwrap_err(), Cause::UnknownKey, "check AWS_ACCESS_KEY_ID");
}

#[tokio::test]
async fn a_store_that_is_not_there_is_given_up_in_time() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let env = |name: &str| match name {
        "AWS_ENDPOINT_URL" => Some(format!("http://127.0.0.1:{port}")),
        "AWS_ALLOW_HTTP" => Some("true".into()),
        "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => Some("k".into()),
        _ => None,
    };
    let patience = Patience { tries: 100, total: Duration::from_secs(1), ..crate::PATIENCE };
    let store = Store::with(&Address::parse("s3://bucket").unwrap(), &env, patience).unwrap();
    let begun = Instant::now();
    check(store.get("a", 1).await.unwrap_err(), Cause::Unreachable, "check AWS_ENDPOINT_URL and the network");
    assert!(begun.elapsed() < Duration::from_secs(20), "it is given up: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "in the way").unwrap();
    let error = Store::at(dir.path().join("file/store").to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("file/store: "), "{error}");
}
