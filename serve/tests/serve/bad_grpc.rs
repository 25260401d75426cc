//! Bad requests over gRPC, and good ones: the same rows, the same bits, the same causes.

use crate::models::{expected, mlp, put, rows};
use crate::up::Up;
use bytes::Bytes;
use elastic_serve::grpc::wire::grpc_inference_service_client::GrpcInferenceServiceClient;
use elastic_serve::grpc::wire::infer_parameter::ParameterChoice;
use elastic_serve::grpc::wire::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use elastic_serve::grpc::wire::*;
use elastic_serve::http::body::Reply;
use elastic_serve::limits::{BODIES_BYTES_MAX, BODY_BYTES_MAX};
use elastic_serve::repository::bundles;
use elastic_serve::{Config, Keys};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{Service, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

pub fn on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

pub async fn client(up: &Up) -> GrpcInferenceServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", up.grpc)).unwrap();
    GrpcInferenceServiceClient::new(endpoint.connect().await.unwrap()).max_decoding_message_size(usize::MAX)
}

pub fn good() -> ModelInferRequest {
    let contents = InferTensorContents { fp32_contents: rows(1, 0).concat(), ..Default::default() };
    let input = InferInputTensor {
        name: "input".into(),
        datatype: "FP32".into(),
        shape: vec![1, 64],
        contents: Some(contents),
        ..Default::default()
    };
    ModelInferRequest { model_name: "digits".into(), id: "9".into(), inputs: vec![input], ..Default::default() }
}

fn up(dir: &std::path::Path) -> Up {
    put(&dir.join("digits/1"), &mlp(0));
    Up::new(dir)
}

#[test]
fn typed_and_raw_tensors_have_the_bundles_bits() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(dir.path());
    let logits = expected(&mlp(0), &rows(1, 0));
    on(async {
        let mut client = client(&up).await;
        let typed = client.model_infer(good()).await.unwrap().into_inner();
        assert_eq!((typed.id.as_str(), typed.model_version.as_str()), ("9", "1"));
        assert_eq!(typed.outputs[0].contents.as_ref().unwrap().fp32_contents, logits);
        let mut request = good();
        request.inputs[0].contents = None;
        let bytes: Vec<u8> = rows(1, 0).concat().iter().flat_map(|v| v.to_le_bytes()).collect();
        request.raw_input_contents = vec![bytes.into()];
        let raw = client.model_infer(request).await.unwrap().into_inner();
        let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(raw.raw_output_contents[0], bytes);
        assert!(raw.outputs[0].contents.is_none());
    });
}

#[test]
fn a_stream_answers_in_order_and_goes_on_after_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(dir.path());
    on(async {
        let mut client = client(&up).await;
        let wrong = ModelInferRequest { model_name: "x".into(), ..good() };
        let stream = tokio_stream::iter([good(), wrong, good()]);
        let mut answers = client.model_stream_infer(stream).await.unwrap().into_inner();
        let mut said = Vec::new();
        while let Some(answer) = answers.message().await.unwrap() {
            said.push(answer.error_message);
        }
        assert_eq!(said, ["", "unknown model 'x'", ""]);
    });
}

/// A stream lives as long as its client wants; its key does not have to.
#[test]
fn a_stream_ends_when_its_key_is_no_key_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let (models, file) = (dir.path().join("models"), dir.path().join("keys"));
    put(&models.join("digits/1"), &mlp(0));
    std::fs::write(&file, "0123456789abcdef").unwrap();
    let config = Config { keys: Keys::open(&file).unwrap(), ..Config::new(models) };
    let up = Up::with(config, bundles());
    on(async {
        let mut client = client(&up).await;
        let (requests, waiting) = tokio::sync::mpsc::channel(4);
        let stream = tokio_stream::StreamExt::chain(tokio_stream::once(good()), ReceiverStream::new(waiting));
        let mut request = Request::new(stream);
        request.metadata_mut().insert("authorization", "Bearer 0123456789abcdef".parse().unwrap());
        let mut answers = client.model_stream_infer(request).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().error_message, "");
        std::fs::write(&file, "fedcba9876543210").unwrap();
        for _ in 0..300 {
            requests.send(good()).await.unwrap();
            match answers.message().await {
                Ok(answer) => assert_eq!(answer.unwrap().error_message, ""),
                Err(refused) => return assert_eq!(refused.code(), Code::Unauthenticated, "{refused}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the stream goes on");
    });
}

