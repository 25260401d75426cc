//! A real S3-compatible store (SeaweedFS) on free ports, for tests. `tests/s3-server` installs it.
//!
//! One for the whole test process, which it ends with, however that ends: it takes seconds to come up.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub struct S3Server {
    s3: u16,
    filer: u16,
    /// Holds the pipe at whose end the server ends.
    _process: Child,
}

const KEY: &str = "elastic";
const SECRET: &str = "elastic-secret";

impl S3Server {
    /// The process's server; an error says why there is none here.
    pub fn shared() -> Result<&'static S3Server, &'static str> {
        static SERVER: OnceLock<Result<S3Server, String>> = OnceLock::new();
        SERVER.get_or_init(start).as_ref().map_err(String::as_str)
    }

    /// host:port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.s3)
    }

    /// The environment of a program that is to use it, by way of `address`: its own, or a proxy's.
    pub fn env(&self, address: &str) -> Vec<(String, String)> {
        let env = [
            ("AWS_ENDPOINT_URL", format!("http://{address}")),
            ("AWS_ALLOW_HTTP", "true".to_string()),
            ("AWS_ACCESS_KEY_ID", KEY.to_string()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_string()),
            ("AWS_REGION", "us-east-1".to_string()),
        ];
        env.map(|(name, value)| (name.to_string(), value)).to_vec()
    }

    /// A new bucket: a folder of the file server behind.
    pub fn make_bucket(&self, name: &str) {
        let answer = ask(self.filer, "POST", &format!("/buckets/{name}/"), b"").expect("the file server answers");
        assert!(answer.starts_with("HTTP/1.1 20"), "a bucket is made: {answer}");
    }

    /// An object's bytes, as text, past the store's own interface; None if it is not there.
    pub fn read(&self, bucket: &str, name: &str) -> Option<String> {
        let answer = ask(self.filer, "GET", &format!("/buckets/{bucket}/{name}"), b"").ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_string())
    }

    /// An object's bytes behind the store's back: what a disk may do.
    pub fn replace(&self, bucket: &str, name: &str, bytes: &[u8]) {
        let answer = ask(self.filer, "PUT", &format!("/buckets/{bucket}/{name}"), bytes).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    }
}

fn start() -> Result<S3Server, String> {
    let program = installed()?;
    let dir = std::env::temp_dir().join(format!("elastic-s3-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let identities = format!(
        r#"{{"identities":[{{"name":"test","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],
        "actions":["Admin","Read","Write","List"]}}]}}"#
    );
    let config = dir.join("s3.json");
    std::fs::write(&config, identities).map_err(|error| format!("{}: {error}", config.display()))?;
    let ports = free_ports();
    let mut process = spawn(&program, &dir, &config, &ports);
    let begun = Instant::now();
    loop {
        // The file server answers before it knows where to put bytes; a first object shows that all is up.
        let is_up = ask(ports[0], "GET", "/", b"").is_ok()
            && ask(ports[2], "PUT", "/up", b"up").is_ok_and(|answer| answer.starts_with("HTTP/1.1 20"));
        if is_up {
            return Ok(S3Server { s3: ports[0], filer: ports[2], _process: process });
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the S3 server answers within 60 s");
        assert!(process.try_wait().expect("its state").is_none(), "the S3 server stays up; see {}", dir.display());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn installed() -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|dir| dir.join("tests/s3-server"));
    let script = script.into_iter().find(|path| path.is_file()).ok_or("there is no tests/s3-server")?;
    let output = Command::new(script).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())),
        false => Err(format!("no S3 server: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Under a shell that waits for the end of its input, which is this process's end, and then takes the server with it.
fn spawn(program: &Path, dir: &Path, config: &Path, ports: &[u16]) -> Child {
    let flag = |name: &str, value: &dyn std::fmt::Display| format!("-{name}={value}");
    let mut flags = vec![
        flag("dir", &dir.display()),
        flag("ip", &"127.0.0.1"),
        flag("ip.bind", &"127.0.0.1"),
        flag("s3.config", &config.display()),
        "-filer".into(),
        "-s3".into(),
        "-s3.autoCreateBucket=false".into(),
        "-s3.iam=false".into(),
        "-s3.port.iceberg=0".into(),
        "-s3.port.lance=0".into(),
        // Each bucket takes several; they are as large as what is in them.
        "-volume.max=1000".into(),
        "-master.volumeSizeLimitMB=64".into(),
        "-master.volumePreallocate=false".into(),
    ];
    let names = ["s3.port", "s3.port.grpc", "filer.port", "filer.port.grpc"];
    let names = names.into_iter().chain(["master.port", "master.port.grpc", "volume.port", "volume.port.grpc"]);
    flags.extend(names.zip(ports).map(|(name, port)| flag(name, port)));
    const SHELL: &str = r#"dir=$1; shift; "$@" >"$dir/log" 2>&1 & read -r _; kill -9 $!; wait; rm -rf "$dir""#;
    let mut command = Command::new("sh");
    command.args(["-c", SHELL, "s3-server"]).arg(dir).arg(program).arg("server").args(flags);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("a shell starts")
}

/// Held together until all are drawn, so that none is given twice.
fn free_ports() -> Vec<u16> {
    let listeners: Vec<_> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("its address").port()).collect()
}

fn ask(port: u16, method: &str, path: &str, body: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: f\r\nContent-Length: {length}\r\nConnection: close\r\n");
    // A type makes it look for a form.
    let kind = if body.is_empty() { "" } else { "Content-Type: application/octet-stream\r\n" };
    write!(stream, "{head}{kind}\r\n")?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
