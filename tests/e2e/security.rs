//! What is refused: plain text, other authorities, tokens that expired or have another role. And what is not: a job
//! over TLS between all parts, with the bits of one in plain text.

use crate::cluster::{Guarded, Proof, elastic, free_port, job_file, run, submit_local, wait_for};
use crate::https;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A coordinator that the network could reach, with certificates and tokens.
struct Secured {
    home: tempfile::TempDir,
    port: u16,
    agents: Vec<Guarded>,
    _coordinator: Guarded,
}

impl Secured {
    fn start(args: &[&str]) -> Secured {
        let home = tempfile::tempdir().expect("a temporary directory");
        let certs = home.path().join("certs");
        let mut made = Command::new(elastic());
        made.args(["certs", "cluster"]).arg(&certs);
        run(made.args(["--coordinator", "127.0.0.1", "--node", "n0=127.0.0.1", "--kubernetes", "elastic"]));
        let port = free_port();
        let mut command = logged(home.path(), "coordinator");
        command.args(["coordinator", "--listen", &format!("0.0.0.0:{port}"), "--store", "memory", "--tls-dir"]);
        command.arg(certs.join("coordinator")).arg("--token-file").arg(certs.join("token")).arg("--runs");
        command.arg(home.path().join("runs")).arg("--data-dir").arg(home.path().join("data"));
        command.args(["--advertise", &format!("https://127.0.0.1:{port}")]).args(args);
        let coordinator = Guarded(command.spawn().expect("the coordinator starts"));
        let secured = Secured { home, port, agents: Vec::new(), _coordinator: coordinator };
        wait_for("the coordinator answers", 20, || secured.owner(&["jobs"]).status.success().then_some(()));
        secured
    }

