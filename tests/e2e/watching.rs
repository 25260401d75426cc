//! What people and their programs see of jobs: TensorBoard, Prometheus and a browser read us, and the terminal.

use crate::cluster::{Cluster, Guarded, elastic, free_port, job_file, repo, run, signal, submit_local, wait_for};
use elastic_tests::skip::skip;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a script that installs something printed, or why it could not.
fn made(script: &str) -> Result<PathBuf, String> {
    let out = Command::new(repo().join(script)).stdin(Stdio::null()).output().map_err(|e| format!("{script}: {e}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).trim().into()),
        false => Err(said.lines().last().unwrap_or(script).to_string()),
    }
}

/// A Python with the pinned readers of others, or why there is none.
fn readers() -> Result<PathBuf, String> {
    made("tests/readers/python")
}

fn read_board(python: &Path, folder: &Path) -> Value {
    let script = repo().join("tests/readers/read_tensorboard.py");
    let out = run(Command::new(python).arg(script).arg(folder));
    serde_json::from_str(&out).expect("the script prints JSON")
}

/// What the event log says of a tag, in the precision that TensorBoard keeps.
fn expected(rows: &str, of_row: impl Fn(&Value) -> Option<f64>) -> Vec<(u64, f32)> {
    let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).expect("a row is JSON"));
    rows.filter_map(|row| Some((row["step"].as_u64()?, of_row(&row)? as f32))).collect()
}

fn found(board: &Value, tag: &str) -> Vec<(u64, f32)> {
    let points = board["scalars"][tag].as_array().unwrap_or_else(|| panic!("no {tag} in {board}"));
    points.iter().map(|p| (p[0].as_u64().expect("a step"), p[1].as_f64().expect("a value") as f32)).collect()
}

/// A file without its first two records: the format's version, and the spec, which says how many workers there may be.
fn behind_the_spec(file: &[u8]) -> &[u8] {
    (0..2).fold(file, |rest, _| {
        let length = u64::from_le_bytes(rest[..8].try_into().expect("eight bytes"));
        &rest[16 + length as usize..]
    })
}

#[test]
fn tensorboard_reads_every_step_once_with_the_values_of_the_event_log() {
    let python = match readers() {
        Ok(python) => python,
        Err(why) => return skip("tensorboard_reads_every_step_once_with_the_values_of_the_event_log", &why),
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args = ["--set", "train.epochs=6", "--set", "checkpoint.every=20"];
    let files: Vec<Vec<u8>> = ["1", "2"]
        .map(|workers| {
            let args: Vec<&str> = args.iter().copied().chain(["--workers", workers]).collect();
            let (result, proof) = submit_local(dir.path(), &job_file("digits"), &args, &[]);
            let folder = Path::new(result["run_dir"].as_str().expect("run_dir")).join("tensorboard");
            let board = read_board(&python, &folder);
            let ratio = |row: &Value| Some(row["correct"].as_f64()? / row["samples"].as_f64()?);
            assert_eq!(found(&board, "train/loss"), expected(&proof.rows, |row| row["loss"].as_f64()));
            assert_eq!(found(&board, "train/accuracy"), expected(&proof.rows, ratio));
            assert_eq!(found(&board, "train/lr"), expected(&proof.rows, |row| row["lr"].as_f64()));
            assert_eq!(found(&board, "train/grad_norm"), expected(&proof.rows, |row| row["grad_norm"].as_f64()));
            for key in ["loss", "accuracy"] {
                let validations = expected(&proof.rows, |row| row["validation"][key].as_f64());
                assert!(!validations.is_empty());
                assert_eq!(found(&board, &format!("validation/{key}")), validations);
            }
            assert_eq!(found(&board, "train/loss").len() as u64, result["steps"].as_u64().expect("steps"));
            assert_eq!(board["plugins"]["job"], "text");
            assert!(board["text"]["job"][0].as_str().expect("text").contains("\"optimizer\""), "{}", board["text"]);
            let file = std::fs::read_dir(&folder).expect("the folder").next().expect("a file").expect("its name");
            std::fs::read(file.path()).expect("the event file")
        })
        .into();
    assert_eq!(behind_the_spec(&files[0]), behind_the_spec(&files[1]), "one file for every number of workers");
}

/// A job of at least some 20 s on two workers.
const LONG: [&str; 6] = ["--set", "train.epochs=300", "--set", "checkpoint.every=200", "--workers", "2"];

/// What one scrape found: samples by name and labels.
struct Scrape(Value);

impl Scrape {
    fn of(python: &Path, port: u16, form: &str) -> Scrape {
        let script = repo().join("tests/readers/read_metrics.py");
        let url = format!("http://127.0.0.1:{port}/metrics");
        let out = run(Command::new(python).arg(script).args([&url, form]));
        Scrape(serde_json::from_str(&out).expect("the script prints JSON"))
    }

    fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let samples = self.0["samples"].as_array().expect("samples");
        let fits = |sample: &&Value| {
            sample[0] == name && labels.iter().all(|(label, value)| sample[1][label].as_str() == Some(value))
        };
        samples.iter().find(fits).and_then(|sample| sample[2].as_f64())
    }

    #[track_caller]
    fn has(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.get(name, labels).unwrap_or_else(|| panic!("no {name} with {labels:?} in {}", self.0))
    }
}

