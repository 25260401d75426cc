//! Checkpoints in an S3 bucket: nodes that share no folder, behind a connection that is busy and breaks off.

use crate::cluster::{Cluster, Proof, assert_same, elastic, job_file, run, signal, wait_for};
use crate::faults::{ARGS, undisturbed};
use elastic_tests::faulty_http::{Fault, FaultyHttp, Request};
use elastic_tests::s3_server::S3Server;
use elastic_tests::skip::skip;
use serde_json::Value;
use std::process::{Command, Stdio};

type Env = Vec<(String, String)>;

fn server(test: &str) -> Option<&'static S3Server> {
    S3Server::shared().map_err(|why| skip(test, why)).ok()
}

fn start_agent(cluster: &mut Cluster, name: &str, env: &Env) {
    let env: Vec<(&str, String)> = env.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    cluster.start_agent(name, &env);
}

fn kill_agent(cluster: &mut Cluster, name: &str) {
    let agent = cluster.agents.remove(name).expect("the agent runs");
    let workers = agent.workers();
    signal(agent.process.pid(), "KILL");
    workers.iter().for_each(|worker| signal(*worker, "KILL"));
}

fn submit(cluster: &Cluster, place: &str, more: &[&str]) -> String {
    let dir = format!("checkpoint.dir=\"{place}\"");
    let args: Vec<&str> = ARGS.iter().copied().chain(["--set", &dir]).chain(more.iter().copied()).collect();
    cluster.submit(&job_file("cnn"), &args)
}

fn checkpoint(act: &str, at: &str, env: &Env) -> Value {
    let mut command = Command::new(elastic());
    command.args(["checkpoint", act, "--json", at]).envs(env.iter().cloned());
    serde_json::from_str(&run(&mut command)).expect("JSON")
}

/// From the bucket alone.
fn proof(server: &S3Server, bucket: &str, job: &str, status: &Value, env: &Env) -> Proof {
    let newest = checkpoint("inspect", &format!("s3://{bucket}/states/{job}"), env);
    let text = |name: &str| newest[name].as_str().expect("a digest").to_string();
    assert_eq!(newest["weights_sha256"], status["published"]["weights_sha256"], "{status:#}");
    Proof {
        weights: text("weights_sha256"),
        state: text("state_sha256"),
        validation: Cluster::result(status)["validation"].to_string(),
        rows: server.read(bucket, &format!("states/{job}/events.jsonl")).expect("the log lies beside the checkpoints"),
    }
}

