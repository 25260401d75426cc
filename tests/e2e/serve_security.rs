//! `elastic serve` where others can reach it: plain text, other authorities, wrong keys and keys without the role are
//! refused, over HTTP and gRPC, and the log says who it was; what is right is answered. Keys and certificates are
//! exchanged under it. And what is too large is refused before it fills the memory.

use crate::cluster::{Guarded, elastic, free_port, run, wait_for};
use crate::https::{ask, get, post, status};
use crate::mirrors::bundle;
use elastic_serve::grpc::wire::grpc_inference_service_client::GrpcInferenceServiceClient;
use elastic_serve::grpc::wire::model_infer_request::InferInputTensor;
use elastic_serve::grpc::wire::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

const ASKS: &str = "a-key-that-may-ask-0001";
const LOADS: &str = "a-key-that-may-load-0001";
const INFER: &str = "/v2/models/digits/infer";
const LOAD: &str = "/v2/repository/models/digits/load";
const GRPC_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const BODY: &str = r#"{"inputs":[{"name":"input","shape":[1,8],"datatype":"FP32","data":[1,2,3,4,5,6,7,8]}]}"#;

/// A server that the network could reach, with a certificate and keys.
struct Secured {
    home: tempfile::TempDir,
    http: u16,
    grpc: u16,
    _server: Guarded,
}

/// A directory with one model, an authority in `certs`, and what it signed for the server.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().expect("a temporary directory");
    let model = home.path().join("models/digits/1");
    std::fs::create_dir_all(&model).expect("a directory");
    for (name, bytes) in bundle(1) {
        std::fs::write(model.join(name), bytes).expect("a file of the bundle");
    }
    authority(&home.path().join("certs"));
    std::fs::write(home.path().join("keys"), format!("# who asks\n{ASKS}\nadmin {LOADS}\n")).expect("a file of keys");
    home
}

fn authority(dir: &Path) {
    run(Command::new(elastic()).args(["certs", "init"]).arg(dir));
    run(Command::new(elastic()).args(["certs", "node", "serving", "--san", "127.0.0.1", "--dir"]).arg(dir));
}

fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(elastic());
    command.arg("serve").arg(home.join("models")).args(args).stdin(Stdio::null()).env("NO_COLOR", "1");
    command
}

impl Secured {
    fn start() -> Secured {
        let (home, http, grpc) = (home(), free_port(), free_port());
        let (at_http, at_grpc) = (format!("0.0.0.0:{http}"), format!("0.0.0.0:{grpc}"));
        let mut command = command(home.path(), &["--http", &at_http, "--grpc", &at_grpc, "--tls-dir"]);
        command.arg(home.path().join("certs/serving")).arg("--api-key-file").arg(home.path().join("keys"));
        let log = std::fs::File::create(home.path().join("log")).expect("a log");
        let server = Guarded(command.stderr(log).spawn().expect("the server starts"));
        let secured = Secured { home, http, grpc, _server: server };
        // Probes have no key.
        let ready = || secured.https(&get("/v2/health/ready", None)).ok().filter(|a| status(a) == 200).map(drop);
        wait_for("the server is ready", 20, ready);
        secured
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn https(&self, request: &str) -> std::io::Result<String> {
        ask(self.http, &self.path("certs/ca.pem"), request)
    }

    #[track_caller]
    fn status(&self, request: &str) -> u16 {
        status(&self.https(request).expect("an answer"))
    }

    async fn dial(&self, authority: Option<&Path>) -> Result<Client, tonic::transport::Error> {
        let scheme = if authority.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://127.0.0.1:{}", self.grpc)).expect("an address");
        if let Some(authority) = authority {
            let pem = std::fs::read(authority).expect("an authority");
            endpoint = endpoint.tls_config(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))?;
        }
        Ok(GrpcInferenceServiceClient::new(endpoint.connect().await?))
    }

