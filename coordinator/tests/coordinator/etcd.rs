//! Coordinators on a real etcd: a leader that dies is followed, and an etcd that dies is outlived.

use crate::cluster::{Agent, eventually, leader, report, start, status_when, submission};
use crate::etcd_server::EtcdServer;
use elastic_coordinator::store::{Etcd, Store, StoreError};
use elastic_proto::Refusal;
use elastic_spec::api::JobState;
use elastic_spec::facts::{End, NodeWant, Process};
use std::sync::Arc;

async fn store(etcd: &EtcdServer) -> Arc<Etcd> {
    Arc::new(Etcd::connect(&[&etcd.host()], "test", None).await.unwrap())
}

fn world_size(want: &NodeWant) -> Option<u16> {
    Some(want.jobs.first()?.view.as_ref()?.world_size())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_follows_a_leader_that_was_killed_and_fences_it() {
    let Some(etcd) = EtcdServer::start("a_standby_follows_a_leader_that_was_killed_and_fences_it").await else {
        return;
    };
    let killed = store(&etcd).await;
    let first = start(killed.clone());
    let coordinator = leader(&first.address).await;
    let job = coordinator.submit(submission("digits")).await.unwrap();
    let term = coordinator.health().await.unwrap().leads.unwrap();
    let second = start(store(&etcd).await);
    first.kill();
    let coordinator = leader(&second.address).await;
    assert_eq!(coordinator.url(), second.address);
    assert!(coordinator.health().await.unwrap().leads.unwrap() > term);
    assert_eq!(coordinator.status(&job).await.unwrap().job, job);
    let late = killed.commit(term, &[]).await;
    assert_eq!(late, Err(StoreError::Fenced(term)), "what the dead leader wrote too late");
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_etcd_is_away_views_are_made_and_ends_wait_for_their_record() {
    let Some(mut etcd) = EtcdServer::start("while_etcd_is_away_views_are_made_and_ends_wait_for_their_record").await
    else {
        return;
    };
    let running = start(store(&etcd).await);
    let coordinator = leader(&running.address).await;
    let mut agent = Agent::attach(&coordinator, report("n1")).await.unwrap();
    let job = coordinator.submit(submission("digits")).await.unwrap();
    agent.obey_until("a view of both", |w| world_size(w) == Some(2)).await;
    status_when(&coordinator, &job, "it runs", |s| s.state == JobState::Running).await;

    etcd.kill();
    let coordinator = &coordinator;
    eventually("it says so", || async move { coordinator.health().await.ok()?.store_away }).await;
    let refused = coordinator.submit(submission("more")).await.unwrap_err();
    assert!(matches!(&refused, Refusal::Unavailable(words) if words.contains("training goes on")), "{refused}");
    agent.change(|report| {
        let Process::Running { status, .. } = &report.workers[1].process else { panic!("it runs") };
        report.workers[1].process = Process::Exited { end: End::Signal(9), status: status.clone() };
    });
    let ended = agent.report().workers[1].worker;
    let want = agent.obey_until("a view without it", |w| world_size(w) == Some(1)).await;
    assert_eq!(want.acknowledged, [], "its end is not on record yet");

    etcd.start_again().await;
    agent.obey_until("its end acknowledged", |w| w.acknowledged.contains(&ended)).await;
    eventually("etcd is back", || async move { coordinator.health().await.ok().filter(|h| h.store_away.is_none()) })
        .await;
    let status = coordinator.status(&job).await.unwrap();
    assert_eq!(status.last_fault.unwrap().worker, ended);
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_etcd_is_reached_with_a_certificate_of_its_authority_and_not_without() {
    let test = "over_tls_etcd_is_reached_with_a_certificate_of_its_authority_and_not_without";
    let Some(etcd) = EtcdServer::start_secured(test).await else { return };
    let host = etcd.host();
    let store = Etcd::connect(&[&host], "test", etcd.tls.as_ref()).await.unwrap();
    let running = start(Arc::new(store));
    leader(&running.address).await.jobs().await.unwrap();
    running.stop();
    let stranger = crate::etcd_server::certificates();
    for wrong in [None, Some(&stranger)] {
        assert!(Etcd::connect(&[&host], "test", wrong).await.is_err());
    }
}