#[test]
fn prometheus_reads_coordinator_and_agent_in_both_of_its_formats() {
    let python = match readers() {
        Ok(python) => python,
        Err(why) => return skip("prometheus_reads_coordinator_and_agent_in_both_of_its_formats", &why),
    };
    let mut cluster = Cluster::start(None, 1);
    let agent = free_port();
    cluster.start_agent_with("watched", &[], &["--http", &format!("127.0.0.1:{agent}")]);
    let job = cluster.submit(&job_file("cnn"), &LONG);
    cluster.until_active(&job, 2);
    signal(cluster.agents["watched"].workers()[0], "KILL");
    wait_for("the restart is counted", 30, || {
        let restarts = cluster.status(&job)?["restarts"].as_u64()?;
        (restarts > 0).then_some(())
    });
    cluster.until_active(&job, 2);
    for form in ["text", "openmetrics"] {
        let of_job = [("job", job.as_str())];
        let found = Scrape::of(&python, cluster.http, form);
        assert_eq!(found.has("elastic_coordinator_leader", &[]), 1.0);
        assert_eq!(found.has("elastic_jobs", &[("state", "running")]), 1.0);
        assert_eq!(found.has("elastic_nodes", &[("state", "ready")]), 2.0);
        assert_eq!((found.has("elastic_slots", &[]), found.has("elastic_slots_used", &[])), (2.0, 2.0));
        assert!(found.has("elastic_job_step", &of_job) > 0.0 && found.has("elastic_job_loss", &of_job) > 0.0);
        assert!(found.has("elastic_job_samples_per_second", &of_job) > 0.0);
        assert!(found.has("elastic_job_restarts_total", &of_job) >= 1.0);
        assert!(found.has("elastic_job_views_total", &of_job) >= 2.0);
        assert_eq!(found.has("elastic_job_members", &[("job", &job), ("role", "active")]), 2.0);
        assert_eq!(found.has("elastic_coordinator_requests_total", &[("method", "submit"), ("outcome", "ok")]), 1.0);
        assert!(found.has("elastic_coordinator_notes_total", &[("kind", "fault")]) >= 1.0);
        assert!(found.has("elastic_coordinator_store_commits_total", &[("outcome", "ok")]) >= 1.0);
        assert!(found.has("elastic_coordinator_store_records_total", &[]) >= 1.0);
        let decisions = found.has("elastic_coordinator_decision_seconds_count", &[]);
        assert_eq!(found.has("elastic_coordinator_decision_seconds_bucket", &[("le", "+Inf")]), decisions);
        let found = Scrape::of(&python, agent, form);
        assert_eq!(found.has("elastic_agent_attached", &[]), 1.0);
        assert_eq!(found.has("elastic_agent_draining", &[]), 0.0);
        assert_eq!(found.has("elastic_agent_processes", &[("state", "running")]), 1.0);
        assert_eq!(found.has("elastic_agent_processes_started_total", &[]), 2.0);
        assert_eq!(found.has("elastic_agent_restarts_total", &[]), 1.0);
        assert_eq!(found.has("elastic_agent_process_ends_total", &[("how", "signal")]), 1.0);
        assert!(found.get("elastic_agent_log_bytes_total", &[]).is_some());
    }
    run(Command::new(elastic()).args(["cancel", &job, "--coordinator", &cluster.url()]));
}