    fn told(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// So many lines, or more, say that somebody at this machine was turned away, with all of the words.
    #[track_caller]
    fn has_told(&self, times: usize, words: &[&str]) {
        let fits = |line: &&str| line.contains("peer=127.0.0.1:") && words.iter().all(|word| line.contains(word));
        wait_for(&format!("the log says {words:?} {times} times"), 10, || {
            let log = self.told();
            (log.lines().filter(|line| line.contains("refused")).filter(fits).count() >= times).then_some(())
        });
    }
}

type Client = GrpcInferenceServiceClient<Channel>;

fn on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

fn with<T>(message: T, key: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(key) = key {
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().expect("a header"));
    }
    request
}

fn question(bytes: usize) -> ModelInferRequest {
    let input = InferInputTensor {
        name: "input".into(),
        datatype: "FP32".into(),
        shape: vec![(bytes / 32) as i64, 8],
        ..Default::default()
    };
    let raw_input_contents = vec![vec![0; bytes].into()];
    ModelInferRequest { model_name: "digits".into(), inputs: vec![input], raw_input_contents, ..Default::default() }
}

async fn infer(client: &mut Client, key: Option<&str>) -> Result<(), Status> {
    client.model_infer(with(question(32), key)).await.map(drop)
}

async fn load(client: &mut Client, key: Option<&str>) -> Result<(), Status> {
    let message = RepositoryModelLoadRequest { model_name: "digits".into(), ..Default::default() };
    client.repository_model_load(with(message, key)).await.map(drop)
}

fn code(result: Result<(), Status>) -> Code {
    result.map_or_else(|status| status.code(), |()| Code::Ok)
}

#[test]
fn plain_text_other_authorities_and_wrong_keys_are_refused_over_http_and_grpc_and_told() {
    let secured = Secured::start();
    let (ours, others) = (secured.path("certs/ca.pem"), secured.path("others"));
    authority(&others);
    let strange = others.join("ca.pem");

    let mut plain = TcpStream::connect(("127.0.0.1", secured.http)).expect("a connection");
    let peer = plain.local_addr().expect("its address").to_string();
    plain.write_all(get(INFER, Some(ASKS)).as_bytes()).expect("the request is sent");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "plain text is answered: {}", String::from_utf8_lossy(&answer));
    secured.has_told(1, &["TLS handshake", "plain text", &format!("peer={peer}")]);
    let spoken = on(async {
        infer(&mut secured.dial(None).await.map_err(|_| Code::Unavailable)?, Some(ASKS)).await.map_err(|s| s.code())
    });
    assert!(spoken.is_err(), "plain text is answered over gRPC");
    secured.has_told(2, &["TLS handshake", "plain text"]);

    let refused = ask(secured.http, &strange, &get(INFER, Some(ASKS))).expect_err("another authority is trusted");
    assert!(refused.to_string().contains("certificate"), "{refused}");
    secured.has_told(1, &["TLS handshake", "trusts another authority"]);
    assert!(on(secured.dial(Some(&strange))).is_err(), "another authority is trusted over gRPC");
    secured.has_told(2, &["TLS handshake", "trusts another authority"]);

    assert_eq!(secured.status(&post(INFER, None, BODY)), 401);
    secured.has_told(1, &[INFER, "wants an API key"]);
    assert_eq!(secured.status(&post(INFER, Some("a-key-that-was-guessed"), BODY)), 401);
    secured.has_told(1, &[INFER, "not one of this server's"]);
    assert_eq!(secured.status(&get("/metrics", None)), 401);
    assert_eq!(secured.status(&post(LOAD, Some(ASKS), "")), 403);
    secured.has_told(1, &[LOAD, "the role admin is needed"]);
    assert_eq!(secured.status(&post("/v2/repository/models/digits/unload", Some(ASKS), "")), 403);
    assert_eq!(secured.status(&post(INFER, Some(ASKS), BODY)), 200);
    assert_eq!(secured.status(&post(LOAD, Some(LOADS), "")), 200);
    assert_eq!(secured.status(&post(INFER, Some(LOADS), BODY)), 200);

    on(async {
        let mut client = secured.dial(Some(&ours)).await.expect("a connection");
        let live = client.server_live(ServerLiveRequest {}).await.expect("probes have no key");
        assert!(live.into_inner().live);
        assert_eq!(code(infer(&mut client, None).await), Code::Unauthenticated);
        secured.has_told(1, &[GRPC_INFER, "wants an API key"]);
        assert_eq!(code(infer(&mut client, Some("a-key-that-was-guessed")).await), Code::Unauthenticated);
        secured.has_told(1, &[GRPC_INFER, "not one of this server's"]);
        assert_eq!(code(load(&mut client, Some(ASKS)).await), Code::PermissionDenied);
        secured.has_told(1, &["/RepositoryModelLoad", "the role admin is needed"]);
        assert_eq!(code(infer(&mut client, Some(ASKS)).await), Code::Ok);
        assert_eq!(code(load(&mut client, Some(LOADS)).await), Code::Ok);
    });
    let log = secured.told();
    assert!(!log.contains(ASKS) && !log.contains(LOADS) && !log.contains("guessed"), "{log}");
}