#[test]
fn health_metadata_configuration_statistics_and_index_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(dir.path());
    on(async {
        let mut client = client(&up).await;
        assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
        assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
        let name = || "digits".to_string();
        let metadata = ModelMetadataRequest { name: name(), version: String::new() };
        let metadata = client.model_metadata(metadata).await.unwrap().into_inner();
        assert_eq!((metadata.inputs[0].shape.as_slice(), metadata.outputs.len()), (&[-1, 64][..], 4));
        client.model_infer(good()).await.unwrap();
        let stats = ModelStatisticsRequest { name: name(), version: String::new() };
        let stats = client.model_statistics(stats).await.unwrap().into_inner();
        assert_eq!(stats.model_stats[0].inference_count, 1);
        let config = ModelConfigRequest { name: name(), version: "1".into() };
        assert_eq!(client.model_config(config).await.unwrap().into_inner().config.unwrap().max_batch_size, 64);
        let index = client.repository_index(RepositoryIndexRequest::default()).await.unwrap().into_inner();
        assert_eq!((index.models[0].name.as_str(), index.models[0].state.as_str()), ("digits", "READY"));
        let model_name = name();
        client
            .repository_model_unload(RepositoryModelUnloadRequest { model_name, ..Default::default() })
            .await
            .unwrap();
        let ready = ModelReadyRequest { name: name(), version: String::new() };
        assert!(!client.model_ready(ready.clone()).await.unwrap().into_inner().ready);
        assert_eq!(client.model_infer(good()).await.unwrap_err().code(), Code::Unavailable);
        let model_name = name();
        client.repository_model_load(RepositoryModelLoadRequest { model_name, ..Default::default() }).await.unwrap();
        assert!(client.model_ready(ready).await.unwrap().into_inner().ready);
    });
}

#[test]
fn a_message_beyond_the_bound_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(dir.path());
    on(async {
        let mut request = good();
        request.inputs[0].contents = None;
        request.raw_input_contents = vec![vec![0; 66 << 20].into()];
        let mut client = client(&up).await;
        let refused = client.model_infer(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
        assert!(refused.message().contains("too large"), "{refused}");
        assert!(client.model_infer(good()).await.is_ok());
    });
}

/// What is said at once to a call with this body.
fn call(up: &Up, packing: Option<&str>, body: Reply) -> impl Future<Output = Status> + Send + 'static {
    call_of(up, "ModelInfer", packing, body)
}

fn call_of(up: &Up, name: &str, packing: Option<&str>, body: Reply) -> impl Future<Output = Status> + Send + 'static {
    let path = format!("/inference.GRPCInferenceService/{name}");
    let request = http::Request::post(format!("http://{}{path}", up.grpc));
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    let request = packing.into_iter().fold(request, |request, packing| request.header("grpc-encoding", packing));
    let request = request.body(tonic::body::Body::new(body)).unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", up.grpc)).unwrap();
    async move {
        let mut channel = endpoint.connect().await.unwrap();
        std::future::poll_fn(|cx| Service::poll_ready(&mut channel, cx)).await.unwrap();
        let answer = channel.call(request).await.unwrap();
        Status::from_header_map(answer.headers()).expect("the head says it all")
    }
}

/// The same for one message, with the flag that says whether it is packed.
async fn raw(up: &Up, flag: u8, packing: Option<&str>, message: &[u8]) -> Status {
    let body = [&[flag], &(message.len() as u32).to_be_bytes()[..], message].concat();
    call(up, packing, Reply::Whole(Some(body.into()))).await
}

/// Messages that come hold their part of the budget of all bodies, and who comes too late is told to come again.
#[test]
fn messages_that_come_share_the_budget_of_all_bodies() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(dir.path());
    on(async {
        // So many bytes are announced, and none of them comes.
        let announced = [&[0][..], &(BODY_BYTES_MAX as u32).to_be_bytes()].concat();
        let stuck = || {
            let pieces = tokio_stream::StreamExt::chain(
                tokio_stream::once(Bytes::from(announced.clone())),
                tokio_stream::pending(),
            );
            call(&up, None, Reply::Live(Box::pin(pieces)))
        };
        let is_full = || up.shared.bodies.take(BODY_BYTES_MAX).is_err();
        let mut held = tokio::task::JoinSet::new();
        for _ in 0..BODIES_BYTES_MAX / BODY_BYTES_MAX {
            held.spawn(stuck());
        }
        until("all that fit have begun", is_full).await;
        let refused = stuck().await;
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("bodies of other requests hold"), "{refused}");
        assert!(held.try_join_next().is_none(), "those that were let in wait for the rest of their message");
        assert!(client(&up).await.model_infer(good()).await.is_ok(), "a small one is answered");
        held.shutdown().await;
        until("who went away has given back its part", || up.shared.bodies.take(BODIES_BYTES_MAX).is_ok()).await;
    });
}

