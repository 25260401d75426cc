//! Malformed wire messages: each gets a clear error that names the field, nothing is stored, and the
//! coordinator goes on.

use crate::cluster::{self, leader, start, submission};
use elastic_coordinator::store::{Memory, Store};
use elastic_proto::pb;
use elastic_spec::Digest;
use elastic_spec::limits::{BLOB_BYTES_MAX, SPEC_BYTES_MAX};
use pb::{api_client::ApiClient, control_client::ControlClient};
use std::sync::Arc;
use tonic::transport::Channel;
use tonic::{Code, Status};

struct Caller {
    channel: Channel,
    errors: usize,
}

impl Caller {
    fn api(&self) -> ApiClient<Channel> {
        ApiClient::new(self.channel.clone())
    }

    /// The error has the code and says all of `words`.
    fn expect<T>(&mut self, answer: Result<T, Status>, code: Code, words: &[&str]) {
        let Err(status) = answer else { panic!("{words:?}: was taken") };
        assert_eq!(status.code(), code, "{words:?}: {status}");
        for word in words {
            assert!(status.message().contains(word), "{:?} says {word:?}", status.message());
        }
        self.errors += 1;
    }

    async fn refused_submit(&mut self, change: impl FnOnce(&mut pb::SubmitRequest), words: &[&str]) {
        let mut request = pb::SubmitRequest::from(submission("digits"));
        change(&mut request);
        let answer = self.api().submit(request).await;
        self.expect(answer, Code::InvalidArgument, words);
    }

    async fn refused_blob(&mut self, pieces: Vec<pb::BlobPiece>, code: Code, words: &[&str]) {
        let answer = self.api().put_blob(tokio_stream::iter(pieces)).await;
        self.expect(answer, code, words);
    }