#[test]
fn an_agent_is_ready_while_a_coordinator_hears_it_and_its_metrics_have_a_token_of_their_own() {
    let mut cluster = Cluster::start(None, 0);
    let http = free_port();
    let file = cluster.dir.join("metrics-token");
    std::fs::write(&file, "for-readers\n").expect("a file");
    let file = file.to_str().expect("a path").to_string();
    cluster.start_agent_with("n", &[], &["--http", &format!("127.0.0.1:{http}"), "--http-token-file", &file]);
    let asks = |path: &str, token: Option<&str>| get(http, path, token).unwrap_or_default();
    wait_for("it is ready", 20, || asks("/readyz", None).starts_with("HTTP/1.1 200").then_some(()));
    assert!(asks("/metrics", None).starts_with("HTTP/1.1 401"));
    assert!(asks("/metrics", Some("for-other")).starts_with("HTTP/1.1 4"));
    assert!(asks("/metrics", Some("for-readers")).contains("\nelastic_agent_attached 1"));
    cluster.kill_coordinator();
    wait_for("it is not", 20, || asks("/readyz", None).contains("no coordinator hears this agent").then_some(()));
    assert!(asks("/readyz", None).starts_with("HTTP/1.1 503"));
    assert!(asks("/healthz", None).starts_with("HTTP/1.1 200"), "it lives, and its workers train on");
    cluster.start_coordinator();
    wait_for("it is again", 20, || asks("/readyz", None).starts_with("HTTP/1.1 200").then_some(()));
}

/// Runs the flows; they say what they saw.
fn browse(browser: &Path, args: &[&str], env: &[(&str, &str)]) {
    let mut command = Command::new("node");
    command.arg(repo().join("tests/browser/flows.mjs")).args(args).env("ELASTIC_BROWSER", browser);
    let out = command.envs(env.iter().copied()).stdin(Stdio::null()).output().expect("node starts");
    let said = String::from_utf8_lossy(&out.stdout);
    print!("{said}");
    assert!(out.status.success() && said.contains("passed: "), "{said}{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn the_page_works_in_a_browser_by_keyboard_on_narrow_screens_and_shows_texts_as_texts() {
    let name = "the_page_works_in_a_browser_by_keyboard_on_narrow_screens_and_shows_texts_as_texts";
    let browser = match made("tests/browser/setup") {
        Ok(browser) => browser,
        Err(why) => return skip(name, &why),
    };
    let mut cluster = Cluster::start(None, 2);
    cluster.start_agent("printer", &[]);
    let job = cluster.submit(&job_file("cnn"), &LONG);
    cluster.until_active(&job, 2);
    let hostile = "while :; do echo '<img src=x onerror=alert(1)>'; sleep 0.3; done";
    let mut command = Command::new(elastic());
    command.args(["run", "--coordinator", &cluster.url(), "--detach", "--no-python", "sh", "-c", hostile]);
    let printer = run(command.current_dir(&cluster.dir)).trim().to_string();
    let status = cluster.status(&job).expect("a status");
    let node = status["members"][0]["node"].as_str().expect("a node").to_string();
    signal(cluster.agents[&node].workers()[0], "KILL");
    let url = format!("http://127.0.0.1:{}", cluster.http);
    browse(&browser, &[&url, &job], &[("ELASTIC_HOSTILE", &printer)]);
    for job in [job, printer] {
        run(Command::new(elastic()).args(["cancel", &job, "--coordinator", &cluster.url()]));
    }
}

#[test]
fn the_pages_logs_and_curves_go_on_after_a_coordinator_that_was_away() {
    let browser = match made("tests/browser/setup") {
        Ok(browser) => browser,
        Err(why) => return skip("the_pages_logs_and_curves_go_on_after_a_coordinator_that_was_away", &why),
    };
    let mut cluster = Cluster::start(None, 1);
    cluster.start_agent("printer", &[]);
    let job = cluster.submit(&job_file("cnn"), &["--set", "train.epochs=3000", "--workers", "1"]);
    cluster.until_active(&job, 1);
    let count = "i=0; while :; do i=$((i+1)); echo \"line $i\"; sleep 0.1; done";
    let mut command = Command::new(elastic());
    command.args(["run", "--coordinator", &cluster.url(), "--detach", "--no-python", "sh", "-c", count]);
    let printer = run(command.current_dir(&cluster.dir)).trim().to_string();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let url = format!("http://127.0.0.1:{}", cluster.http);
    let mut flows = Command::new("node");
    flows.arg(repo().join("tests/browser/flows.mjs")).args([&url, &job]).stdin(Stdio::null());
    flows.env("ELASTIC_BROWSER", &browser).env("ELASTIC_PRINTER", &printer).env("ELASTIC_BREAK", folder.path());
    let log = std::fs::File::create(folder.path().join("log")).expect("a file");
    let mut flows = Guarded(flows.stderr(log.try_clone().expect("a file")).stdout(log).spawn().expect("node starts"));
    let said = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    let mut until = |what: &str| {
        wait_for(what, 90, || {
            let ended = flows.0.try_wait().expect("its state");
            assert!(ended.is_none(), "{what}: {}", said());
            folder.path().join(what).exists().then_some(())
        });
    };
    until("ready");
    cluster.kill_coordinator();
    until("told");
    cluster.start_coordinator();
    std::fs::write(folder.path().join("back"), "").expect("a file");
    let ended = wait_for("the end of the flow", 120, || flows.0.try_wait().expect("its state"));
    print!("{}", said());
    assert!(ended.success() && said().contains("passed: "), "{}", said());
    for job in [job, printer] {
        run(Command::new(elastic()).args(["cancel", &job, "--coordinator", &cluster.url()]));
    }
}

/// A coordinator by itself that wants a token.
fn guarded(dir: &Path, token: &str) -> (Guarded, u16) {
    let http = free_port();
    let mut command = Command::new(elastic());
    command.args(["coordinator", "--store", "memory", "--listen", "127.0.0.1:0"]);
    command.args(["--http", &format!("127.0.0.1:{http}")]).env("ELASTIC_TOKEN", token).current_dir(dir);
    let process = Guarded(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
    wait_for("the page is served", 20, || get(http, "/healthz", None).filter(|answer| answer.contains(" 200 ")));
    (process, http)
}

/// All of an answer.
fn get(port: u16, path: &str, token: Option<&str>) -> Option<String> {
    let mut answer = String::new();
    let mut reader = request(port, path, token)?;
    while reader.read_line(&mut answer).ok()? > 0 {}
    Some(answer)
}

fn request(port: u16, path: &str, token: Option<&str>) -> Option<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).ok()?;
    let token = token.map(|t| format!("authorization: Bearer {t}\r\n")).unwrap_or_default();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{token}\r\n").ok()?;
    Some(BufReader::new(stream))
}

