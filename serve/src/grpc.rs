//! The open inference protocol over gRPC. A request is read into the same rows as over REST, and computed the same way.
//!
//! Tensors that came as raw bytes are answered as raw bytes, those that came as typed contents as typed contents.

mod gate;
mod read;
mod serve;
mod weighed;
mod write;

pub(crate) use serve::serve;

use crate::clock::now_us;
use crate::outputs::{Values, give};
use crate::refusal::Refusal;
use crate::serving::{Counted, Loaded, Which, deadline_us};
use crate::state::Shared;
use crate::stats::Counts;
use elastic_spec::access::Role;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

pub mod wire {
    //! As the compiler of `proto/inference.proto` writes it.
    tonic::include_proto!("inference");
}

use wire::grpc_inference_service_server::GrpcInferenceService;
use wire::*;

pub struct Service {
    shared: Arc<Shared>,
}

type Reply<T> = Result<Response<T>, Status>;

impl Service {
    fn find(&self, name: &str, version: &str) -> Result<Arc<Loaded>, Refusal> {
        self.shared.find(name, &Which::parse(version)?)
    }
}

/// One request, over a call or within a stream.
async fn infer(
    shared: &Shared,
    request: ModelInferRequest,
    timeout: Option<Duration>,
) -> Result<ModelInferResponse, Refusal> {
    let start_us = now_us();
    let loaded = shared.find(&request.model_name, &Which::parse(&request.model_version)?)?;
    let counted = Counted::new(&loaded, start_us);
    let answered = async {
        let ask = read::read(loaded.face(), request)?;
        let deadline_us = deadline_us(start_us, ask.timeout.or(timeout), shared.config.timeout);
        let (count, length) = (ask.rows.count(), ask.rows.length());
        let done = loaded.infer(ask.rows, deadline_us).await?;
        let given = give(loaded.face(), &ask.wanted, done.logits, count, length);
        Ok((write::answer(&loaded, ask.id, given, ask.raw), done.times))
    };
    match answered.await {
        Ok((answer, times)) => {
            counted.answered(&times);
            Ok(answer)
        }
        Err(refusal) => Err(counted.refused(refusal)),
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Reply<ServerLiveResponse> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Reply<ServerReadyResponse> {
        Ok(Response::new(ServerReadyResponse { ready: self.shared.readiness().is_ok() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Reply<ModelReadyResponse> {
        let ModelReadyRequest { name, version } = request.into_inner();
        Ok(Response::new(ModelReadyResponse { ready: self.find(&name, &version).is_ok() }))
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Reply<ServerMetadataResponse> {
        Ok(Response::new(ServerMetadataResponse {
            name: "elastic".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: crate::http::EXTENSIONS.map(String::from).to_vec(),
        }))
    }

    async fn model_metadata(&self, request: Request<ModelMetadataRequest>) -> Reply<ModelMetadataResponse> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        let loaded = self.find(&name, &version)?;
        let table = self.shared.serving.table();
        let versions = table.models.get(&name).map(|entry| entry.versions.keys().map(u64::to_string).collect());
        Ok(Response::new(write::metadata(&loaded, versions.unwrap_or_default())))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Reply<ModelInferResponse> {
        let timeout = read::timeout(request.metadata());
        Ok(Response::new(infer(&self.shared, request.into_inner(), timeout).await?))
    }

    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    /// Requests of a stream are answered one after the other; a wrong one is told, and the stream goes on.
    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Reply<Self::ModelStreamInferStream> {
        let shared = self.shared.clone();
        let headers = request.metadata().clone().into_headers();
        let answers = request.into_inner().then(move |request| {
            let shared = shared.clone();
            // As long as the key with which the stream was begun is one of this server's.
            let admitted = shared.config.keys.admit(&headers, Some(Role::Viewer));
            async move {
                let request = request?;
                admitted?;
                let id = request.id.clone();
                Ok(match infer(&shared, request, None).await {
                    Ok(answer) => {
                        ModelStreamInferResponse { error_message: String::new(), infer_response: Some(answer) }
                    }
                    Err(refusal) => ModelStreamInferResponse {
                        error_message: refusal.to_string(),
                        infer_response: Some(ModelInferResponse { id, ..ModelInferResponse::default() }),
                    },
                })
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn model_config(&self, request: Request<ModelConfigRequest>) -> Reply<ModelConfigResponse> {
        let ModelConfigRequest { name, version } = request.into_inner();
        let loaded = self.find(&name, &version)?;
        Ok(Response::new(ModelConfigResponse { config: Some(write::config(&loaded, &self.shared.config)) }))
    }

    async fn model_statistics(&self, request: Request<ModelStatisticsRequest>) -> Reply<ModelStatisticsResponse> {
        let ModelStatisticsRequest { name, version } = request.into_inner();
        let table = self.shared.serving.table();
        let model_stats = match name.as_str() {
            "" => table.models.values().flat_map(|entry| entry.versions.values()).map(|l| write::stats(l)).collect(),
            name => match Which::parse(&version)? {
                Which::Default => {
                    table.find(name, &Which::Default)?;
                    table.models[name].versions.values().map(|loaded| write::stats(loaded)).collect()
                }
                which => vec![write::stats(table.find(name, &which)?)],
            },
        };
        Ok(Response::new(ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(&self, request: Request<RepositoryIndexRequest>) -> Reply<RepositoryIndexResponse> {
        let only_ready = request.into_inner().ready;
        let rows = self.shared.index().into_iter().filter(|row| !only_ready || row.state == "READY");
        let model = |row: crate::state::IndexRow| repository_index_response::ModelIndex {
            name: row.name,
            version: row.version,
            state: row.state.into(),
            reason: row.reason,
        };
        Ok(Response::new(RepositoryIndexResponse { models: rows.map(model).collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Reply<RepositoryModelLoadResponse> {
        let RepositoryModelLoadRequest { model_name, parameters, .. } = request.into_inner();
        if let Some(key) = parameters.keys().find(|key| *key == "config" || key.starts_with("file:")) {
            let text = format!("'{}' is not taken over the wire", crate::refusal::quote(key));
            return Err(Refusal::Unimplemented(text).into());
        }
        self.shared.load(&model_name).await?;
        Ok(Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Reply<RepositoryModelUnloadResponse> {
        self.shared.unload(&request.into_inner().model_name).await?;
        Ok(Response::new(RepositoryModelUnloadResponse {}))
    }
}
