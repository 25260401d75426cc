//! Pipelines whose models are trained by nodes that come, go and die, with and without a file system that they share.

use crate::cluster::{Cluster, Guarded, elastic, signal, wait_for};
use crate::pipeline::{Example, Pipeline, cached, ended_well, last_json};
use elastic_tests::s3_server::S3Server;
use elastic_tests::skip::skip;
use serde_json::Value;
use std::process::Command;

/// So slow that the nodes' comings and goings fall into the training, whatever the machine does meanwhile.
const SLOW: &str = "before-apply:every:sleep:50";

fn start_agent(cluster: &mut Cluster, name: &str, env: &[(String, String)]) {
    let slow = [("ELASTIC_FAIL", SLOW.to_string())];
    let env: Vec<(&str, String)> = env.iter().map(|(key, value)| (key.as_str(), value.clone())).chain(slow).collect();
    cluster.start_agent(name, &env);
}

/// The job of a model, once there is one.
fn job(cluster: &Cluster, model: &str) -> String {
    wait_for(&format!("a job of {model}"), 60, || {
        let out = Command::new(elastic()).args(["jobs", "--json", "--coordinator", &cluster.url()]).output().ok()?;
        let jobs: Value = serde_json::from_slice(&out.stdout).ok()?;
        let mut names = jobs.as_array()?.iter().filter_map(|job| job["job"].as_str());
        names.find(|name| name.starts_with(model)).map(str::to_string)
    })
}

/// Whether views of so many members come in this order, whatever lies between.
fn passes_through(members: &[usize], wanted: &[usize]) -> bool {
    let mut members = members.iter();
    wanted.iter().all(|count| members.any(|found| found == count))
}

/// The pipeline is killed itself, too: on a cluster its job outlives it and is found again.
fn check_on_nodes(example: Example) {
    let mut cluster = Cluster::start(None, 0);
    ["n0", "n1", "n2"].iter().for_each(|name| start_agent(&mut cluster, name, &[]));
    let pipeline = Pipeline::of(example);
    let url = cluster.url();
    let args = ["--coordinator", url.as_str()];
    let mut first = Guarded(pipeline.command(&args).spawn().expect("elastic starts"));
    let job = job(&cluster, example.model());
    cluster.until_active(&job, 3);
    first.kill();
    drop(first);
    drop(cluster.agents.remove("n2"));
    cluster.until_active(&job, 2);
    // The place of a lost node is kept for it for a while: it comes back, and another joins.
    ["n2", "n3"].iter().for_each(|name| start_agent(&mut cluster, name, &[]));
    let status = cluster.until_active(&job, 4);
    assert_eq!(status["state"], "running", "{status:#}");
    cluster.agents["n0"].workers().iter().for_each(|worker| signal(*worker, "KILL"));
    let (ended, said) = pipeline.run(&args);
    assert!(said.contains(&format!("{}-1 goes on where it was cut off", example.model())), "{said}");
    pipeline.assert_undisturbed(&ended);
    let members = pipeline.members_of_views();
    assert!(passes_through(&members, &[3, 2, 4]), "{members:?}");
    let status = cluster.status(&job).expect("the coordinator answers");
    assert!(status["restarts"].as_u64() >= Some(1), "a kill is counted: {status:#}");
}

#[test]
fn digits_trained_on_3_then_2_then_4_nodes_and_through_kills_publish_the_bytes_of_1() {
    check_on_nodes(Example::Digits);
}

#[test]
fn a_text_trained_on_3_then_2_then_4_nodes_and_through_kills_publishes_the_bytes_of_1() {
    check_on_nodes(Example::Text);
}

