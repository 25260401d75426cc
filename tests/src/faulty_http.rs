//! An HTTP proxy that answers 503, breaks off in mid-request or loses answers, as the test says for each request.
//!
//! One request a connection, bodies with a length: what S3 clients send.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Read, not forwarded, answered 503 SlowDown.
    Busy,
    /// The connection is closed after half of the body; nothing is forwarded.
    Broken,
    /// Forwarded and carried out; the answer never comes back.
    AnswerLost,
}

/// As the plan sees it. `before`: how many requests came before it.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub before: usize,
}

type Plan = Arc<dyn Fn(&Request) -> Fault + Send + Sync>;
type Seen = Arc<Mutex<Vec<(Request, Fault)>>>;

pub struct FaultyHttp {
    address: String,
    seen: Seen,
}

impl FaultyHttp {
    /// Listens on a free port of loopback for as long as the process lives.
    pub fn start(target: String, plan: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> FaultyHttp {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let (seen, plan): (Seen, Plan) = (Seen::default(), Arc::new(plan));
        let theirs = seen.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (target, plan, seen) = (target.clone(), plan.clone(), theirs.clone());
                // A client that breaks off is no concern of the proxy's.
                std::thread::spawn(move || drop(serve(client, &target, &plan, &seen)));
            }
        });
        FaultyHttp { address, seen }
    }

    /// host:port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Requests so far, and what became of them.
    pub fn seen(&self) -> Vec<(Request, Fault)> {
        self.seen.lock().expect("no one panics with it").clone()
    }

    pub fn faults(&self) -> usize {
        self.seen().iter().filter(|(_, fault)| *fault != Fault::None).count()
    }
}

fn serve(mut client: TcpStream, target: &str, plan: &Plan, seen: &Seen) -> io::Result<()> {
    let (head, rest) = read_head(&mut client)?;
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or_default().to_string(), words.next().unwrap_or_default().to_string());
    let fault = {
        let mut seen = seen.lock().expect("no one panics with it");
        let request = Request { method, target: path, before: seen.len() };
        let fault = plan(&request);
        seen.push((request, fault));
        fault
    };
    let length = header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0usize);
    if header(&head, "expect").is_some() {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let wanted = if fault == Fault::Broken { length / 2 } else { length };
    let mut body = rest;
    let have = body.len();
    body.resize(wanted.max(have), 0);
    client.read_exact(&mut body[have..])?;
    match fault {
        Fault::Broken => Ok(()),
        Fault::Busy => {
            let text = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
            let length = text.len();
            write!(
                client,
                "HTTP/1.1 503 Service Unavailable\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
            )
        }
        Fault::None | Fault::AnswerLost => {
            let mut server = TcpStream::connect(target)?;
            let kept = head.lines().filter(|line| !line.is_empty() && !is_hop(line));
            let head: String = kept.map(|line| format!("{line}\r\n")).collect();
            server.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
            server.write_all(&body)?;
            match fault {
                Fault::AnswerLost => io::copy(&mut server, &mut io::sink())?,
                _ => io::copy(&mut server, &mut client)?,
            };
            Ok(())
        }
    }
}

/// The head up to its empty line, and what was read behind it.
fn read_head(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&read).into_owned(), rest));
        }
        let mut piece = [0; 4096];
        match client.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length if read.len() < 64 << 10 => read.extend_from_slice(&piece[..length]),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let named = |line: &'a str| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name));
    head.lines().find_map(named).map(|(_, value)| value.trim())
}

fn is_hop(line: &str) -> bool {
    line.split_once(':')
        .is_some_and(|(key, _)| key.eq_ignore_ascii_case("connection") || key.eq_ignore_ascii_case("expect"))
}
