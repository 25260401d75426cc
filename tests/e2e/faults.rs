//! Workers that are killed, stopped or hang cost no bit and no step.

use crate::cluster::{Cluster, Proof, assert_same, job_file, signal, submit_local, wait_for};
use std::sync::OnceLock;
use std::time::Duration;

/// Long enough for many faults: 3,450 steps of the convolutional network, in a cluster at least 10 s.
pub const ARGS: [&str; 8] = args("train.epochs=150");
/// Long enough for a coordinator to be away and to come back: at least 24 s.
pub const LONG: [&str; 8] = args("train.epochs=350");

/// Long enough for 200 kills: at least 90 s.
const FULL: [&str; 8] = args("train.epochs=1300");

const fn args(epochs: &'static str) -> [&'static str; 8] {
    let every = "checkpoint.every=500";
    ["--set", epochs, "--set", every, "--set", "elastic.restarts=1000", "--set", "train.validate_every=500"]
}

/// The run that nothing disturbs.
pub fn undisturbed() -> &'static Proof {
    static PROOF: OnceLock<Proof> = OnceLock::new();
    PROOF.get_or_init(|| alone(&ARGS))
}

pub fn undisturbed_long() -> &'static Proof {
    static PROOF: OnceLock<Proof> = OnceLock::new();
    PROOF.get_or_init(|| alone(&LONG))
}

fn alone(args: &[&str]) -> Proof {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args: Vec<&str> = args.iter().copied().chain(["--workers", "1"]).collect();
    submit_local(dir.path(), &job_file("cnn"), &args, &[]).1
}

pub fn submit(cluster: &Cluster) -> String {
    submit_with(cluster, &ARGS)
}

pub fn submit_with(cluster: &Cluster, args: &[&str]) -> String {
    let args: Vec<&str> = args.iter().copied().chain(["--workers", "3"]).collect();
    cluster.submit(&job_file("cnn"), &args)
}

/// Kills `count` workers, each chosen by chance, one at a time.
fn kill_workers(cluster: &Cluster, job: &str, count: usize) {
    let mut kills = 0;
    let mut draw = std::process::id();
    while kills < count {
        draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_millis(100 + u64::from(draw >> 24)));
        let Some(status) = cluster.status(job) else { continue };
        assert!(status["state"] != "succeeded", "the job was over after {kills} kills");
        let workers = cluster.workers();
        if workers.len() >= 2 {
            signal(workers[draw as usize % workers.len()], "KILL");
            kills += 1;
        }
    }
}

#[test]
fn twenty_kills_at_random_steps_cost_no_bit() {
    // `cargo xtask test --full` kills ten times as many, in a job that is long enough for it.
    let is_full = std::env::var_os("ELASTIC_FULL").is_some();
    let (kills, args, expected) = if is_full { (200, &FULL, alone(&FULL)) } else { (20, &ARGS, undisturbed().clone()) };
    let cluster = Cluster::start(None, 3);
    let job = submit_with(&cluster, args);
    cluster.until_active(&job, 3);
    kill_workers(&cluster, &job, kills);
    let (status, proof) = cluster.until_done(&job);
    assert_same(&proof, &expected);
    assert!(status["restarts"].as_u64() >= Some(10), "kills are counted: {}", status["restarts"]);
}

#[test]
fn a_worker_stopped_for_five_seconds_comes_back_and_costs_no_bit() {
    let cluster = Cluster::start(None, 3);
    let job = submit(&cluster);
    cluster.until_active(&job, 3);
    let victim = cluster.agents["n1"].workers()[0];
    signal(victim, "STOP");
    cluster.until_active(&job, 2);
    let before = cluster.step(&job);
    std::thread::sleep(Duration::from_secs(4));
    assert!(cluster.step(&job) > before, "the others train on");
    signal(victim, "CONT");
    cluster.until_active(&job, 3);
    assert_eq!(cluster.agents["n1"].workers(), [victim], "the same process is back, nobody was restarted");
    let (_, proof) = cluster.until_done(&job);
    assert_same(&proof, undisturbed());
}

#[test]
fn a_training_thread_that_spins_is_noticed_though_its_heart_beats() {
    let mut cluster = Cluster::start(None, 2);
    let once = cluster.dir.join("once");
    std::fs::create_dir_all(&once).expect("a directory");
    let env =
        [("ELASTIC_FAIL", "before-compute:400:spin".to_string()), ("ELASTIC_FAIL_ONCE", once.display().to_string())];
    cluster.start_agent("n2", &env);
    let job = submit(&cluster);
    let status = wait_for("the hang is noticed", 60, || {
        let status = cluster.status(&job)?;
        assert!(status["state"] != "succeeded", "{status:#}");
        status["last_fault"]["cause"].as_str().is_some_and(|c| c.contains("progress")).then_some(status)
    });
    assert_eq!(status["last_fault"]["node"], "n2", "the one that spins is named");
    let (_, proof) = cluster.until_done(&job);
    assert_same(&proof, undisturbed());
}

#[test]
fn a_second_kill_when_the_view_of_the_first_arrives_costs_no_bit() {
    let mut cluster = Cluster::start(None, 2);
    let once = cluster.dir.join("once");
    std::fs::create_dir_all(&once).expect("a directory");
    // The second view that this worker gets tells it of the first kill.
    let env = [("ELASTIC_FAIL", "view-received:2:kill".to_string()), ("ELASTIC_FAIL_ONCE", once.display().to_string())];
    cluster.start_agent("n2", &env);
    let job = submit(&cluster);
    cluster.until_active(&job, 3);
    cluster.until_step(&job, 50);
    signal(cluster.agents["n0"].workers()[0], "KILL");
    let _marked = wait_for("the second kill", 20, || std::fs::read_dir(&once).ok()?.next());
    let (_, proof) = cluster.until_done(&job);
    assert_same(&proof, undisturbed());
}

/// Kills in the other two kinds of network, against their own undisturbed runs.
fn kills_cost_no_bit(example: &str, args: &[&str]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args: Vec<&str> = args.iter().copied().chain(["--set", "elastic.restarts=1000", "--workers"]).collect();
    let with = |n: &'static str| args.iter().copied().chain([n]).collect::<Vec<_>>();
    let (_, expected) = submit_local(dir.path(), &job_file(example), &with("1"), &[]);
    let cluster = Cluster::start(None, 3);
    let job = cluster.submit(&job_file(example), &with("3"));
    cluster.until_active(&job, 3);
    kill_workers(&cluster, &job, 5);
    let (_, proof) = cluster.until_done(&job);
    assert_same(&proof, &expected);
}

#[test]
fn kills_cost_an_mlp_no_bit() {
    kills_cost_no_bit("digits", &["--set", "train.epochs=100", "--set", "checkpoint.every=500"]);
}

#[test]
fn kills_cost_a_gpt_no_bit() {
    kills_cost_no_bit("gpt", &["--set", "checkpoint.every=100"]);
}
