//! The worker's socket to the agent that started it: status up, orders down, each whole.
//!
//! A worker does not outlive its agent: when the socket ends, the process ends, at once. What an order
//! means is the member's business.

use crate::env::Env;
use crate::stderr;
use anyhow::{Context, Result};
use bytes::BytesMut;
use elastic_proto::framed::Framed;
use elastic_spec::facts::{WorkerStatus, WorkerUp};
use elastic_spec::view::{WorkerOrder, exit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

pub struct AgentLink {
    /// The newest order; the one before it no longer matters.
    pub orders: watch::Receiver<WorkerOrder>,
    /// The newest status and how many there were.
    status: watch::Sender<(u64, WorkerStatus)>,
    /// How many of them the socket has taken.
    written: watch::Receiver<u64>,
}

/// What a user's program started must not outlive it: the agent that would end the group is gone.
fn end_group() {
    use rustix::process::{Signal, getpgrp, getpid, kill_process_group};
    // Only a group of one's own: a worker that somebody started by hand shares theirs.
    if getpgrp() == getpid() {
        // Caught here, so that this process ends with its own exit code.
        let _caught = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        let _ = kill_process_group(getpgrp(), Signal::TERM);
    }
}

impl AgentLink {
    /// Connects and says who this is.
    pub async fn open(env: &Env) -> Result<AgentLink> {
        let socket = UnixStream::connect(&env.agent_socket)
            .await
            .with_context(|| format!("reach the agent at {}", env.agent_socket.display()))?;
        let (from_agent, mut to_agent) = socket.into_split();
        let mut hello = BytesMut::new();
        WorkerUp::Hello { worker: env.worker, token: env.token.clone() }.encode(&mut hello);
        to_agent.write_all(&hello).await.context("greet the agent")?;
        let (order, orders) = watch::channel(WorkerOrder { view: None, leave: false, restarts: 0 });
        let (status, statuses) = watch::channel((0, crate::status::blank(UNBOUND.into(), 0)));
        let (wrote, written) = watch::channel(0);
        tokio::spawn(async move {
            let error = read(from_agent, order).await;
            stderr::say(format_args!("the agent is gone ({error}); its workers end with it"));
            end_group();
            crate::command::family::end();
            std::process::exit(exit::ORPHANED);
        });
        // When writing ends, so does reading, and there it is answered.
        tokio::spawn(async move { write(&mut to_agent, statuses, wrote).await });
        Ok(AgentLink::new(orders, status, written))
    }

    /// Over channels whose other ends somebody serves.
    pub fn new(
        orders: watch::Receiver<WorkerOrder>,
        status: watch::Sender<(u64, WorkerStatus)>,
        written: watch::Receiver<u64>,
    ) -> AgentLink {
        AgentLink { orders, status, written }
    }

    /// Sends `status`, unless a newer one comes before the socket takes it.
    pub fn tell(&self, status: WorkerStatus) {
        self.status.send_modify(|(count, last)| (*count, *last) = (*count + 1, status));
    }

    /// What was sent last.
    pub fn said(&self) -> WorkerStatus {
        self.status.borrow().1.clone()
    }

    /// Sends what was said last, changed, and waits until the socket has taken it. An agent that is stopped
    /// is waited for: that a job is finished must not be lost; if the agent dies, so does this process.
    pub async fn tell_last(&mut self, change: impl FnOnce(&mut WorkerStatus)) {
        let mut status = self.said();
        change(&mut status);
        self.tell(status);
        let count = self.status.borrow().0;
        // An error: nothing is written any more, and whoever reads the socket ends the process.
        let _ = self.written.wait_for(|written| *written >= count).await;
    }
}

/// Reads orders until the stream ends, and says how it ended.
async fn read(mut from: OwnedReadHalf, order: watch::Sender<WorkerOrder>) -> String {
    let mut bytes = BytesMut::new();
    loop {
        match WorkerOrder::decode(&mut bytes) {
            Ok(Some(new)) => {
                order.send_replace(new);
                continue;
            }
            Ok(None) => {}
            Err(error) => return format!("its message makes no sense: {error}"),
        }
        match from.read_buf(&mut bytes).await {
            Ok(0) => return "the socket ended".into(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}

async fn write(to: &mut OwnedWriteHalf, mut statuses: watch::Receiver<(u64, WorkerStatus)>, wrote: watch::Sender<u64>) {
    let mut bytes = BytesMut::new();
    while statuses.changed().await.is_ok() {
        let (count, status) = statuses.borrow_and_update().clone();
        bytes.clear();
        WorkerUp::Status(Box::new(status)).encode(&mut bytes);
        if to.write_all(&bytes).await.is_err() {
            return;
        }
        wrote.send_replace(count);
    }
}

/// The data plane's address before there is one.
const UNBOUND: &str = "unbound:1";

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;

    #[tokio::test]
    async fn the_last_word_is_waited_for_until_the_socket_took_it() {
        let (_order, orders) = watch::channel(WorkerOrder { view: None, leave: false, restarts: 0 });
        let (status, statuses) = watch::channel((0, crate::status::blank(UNBOUND.into(), 0)));
        let (wrote, written) = watch::channel(0);
        let mut link = AgentLink::new(orders, status, written);
        let (agent, worker) = UnixStream::pair().unwrap();
        let (_from_agent, mut to_agent) = worker.into_split();
        // The agent is stopped: the socket is full.
        while to_agent.try_write(&[0; 4096]).is_ok() {}
        let writing = tokio::spawn(async move { write(&mut to_agent, statuses, wrote).await });
        let mut last = std::pin::pin!(link.tell_last(|status| status.error = Some("why".into())));
        for _ in 0..10 {
            let now = std::future::poll_fn(|cx| Poll::Ready(last.as_mut().poll(cx))).await;
            assert!(now.is_pending(), "the agent has read nothing");
            tokio::task::yield_now().await;
        }
        let reading = tokio::spawn(async move {
            let mut agent = agent;
            let mut all = Vec::new();
            while agent.read_buf(&mut all).await.is_ok_and(|bytes| bytes > 0) {}
        });
        last.await;
        writing.abort();
        reading.abort();
    }
}