/// They are answered without a key, so that nobody could be told from anybody.
#[test]
fn probes_hold_nothing_of_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(dir.path());
    on(async {
        for name in ["ServerLive", "ServerReady"] {
            let announced = [&[0][..], &(BODY_BYTES_MAX as u32).to_be_bytes()].concat();
            let pieces =
                tokio_stream::StreamExt::chain(tokio_stream::once(Bytes::from(announced)), tokio_stream::pending());
            let refused = call_of(&up, name, None, Reply::Live(Box::pin(pieces))).await;
            assert_eq!(refused.code(), Code::OutOfRange, "{name}: {refused}");
            assert!(refused.message().contains("too large: at most 1024"), "{refused}");
        }
        assert!(up.shared.bodies.take(BODIES_BYTES_MAX).is_ok());
    });
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within 15 s: {what}");
}

/// Nothing is ever unpacked, so that a small message stays one.
#[test]
fn a_packed_message_is_refused_whatever_it_would_become() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(dir.path());
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(&vec![0; 1 << 30]).unwrap();
    let bomb = bomb.finish().unwrap();
    on(async {
        for packing in ["gzip", "deflate", "zstd"] {
            let refused = raw(&up, 1, Some(packing), &bomb).await;
            assert_eq!(refused.code(), Code::Unimplemented, "{packing}: {refused}");
        }
        let refused = raw(&up, 1, None, &bomb).await;
        assert_eq!(refused.code(), Code::Internal, "{refused}");
        assert!(refused.message().contains("compressed"), "{refused}");
        assert!(client(&up).await.model_infer(good()).await.is_ok());
    });
}

#[test]
fn sixteen_bad_calls_are_refused_each_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(dir.path());
    let changed = |change: &dyn Fn(&mut ModelInferRequest)| {
        let mut request = good();
        change(&mut request);
        request
    };
    let raw = |bytes: usize| {
        changed(&|r| {
            r.inputs[0].contents = None;
            r.raw_input_contents = vec![vec![0; bytes].into()];
        })
    };
    let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
    let output = |name: &str| InferRequestedOutputTensor { name: name.into(), ..Default::default() };
    let cases: Vec<(ModelInferRequest, Code, &str)> = vec![
        (changed(&|r| r.model_name = "x".into()), Code::NotFound, "unknown model 'x'"),
        (changed(&|r| r.model_version = "9".into()), Code::NotFound, "unknown version 9"),
        (changed(&|r| r.model_version = "new".into()), Code::InvalidArgument, "not a whole number"),
        (changed(&|r| r.inputs.clear()), Code::InvalidArgument, "the request has 0"),
        (changed(&|r| r.inputs.push(InferInputTensor::default())), Code::InvalidArgument, "the request has 2"),
        (changed(&|r| r.inputs[0].name = "y".into()), Code::InvalidArgument, "unknown input 'y'"),
        (changed(&|r| r.inputs[0].datatype = "FLOAT".into()), Code::InvalidArgument, "no datatype 'FLOAT'"),
        (changed(&|r| r.inputs[0].datatype = "FP64".into()), Code::InvalidArgument, "the model takes FP32"),
        (changed(&|r| r.inputs[0].shape = vec![1, 65]), Code::InvalidArgument, "the model takes [-1, 64]"),
        (changed(&|r| r.inputs[0].shape = vec![2, 64]), Code::InvalidArgument, "has 64 numbers, its shape has 128"),
        (changed(&|r| r.inputs[0].contents = None), Code::InvalidArgument, "no contents"),
        (changed(&|r| r.raw_input_contents = vec![vec![0; 256].into()]), Code::InvalidArgument, "one of them"),
        (raw(255), Code::InvalidArgument, "has 255 bytes"),
        (
            changed(&|r| r.raw_input_contents = vec![vec![0; 256].into(); 2]),
            Code::InvalidArgument,
            "'raw_input_contents' has 2 items for 1 inputs",
        ),
        (changed(&|r| r.outputs.push(output("z"))), Code::InvalidArgument, "no output 'z'"),
        (
            changed(&|r| {
                let choice = ParameterChoice::StringParam("soon".into());
                r.parameters.insert("timeout".into(), parameter(choice));
            }),
            Code::InvalidArgument,
            "'timeout' must be a whole number",
        ),
    ];
    assert_eq!(cases.len(), 16);
    on(async {
        let mut client = client(&up).await;
        for (request, code, why) in cases {
            let status = client.model_infer(Request::new(request)).await.unwrap_err();
            assert_eq!(status.code(), code, "{why}: {status}");
            assert!(status.message().contains(why), "expected \"{why}\", got \"{}\"", status.message());
        }
        assert!(client.model_infer(good()).await.is_ok());
    });
}