    async fn refused_report(&mut self, change: impl FnOnce(&mut pb::NodeReport), words: &[&str]) {
        let mut bad = pb::NodeReport::from(cluster::report("n1"));
        change(&mut bad);
        let reports = tokio_stream::iter([bad]);
        let answer = ControlClient::new(self.channel.clone()).attach(reports).await;
        self.expect(answer, Code::InvalidArgument, words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_are_refused_by_name_and_leave_nothing_behind() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let running = start(store.clone());
    let coordinator = leader(&running.address).await;
    let channel = Channel::from_shared(format!("http://{}", running.address)).unwrap().connect().await.unwrap();
    let mut caller = Caller { channel, errors: 0 };
    submits(&mut caller).await;
    references(&mut caller).await;
    blobs(&mut caller, &store).await;
    reports(&mut caller).await;
    statuses(&mut caller).await;
    foreign_bytes(&mut caller).await;
    assert!(caller.errors >= 30, "{} kinds", caller.errors);
    assert_eq!(store.load().await.unwrap(), []);
    assert_eq!(coordinator.jobs().await.unwrap(), []);
    assert_eq!(coordinator.nodes().await.unwrap(), []);
    running.stop();
}

async fn submits(caller: &mut Caller) {
    caller.refused_submit(|s| s.spec_json = "{".into(), &["submit.spec_json: job spec:"]).await;
    caller.refused_submit(|s| s.spec_json.clear(), &["submit.spec_json: job spec:"]).await;
    let unknown = |s: &mut pb::SubmitRequest| s.spec_json = s.spec_json.replacen("\"model\"", "\"modell\"", 1);
    caller.refused_submit(unknown, &["submit.spec_json", "modell"]).await;
    let shards = |s: &mut pb::SubmitRequest| s.spec_json = s.spec_json.replacen("\"shards\":8", "\"shards\":7", 1);
    caller.refused_submit(shards, &["submit.spec_json", "shards"]).await;
    let workers = |s: &mut pb::SubmitRequest| {
        s.spec_json = s.spec_json.replacen("\"min_workers\":1", "\"min_workers\":3", 1);
    };
    caller.refused_submit(workers, &["submit.spec_json", "min_workers"]).await;
    let large = |s: &mut pb::SubmitRequest| s.spec_json = "x".repeat(SPEC_BYTES_MAX + 1);
    caller.refused_submit(large, &["submit.spec_json: has 524289 bytes, the most is 524288"]).await;
    let input = |path: &str, digest: &[u8]| pb::Input { path: path.into(), digest: digest.to_vec().into() };
    let short = input("/data.csv", &[1, 2, 3]);
    caller.refused_submit(|s| s.blobs = vec![short], &["submit.blobs[0].digest: has 3 bytes, a digest has 32"]).await;
    let nameless = input("", &[0; 32]);
    caller.refused_submit(|s| s.blobs = vec![nameless], &["submit.blobs[0].path: is empty"]).await;
    let many = vec![input("/data.csv", &[0; 32]); 65];
    caller.refused_submit(|s| s.blobs = many, &["submit.blobs: has 65 entries, the most is 64"]).await;
    let absent = input("/data.csv", &[0; 32]);
    caller.refused_submit(|s| s.blobs = vec![absent], &["submit.blobs[0]", "/data.csv", "was not uploaded"]).await;
    caller.refused_submit(|s| s.resume = Some("../etc".into()), &["submit.resume", "../etc"]).await;
}

async fn references(caller: &mut Caller) {
    let bad = "No Job";
    let answer = caller.api().status(pb::JobRef { job: bad.into() }).await;
    caller.expect(answer, Code::InvalidArgument, &["status.job: job id \"No Job\" is not"]);
    let answer = caller.api().cancel(pb::JobRef { job: String::new() }).await;
    caller.expect(answer, Code::InvalidArgument, &["cancel.job"]);
    let answer = caller.api().drain(pb::NodeRef { node: "/".into() }).await;
    caller.expect(answer, Code::InvalidArgument, &["drain.node: node name"]);
    for (min_workers, max_workers, words) in [
        (0, 1, "scale.min_workers: is 0"),
        (3, 2, "scale.max_workers: 2 is below min_workers = 3"),
        (1, 70_000, "scale.max_workers: 70000 is above 65535"),
        (1, 2_000, "scale.max_workers: 2000 is above 1024"),
    ] {
        let answer = caller.api().scale(pb::ScaleRequest { job: "a".into(), min_workers, max_workers }).await;
        caller.expect(answer, Code::InvalidArgument, &[words]);
    }
    let query = pb::LogsRequest { job: "a".into(), rank: Some(70_000), r#gen: None, follow: false };
    let answer = caller.api().logs(query).await;
    caller.expect(answer, Code::InvalidArgument, &["logs.rank: 70000 is above 65535"]);
}

async fn blobs(caller: &mut Caller, store: &Arc<dyn Store>) {
    let piece = |digest: Option<Vec<u8>>, bytes: &[u8]| pb::BlobPiece {
        digest: digest.map(Into::into),
        bytes: bytes.to_vec().into(),
    };
    let (wrong, invalid) = (Digest::of(b"other"), Code::InvalidArgument);
    let named = Some(wrong.0.to_vec());
    caller.refused_blob(vec![], invalid, &["blob: has no piece"]).await;
    caller.refused_blob(vec![piece(None, b"a")], invalid, &["blob[0].digest: is missing"]).await;
    caller.refused_blob(vec![piece(Some(vec![1]), b"a")], invalid, &["blob[0].digest: has 1 bytes"]).await;
    caller.refused_blob(vec![piece(named.clone(), b"a")], invalid, &["blob: has digest", "was announced as"]).await;
    let twice = vec![piece(named.clone(), b"a"), piece(named.clone(), b"b")];
    caller.refused_blob(twice, invalid, &["blob.digest: is named twice"]).await;
    let mib = vec![0; 1 << 20];
    let mut large = vec![piece(named, &[])];
    large.extend(vec![piece(None, &mib); BLOB_BYTES_MAX / mib.len() + 1]);
    caller.refused_blob(large, Code::ResourceExhausted, &["more than", "where every worker sees it"]).await;
    assert_eq!(store.blob_bytes(wrong).await.unwrap(), None);
    let answer = caller.api().has_blob(pb::BlobRef { digest: vec![0; 31].into() }).await;
    caller.expect(answer, invalid, &["has_blob.digest: has 31 bytes"]);
    let answer = caller.api().get_blob(pb::BlobRef::default()).await;
    caller.expect(answer, invalid, &["get_blob.digest: has 0 bytes"]);
}

async fn reports(caller: &mut Caller) {
    caller.refused_report(|r| r.node = "N 1".into(), &["report.node: node name \"N 1\""]).await;
    caller.refused_report(|r| r.incarnation = 0, &["report.incarnation: is 0"]).await;
    caller.refused_report(|r| r.slots = 1 << 20, &["report.slots: 1048576 is above"]).await;
    caller.refused_report(|r| r.host.clear(), &["report.host: is empty"]).await;
    caller.refused_report(|r| r.log_address = "n1:0".into(), &["report.log_address: \"n1:0\" is not host:port"]).await;
    caller.refused_report(|r| r.seen = None, &["report.seen: is missing"]).await;
    let worker = pb::WorkerReport { job: "a".into(), ..pb::WorkerReport::default() };
    let none = vec![worker.clone()];
    caller.refused_report(|r| r.workers = none, &["report.workers[0].process: is missing"]).await;
    let many = vec![worker; 2000];
    caller.refused_report(|r| r.workers = many, &["report.workers: has 2000 entries, the most is 1024"]).await;
    let none = ControlClient::new(caller.channel.clone()).attach(tokio_stream::iter([])).await;
    caller.expect(none, Code::InvalidArgument, &["report: the stream ended before the first one"]);
}

async fn statuses(caller: &mut Caller) {
    let status = pb::WorkerStatus { address: "n1:1".into(), phase: 1, ..pb::WorkerStatus::default() };
    let with = |status: pb::WorkerStatus| {
        let running = pb::Running { silent_ms: 0, status: Some(status) };
        let process = Some(pb::worker_report::Process::Running(running));
        vec![pb::WorkerReport { job: "a".into(), slot: 0, attempt: 1, worker: 1, process }]
    };
    let path = |rest: &str| format!("report.workers[0].running.status.{rest}");
    let phase = with(pb::WorkerStatus { phase: 9, ..status.clone() });
    caller.refused_report(|r| r.workers = phase, &[&path("phase: 9 is not a phase")]).await;
    let view = pb::View { job: "a".into(), epoch: Some(pb::Epoch::default()), pace: 1, ..pb::View::default() };
    let map = pb::View { shard_map: vec![0], ..view.clone() };
    let map = with(pb::WorkerStatus { view: Some(map), ..status.clone() });
    caller.refused_report(|r| r.workers = map, &[&path("view: the shard map")]).await;
    let twice = pb::ViewMember { worker: 1, node: "n1".into(), address: "n1:1".into(), role: 2 };
    let twice = pb::View { members: vec![twice; 2], ..view };
    let twice = with(pb::WorkerStatus { view: Some(twice), ..status.clone() });
    caller.refused_report(|r| r.workers = twice, &[&path("view: a worker is named twice")]).await;
    let published = pb::Published { path: "/c".into(), ..pb::Published::default() };
    let published = with(pb::WorkerStatus { published: Some(published), ..status });
    caller.refused_report(|r| r.workers = published, &[&path("published.weights_sha256: has 0 bytes")]).await;
}

/// Bytes of one message where another is expected.
async fn foreign_bytes(caller: &mut Caller) {
    let mut grpc = tonic::client::Grpc::new(caller.channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<pb::NodeReport, pb::SubmitReply>::default();
    let report = tonic::Request::new(pb::NodeReport::from(cluster::report("n1")));
    let answer = grpc.unary(report, "/elastic.v1.Api/Submit".parse().unwrap(), codec).await;
    caller.expect(answer, Code::Internal, &["decode"]);
}