#[test]
fn with_a_token_nothing_of_the_cluster_is_shown_to_whoever_has_none() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_process, http) = guarded(dir.path(), "secret");
    for path in ["/metrics", "/api/jobs", "/api/nodes", "/api/health", "/api/events", "/api/jobs/a-1/logs"] {
        assert!(get(http, path, None).expect("an answer").starts_with("HTTP/1.1 401"), "{path}");
        assert!(get(http, path, Some("wrong")).expect("an answer").starts_with("HTTP/1.1 401"), "{path}");
    }
    let told = wait_for("it leads", 20, || get(http, "/api/jobs", Some("secret")).filter(|a| a.contains(" 200 ")));
    assert!(told.contains("[]"), "{told}");
    assert!(get(http, "/", None).expect("the page").contains("<!doctype html>"));
    match made("tests/browser/setup") {
        Ok(browser) => browse(&browser, &[&format!("http://127.0.0.1:{http}"), "-", "secret"], &[]),
        Err(why) => skip("with_a_token_nothing_of_the_cluster_is_shown_to_whoever_has_none::browser", &why),
    }
}

/// The events of a stream, as kind and data.
fn events(port: u16, path: &str, count: usize) -> Vec<(String, Value)> {
    let (mut events, mut kind, mut line) = (Vec::new(), String::new(), String::new());
    let mut reader = request(port, path, None).expect("a connection");
    while events.len() < count {
        line.clear();
        assert!(reader.read_line(&mut line).expect("the stream goes on") > 0, "the stream ended");
        if let Some(said) = line.strip_prefix("event: ") {
            kind = said.trim().to_string();
        } else if let Some(data) = line.strip_prefix("data: ") {
            events.push((kind.clone(), serde_json::from_str(data).expect("data is JSON")));
        }
    }
    events
}

