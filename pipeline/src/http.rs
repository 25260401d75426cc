//! As much HTTP as it takes to ask a server on this machine: one request a connection, answers of a known length.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Of one answer.
const BODY_BYTES_MAX: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(60);

/// Status and body. `within`: the most that it may take to read on.
pub fn ask(at: SocketAddr, method: &str, path: &str, body: &[u8], within: Option<Duration>) -> Result<(u16, Vec<u8>)> {
    let patience = within.unwrap_or(PATIENCE).clamp(Duration::from_millis(1), PATIENCE);
    let asking = || format!("{method} http://{at}{path}");
    let mut stream = TcpStream::connect_timeout(&at, patience).with_context(asking)?;
    stream
        .set_read_timeout(Some(patience))
        .and_then(|()| stream.set_write_timeout(Some(patience)))
        .with_context(asking)?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).with_context(asking)?;
    let mut answer = Vec::new();
    stream.take(BODY_BYTES_MAX).read_to_end(&mut answer).with_context(asking)?;
    read(&answer).with_context(asking)
}

fn read(answer: &[u8]) -> Result<(u16, Vec<u8>)> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { bail!("the answer breaks off") };
    let head = String::from_utf8_lossy(&answer[..end]);
    let body = &answer[end + 4..];
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("the answer has no status")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    match length {
        Some(length) if length != body.len() => bail!("the answer has {} of {length} bytes", body.len()),
        _ => Ok((status, body.to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_or_none() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(read(whole).unwrap(), (200, b"{}".to_vec()));
        assert!(read(&whole[..whole.len() - 1]).unwrap_err().to_string().contains("1 of 2 bytes"));
        assert!(read(b"HTTP/1.1 200").is_err());
        assert!(read(b"\r\n\r\n").is_err());
    }
}