#[test]
fn keys_are_exchanged_under_a_running_server_and_a_broken_file_is_not_taken() {
    const NEXT: &str = "a-key-that-may-ask-0002";
    let secured = Secured::start();
    on(async {
        let mut client = secured.dial(Some(&secured.path("certs/ca.pem"))).await.expect("a connection");
        assert_eq!(code(infer(&mut client, Some(ASKS)).await), Code::Ok);

        // A mistake in the file costs nobody the key that was good.
        std::fs::write(secured.path("keys"), format!("{NEXT}\nreader {ASKS}\n")).expect("a file of keys");
        wait_for("the log tells of the mistake", 10, || {
            assert_eq!(secured.status(&post(INFER, Some(ASKS), BODY)), 200);
            let log = secured.told();
            log.lines().any(|l| l.contains("WARN") && l.contains("keys: line 2: the word before a key")).then_some(())
        });
        assert_eq!(secured.status(&post(INFER, Some(NEXT), BODY)), 401, "nothing of a broken file is taken");

        std::fs::write(secured.path("keys"), format!("{NEXT}\n")).expect("a file of keys");
        wait_for("the new key answers", 10, || (secured.status(&post(INFER, Some(NEXT), BODY)) == 200).then_some(()));
        assert_eq!(secured.status(&post(INFER, Some(ASKS), BODY)), 401, "a key that was taken away opens nothing");
        assert_eq!(secured.status(&post(LOAD, Some(LOADS), "")), 401);
        // On the connection that it was good on, too.
        assert_eq!(code(infer(&mut client, Some(ASKS)).await), Code::Unauthenticated);
        assert_eq!(code(infer(&mut client, Some(NEXT)).await), Code::Ok);
    });
}

#[test]
fn a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not_taken() {
    let secured = Secured::start();
    let (ours, next) = (secured.path("certs/ca.pem"), secured.path("next"));
    authority(&next);
    let theirs = next.join("ca.pem");
    let served = secured.path("certs/serving");

    std::fs::write(served.join("cert.pem"), "").expect("a broken certificate");
    let place = served.join("cert.pem").display().to_string();
    wait_for("the log tells of the broken certificate", 10, || {
        assert_eq!(secured.status(&get("/v2/health/live", None)), 200, "the one before serves on");
        let line = format!("{place}: there is no certificate in it");
        secured.told().lines().any(|l| l.contains("not taken") && l.contains(&line)).then_some(())
    });
    on(async { assert!(secured.dial(Some(&ours)).await.is_ok(), "over gRPC, too") });

    for file in ["cert.pem", "key.pem"] {
        std::fs::copy(next.join("serving").join(file), served.join(file)).expect("a copy");
    }
    wait_for("the new certificate is served", 20, || ask(secured.http, &theirs, &get("/v2/health/live", None)).ok());
    assert!(secured.https(&get("/v2/health/live", None)).is_err(), "the old authority signed nothing that is served");
    wait_for("the new certificate is served over gRPC", 20, || on(secured.dial(Some(&theirs))).ok().map(drop));
    on(async {
        let mut client = secured.dial(Some(&theirs)).await.expect("a connection");
        assert_eq!(code(infer(&mut client, Some(ASKS)).await), Code::Ok);
        assert!(secured.dial(Some(&ours)).await.is_err());
    });
}