#[test]
fn a_stream_begins_with_the_whole_goes_on_with_changes_and_begins_anew_for_whoever_comes_back() {
    let cluster = Cluster::start(None, 1);
    let job = cluster.submit(&job_file("digits"), &["--set", "train.epochs=200", "--workers", "1"]);
    cluster.until_active(&job, 1);
    wait_for("the job is on the page", 20, || {
        let (_, all) = events(cluster.http, "/api/events", 1).pop()?;
        all["jobs"][0]["step"].as_u64().filter(|step| *step > 0)
    });
    for _ in 0..2 {
        let all = events(cluster.http, "/api/events", 3);
        assert_eq!(all.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(), ["whole", "change", "change"]);
        assert_eq!((&all[0].1["jobs"][0]["job"], &all[0].1["nodes"][0]["node"]), (&job.clone().into(), &"n0".into()));
        assert!(all[1].1["jobs"][0]["step"].as_u64() > all[0].1["jobs"][0]["step"].as_u64());
    }
    let one = events(cluster.http, &format!("/api/events?job={job}"), 4);
    let points: Vec<u64> = one
        .iter()
        .flat_map(|(_, data)| data["points"].as_array().expect("points"))
        .filter_map(|p| p[0].as_u64())
        .collect();
    assert!(points.windows(2).all(|pair| pair[0] < pair[1]), "each point once, in order: {points:?}");
    assert!(one[0].1["diary"].as_array().expect("a diary").iter().any(|entry| entry["kind"] == "view"));
    let whole = get(cluster.http, &format!("/api/jobs/{job}"), None).expect("an answer");
    assert!(whole.contains("\"members\":[{"), "{whole}");
    assert!(get(cluster.http, "/api/jobs/nobody-1", None).expect("an answer").starts_with("HTTP/1.1 404"));
    assert!(get(cluster.http, "/api/jobs/..%2Fx", None).expect("an answer").starts_with("HTTP/1.1 400"));
    run(Command::new(elastic()).args(["cancel", &job, "--coordinator", &cluster.url()]));
}

#[test]
fn a_watch_goes_on_to_the_end_of_the_job_and_ends_with_its_code() {
    let cluster = Cluster::start(None, 1);
    let watch = |job: &str, more: &[&str]| {
        let mut command = Command::new(elastic());
        command.args(["status", job, "--watch", "--coordinator", &cluster.url()]).args(more).stdin(Stdio::null());
        command
    };
    let job = cluster.submit(&job_file("digits"), &["--set", "train.epochs=20", "--workers", "1"]);
    let lines = watch(&job, &[]).stdout(Stdio::piped()).spawn().expect("it starts");
    let objects = run(&mut watch(&job, &["--json"]));
    let objects: Vec<Value> = objects.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(objects.len() > 2 && objects.windows(2).all(|pair| pair[0] != pair[1]), "one for each change");
    let steps: Vec<u64> = objects.iter().filter_map(|object| object["step"].as_u64()).collect();
    assert!(steps.is_sorted() && objects.last().expect("one")["state"] == "succeeded");
    let lines = lines.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&lines.stdout);
    assert!(lines.status.success() && said.contains("succeeded") && !said.contains('\x1b'), "{said}");

    let job = cluster.submit(&job_file("digits"), &["--set", "train.epochs=100", "--workers", "1"]);
    cluster.until_active(&job, 1);
    let mut in_place = Command::new("script");
    let words = format!("{} status {job} --watch --coordinator {}", elastic().display(), cluster.url());
    in_place.args(["-qec", &words, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let in_place = in_place.spawn();
    let cancelled = watch(&job, &["--json"]).stdout(Stdio::null()).spawn().expect("it starts");
    let step = cluster.step(&job);
    cluster.until_step(&job, step + 400);
    run(Command::new(elastic()).args(["cancel", &job, "--coordinator", &cluster.url()]));
    assert_eq!(cancelled.wait_with_output().expect("it ends").status.code(), Some(4));
    match in_place {
        Err(_) => skip("a_watch_goes_on_to_the_end_of_the_job_and_ends_with_its_code::terminal", "no `script` here"),
        Ok(terminal) => {
            let out = terminal.wait_with_output().expect("it ends");
            let drawn = String::from_utf8_lossy(&out.stdout);
            assert_eq!(out.status.code(), Some(4), "{drawn}");
            assert!(drawn.contains("A\r\x1b[J") && drawn.contains('━') && drawn.contains("samples/s"), "{drawn}");
        }
    }
}
