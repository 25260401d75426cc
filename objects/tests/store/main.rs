//! What a store promises, held by all of them: memory, a folder, and a real S3-compatible server.

mod conformance;
mod faults;
#[path = "../../../tests/src/faulty_http.rs"]
#[allow(dead_code)]
mod faulty_http;
#[path = "../../../tests/src/s3_server.rs"]
#[allow(dead_code)]
mod s3_server;
#[path = "../../../tests/src/skip.rs"]
mod skip;
mod strangers;

use elastic_objects::{Address, Patience, Store};
use s3_server::S3Server;
use std::time::Duration;

/// Faults are borne for as long as in life, with shorter waits.
const PATIENCE: Patience = Patience {
    tries: 8,
    first_wait: Duration::from_millis(5),
    longest_wait: Duration::from_millis(200),
    request: Duration::from_secs(30),
    total: Duration::from_secs(60),
};

/// The server, or a line that says why the test does not run.
fn server(test: &str) -> Option<&'static S3Server> {
    S3Server::shared().map_err(|why| skip::skip(test, why)).ok()
}

/// A store in a new bucket of the server, by way of `address`.
fn bucket(server: &S3Server, name: &str, address: &str) -> Store {
    server.make_bucket(name);
    open(&server.env(address), name)
}

fn open(env: &[(String, String)], bucket: &str) -> Store {
    let get = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    Store::with(&Address::parse(&format!("s3://{bucket}/deep/prefix")).unwrap(), &get, PATIENCE).unwrap()
}

#[tokio::test]
async fn memory_keeps_the_promises() {
    conformance::all(&Store::memory()).await;
}

#[tokio::test]
async fn a_folder_keeps_the_promises() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(&format!("file://{}", dir.path().join("new/store").display())).unwrap();
    conformance::all(&store).await;
    let left = walk(dir.path()).into_iter().filter(|name| name.contains('#')).collect::<Vec<_>>();
    assert!(left.is_empty(), "no half of a file is left: {left:?}");
}

#[tokio::test]
async fn s3_keeps_the_promises() {
    let Some(server) = server("s3_keeps_the_promises") else { return };
    let store = bucket(server, "conformance", &server.address());
    conformance::all(&store).await;
    assert_eq!(store.place("a"), "s3://conformance/deep/prefix/a");
}

fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => names.extend(walk(&entry.path())),
            false => names.push(entry.file_name().to_string_lossy().into_owned()),
        }
    }
    names
}