/// Nodes, pipeline and registry share a bucket and nothing else. The pipeline is killed in the training and in the push, and
/// the node that writes the checkpoints is lost with its only copy of what was on its disk.
#[test]
fn three_agents_without_a_shared_file_system_train_a_pipeline_in_a_bucket_to_the_same_bytes() {
    let test = "three_agents_without_a_shared_file_system_train_a_pipeline_in_a_bucket_to_the_same_bytes";
    let server = match S3Server::shared() {
        Ok(server) => server,
        Err(why) => return skip(test, why),
    };
    server.make_bucket("apart");
    let env = server.env(&server.address());
    let mut cluster = Cluster::start_with_runs_apart(0);
    ["n0", "n1", "n2"].iter().for_each(|name| start_agent(&mut cluster, name, &env));
    let pipeline = Pipeline::of(Example::Text).with_env(env.clone());
    let url = cluster.url();
    let states = "train.set=[\"checkpoint.dir='s3://apart/states'\"]";
    let stores = ["--set", "store.blobs=s3://apart/work", "--set", "push.registry=s3://apart/registry"];
    let args = [&["--coordinator", url.as_str(), "--set", states][..], &stores].concat();
    let mut first = Guarded(pipeline.command(&args).spawn().expect("elastic starts"));
    let job = job(&cluster, "notes");
    let status = cluster.until_active(&job, 3);
    let members = status["members"].as_array().expect("members");
    let writer = members.iter().find(|m| m["rank"] == 0).and_then(|m| m["node"].as_str()).expect("rank 0 has a node");
    wait_for("a checkpoint", 60, || cluster.status(&job)?["published"]["step"].as_u64());
    first.kill();
    drop(first);
    let agent = cluster.agents.remove(writer).expect("the writer's agent runs");
    let workers = agent.workers();
    signal(agent.process.pid(), "KILL");
    workers.iter().for_each(|worker| signal(*worker, "KILL"));
    drop(agent);
    pipeline.killed_at("push-work", &args);
    assert!(server.read("apart", "registry/notes/1/push.json").is_some(), "the version is taken");
    assert!(server.read("apart", "registry/notes/1/manifest.json").is_none(), "and not published");
    let (ended, said) = pipeline.run(&args);
    assert!(said.contains("notes-1 goes on where it was cut off"), "{said}");
    let calm = Example::Text.undisturbed();
    assert_eq!(ended["content_sha256"], calm.ended["content_sha256"]);
    assert_eq!(crate::pipeline::artifacts(&ended), crate::pipeline::artifacts(&calm.ended));
    for (name, bytes) in calm.published.iter().filter(|(name, _)| name.ends_with(".json")) {
        let found = server.read("apart", &format!("registry/{name}"));
        assert_eq!(found.as_deref().map(str::as_bytes), Some(&bytes[..]), "{name}");
    }
    let members = pipeline.members_of_views();
    assert!(passes_through(&members, &[3, 2]), "views of both writers are told: {members:?}");

    // Of the run itself, too, nothing but the bucket is needed.
    let run_dir = status["run_dir"].as_str().expect("run_dir");
    let run = format!("s3://apart/states/{}", run_dir.rsplit('/').next().unwrap_or_default());
    let out = pipeline.elastic(&["export", &run, "--registry", "here", "--json"]).output().expect("elastic starts");
    let (exported, _) = ended_well(out);
    assert_eq!((&exported["content_sha256"], &exported["version"]), (&ended["content_sha256"], &1.into()));
    let again =
        last_json(&pipeline.elastic(&["export", &run, "--registry", "here", "--json"]).output().expect("it starts"));
    assert_eq!((&again["version"], &again["default"]), (&1.into(), &true.into()), "the same content is published once");
    assert!(pipeline.path("here/notes/1/push.json").exists());
}

#[test]
fn artifacts_and_registry_in_a_bucket_are_those_of_a_folder() {
    let test = "artifacts_and_registry_in_a_bucket_are_those_of_a_folder";
    let server = match S3Server::shared() {
        Ok(server) => server,
        Err(why) => return skip(test, why),
    };
    server.make_bucket("pipelines");
    let calm = Example::Digits.undisturbed();
    let digits = Pipeline::of(Example::Digits).with_env(server.env(&server.address()));
    let args = ["--set", "store.blobs=s3://pipelines/work", "--set", "push.registry=s3://pipelines/registry"];
    digits.killed_at("push-work", &args);
    assert!(server.read("pipelines", "registry/digits/1/push.json").is_some(), "the version is taken");
    assert!(server.read("pipelines", "registry/digits/1/manifest.json").is_none(), "and not published");
    let (ended, _) = digits.run(&args);
    assert_eq!(ended["content_sha256"], calm.ended["content_sha256"]);
    for (name, bytes) in calm.published.iter().filter(|(name, _)| name.ends_with(".json")) {
        let found = server.read("pipelines", &format!("registry/{name}"));
        assert_eq!(found.as_deref().map(str::as_bytes), Some(&bytes[..]), "{name}");
    }
    let (again, _) = digits.run(&args);
    assert!(cached(&again).iter().all(|(_, cached)| *cached), "{again}");
}