#[test]
fn a_flood_of_wrong_keys_fills_no_log() {
    const FLOOD: usize = 2_000;
    let secured = Secured::start();
    let begun = Instant::now();
    let mut refused = 0;
    on(async {
        let mut client = secured.dial(Some(&secured.path("certs/ca.pem"))).await.expect("a connection");
        for _ in 0..FLOOD {
            refused += usize::from(code(infer(&mut client, Some("a-key-that-was-guessed")).await) != Code::Ok);
        }
    });
    assert_eq!(refused, FLOOD);
    let stretches = begun.elapsed().as_secs() as usize / 10 + 2;
    let lines = secured.told().lines().filter(|line| line.contains("refused")).count();
    // Twenty in ten seconds, and one that says how many were left out.
    assert!((20..=21 * stretches).contains(&lines), "{lines} lines of {FLOOD} in {:?}", begun.elapsed());
}

#[test]
fn outside_the_loopback_a_certificate_and_keys_are_demanded() {
    let home = home();
    let certs = home.path().join("certs/serving");
    let certs = certs.to_str().expect("a path is text");
    let at = ["--grpc", "off", "--http", "0.0.0.0:0"];
    let refused = |args: &[&str], says: &[&str]| {
        let log = home.path().join("refused");
        let mut command = command(home.path(), args);
        command.stderr(std::fs::File::create(&log).expect("a log"));
        let mut server = Guarded(command.spawn().expect("the program starts"));
        let ended = wait_for("the program ends", 20, || server.0.try_wait().expect("its status"));
        let said = std::fs::read_to_string(&log).expect("a log");
        assert_eq!(ended.code(), Some(2), "{args:?}: {said}");
        says.iter().for_each(|words| assert!(said.contains(words), "{args:?} say not {words:?}: {said}"));
    };
    refused(&at, &["--http", "plain text", "--tls-cert", "--insecure"]);
    refused(&[&at[..], &["--tls-dir", certs]].concat(), &["--http", "--api-key-file", "--insecure"]);
    let grpc = ["--http", ":0", "--grpc", "0.0.0.0:0", "--tls-dir", certs];
    refused(&grpc, &["--grpc", "--api-key-file"]);

    let keys = home.path().join("wrong");
    std::fs::write(&keys, format!("{ASKS}\nshort\n")).expect("a file of keys");
    let keys = keys.to_str().expect("a path is text");
    let place = format!("--api-key-file: {keys}: line 2: a key has at least 16");
    refused(&[&at[..], &["--tls-dir", certs, "--api-key-file", keys]].concat(), &[&place]);

    let empty = home.path().join("certs/empty");
    std::fs::create_dir(&empty).expect("a directory");
    for file in ["cert.pem", "key.pem"] {
        std::fs::write(empty.join(file), "").expect("an empty file");
    }
    let empty = empty.to_str().expect("a path is text");
    let place = format!("{empty}/cert.pem: there is no certificate in it");
    refused(&[&at[..], &["--tls-dir", empty]].concat(), &[&place]);

    // Who wants it open says so.
    let port = free_port();
    let at = format!("0.0.0.0:{port}");
    let mut open = command(home.path(), &["--grpc", "off", "--http", &at, "--tls-dir", certs, "--insecure"]);
    let _open = Guarded(open.stderr(Stdio::null()).spawn().expect("the server starts"));
    let authority = home.path().join("certs/ca.pem");
    wait_for("the open server answers", 20, || {
        let answer = ask(port, &authority, &post(INFER, None, BODY)).ok()?;
        (status(&answer) == 200).then_some(())
    });
}

