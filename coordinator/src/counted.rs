//! Counts calls by method and outcome on their way to the service.

use crate::meters::Meters;
use crate::service::Service;
use bytes::Bytes;
use elastic_proto::Refusal;
use elastic_proto::server::{Api, Control, Flow, async_trait};
use elastic_spec::api::{Health, JobStatus, LogPiece, LogsQuery, MakeToken, NodeStatus, Scale, Submit, TokenInfo};
use elastic_spec::facts::{NodeReport, NodeWant};
use elastic_spec::{Digest, JobId, NodeId, TokenName};
use std::sync::Arc;

pub(crate) struct Counted {
    pub service: Arc<Service>,
    pub meters: Arc<Meters>,
}

impl Counted {
    async fn count<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let answer = call.await;
        self.meters.requests.add([method, answer.as_ref().map_or_else(outcome, |_| "ok")], 1);
        answer
    }
}

fn outcome(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Invalid(_) => "invalid",
        Refusal::NotFound(_) => "not_found",
        Refusal::NotNow(_) => "not_now",
        Refusal::Standby { .. } => "standby",
        Refusal::Unavailable(_) => "unavailable",
        Refusal::TooMuch(_) => "too_much",
        Refusal::Internal(_) => "internal",
        Refusal::Unauthenticated(_) | Refusal::Forbidden(_) => "refused",
    }
}

#[async_trait]
impl Control for Counted {
    async fn attach(&self, reports: Flow<NodeReport>) -> Result<Flow<NodeWant>, Refusal> {
        self.count("attach", self.service.attach(reports)).await
    }
}

#[async_trait]
impl Api for Counted {
    async fn submit(&self, submit: Submit) -> Result<JobId, Refusal> {
        self.count("submit", self.service.submit(submit)).await
    }

    async fn jobs(&self) -> Result<Vec<JobStatus>, Refusal> {
        self.count("jobs", self.service.jobs()).await
    }

    async fn status(&self, job: JobId) -> Result<JobStatus, Refusal> {
        self.count("status", self.service.status(job)).await
    }

    async fn nodes(&self) -> Result<Vec<NodeStatus>, Refusal> {
        self.count("nodes", self.service.nodes()).await
    }

    async fn scale(&self, scale: Scale) -> Result<(), Refusal> {
        self.count("scale", self.service.scale(scale)).await
    }

    async fn drain(&self, node: NodeId) -> Result<(), Refusal> {
        self.count("drain", self.service.drain(node)).await
    }

    async fn cancel(&self, job: JobId) -> Result<(), Refusal> {
        self.count("cancel", self.service.cancel(job)).await
    }

    async fn put_blob(&self, digest: Digest, bytes: Bytes) -> Result<(), Refusal> {
        self.count("put_blob", self.service.put_blob(digest, bytes)).await
    }

    async fn has_blob(&self, digest: Digest) -> Result<bool, Refusal> {
        self.count("has_blob", self.service.has_blob(digest)).await
    }

    async fn get_blob(&self, digest: Digest) -> Result<Bytes, Refusal> {
        self.count("get_blob", self.service.get_blob(digest)).await
    }

    async fn logs(&self, query: LogsQuery) -> Result<Flow<LogPiece>, Refusal> {
        self.count("logs", self.service.logs(query)).await
    }

    async fn make_token(&self, make: MakeToken) -> Result<String, Refusal> {
        self.count("make_token", self.service.make_token(make)).await
    }

    async fn tokens(&self) -> Result<Vec<TokenInfo>, Refusal> {
        self.count("tokens", self.service.tokens()).await
    }

    async fn revoke_token(&self, name: TokenName) -> Result<(), Refusal> {
        self.count("revoke_token", self.service.revoke_token(name)).await
    }

    async fn health(&self) -> Health {
        self.meters.requests.add(["health", "ok"], 1);
        self.service.health().await
    }
}
