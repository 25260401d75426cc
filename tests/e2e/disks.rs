//! Run directories that are not shared, and checkpoints that cannot be written.

use crate::cluster::{Cluster, Guarded, Proof, assert_same, elastic, job_file, run, signal, wait_for};
use crate::faults::{ARGS, submit, undisturbed};
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn with_directories_apart_the_result_names_the_node_that_holds_it_and_there_it_is_whole() {
    let mut cluster = Cluster::start_with_runs_apart(3);
    let job = submit(&cluster);
    let status = cluster.until_active(&job, 3);
    let members = status["members"].as_array().expect("members");
    let writer = members.iter().find(|m| m["rank"] == 0).and_then(|m| m["node"].as_str()).expect("rank 0 has a node");
    let writer = writer.to_string();
    cluster.until_step(&job, 600);
    let status = cluster.status(&job).expect("the coordinator answers");
    let differs = status["run_dir_differs"].as_str().unwrap_or_else(|| panic!("it is not said: {status:#}"));
    assert!(differs.contains("n0, n1, n2 see different ones"), "{differs}");
    assert_eq!(status["published_on"], writer.as_str(), "{status:#}");

    let agent = cluster.agents.remove(&writer).expect("the writer's agent runs");
    let workers = agent.workers();
    signal(agent.process.pid(), "KILL");
    workers.iter().for_each(|worker| signal(*worker, "KILL"));
    drop(agent);
    let status = cluster.until_succeeded(&job);
    let on = status["published_on"].as_str().expect("a node holds the last checkpoint");
    assert!(on != writer && cluster.agents.contains_key(on), "{status:#}");
    let run_dir = cluster.dir.join("nodes").join(on).join("runs").join(&job);
    run(Command::new(elastic()).args(["checkpoint", "verify"]).arg(&run_dir));
    assert_same(&Proof::of(&run_dir, &Cluster::result(&status)), undisturbed());
    let words = run(Command::new(elastic()).args(["status", &job, "--coordinator", &cluster.url()]));
    assert!(words.contains(&format!("on {on}: ")) && words.contains("is not shared"), "{words}");
    let said = std::fs::read_to_string(cluster.dir.join("coordinator.err")).unwrap_or_default()
        + &std::fs::read_to_string(cluster.dir.join("coordinator.out")).unwrap_or_default();
    assert!(said.matches("is not shared").count() >= 1, "the coordinator's log does not tell it: {said}");
}

/// A file where the directory of checkpoints should be: nobody can write there, root neither.
#[test]
fn checkpoints_that_cannot_be_written_are_told_and_come_off_once_they_can() {
    let cluster = Cluster::start(None, 2);
    let in_the_way = cluster.dir.join("states");
    let dir = format!("checkpoint.dir=\"{}\"", in_the_way.display());
    let args: Vec<&str> =
        ARGS.iter().copied().chain(["--set", &dir, "--set", "train.epochs=40", "--workers", "2"]).collect();
    let mut submit = cluster.logged("submit");
    submit.arg("submit").arg(job_file("cnn")).args(["--coordinator", &cluster.url(), "--json"]).args(&args);
    let mut submit = Guarded(submit.spawn().expect("elastic starts"));
    let job = wait_for("the job", 20, || {
        let jobs = run(Command::new(elastic()).args(["jobs", "--json", "--coordinator", &cluster.url()]));
        let jobs: serde_json::Value = serde_json::from_str(&jobs).expect("jobs prints JSON");
        jobs[0]["job"].as_str().map(str::to_string)
    });
    // Not before: workers that cannot read where checkpoints may lie do not begin.
    cluster.until_active(&job, 2);
    std::fs::File::create_new(&in_the_way).expect("no checkpoint was written before");
    let told = wait_for("the failure is told", 60, || {
        let status = cluster.status(&job)?;
        assert!(!["succeeded", "failed"].contains(&status["state"].as_str()?), "{status:#}");
        status["unpublished"]["error"].as_str().map(|_| status.clone())
    });
    assert_eq!(told["state"], "running", "{told:#}");
    assert!(
        told["unpublished"]["node"].is_string() && told["unpublished"]["since_unix_ms"].as_u64() > Some(0),
        "{told:#}"
    );
    let words = run(Command::new(elastic()).args(["status", &job, "--coordinator", &cluster.url()]));
    assert!(words.contains("unwritten"), "{words}");
    let total = told["steps"].as_u64().expect("steps");
    wait_for("the last step, without an end", 60, || {
        let status = cluster.status(&job)?;
        (status["step"].as_u64()? == total && status["unpublished"].is_object()).then_some(())
    });
    std::fs::remove_file(&in_the_way).expect("the file goes");
    let status = cluster.until_succeeded(&job);
    assert_eq!(status["unpublished"], serde_json::Value::Null, "{status:#}");
    let written = PathBuf::from(status["published"]["path"].as_str().expect("a path"));
    assert!(written.starts_with(&in_the_way), "{status:#}");
    run(Command::new(elastic()).args(["checkpoint", "verify"]).arg(written.parent().unwrap_or(Path::new("/"))));
    let ended = wait_for("the foreground ends", 20, || submit.0.try_wait().expect("its state is known"));
    assert!(ended.success(), "it ends with {ended}");
    let said = std::fs::read_to_string(cluster.dir.join("submit.err")).expect("what it said");
    assert_eq!(said.matches("a checkpoint could not be written on").count(), 1, "{said}");
}