/// The most memory that the process ever held, in bytes.
fn peak(pid: u32) -> u64 {
    let about = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = about.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Asks whether it may send a body without a length, and gives the status: 100 if it may.
fn offer(port: u16) -> (BufReader<TcpStream>, u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a bound");
    let head =
        format!("POST {INFER} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("the head is sent");
    let mut stream = BufReader::new(stream);
    let status = read_status(&mut stream).expect("an answer");
    (stream, status)
}

fn read_status(stream: &mut BufReader<TcpStream>) -> std::io::Result<u16> {
    let mut first = String::new();
    stream.read_line(&mut first)?;
    let mut line = String::new();
    while !matches!(line.as_str(), "\r\n") && stream.read_line(&mut line)? > 0 {
        if line != "\r\n" {
            line.clear();
        }
    }
    first.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| std::io::Error::other(first))
}

fn send(stream: &mut BufReader<TcpStream>, mib: usize) -> std::io::Result<()> {
    let chunk = [b"100000\r\n", vec![b' '; 1 << 20].as_slice(), b"\r\n"].concat();
    (0..mib).try_for_each(|_| stream.get_mut().write_all(&chunk))
}

#[test]
fn bodies_and_messages_beyond_the_bounds_are_refused_and_fill_no_memory() {
    let (home, http, grpc) = (home(), free_port(), free_port());
    let at = [format!("127.0.0.1:{http}"), format!("127.0.0.1:{grpc}")];
    let mut command = command(home.path(), &["--http", &at[0], "--grpc", &at[1], "--poll-ms", "0"]);
    let server = Guarded(command.stderr(Stdio::null()).spawn().expect("the server starts"));
    let answer = |request: String| {
        let mut stream = TcpStream::connect(("127.0.0.1", http)).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok().map(|_| answer)
    };
    let answers = || answer(post(INFER, None, BODY)).filter(|answer| status(answer) == 200).map(drop);
    wait_for("the server answers", 20, answers);

    // One byte more than 64 MiB, without a length.
    let (mut stream, may) = offer(http);
    assert_eq!(may, 100);
    send(&mut stream, 64).expect("what is allowed is sent");
    stream.get_mut().write_all(b"1\r\n \r\n").expect("and a byte more");
    assert_eq!(read_status(&mut stream).expect("an answer"), 413);
    // Who never ends is not read to the end.
    let (mut stream, _) = offer(http);
    assert!(send(&mut stream, 4_096).is_err(), "4 GiB were taken");

    // As many as fit into the budget of all may send; the others are told to come again.
    let mut offers: Vec<_> = (0..24).map(|_| offer(http)).collect();
    let statuses: Vec<u16> = offers.iter().map(|(_, status)| *status).collect();
    let expected: Vec<u16> = (0..24).map(|i| if i < 8 { 100 } else { 429 }).collect();
    assert_eq!(statuses, expected);
    for (stream, _) in &mut offers[..8] {
        send(stream, 63).expect("a body within the bound is read");
    }
    for (stream, _) in &mut offers[..8] {
        stream.get_mut().write_all(b"0\r\n\r\n").expect("its end");
        assert_eq!(read_status(stream).expect("an answer"), 400, "spaces are no question");
    }

    on(async {
        let dial = || async { Endpoint::from_shared(format!("http://{}", at[1])).expect("an address").connect().await };
        let client = || async { GrpcInferenceServiceClient::new(dial().await.expect("a connection")) };
        let refused = client().await.model_infer(question(66 << 20)).await.expect_err("66 MiB are refused");
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
        assert_eq!(code(infer(&mut client().await, None).await), Code::Ok);
    });
    wait_for("the server answers", 20, answers);
    let peak = peak(server.pid());
    assert!(peak < 1 << 30, "{peak} bytes");
}
