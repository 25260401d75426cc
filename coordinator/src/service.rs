//! What callers see: each call is checked against the store, put to the driver, and its answer given back.

use crate::ask::{Answer, Ask, Change};
use crate::clock::unix_ms;
use crate::driver::Role;
use crate::links::{self, LinkId, LogPlace};
use crate::logs::Start;
use crate::store::{Store, StoreError};
use crate::{Config, draw, logs};
use bytes::Bytes;
use elastic_proto::server::{Api, Control, Flow, async_trait};
use elastic_proto::{Access, Credentials, Refusal};
use elastic_spec::access::{Token, token_text};
use elastic_spec::api::{Health, JobStatus, LogPiece, LogsQuery, MakeToken, NodeStatus, Scale, Submit, TokenInfo};
use elastic_spec::facts::{NodeReport, NodeWant};
use elastic_spec::job::JobSpec;
use elastic_spec::limits::BLOB_BYTES_MAX;
use elastic_spec::{Digest, JobId, NodeId, TokenName};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot, watch};

#[derive(Clone)]
pub(crate) struct Service {
    asks: mpsc::Sender<Ask>,
    role: watch::Receiver<Role>,
    store: Arc<dyn Store>,
    advertise: String,
    runs: PathBuf,
    access: Access,
    pub credentials: Credentials,
    pub stopped: watch::Receiver<bool>,
    links: Arc<AtomicU64>,
}

impl Service {
    pub fn new(
        asks: mpsc::Sender<Ask>,
        role: watch::Receiver<Role>,
        store: Arc<dyn Store>,
        config: &Config,
        stopped: watch::Receiver<bool>,
    ) -> Service {
        Service {
            asks,
            role,
            store,
            advertise: config.advertise.clone(),
            runs: config.runs.clone(),
            access: config.access.clone(),
            credentials: config.credentials.clone(),
            stopped,
            links: Arc::default(),
        }
    }

    fn standby(&self) -> Refusal {
        match &*self.role.borrow() {
            Role::Standby { leader } => Refusal::Standby { leader: leader.clone() },
            // It has just begun or just ended to lead.
            Role::Leader { .. } => Refusal::Standby { leader: None },
        }
    }

    fn leading(&self) -> Result<(), Refusal> {
        let leads = matches!(*self.role.borrow(), Role::Leader { .. });
        if leads { Ok(()) } else { Err(self.standby()) }
    }

    async fn ask<T>(&self, ask: impl FnOnce(Answer<T>) -> Ask) -> Result<T, Refusal> {
        self.leading()?;
        let (answer, told) = oneshot::channel();
        self.asks.send(ask(answer)).await.map_err(|_| self.standby())?;
        told.await.map_err(|_| self.standby())
    }

    async fn change(&self, change: Change) -> Result<(), Refusal> {
        // Better told at once than left waiting for a store that is known to be away.
        if let Some(why) = self.store.trouble() {
            return Err(store_away(StoreError::Away(why)));
        }
        self.ask(|answer| Ask::Change { change, answer }).await?
    }

    pub async fn log_places(&self) -> Result<BTreeMap<NodeId, LogPlace>, Refusal> {
        self.ask(|answer| Ask::LogPlaces { answer }).await
    }

    /// All inputs are there and small enough together.
    async fn check_inputs(&self, blobs: &[(String, Digest)]) -> Result<(), Refusal> {
        let mut total = 0;
        for (i, (path, digest)) in blobs.iter().enumerate() {
            let bytes = self.store.blob_bytes(*digest).await.map_err(store_away)?;
            let missing = || Refusal::Invalid(format!("submit.blobs[{i}]: {path} ({digest}) was not uploaded"));
            total += bytes.ok_or_else(missing)?;
        }
        match total <= JOB_INPUT_BYTES_MAX {
            true => Ok(()),
            false => Err(Refusal::TooMuch(format!(
                "submit.blobs: the inputs have {total} bytes together, the most is {JOB_INPUT_BYTES_MAX}; put them \
                 where every worker sees them instead"
            ))),
        }
    }
}

fn store_away(e: StoreError) -> Refusal {
    Refusal::Unavailable(format!("{e}; training goes on, try again when it is back"))
}

#[async_trait]
impl Control for Service {
    async fn attach(&self, reports: Flow<NodeReport>) -> Result<Flow<NodeWant>, Refusal> {
        self.leading()?;
        let link = LinkId(self.links.fetch_add(1, Ordering::Relaxed));
        links::attach(link, reports, self.asks.clone()).await
    }
}

