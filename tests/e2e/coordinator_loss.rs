//! Training does not wait for the coordinator: killed, stopped, or away at the end, on a real etcd.

use crate::cluster::{Cluster, Guarded, assert_same, elastic, free_port, signal, wait_for};
use crate::faults::{LONG, submit, submit_with, undisturbed, undisturbed_long};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A real etcd in a directory of its own; None, and a line that says so, where there is none.
pub fn etcd(test: &str, dir: &std::path::Path) -> Option<(Guarded, String)> {
    let program = std::env::var_os("ELASTIC_ETCD").unwrap_or("etcd".into());
    let (client, peer) = (free_port(), free_port());
    let (client, peer) = (format!("127.0.0.1:{client}"), format!("127.0.0.1:{peer}"));
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    for flag in ["--listen-client-urls", "--advertise-client-urls"] {
        command.args([flag, &format!("http://{client}")]);
    }
    for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
        command.args([flag, &format!("http://{peer}")]);
    }
    command.args(["--initial-cluster", &format!("default=http://{peer}")]);
    match command.spawn() {
        Ok(child) => {
            let server = Guarded(child);
            wait_for("etcd answers", 20, || std::net::TcpStream::connect(&client).ok());
            Some((server, format!("etcd://{client}")))
        }
        Err(error) => {
            elastic_tests::skip::skip(test, &format!("etcd does not start: {error}; install etcd-server"));
            None
        }
    }
}

#[test]
fn a_coordinator_killed_in_mid_run_loses_no_job_and_no_step() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some((_etcd, store)) = etcd("a_coordinator_killed_in_mid_run_loses_no_job_and_no_step", dir.path()) else {
        return;
    };
    let mut cluster = Cluster::start(Some(store), 3);
    let job = submit_with(&cluster, &LONG);
    cluster.until_active(&job, 3);
    cluster.until_step(&job, 50);
    let workers = cluster.workers();
    let before = cluster.step(&job);
    cluster.kill_coordinator();
    std::thread::sleep(Duration::from_secs(1));
    cluster.start_coordinator();
    let status = cluster.until_active(&job, 3);
    assert!(status["step"].as_u64() > Some(before), "the workers trained on meanwhile");
    assert_eq!(cluster.workers(), workers, "no worker was started again");
    let (status, proof) = cluster.until_done(&job);
    assert_eq!(status["restarts"], 0, "{status:#}");
    assert_same(&proof, undisturbed_long());
}

#[test]
fn a_coordinator_stopped_for_ten_seconds_evicts_nobody() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some((_etcd, store)) = etcd("a_coordinator_stopped_for_ten_seconds_evicts_nobody", dir.path()) else { return };
    let cluster = Cluster::start(Some(store), 3);
    let job = submit_with(&cluster, &LONG);
    let status = cluster.until_active(&job, 3);
    let (workers, view) = (cluster.workers(), status["view"].clone());
    let pid = cluster.coordinator.as_ref().expect("it runs").pid();
    signal(pid, "STOP");
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(cluster.workers(), workers, "the workers trained on");
    signal(pid, "CONT");
    let status = cluster.until_active(&job, 3);
    assert_eq!((&status["view"], &status["state"]), (&view, &"running".into()), "nobody was evicted: {status:#}");
    let (status, proof) = cluster.until_done(&job);
    assert_eq!((&status["restarts"], &status["last_fault"]), (&0.into(), &serde_json::Value::Null), "{status:#}");
    assert_same(&proof, undisturbed_long());
}

#[test]
fn a_job_that_ends_while_the_coordinator_is_away_has_succeeded_when_it_returns() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let name = "a_job_that_ends_while_the_coordinator_is_away_has_succeeded_when_it_returns";
    let Some((_etcd, store)) = etcd(name, dir.path()) else { return };
    let mut cluster = Cluster::start(Some(store), 3);
    let job = submit(&cluster);
    cluster.until_active(&job, 3);
    cluster.kill_coordinator();
    wait_for("the workers end by themselves", 120, || cluster.workers().is_empty().then_some(()));
    cluster.start_coordinator();
    let (status, proof) = cluster.until_done(&job);
    assert_eq!(status["restarts"], 0, "it was not run again: {status:#}");
    assert!(cluster.workers().is_empty(), "it was not run again");
    assert_same(&proof, undisturbed());
    // The command line sees it as any other job.
    let out = Command::new(elastic()).args(["jobs", "--json", "--coordinator", &cluster.url()]).output().expect("jobs");
    assert!(String::from_utf8_lossy(&out.stdout).contains("succeeded"));
}
