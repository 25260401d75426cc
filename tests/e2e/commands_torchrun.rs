//! Commands as `torchrun` would start them: its flags, its variables, its signals and its error file.

use crate::cluster::{Cluster, Guarded, elastic, is_alive, run, signal, wait_for};
use crate::commands::{Folder, pids, until_gone};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned())
}

/// The one entry of a folder.
fn only_entry(dir: &Path) -> PathBuf {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir).expect("a folder").flatten().map(|e| e.path()).collect();
    assert_eq!(entries.len(), 1, "{}: {entries:?}", dir.display());
    entries.remove(0)
}

#[test]
fn role_prefix_filter_virtual_ranks_and_the_place_to_meet_are_as_they_are_asked_for() {
    let folder = Folder::new();
    folder.tell("done", "");
    let args = ["--nproc-per-node", "2", "--role", "trainer", "--log_line_prefix_template"];
    let prefix = "<${role_name} ${local_rank} $rank> ";
    let more = ["--local-ranks-filter", "1", "--virtual_local_rank", "--local-addr", "127.0.0.2", "--log-dir", "kept"];
    let mut command = folder.command(None, &[&args[..], &[prefix], &more].concat(), &[]);
    let (code, out, err) = output(command.env("CUDA_VISIBLE_DEVICES", "4,6").env_remove("HIP_VISIBLE_DEVICES"));
    assert_eq!(code, Some(0), "{err}");
    let starts = folder.generation(1, 2);
    for (start, device) in starts.iter().zip(["4", "6"]) {
        let told = ["ROLE_NAME", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "MASTER_ADDR"].map(|name| &*start.env[name]);
        assert_eq!(told, ["trainer", "0", device, "127.0.0.2"]);
    }
    assert!(out.contains("<trainer 1 1> rank 1 of 2 in generation 1\n"), "{out}");
    assert!(!out.contains("rank 0 of 2"), "{out}");
    let kept = only_entry(&folder.path().join("kept")).join("generation_1/rank_0/stdout.log");
    assert_eq!(std::fs::read_to_string(kept).expect("it is kept"), "rank 0 of 2 in generation 1\n");
}

#[test]
fn streams_that_are_redirected_are_kept_and_not_shown() {
    let folder = Folder::new();
    folder.tell("done", "");
    let (code, out, err) = output(&mut folder.command(None, &["--nproc-per-node", "2", "-r", "0:1", "-t", "3"], &[]));
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("[rank 1] rank 1 of 2") && !out.contains("rank 0 of 2"), "{out}");
    let streams = folder.path().join("runs/streams");
    assert!(err.contains(&format!("streams are kept in {}", streams.display())), "{err}");
    for rank in 0..2 {
        let kept = only_entry(&streams).join(format!("generation_1/rank_{rank}/stdout.log"));
        assert_eq!(std::fs::read_to_string(kept).expect("it is kept"), format!("rank {rank} of 2 in generation 1\n"));
    }
}

#[test]
fn a_process_that_is_not_shown_and_fails_is_shown_after_all() {
    let folder = Folder::new();
    let mut command = Command::new(elastic());
    let script = "[ $RANK = 0 ] && sleep 600; echo unseen; echo why it failed >&2; exit 5";
    command.args(["run", "--standalone", "--nproc-per-node", "2", "--local-ranks-filter", "0", "sh", "-c", script]);
    let (code, out, err) = output(command.current_dir(folder.path()).stdin(Stdio::null()));
    assert_eq!(code, Some(5), "{err}");
    assert!(out.contains("[rank 1] why it failed") && !out.contains("unseen"), "{out}");
}

#[test]
fn a_script_of_any_name_runs_by_its_path_in_the_interpreter() {
    let folder = Folder::new();
    folder.tell("done", "");
    std::fs::rename(folder.path().join("work.py"), folder.path().join("work")).expect("renamed");
    let mut command = Command::new(elastic());
    command.args(["run", "--standalone", "--run-path", "work"]).arg(folder.path()).args(["--lr", "1"]);
    run(command.current_dir(folder.path()));
    assert_eq!(folder.generation(1, 1)[0].args, ["--lr", "1"]);
}