#[async_trait]
impl Api for Service {
    async fn submit(&self, submit: Submit) -> Result<JobId, Refusal> {
        self.leading()?;
        let spec = JobSpec::from_json(&submit.spec_json).map_err(Refusal::Invalid)?;
        self.check_inputs(&submit.blobs).await?;
        let undrawn = |e: std::io::Error| Refusal::Internal(format!("draw a job id and secret: {e}"));
        let job = draw::job_id(&spec.name).map_err(undrawn)?;
        let secret = draw::secret().map_err(undrawn)?;
        // A resumed run goes on in its directory.
        let run_dir = self.runs.join(submit.resume.as_ref().unwrap_or(&job).as_str()).display().to_string();
        let submit = Submit { spec_json: spec.canonical_json(), ..submit };
        self.change(Change::Submit { submit, job: job.clone(), secret, run_dir }).await?;
        Ok(job)
    }

    async fn jobs(&self) -> Result<Vec<JobStatus>, Refusal> {
        self.ask(|answer| Ask::Jobs { answer }).await
    }

    async fn status(&self, job: JobId) -> Result<JobStatus, Refusal> {
        let found = self.ask(|answer| Ask::Job { job: job.clone(), answer }).await?;
        found.ok_or_else(|| Refusal::NotFound(elastic_control::Refusal::UnknownJob(job).to_string()))
    }

    async fn nodes(&self) -> Result<Vec<NodeStatus>, Refusal> {
        self.ask(|answer| Ask::Nodes { answer }).await
    }

    async fn scale(&self, scale: Scale) -> Result<(), Refusal> {
        self.change(Change::Scale(scale)).await
    }

    async fn drain(&self, node: NodeId) -> Result<(), Refusal> {
        self.change(Change::Drain(node)).await
    }

    async fn cancel(&self, job: JobId) -> Result<(), Refusal> {
        self.change(Change::Cancel(job)).await
    }

    async fn put_blob(&self, digest: Digest, bytes: Bytes) -> Result<(), Refusal> {
        self.leading()?;
        self.store.put_blob(digest, bytes).await.map_err(store_away)
    }

    async fn has_blob(&self, digest: Digest) -> Result<bool, Refusal> {
        self.leading()?;
        Ok(self.store.blob_bytes(digest).await.map_err(store_away)?.is_some())
    }

    async fn get_blob(&self, digest: Digest) -> Result<Bytes, Refusal> {
        self.leading()?;
        let found = self.store.get_blob(digest).await.map_err(store_away)?;
        found.ok_or_else(|| Refusal::NotFound(format!("no input with digest {digest}")))
    }

    async fn logs(&self, query: LogsQuery) -> Result<Flow<LogPiece>, Refusal> {
        let job = self.status(query.job.clone()).await?;
        logs::gather(self.clone(), query, job, Start::Beginning).await
    }

    async fn make_token(&self, make: MakeToken) -> Result<String, Refusal> {
        if self.access.is_open() {
            let words = "nobody is asked for a token here: start the coordinator with --token-file first";
            return Err(Refusal::NotNow(words.into()));
        }
        self.leading()?;
        let MakeToken { name, role, ttl_ms } = make;
        let text = token_text(&name, &draw::token().map_err(|e| Refusal::Internal(format!("draw a token: {e}")))?);
        let now = unix_ms();
        let token = Token {
            name,
            role,
            digest: Digest::of(text.as_bytes()),
            made_unix_ms: now,
            expires_unix_ms: now.saturating_add(ttl_ms),
        };
        self.change(Change::KeepToken(token)).await?;
        Ok(text)
    }

    async fn tokens(&self) -> Result<Vec<TokenInfo>, Refusal> {
        let tokens = self.ask(|answer| Ask::Tokens { answer }).await?;
        let info = |t: Token| TokenInfo {
            name: t.name,
            role: t.role,
            made_unix_ms: t.made_unix_ms,
            expires_unix_ms: t.expires_unix_ms,
        };
        Ok(tokens.into_iter().map(info).collect())
    }

    async fn revoke_token(&self, name: TokenName) -> Result<(), Refusal> {
        self.change(Change::RevokeToken(name)).await
    }

    async fn health(&self) -> Health {
        let (leads, leader, late) = match &*self.role.borrow() {
            Role::Leader { term, late } => (Some(*term), Some(self.advertise.clone()), late.clone()),
            Role::Standby { leader } => (None, leader.clone(), None),
        };
        Health { leads, leader, store_away: self.store.trouble().or(late) }
    }
}

/// A job's inputs together: a handful of files of the largest size.
const JOB_INPUT_BYTES_MAX: u64 = 4 * BLOB_BYTES_MAX as u64;
