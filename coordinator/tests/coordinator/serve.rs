//! A coordinator as its callers see it: real gRPC, real stores, agents without processes.

use crate::cluster::{
    self, Agent, eventually, leader, leader_with, report, start, start_with, status_when, submission,
};
use bytes::Bytes;
use elastic_control::Record;
use elastic_coordinator::store::{Candidate, Embedded, Leadership, Memory, Store, StoreError, async_trait};
use elastic_proto::client::Coordinator;
use elastic_proto::{Credentials, OwnCertificate, Refusal};
use elastic_spec::api::{JobState, Scale};
use elastic_spec::facts::{End, NodeWant, Process};
use elastic_spec::{Digest, Term};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_submitted_wanted_reported_and_done() {
    let running = start(Arc::new(Memory::new()));
    let coordinator = leader(&running.address).await;
    let mut agent = Agent::attach(&coordinator, report("n1")).await.unwrap();
    let job = coordinator.submit(submission("digits")).await.unwrap();
    assert!(job.as_str().starts_with("digits-"), "{job}");

    let want = agent
        .obey_until("a view of both", |w| w.jobs.iter().any(|j| j.view.as_ref().is_some_and(|v| v.world_size() == 2)));
    let want = want.await;
    assert_eq!(want.jobs[0].launch.run_dir, format!("/runs/{job}"));
    assert_eq!(want.jobs[0].launch.secret.len(), 32);
    let status = status_when(&coordinator, &job, "it runs", |s| s.state == JobState::Running).await;
    assert_eq!((status.members.len(), status.steps_total), (2, 10));
    assert_eq!(coordinator.nodes().await.unwrap()[0].used, 2);

    agent.finish();
    agent.obey_until("ends acknowledged", |w| !w.acknowledged.is_empty()).await;
    let status = status_when(&coordinator, &job, "it is done", |s| s.state == JobState::Succeeded).await;
    assert_eq!(status.step.0, 10);
    assert_eq!(coordinator.jobs().await.unwrap().len(), 1);
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_started_again_on_its_store_it_knows_the_job_and_adopts_its_workers() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(Arc::new(Embedded::open(dir.path()).unwrap()));
    let coordinator = leader(&running.address).await;
    let mut agent = Agent::attach(&coordinator, report("n1")).await.unwrap();
    let job = coordinator.submit(submission("digits")).await.unwrap();
    let before = agent.obey_until("a view", |w| w.jobs.iter().any(|j| j.view.is_some())).await;
    let kept = agent.report();
    running.kill();

    let path = dir.path();
    let store = eventually("the file's lock is free", || async move { Embedded::open(path).ok() }).await;
    let running = start(Arc::new(store));
    let coordinator = leader(&running.address).await;
    assert_eq!(coordinator.status(&job).await.unwrap().job, job);
    let mut agent = Agent::attach(&coordinator, kept.clone()).await.unwrap();
    let after = agent.obey_until("the job again", |w| w.jobs.iter().any(|j| j.view.is_some())).await;
    assert!(after.term > before.term, "{} is above {}", after.term, before.term);
    let attempts =
        |w: &elastic_spec::facts::NodeWant| -> Vec<_> { w.jobs[0].slots.iter().map(|s| (s.slot, s.attempt)).collect() };
    assert_eq!(attempts(&after), attempts(&before), "nobody is started again");
    let restarts = coordinator.status(&job).await.unwrap().restarts;
    assert_eq!(restarts, 0);
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_names_the_leader_and_takes_over_when_it_stops() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let first = start(store.clone());
    leader(&first.address).await;
    let second = start(store.clone());
    let standby = Coordinator::connect(&second.address, &Credentials::default()).await.unwrap();
    let told = Refusal::Standby { leader: Some(first.address.clone()) };
    let (standby, expected) = (&standby, &told);
    eventually("the standby knows the leader", || async move {
        (standby.jobs().await.err().as_ref() == Some(expected)).then_some(())
    })
    .await;
    let refused = Agent::attach(standby, report("n1")).await.err();
    assert_eq!(refused.as_ref(), Some(&told));
    let found = leader(&second.address).await;
    assert_eq!(found.url(), first.address, "asked at the standby, sent to the leader");
    let job = found.submit(submission("digits")).await.unwrap();
    first.stop();
    let found = leader(&second.address).await;
    assert_eq!(found.url(), second.address);
    assert_eq!(found.status(&job).await.unwrap().name, "digits");
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_deposed_says_and_writes_nothing_more() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let first = start(store.clone());
    let old = leader(&first.address).await;
    let mut agent = Agent::attach(&old, report("n1")).await.unwrap();
    let term = old.health().await.unwrap().leads.unwrap();
    // What a lease that ran out does; the test takes the seat before either can.
    store.resign(term).await;
    while let Ok(Some(_)) = agent.next().await {}
    let new_term = leader(&first.address).await.health().await.unwrap().leads.unwrap();
    assert!(new_term > term, "it campaigned again: {new_term} after {term}");
    let fenced = store.commit(term, &[]).await;
    assert_eq!(fenced, Err(elastic_coordinator::store::StoreError::Fenced(term)));
    first.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_of_a_higher_term_makes_the_leader_take_one_above_it() {
    let running = start(Arc::new(Memory::new()));
    let coordinator = leader(&running.address).await;
    let mut first = report("n1");
    first.seen = elastic_spec::Epoch::new(500, 3);
    // The first attempt ends with the old term; one that comes after is welcome.
    let mut agent = Agent::attach(&coordinator, first.clone()).await.unwrap();
    while let Ok(Some(_)) = agent.next().await {}
    let address = &running.address;
    let term = eventually("a higher term", || async move {
        leader(address).await.health().await.ok()?.leads.filter(|term| term.0 > 500)
    })
    .await;
    let mut agent = Agent::attach(&leader(address).await, first).await.unwrap();
    let want = agent.next().await.unwrap().unwrap();
    assert_eq!(want.term, term);
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_living_agent_of_the_same_name_is_turned_away() {
    let running = start(Arc::new(Memory::new()));
    let coordinator = leader(&running.address).await;
    let agent = Agent::attach(&coordinator, report("n1")).await.unwrap();
    let mut other = report("n1");
    other.incarnation = 8;
    let refused = Agent::attach(&coordinator, other.clone()).await.err();
    assert!(matches!(&refused, Some(Refusal::NotNow(words)) if words.contains("--name")), "{refused:?}");
    drop(agent);
    let (coordinator, other) = (&coordinator, &other);
    eventually("the name is free", || async move { Agent::attach(coordinator, other.clone()).await.ok() }).await;
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_travel_by_digest_and_a_job_without_them_is_refused() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let running = start(store.clone());
    let coordinator = leader(&running.address).await;
    let bytes = Bytes::from(vec![5; 600 << 10]);
    let mut submit = submission("digits");
    submit.blobs = vec![("/jobs/data.csv".into(), Digest::of(&bytes))];
    let refused = coordinator.submit(submit.clone()).await.unwrap_err();
    assert!(matches!(&refused, Refusal::Invalid(words) if words.contains("data.csv")), "{refused}");
    assert_eq!(store.load().await.unwrap(), [], "nothing is stored of a bad one");
    let digest = coordinator.put_blob(bytes.clone()).await.unwrap();
    assert_eq!(coordinator.get_blob(digest).await.unwrap(), bytes);
    let missing = coordinator.get_blob(Digest::of(b"other")).await.unwrap_err();
    assert!(matches!(missing, Refusal::NotFound(_)), "{missing}");
    coordinator.submit(submit).await.unwrap();
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn scale_and_cancel_do_as_asked_and_say_why_not() {
    let running = start(Arc::new(Memory::new()));
    let coordinator = leader(&running.address).await;
    let job = coordinator.submit(submission("digits")).await.unwrap();
    let scale = |max_workers| Scale { job: job.clone(), min_workers: 1, max_workers };
    coordinator.scale(scale(4)).await.unwrap();
    assert_eq!(coordinator.status(&job).await.unwrap().max_workers, 4);
    assert!(matches!(coordinator.scale(scale(1000)).await, Err(Refusal::Invalid(_))));
    coordinator.cancel(&job).await.unwrap();
    let status = status_when(&coordinator, &job, "it ends", |s| s.state == JobState::Cancelled).await;
    assert_eq!(status.job, job);
    assert!(matches!(coordinator.cancel(&job).await, Err(Refusal::NotNow(_))));
    let unknown = elastic_spec::JobId::parse("unknown").unwrap();
    assert!(matches!(coordinator.cancel(&unknown).await, Err(Refusal::NotFound(_))));
    assert!(matches!(coordinator.status(&unknown).await, Err(Refusal::NotFound(_))));
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_token_nothing_is_answered() {
    let token = Some("s3cret".to_string());
    let running = start_with(Arc::new(Memory::new()), |config| config.access.token = token.clone());
    let with = Credentials { token, ..Credentials::default() };
    let coordinator = leader_with(&running.address, &with).await;
    coordinator.jobs().await.unwrap();
    for wrong in [None, Some("s3cres".to_string())] {
        let shown = Credentials { token: wrong, ..Credentials::default() };
        let stranger = Coordinator::connect(&running.address, &shown).await.unwrap();
        assert!(matches!(stranger.jobs().await, Err(Refusal::Unauthenticated(_))));
        assert!(stranger.health().await.is_ok(), "who leads is told to anybody");
        let attached = Agent::attach(&stranger, report("n1")).await.err();
        assert!(matches!(attached, Some(Refusal::Unauthenticated(_))), "{attached:?}");
    }
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_it_is_reached_with_its_authority_and_not_without() {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_string(), "localhost".to_string()]).unwrap();
    let (chain_pem, key_pem) = (made.cert.pem(), made.signing_key.serialize_pem());
    let certificate = OwnCertificate::from_pem(&chain_pem, &key_pem);
    let running = start_with(Arc::new(Memory::new()), |config| config.access.certificate = Some(certificate));
    let trusting = Credentials { authority_pem: Some(chain_pem), ..Credentials::default() };
    let coordinator = leader_with(&running.address, &trusting).await;
    assert_eq!(coordinator.jobs().await.unwrap(), []);
    let plain = Coordinator::connect(&running.address, &Credentials::default()).await;
    let refused = match plain {
        Err(e) => e,
        Ok(coordinator) => coordinator.jobs().await.unwrap_err(),
    };
    assert!(refused.is_passing(), "{refused}");
    running.stop();
}

#[tokio::test]
async fn an_open_bind_is_refused_before_anything_is_served() {
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let config = cluster::config("anywhere:1");
    let served = elastic_coordinator::serve(listener, Arc::new(Memory::new()), config, std::future::pending()).await;
    let words = format!("{:#}", served.unwrap_err());
    assert!(words.contains("--insecure") && words.contains("--tls-cert"), "{words}");
}

/// A store whose commits hang while the gate is shut, like one whose disk does not answer.
struct Gated {
    store: Memory,
    open: watch::Sender<bool>,
}

#[async_trait]
impl Store for Gated {
    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError> {
        self.store.campaign(candidate).await
    }
    async fn resign(&self, term: Term) {
        self.store.resign(term).await;
    }
    async fn leader(&self) -> Result<Option<String>, StoreError> {
        self.store.leader().await
    }
    async fn load(&self) -> Result<Vec<Record>, StoreError> {
        self.store.load().await
    }
    async fn commit(&self, term: Term, records: &[Record]) -> Result<(), StoreError> {
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        self.store.commit(term, records).await
    }
    async fn put_blob(&self, digest: Digest, bytes: Bytes) -> Result<(), StoreError> {
        self.store.put_blob(digest, bytes).await
    }
    async fn blob_bytes(&self, digest: Digest) -> Result<Option<u64>, StoreError> {
        self.store.blob_bytes(digest).await
    }
    async fn get_blob(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        self.store.get_blob(digest).await
    }
    async fn sweep_blobs(&self, keep: &BTreeSet<Digest>, age: Duration) -> Result<(), StoreError> {
        self.store.sweep_blobs(keep, age).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_holds_up_no_view_and_no_reply_goes_ahead_of_its_record() {
    let store = Arc::new(Gated { store: Memory::new(), open: watch::channel(true).0 });
    let running = start(store.clone());
    let coordinator = leader(&running.address).await;
    let mut agent = Agent::attach(&coordinator, report("n1")).await.unwrap();
    let job = coordinator.submit(submission("digits")).await.unwrap();
    let size = |w: &NodeWant| Some(w.jobs.first()?.view.as_ref()?.world_size());
    agent.obey_until("a view of both", |w| size(w) == Some(2)).await;
    status_when(&coordinator, &job, "it runs", |s| s.state == JobState::Running).await;

    store.open.send_replace(false);
    agent.change(|report| {
        let Process::Running { status, .. } = &report.workers[1].process else { panic!("it runs") };
        report.workers[1].process = Process::Exited { end: End::Signal(9), status: status.clone() };
    });
    let ended = agent.report().workers[1].worker;
    let begun = Instant::now();
    let want = agent.obey_until("a view without it", |w| size(w) == Some(1)).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(want.acknowledged, []);
    let submitting = tokio::spawn({
        let coordinator = coordinator.clone();
        async move { coordinator.submit(submission("more")).await }
    });
    // Many reports later it still has no reply.
    for _ in 0..20 {
        agent.change(|_| {});
        coordinator.jobs().await.unwrap();
    }
    assert!(!submitting.is_finished());
    assert_eq!(store.load().await.unwrap().len(), 1, "only the first job is on record");

    store.open.send_replace(true);
    submitting.await.unwrap().unwrap();
    agent.obey_until("its end acknowledged", |w| w.acknowledged.contains(&ended)).await;
    assert_eq!(store.load().await.unwrap().iter().filter(|r| r.key.starts_with("job/")).count(), 2);
    running.stop();
}
