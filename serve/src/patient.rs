//! A connection that bears a client which does not read only so long: then writing to it fails, and whoever writes ends.
//!
//! Nobody asks an answer for its next piece while the last one cannot be written: neither its deadline nor its end would
//! be seen.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

pub struct Patient<S> {
    stream: S,
    bound: Duration,
    /// When it is enough, if nothing is written before.
    end: Pin<Box<Sleep>>,
    waits: bool,
}

impl<S> Patient<S> {
    pub fn new(stream: S, bound: Duration) -> Patient<S> {
        Patient { stream, bound, end: Box::pin(sleep(bound)), waits: false }
    }

    /// What writing came to; an error once it has come to nothing for too long.
    fn bear<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waits = false;
            return written;
        }
        if !self.waits {
            self.waits = true;
            self.end.as_mut().reset(Instant::now() + self.bound);
        }
        ready!(self.end.as_mut().poll(cx));
        let why = format!("the client read nothing for {} s", self.bound.as_secs_f64());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bear(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is flushed at once says nothing of what could not be written.
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Pending => self.bear(Poll::Pending, cx),
            flushed => flushed,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bear(shut, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bear(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const BOUND: Duration = Duration::from_millis(200);

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn who_reads_nothing_is_given_up_after_a_while() {
        run(async {
            let (near, _far) = duplex(8);
            let mut near = Patient::new(near, BOUND);
            let begin = Instant::now();
            let error = near.write_all(&[0; 9]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(begin.elapsed() >= BOUND && begin.elapsed() < BOUND * 20, "{:?}", begin.elapsed());
        });
    }

    #[test]
    fn who_reads_a_little_now_and_then_is_waited_for() {
        run(async {
            let (near, mut far) = duplex(8);
            let mut near = Patient::new(near, BOUND);
            let reads = tokio::spawn(async move {
                let mut piece = [0; 8];
                for _ in 0..8 {
                    tokio::time::sleep(BOUND / 4).await;
                    far.read_exact(&mut piece).await.unwrap();
                }
                far
            });
            let begin = Instant::now();
            near.write_all(&[0; 64]).await.unwrap();
            assert!(begin.elapsed() > BOUND, "longer than the bound, all in all: {:?}", begin.elapsed());
            // A long time in which there was nothing to write counts for nothing.
            let mut far = reads.await.unwrap();
            tokio::time::sleep(BOUND * 2).await;
            let reads = tokio::spawn(async move {
                tokio::time::sleep(BOUND / 4).await;
                far.read_exact(&mut [0; 16]).await.unwrap();
            });
            near.write_all(&[0; 16]).await.unwrap();
            reads.await.unwrap();
        });
    }
}
