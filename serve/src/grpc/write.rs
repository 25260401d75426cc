//! What the server says, as gRPC's messages.

use super::wire::model_infer_response::InferOutputTensor;
use super::wire::model_metadata_response::TensorMetadata;
use super::wire::*;
use super::{Counts, Loaded, Values};
use crate::config::Config;
use crate::http::PLATFORM;
use crate::model::Port;
use crate::outputs::Given;
use crate::tensor::Datatype;
use bytes::Bytes;

pub fn answer(loaded: &Loaded, id: String, given: Vec<Given>, raw: bool) -> ModelInferResponse {
    let mut answer = ModelInferResponse {
        model_name: loaded.name.to_string(),
        model_version: loaded.version.to_string(),
        id,
        ..ModelInferResponse::default()
    };
    for given in given {
        if raw {
            let mut bytes = Vec::with_capacity(given.byte_len());
            given.bytes(&mut bytes);
            answer.raw_output_contents.push(bytes.into());
        }
        answer.outputs.push(InferOutputTensor {
            name: given.name.into(),
            datatype: given.datatype.name().into(),
            shape: given.shape.iter().map(|n| *n as i64).collect(),
            contents: (!raw).then(|| contents(given.values)),
            ..InferOutputTensor::default()
        });
    }
    answer
}

fn contents(values: Values) -> InferTensorContents {
    let mut out = InferTensorContents::default();
    match values {
        Values::F32(values) => out.fp32_contents = values,
        Values::I64(values) => out.int64_contents = values,
        Values::Text(texts) => out.bytes_contents = texts.into_iter().map(Bytes::from).collect(),
    }
    out
}

pub fn metadata(loaded: &Loaded, versions: Vec<String>) -> ModelMetadataResponse {
    let port = |port: &Port| TensorMetadata {
        name: port.name.into(),
        datatype: port.datatype.name().into(),
        shape: port.shape.clone(),
    };
    let face = loaded.face();
    ModelMetadataResponse {
        name: loaded.name.to_string(),
        versions,
        platform: PLATFORM.into(),
        inputs: vec![port(&face.input())],
        outputs: face.outputs().iter().map(port).collect(),
    }
}

pub fn config(loaded: &Loaded, config: &Config) -> ModelConfig {
    let kind = |port: &Port| match port.datatype {
        Datatype::Int32 => DataType::TypeInt32,
        Datatype::Int64 => DataType::TypeInt64,
        Datatype::Bytes => DataType::TypeString,
        _ => DataType::TypeFp32,
    };
    let face = loaded.face();
    let input = face.input();
    let output = |port: &Port| ModelOutput {
        name: port.name.into(),
        data_type: kind(port).into(),
        dims: port.shape[1..].to_vec(),
    };
    let queue = ModelQueuePolicy { max_queue_size: loaded.policy.requests_max as u32 };
    ModelConfig {
        name: loaded.name.to_string(),
        platform: PLATFORM.into(),
        backend: "elastic".into(),
        version_policy: Some(ModelVersionPolicy {
            latest: Some(model_version_policy::Latest { num_versions: config.keep as u32 }),
        }),
        max_batch_size: loaded.policy.rows_max as i32,
        input: vec![ModelInput {
            name: input.name.into(),
            data_type: kind(&input).into(),
            dims: input.shape[1..].to_vec(),
        }],
        output: face.outputs().iter().map(output).collect(),
        instance_group: vec![ModelInstanceGroup {
            count: config.hands.instances as i32,
            kind: model_instance_group::Kind::Cpu.into(),
        }],
        dynamic_batching: Some(ModelDynamicBatching {
            max_queue_delay_microseconds: loaded.policy.delay.as_micros() as u64,
            default_queue_policy: Some(queue),
        }),
    }
}

pub fn stats(loaded: &Loaded) -> ModelStatistics {
    let Counts { success, failure, fail_us, rows, executions, request_us, times, last_ms, batches, .. } =
        loaded.stats.counts();
    let of = |count: u64, us: u64| Some(StatisticDuration { count, ns: us * 1000 });
    ModelStatistics {
        name: loaded.name.to_string(),
        version: loaded.version.to_string(),
        last_inference: last_ms,
        inference_count: rows,
        execution_count: executions,
        inference_stats: Some(InferStatistics {
            success: of(success, request_us),
            fail: of(failure.iter().sum(), fail_us),
            queue: of(success, times.queue_us),
            compute_input: of(success, times.input_us),
            compute_infer: of(success, times.infer_us),
            compute_output: of(success, times.output_us),
        }),
        batch_stats: batches
            .iter()
            .map(|(size, batch)| InferBatchStatistics {
                batch_size: *size as u64,
                compute_input: of(batch.count, batch.input_us),
                compute_infer: of(batch.count, batch.infer_us),
                compute_output: of(batch.count, 0),
            })
            .collect(),
    }
}