    fn certs(&self) -> PathBuf {
        self.home.path().join("certs")
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Says something to the coordinator, trusting `authority` and showing `token`.
    fn say(&self, args: &[&str], authority: &Path, token: &str) -> Output {
        let mut command = Command::new(elastic());
        command.args(args).args(["--coordinator", &self.url(), "--tls-ca"]).arg(authority);
        command.env("ELASTIC_TOKEN", token).stdin(Stdio::null()).output().expect("the program starts")
    }

    fn owner(&self, args: &[&str]) -> Output {
        let token = std::fs::read_to_string(self.certs().join("token")).expect("the token was made");
        self.say(args, &self.certs().join("ca.pem"), token.trim())
    }

    fn holder(&self, token: &str, args: &[&str]) -> Output {
        self.say(args, &self.certs().join("ca.pem"), token)
    }

    fn token(&self, role: &str, ttl: &str) -> String {
        let made = self.owner(&["token", "create", "--role", role, "--ttl", ttl, "--name", role]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        text(&made.stdout).trim().to_string()
    }

    /// With the certificates in `part` of what was made.
    fn start_agent(&mut self, name: &str, part: &str, token_file: Option<&Path>) {
        let dir = self.home.path().join("nodes").join(name);
        std::fs::create_dir_all(&dir).expect("the agent's directory");
        let mut command = logged(self.home.path(), name);
        command.args(["agent", "--coordinator", &self.url(), "--name", name, "--state-dir"]).arg(&dir);
        command.arg("--tls-dir").arg(self.certs().join(part));
        if let Some(file) = token_file {
            command.arg("--token-file").arg(file);
        }
        self.agents.push(Guarded(command.spawn().expect("the agent starts")));
    }

    fn told(&self, who: &str) -> String {
        std::fs::read_to_string(self.home.path().join(format!("{who}.err"))).unwrap_or_default()
    }

    /// The coordinator's log says that somebody at this machine was turned away, and why.
    #[track_caller]
    fn has_told(&self, why: &str) {
        wait_for(&format!("the log says {why:?}"), 10, || {
            let log = self.told("coordinator");
            log.lines().any(|l| l.contains("refused") && l.contains("127.0.0.1") && l.contains(why)).then_some(())
        });
    }
}

fn logged(dir: &Path, name: &str) -> Command {
    let log = std::fs::File::options().append(true).create(true).open(dir.join(format!("{name}.err")));
    let mut command = Command::new(elastic());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("a log file")).env("NO_COLOR", "1");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const JOB: [&str; 6] = ["--set", "train.epochs=10", "--set", "checkpoint.every=100", "--workers", "2"];

#[test]
fn plain_text_other_authorities_expired_tokens_and_other_roles_are_refused_and_told() {
    let mut secured = Secured::start(&[]);
    let certs = secured.certs();

    let mut plain = Command::new(elastic());
    plain.args(["jobs", "--coordinator", &format!("http://127.0.0.1:{}", secured.port)]);
    let plain = plain.output().expect("the program starts");
    assert_eq!(plain.status.code(), Some(3), "{}", text(&plain.stderr));
    secured.has_told("plain text");

    let others = secured.home.path().join("others");
    run(Command::new(elastic()).args(["certs", "init"]).arg(&others));
    let strange = secured.say(&["jobs"], &others.join("ca.pem"), "");
    assert_eq!(strange.status.code(), Some(3), "{}", text(&strange.stderr));
    secured.has_told("trusts another authority");

    let bare = secured.holder("", &["jobs"]);
    assert_eq!(bare.status.code(), Some(2), "{}", text(&bare.stderr));
    assert!(text(&bare.stderr).contains("--token-file"), "{}", text(&bare.stderr));
    secured.has_told("a token is wanted");

    let guessed = secured.holder("guessed", &["jobs"]);
    assert_eq!(guessed.status.code(), Some(2), "{}", text(&guessed.stderr));
    secured.has_told("not this cluster's");

    let expired = secured.token("admin", "1s");
    wait_for("the token expires", 10, || {
        let late = secured.holder(&expired, &["jobs"]);
        (late.status.code() == Some(2) && text(&late.stderr).contains("has expired")).then_some(())
    });
    secured.has_told("token admin has expired");

    let viewer = secured.token("viewer", "1h");
    assert!(secured.holder(&viewer, &["jobs"]).status.success(), "a viewer may look");
    let job = job_file("cnn");
    let submitted = secured.holder(&viewer, &["submit", job.to_str().expect("a path is text"), "--detach"]);
    assert_eq!(submitted.status.code(), Some(2), "{}", text(&submitted.stderr));
    secured.has_told("token viewer (role viewer) may not do this: the role submitter is needed");

    let file = secured.home.path().join("viewer.token");
    std::fs::write(&file, &viewer).expect("a token file");
    secured.start_agent("n0", "n0", Some(&file));
    secured.has_told("the role agent is needed");
    let nodes = text(&secured.owner(&["nodes", "--json"]).stdout);
    assert_eq!(serde_json::from_str::<Value>(&nodes).expect("JSON"), serde_json::json!([]));

    let revoked = secured.owner(&["token", "revoke", "viewer"]);
    assert!(revoked.status.success(), "{}", text(&revoked.stderr));
    assert_eq!(secured.holder(&viewer, &["jobs"]).status.code(), Some(2), "a revoked token opens nothing");

    // No log and no list holds what was shown.
    let listed = text(&secured.owner(&["token", "list", "--json"]).stdout);
    let owner = std::fs::read_to_string(certs.join("token")).expect("the token was made");
    for secret in [viewer.as_str(), &expired, owner.trim()] {
        let secret = secret.rsplit('.').next().expect("there is a last part");
        for place in [&secured.told("coordinator"), &secured.told("n0"), &listed] {
            assert!(!place.contains(secret), "a secret stands in {place}");
        }
    }
}

#[test]
fn plain_text_expired_tokens_and_other_roles_read_nothing_of_the_coordinators_page_and_are_told() {
    let port = free_port();
    let secured = Secured::start(&["--http", &format!("0.0.0.0:{port}")]);
    let authority = secured.certs().join("ca.pem");
    let ask = |path: &str, token: Option<&str>| {
        https::status(&https::ask(port, &authority, &https::get(path, token)).expect("an answer"))
    };
    let mut plain = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    plain.write_all(https::get("/metrics", None).as_bytes()).expect("the request is sent");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{}", text(&answer));
    secured.has_told("plain text");

    let (agent, viewer) = (secured.token("agent", "1h"), secured.token("viewer", "1h"));
    for path in ["/metrics", "/api/jobs"] {
        assert_eq!(ask(path, None), 401, "{path}");
        assert_eq!(ask(path, Some("guessed")), 401, "{path}");
        assert_eq!(ask(path, Some(&agent)), 403, "{path}");
        assert_eq!(ask(path, Some(&viewer)), 200, "{path}");
    }
    secured.has_told("a token is wanted");
    secured.has_told("not this cluster's");
    secured.has_told("token agent (role agent) may not do this: the role viewer is needed");

    let expired = secured.token("admin", "1s");
    wait_for("the token expires", 10, || (ask("/metrics", Some(&expired)) == 401).then_some(()));
    secured.has_told("token admin has expired");
    for secret in [&agent, &viewer, &expired] {
        let secret = secret.rsplit('.').next().expect("there is a last part");
        assert!(!secured.told("coordinator").contains(secret), "the log holds a secret");
    }
}

#[test]
fn a_job_over_tls_between_all_parts_has_the_bits_of_one_in_plain_text() {
    let alone = tempfile::tempdir().expect("a temporary directory");
    let args: Vec<&str> = JOB[..4].iter().copied().chain(["--workers", "1"]).collect();
    let (_, undisturbed) = submit_local(alone.path(), &job_file("cnn"), &args, &[]);

    // As in deploy/: the agents' certificates carry one name for all.
    let mut secured = Secured::start(&["--agent-tls-name", "elastic-agent"]);
    let file = secured.home.path().join("agent.token");
    std::fs::write(&file, secured.token("agent", "1h")).expect("a token file");
    secured.start_agent("n0", "elastic-agent", Some(&file));
    secured.start_agent("n1", "elastic-agent", Some(&file));

    let submitter = secured.token("submitter", "1h");
    let path = job_file("cnn");
    let mut args = vec!["submit", path.to_str().expect("a path is text"), "--json"];
    args.extend(JOB);
    let done = secured.holder(&submitter, &args);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let result: Value = serde_json::from_str(text(&done.stdout).lines().last().expect("a line")).expect("JSON");
    let run_dir = PathBuf::from(result["run_dir"].as_str().expect("run_dir"));
    let proof = Proof::of(&run_dir, &result);
    assert_eq!(proof, undisturbed);

    // Logs come from the agents, over TLS and with the token that only the coordinator is told.
    let job = result["job"].as_str().expect("the job's id");
    let logs = secured.holder(&submitter, &["logs", job]);
    assert!(logs.status.success() && !text(&logs.stdout).contains("missing"), "{}", text(&logs.stderr));
}

#[test]
fn where_agents_show_certificates_a_token_makes_none_and_a_certificate_does() {
    let home = tempfile::tempdir().expect("a temporary directory");
    run(Command::new(elastic()).args(["certs", "init"]).arg(home.path()));
    run(Command::new(elastic()).args(["certs", "node", "good", "--san", "127.0.0.1", "--dir"]).arg(home.path()));
    let authority = home.path().join("ca.pem");
    let mut secured = Secured::start(&["--agent-tls-ca", authority.to_str().expect("a path is text")]);
    let file = secured.home.path().join("agent.token");
    std::fs::write(&file, secured.token("agent", "1h")).expect("a token file");

    // Of the cluster's authority, but not of the agents'.
    secured.start_agent("n0", "n0", Some(&file));
    wait_for("the agent is told", 10, || secured.told("n0").contains("no coordinator").then_some(()));
    secured.has_told("TLS handshake");

    // The agents' authority signed it; whom it trusts is the cluster's.
    let good = secured.certs().join("good");
    std::fs::create_dir(&good).expect("a directory");
    for file in ["cert.pem", "key.pem"] {
        std::fs::copy(home.path().join("good").join(file), good.join(file)).expect("a copy");
    }
    std::fs::copy(secured.certs().join("ca.pem"), good.join("ca.pem")).expect("a copy");
    secured.start_agent("n1", "good", None);
    wait_for("the node is there", 20, || {
        let nodes: Value = serde_json::from_slice(&secured.owner(&["nodes", "--json"]).stdout).ok()?;
        (nodes.as_array()?.iter().map(|n| n["node"].as_str()).collect::<Vec<_>>() == [Some("n1")]).then_some(())
    });
}

#[test]
fn certificates_are_exchanged_under_a_running_coordinator() {
    let secured = Secured::start(&[]);
    let (certs, next) = (secured.certs(), secured.home.path().join("next"));
    run(Command::new(elastic()).args(["certs", "cluster"]).arg(&next).args(["--coordinator", "127.0.0.1"]));
    let token = std::fs::read_to_string(certs.join("token")).expect("the token was made");
    assert_eq!(secured.say(&["jobs"], &next.join("ca.pem"), token.trim()).status.code(), Some(3));
    for file in ["cert.pem", "key.pem"] {
        std::fs::copy(next.join("coordinator").join(file), certs.join("coordinator").join(file)).expect("a copy");
    }
    wait_for("the new certificate is served", 20, || {
        secured.say(&["jobs"], &next.join("ca.pem"), token.trim()).status.success().then_some(())
    });
    assert_eq!(secured.owner(&["jobs"]).status.code(), Some(3), "the old authority signed nothing that is served");
}
