//! Every domain value survives the wire; whatever bytes arrive, the answer is a value or an error.

mod domain;

use bytes::BytesMut;
use elastic_proto::framed::{FrameError, Framed};
use elastic_proto::pb;
use elastic_spec::api::{JobStatus, LogPiece, NodeStatus, Scale, Submit};
use elastic_spec::facts::{NodeReport, NodeWant, WorkerUp};
use elastic_spec::view::{View, WorkerOrder};
use proptest::prelude::*;
use prost::Message;
use std::fmt::Debug;

/// Through bytes and back.
fn survives<D, P>(value: D)
where
    D: Clone + Debug + PartialEq + TryFrom<P>,
    D::Error: Debug,
    P: From<D> + Message + Default,
{
    let bytes = P::from(value.clone()).encode_to_vec();
    let back = D::try_from(P::decode(bytes.as_slice()).expect("our own bytes")).expect("our own value");
    assert_eq!(back, value);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn reports_survive_the_wire(value in domain::report()) {
        survives::<NodeReport, pb::NodeReport>(value);
    }

    #[test]
    fn wants_survive_the_wire(value in domain::want()) {
        survives::<NodeWant, pb::NodeWant>(value);
    }

    #[test]
    fn views_survive_the_wire(value in domain::view()) {
        survives::<View, pb::View>(value);
    }

    #[test]
    fn statuses_survive_the_wire(job in domain::job_status(), node in domain::node_status()) {
        survives::<JobStatus, pb::JobStatus>(job);
        survives::<NodeStatus, pb::NodeStatus>(node);
    }

    #[test]
    fn requests_survive_the_wire(scale in domain::scale(), piece in domain::log_piece()) {
        survives::<Scale, pb::ScaleRequest>(scale);
        survives::<LogPiece, pb::LogPiece>(piece);
    }

    #[test]
    fn framed_messages_come_out_whole_however_the_bytes_are_cut(
        ups in prop::collection::vec(domain::worker_up(), 1..5),
        step in 1usize..200,
    ) {
        let mut sent = BytesMut::new();
        ups.iter().cloned().for_each(|up| up.encode(&mut sent));
        let (mut received, mut out) = (BytesMut::new(), Vec::new());
        for piece in sent.chunks(step) {
            received.extend_from_slice(piece);
            while let Some(up) = WorkerUp::decode(&mut received).expect("our own bytes") {
                out.push(up);
            }
        }
        prop_assert_eq!(out, ups);
        prop_assert!(received.is_empty());
    }

    #[test]
    fn orders_survive_framing(order in domain::order()) {
        let mut bytes = BytesMut::new();
        order.clone().encode(&mut bytes);
        prop_assert_eq!(WorkerOrder::decode(&mut bytes).unwrap(), Some(order));
    }

    #[test]
    fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        door::<NodeReport, pb::NodeReport>(&bytes);
        door::<NodeWant, pb::NodeWant>(&bytes);
        door::<Submit, pb::SubmitRequest>(&bytes);
        door::<JobStatus, pb::JobStatus>(&bytes);
        let mut framed = BytesMut::from(bytes.as_slice());
        while let Ok(Some(_)) = WorkerUp::decode(&mut framed) {}
    }

    /// Bytes that are nearly right reach deeper than random ones.
    #[test]
    fn a_flipped_byte_gives_a_value_or_an_error(
        report in domain::report(),
        want in domain::want(),
        at in any::<proptest::sample::Index>(),
        flip in 1u8..,
    ) {
        let mut bytes = pb::NodeReport::from(report).encode_to_vec();
        let place = at.index(bytes.len());
        bytes[place] ^= flip;
        door::<NodeReport, pb::NodeReport>(&bytes);
        let mut bytes = pb::NodeWant::from(want).encode_to_vec();
        if !bytes.is_empty() {
            let place = at.index(bytes.len());
            bytes[place] ^= flip;
        }
        door::<NodeWant, pb::NodeWant>(&bytes);
    }
}

fn door<D: TryFrom<P>, P: Message + Default>(bytes: &[u8]) {
    if let Ok(pb) = P::decode(bytes) {
        let _ = D::try_from(pb);
    }
}

#[test]
fn a_length_beyond_the_bound_is_refused_before_its_bytes_are_waited_for() {
    let mut bytes = BytesMut::from(&[0xff, 0xff, 0xff, 0x7f][..]);
    assert!(matches!(WorkerUp::decode(&mut bytes), Err(FrameError::TooLong(_))));
    let mut bytes = BytesMut::from(&[0xff; 9][..]);
    assert_eq!(WorkerUp::decode(&mut bytes), Err(FrameError::Length));
}

#[test]
fn words_that_are_too_long_are_cut_by_the_sender() {
    let mut status = plain_status();
    status.error = Some("é".repeat(10_000));
    let refused = elastic_spec::facts::WorkerStatus::try_from(status.clone()).unwrap_err();
    assert_eq!(refused.to_string(), "status.error: has 20000 bytes, the most is 4096");
    status.error = None;
    let mut long = elastic_spec::facts::WorkerStatus::try_from(status).unwrap();
    long.error = Some("é".repeat(10_000));
    let sent = pb::WorkerStatus::from(long);
    assert!(elastic_spec::facts::WorkerStatus::try_from(sent).is_ok());
}

/// Mistakes deep inside are told with their whole path.
#[test]
fn a_mistake_is_told_with_the_path_of_its_field() {
    let mut report = plain_report();
    let mut worker = pb::WorkerReport { job: "digits".into(), slot: 1, attempt: 1, worker: 7, process: None };
    let mut status = plain_status();
    status.view = Some(pb::View { job: "digits".into(), pace: 1, shard_map: vec![0, 0, 0], ..pb::View::default() });
    check(report.clone(), "report", "ok");
    report.workers = vec![worker.clone(); 2];
    check(report.clone(), "report.workers[0].process", "is missing");
    worker.process =
        Some(pb::worker_report::Process::Running(pb::Running { silent_ms: 0, status: Some(status.clone()) }));
    report.workers = vec![worker.clone()];
    check(report.clone(), "report.workers[0].running.status.view.epoch", "is missing");
    status.view.as_mut().unwrap().epoch = Some(pb::Epoch { term: 1, r#gen: 1 });
    worker.process = Some(pb::worker_report::Process::Running(pb::Running { silent_ms: 0, status: Some(status) }));
    report.workers = vec![worker];
    check(report.clone(), "report.workers[0].running.status.view", "the shard map names each of a power of two");
    report.workers.clear();
    report.slots = 70_000;
    check(report.clone(), "report.slots", "70000 is above 65535");
    report.slots = 1;
    report.log_address = "nowhere".into();
    check(report, "report.log_address", "\"nowhere\" is not host:port");
}

fn check(pb: pb::NodeReport, path: &str, problem: &str) {
    let told = NodeReport::try_from(pb).map_or_else(|e| e.to_string(), |_| format!("{path}: ok"));
    assert!(told.starts_with(&format!("{path}: ")) && told.contains(problem), "{told:?} tells {path}: {problem}");
}

fn plain_report() -> pb::NodeReport {
    pb::NodeReport {
        node: "n1".into(),
        incarnation: 1,
        slots: 2,
        host: "n1.example".into(),
        log_address: "n1.example:7071".into(),
        seen: Some(pb::Epoch::default()),
        ..pb::NodeReport::default()
    }
}

fn plain_status() -> pb::WorkerStatus {
    pb::WorkerStatus { address: "n1:9000".into(), phase: 1, ..pb::WorkerStatus::default() }
}