#[test]
fn nodes_without_a_shared_folder_lose_their_writer_and_then_everything_and_resume_from_a_bucket() {
    let test = "nodes_without_a_shared_folder_lose_their_writer_and_then_everything_and_resume_from_a_bucket";
    let Some(server) = server(test) else { return };
    server.make_bucket("training");
    let faults = |request: &Request| match (request.before % 5, request.method.as_str()) {
        (1, _) => Fault::Busy,
        (3, "PUT") => Fault::Broken,
        _ => Fault::None,
    };
    let proxy = FaultyHttp::start(server.address(), faults);
    let (faulty, direct) = (server.env(proxy.address()), server.env(&server.address()));
    let newest = |job: &str| checkpoint("list", &format!("s3://training/states/{job}"), &direct)[0]["step"].as_u64();

    let mut cluster = Cluster::start_with_runs_apart(0);
    (0..3).for_each(|i| start_agent(&mut cluster, &format!("n{i}"), &faulty));
    let job = submit(&cluster, "s3://training/states", &["--workers", "3"]);
    let status = cluster.until_active(&job, 3);
    let members = status["members"].as_array().expect("members");
    let writer = members.iter().find(|m| m["rank"] == 0).and_then(|m| m["node"].as_str()).expect("rank 0 has a node");
    let writer = writer.to_string();
    cluster.until_step(&job, 600);
    let status = cluster.status(&job).expect("the coordinator answers");
    assert_eq!(status["run_dir_differs"], Value::Null, "nobody needs to share it: {status:#}");
    kill_agent(&mut cluster, &writer);
    cluster.until_step(&job, 1100);
    wait_for("a checkpoint of the second writer", 60, || {
        let status = cluster.status(&job)?;
        assert_ne!(status["state"], "succeeded", "the job is too short");
        (status["published"]["step"].as_u64()? >= 1000).then_some(())
    });
    let nodes: Vec<String> = cluster.agents.keys().cloned().collect();
    cluster.kill_coordinator();
    nodes.iter().for_each(|node| kill_agent(&mut cluster, node));
    let held = newest(&job).expect("a checkpoint");
    assert!(held >= 1000, "step {held}");
    drop(cluster);

    let mut cluster = Cluster::start_with_runs_apart(0);
    (5..7).for_each(|i| start_agent(&mut cluster, &format!("n{i}"), &faulty));
    let again = submit(&cluster, "s3://training/states", &["--workers", "2", "--resume", &job]);
    let status = cluster.until_succeeded(&again);
    let published = status["published"]["path"].as_str().expect("a path");
    assert!(published.starts_with(&format!("s3://training/states/{job}/step-")), "{status:#}");
    let all = checkpoint("verify", &format!("s3://training/states/{job}"), &direct);
    assert!(all.as_array().expect("a list").iter().all(|one| one["whole"] == true), "{all:#}");
    assert_same(&proof(server, "training", &job, &status, &direct), undisturbed());
    assert!(proxy.faults() > 10, "{} faults were in the way", proxy.faults());
}

#[test]
fn a_writer_killed_before_its_manifest_leaves_no_checkpoint_and_costs_no_bit() {
    let Some(server) = server("a_writer_killed_before_its_manifest_leaves_no_checkpoint_and_costs_no_bit") else {
        return;
    };
    server.make_bucket("killed");
    let env = server.env(&server.address());
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(elastic());
    command.arg("submit").arg(job_file("cnn")).args(["--local", "--json", "--workers", "2", "--runs", "runs"]);
    command.args(ARGS).args(["--set", "checkpoint.dir=\"s3://killed/states\""]).current_dir(dir.path());
    command.envs(env.iter().cloned()).env("ELASTIC_FAIL", "publish-before-rename:2:kill");
    command.env("ELASTIC_FAIL_ONCE", dir.path());
    let said = run(&mut command);
    let mut marks = std::fs::read_dir(dir.path()).expect("the folder").flatten().map(|e| e.file_name());
    assert!(marks.any(|name| name.to_string_lossy().starts_with("publish-before-rename")), "none was killed");
    let result: Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
    let job = result["job"].as_str().expect("a job");
    let newest = checkpoint("inspect", &format!("s3://killed/states/{job}"), &env);
    assert_eq!(newest["weights_sha256"].as_str(), Some(undisturbed().weights.as_str()));
    assert_eq!(newest["state_sha256"].as_str(), Some(undisturbed().state.as_str()));
    let listed = checkpoint("list", &format!("s3://killed/states/{job}"), &env);
    assert!(listed.as_array().expect("a list").iter().all(|one| one["refused"].is_null()), "{listed:#}");
    let rows = server.read("killed", &format!("states/{job}/events.jsonl"));
    assert_eq!(rows.as_deref(), Some(undisturbed().rows.as_str()));
}

#[test]
fn a_bucket_that_is_missing_ends_the_job_with_the_cure() {
    let Some(server) = server("a_bucket_that_is_missing_ends_the_job_with_the_cure") else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(elastic());
    command.arg("submit").arg(job_file("cnn")).args(["--local", "--runs", "runs", "--workers", "1"]);
    command.args(["--set", "checkpoint.dir=\"s3://missing/states\""]).current_dir(dir.path());
    command.envs(server.env(&server.address())).stdin(Stdio::null());
    let out = command.output().expect("elastic starts");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("there is no such bucket: create it"), "{said}");
}
