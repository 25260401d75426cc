//! Tokens as callers meet them: made, shown, refused, revoked, and known to the next leader.

use crate::cluster::{Agent, Running, eventually, leader_with, report, start, start_with, submission};
use elastic_coordinator::store::{Embedded, Memory, Store};
use elastic_proto::client::Coordinator;
use elastic_proto::{Credentials, Refusal};
use elastic_spec::access::Role;
use elastic_spec::api::{MakeToken, Scale};
use elastic_spec::{JobId, NodeId, TokenName};
use std::sync::Arc;

fn name(text: &str) -> TokenName {
    TokenName::parse(text).unwrap()
}

fn guarded(store: Arc<dyn Store>) -> Running {
    start_with(store, |config| config.access.token = Some("own".into()))
}

fn showing(token: &str) -> Credentials {
    Credentials { token: Some(token.to_string()), ..Credentials::default() }
}

async fn make(owner: &Coordinator, role: Role, ttl_ms: u64) -> String {
    owner.make_token(MakeToken { name: name(role.as_str()), role, ttl_ms }).await.unwrap()
}

const LONG: u64 = 3_600_000;

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_what_it_is_for_over_the_wire_and_nothing_more() {
    let running = guarded(Arc::new(Memory::new()));
    let owner = leader_with(&running.address, &showing("own")).await;
    let job = owner.submit(submission("digits")).await.unwrap();
    for role in Role::ALL {
        let caller = leader_with(&running.address, &showing(&make(&owner, role, LONG).await)).await;
        // Calls that change nothing here: an unknown job or node is found out behind the gate.
        let unknown = JobId::parse("unknown").unwrap();
        let scale = Scale { job: unknown.clone(), min_workers: 1, max_workers: 1 };
        let judged = [
            (Role::Viewer, caller.jobs().await.err()),
            (Role::Viewer, caller.status(&job).await.err()),
            (Role::Viewer, caller.nodes().await.err()),
            (Role::Submitter, caller.scale(scale).await.err()),
            (Role::Submitter, caller.cancel(&unknown).await.err()),
            (Role::Submitter, caller.put_blob(bytes::Bytes::from_static(b"x")).await.err()),
            (Role::Admin, caller.drain(&NodeId::parse("unknown").unwrap()).await.err()),
            (Role::Admin, caller.tokens().await.err()),
            (Role::Admin, caller.revoke_token(&name("unknown")).await.err()),
            (Role::Agent, Agent::attach(&caller, report(role.as_str())).await.err()),
        ];
        for (needed, refused) in judged {
            let is_kept_out = matches!(refused, Some(Refusal::Forbidden(_)));
            assert_eq!(!is_kept_out, role.covers(needed), "{role} at what {needed} may: {refused:?}");
        }
    }
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_revoked_or_has_expired_opens_nothing_and_its_name_is_free() {
    let running = guarded(Arc::new(Memory::new()));
    let owner = leader_with(&running.address, &showing("own")).await;
    let text = make(&owner, Role::Viewer, LONG).await;
    let viewer = leader_with(&running.address, &showing(&text)).await;
    viewer.jobs().await.unwrap();
    let twice = owner.make_token(MakeToken { name: name("viewer"), role: Role::Viewer, ttl_ms: LONG }).await;
    assert!(matches!(twice, Err(Refusal::NotNow(_))), "{twice:?}");
    owner.revoke_token(&name("viewer")).await.unwrap();
    assert!(matches!(viewer.jobs().await, Err(Refusal::Unauthenticated(_))));
    assert!(matches!(owner.revoke_token(&name("viewer")).await, Err(Refusal::NotFound(_))));

    let text = make(&owner, Role::Viewer, 1).await;
    let viewer = leader_with(&running.address, &showing(&text)).await;
    let viewer = &viewer;
    let words = eventually("it expires", || async move { viewer.jobs().await.err() }).await;
    assert!(matches!(&words, Refusal::Unauthenticated(w) if w.contains("expired")), "{words}");
    make(&owner, Role::Viewer, LONG).await;
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_outlive_the_coordinator_and_lie_in_its_store_as_digests() {
    let dir = tempfile::tempdir().unwrap();
    let running = guarded(Arc::new(Embedded::open(dir.path()).unwrap()));
    let owner = leader_with(&running.address, &showing("own")).await;
    let text = make(&owner, Role::Submitter, LONG).await;
    running.kill();

    let path = dir.path();
    let store = eventually("the file's lock is free", || async move { Embedded::open(path).ok() }).await;
    let store: Arc<dyn Store> = Arc::new(store);
    let records = store.load().await.unwrap();
    let secret = text.rsplit('.').next().unwrap();
    let kept: Vec<_> = records.iter().filter(|r| r.key.starts_with("token/")).collect();
    assert_eq!(kept.len(), 1);
    assert!(!String::from_utf8_lossy(kept[0].value.as_deref().unwrap()).contains(secret));

    let running = guarded(store);
    let caller = leader_with(&running.address, &showing(&text)).await;
    caller.submit(submission("digits")).await.unwrap();
    let owner = leader_with(&running.address, &showing("own")).await;
    let listed = owner.tokens().await.unwrap();
    assert_eq!((listed.len(), listed[0].role), (1, Role::Submitter));
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_sends_holders_of_tokens_to_the_leader() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let first = guarded(store.clone());
    let owner = leader_with(&first.address, &showing("own")).await;
    let text = make(&owner, Role::Viewer, LONG).await;
    let second = guarded(store.clone());
    let found = leader_with(&second.address, &showing(&text)).await;
    assert_eq!(found.url(), first.address);
    found.jobs().await.unwrap();
    first.stop();
    // The new leader knows the token by the records.
    let found = leader_with(&second.address, &showing(&text)).await;
    found.jobs().await.unwrap();
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_is_asked_no_token_is_made() {
    let running = start(Arc::new(Memory::new()));
    let coordinator = leader_with(&running.address, &Credentials::default()).await;
    let make = MakeToken { name: name("x"), role: Role::Viewer, ttl_ms: LONG };
    let refused = coordinator.make_token(make).await.unwrap_err();
    assert!(matches!(&refused, Refusal::NotNow(words) if words.contains("--token-file")), "{refused}");
    running.stop();
}