#[test]
fn flags_come_from_the_environment_too_and_those_given_go_first() {
    let folder = Folder::new();
    folder.tell("done", "");
    let mut command = folder.command(None, &["--max-restarts", "2"], &[]);
    command.envs([("PET_NPROC_PER_NODE", "2"), ("PET_MAX_RESTARTS", "9"), ("PET_ROLE", "trainer")]);
    command.envs([("PET_STANDALONE", "1"), ("PET_MODULE", "0"), ("PET_LOG_DIR", "kept"), ("PET_RDZV_ID", "x")]);
    command.env("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "${rank}|");
    let (code, out, err) = output(&mut command);
    assert_eq!(code, Some(0), "{err}");
    let start = &folder.generation(1, 2)[0];
    assert_eq!((&*start.env["TORCHELASTIC_MAX_RESTARTS"], &*start.env["ROLE_NAME"]), ("2", "trainer"));
    assert!(out.contains("1|rank 1 of 2"), "{out}");
    assert!(err.contains("--rdzv-id changes nothing: nodes meet through the coordinator"), "{err}");
    assert!(folder.path().join("kept").is_dir());
}

/// What the launcher hands up of a process that failed as `Folder`'s script does.
#[track_caller]
fn handed_up(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("the launcher's error file");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn the_error_file_of_the_root_cause_becomes_the_launchers_own_with_its_code() {
    let cluster = Cluster::start(None, 2);
    for on in [None, Some(&cluster)] {
        let folder = Folder::new();
        let error_file = folder.path().join("launcher.json");
        let nodes = if on.is_some() { "2" } else { "1" };
        let mut command = folder.command(on, &["--nnodes", nodes, "--nproc-per-node", "2"], &[]);
        command.env("TORCHELASTIC_ERROR_FILE", &error_file).stdout(Stdio::null()).stderr(Stdio::null());
        let mut launcher = Guarded(command.spawn().expect("it starts"));
        folder.generation(1, if on.is_some() { 4 } else { 2 });
        folder.tell("fail.1", "7");
        let status = launcher.0.wait().expect("it ends");
        assert_eq!(status.code(), Some(7));
        let told = handed_up(&error_file);
        assert_eq!(told["message"]["message"], "ValueError: as asked", "{told}");
        assert_eq!(
            (&told["message"]["errorCode"], &told["message"]["extraInfo"]["timestamp"]),
            (&7.into(), &"1".into())
        );
    }
}

#[test]
fn a_launcher_within_a_launcher_hands_up_why_a_process_was_killed() {
    let folder = Folder::new();
    let error_file = folder.path().join("launcher.json");
    let mut command = Command::new(elastic());
    command.args(["run", "--standalone", "--"]).arg(elastic()).args(["run", "--standalone", "sh", "-c", "kill -9 $$"]);
    command.env("TORCHELASTIC_ERROR_FILE", &error_file).current_dir(folder.path()).stdin(Stdio::null());
    let (code, _, err) = output(&mut command);
    assert_eq!(code, Some(128 + 9), "{err}");
    assert!(err.contains("rank 0 exited with code 137: rank 0 was killed by signal 9 on local"), "{err}");
    let told = handed_up(&error_file);
    assert_eq!(told["message"]["message"], "rank 0 was killed by signal 9 on local", "{told}");
    assert_eq!(told["message"]["errorCode"], 137);
}

#[test]
fn a_client_of_a_cluster_that_is_asked_to_end_leaves_and_its_job_goes_on() {
    let folder = Folder::new();
    let cluster = Cluster::start(None, 1);
    let mut command = folder.command(Some(&cluster), &["--nproc-per-node", "2"], &[]);
    let client = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let starts = folder.generation(1, 2);
    signal(client.id(), "TERM");
    let out = client.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(143), "{said}");
    let job = said.split("submitted as ").nth(1).and_then(|rest| rest.lines().next()).expect("the job's name");
    assert!(said.contains(&format!("{job} goes on. `elastic logs -f {job}` shows it")), "{said}");
    assert_eq!(cluster.status(job).expect("it is known")["state"], "running");
    assert!(pids(&starts).into_iter().all(is_alive), "its processes run");
    folder.tell("done", "");
    let status = cluster.until_succeeded(job);
    assert_eq!((&status["views"], &status["restarts"]), (&1.into(), &0.into()), "nothing happened to it: {status:#}");
}

#[test]
fn a_hangup_ends_it_in_order_unless_it_was_to_be_ignored_and_other_signals_count_where_they_are_named() {
    for (disposition, flags, names, code) in [
        ("--default-signal=HUP", &[][..], &["HUP"][..], 129),
        ("--ignore-signal=HUP", &[], &["HUP", "TERM"], 143),
        ("--default-signal=HUP", &["--signals-to-handle", "SIGUSR1,SIGTERM"], &["USR1"], 128 + 10),
    ] {
        let folder = Folder::new();
        let inner = folder.command(None, flags, &["kin"]);
        // Whoever runs the tests may have been told to ignore a hangup.
        let mut command = Command::new("env");
        command.arg(disposition).arg(inner.get_program()).args(inner.get_args()).current_dir(folder.path());
        command.env_remove("ELASTIC_COORDINATOR").stdin(Stdio::null()).stderr(Stdio::null());
        let out = std::fs::File::create(folder.path().join("out")).expect("a file");
        let mut child = Guarded(command.stdout(out).spawn().expect("it starts"));
        let starts = folder.generation(1, 1);
        names.iter().for_each(|name| signal(child.pid(), name));
        let ended = wait_for(&format!("the end after {names:?}"), 30, || child.0.try_wait().expect("its state"));
        assert_eq!(ended.code(), Some(code), "{names:?}");
        let said = std::fs::read_to_string(folder.path().join("out")).unwrap_or_default();
        assert!(said.contains("rank 0 saves"), "{names:?}: {said}");
        until_gone(pids(&starts));
    }
}
