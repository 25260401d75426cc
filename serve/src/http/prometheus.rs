//! `/metrics`, in Prometheus' text format: Triton's names for what Triton counts, our own for the rest.

use crate::refusal::Reason;
use crate::serving::Loaded;
use crate::state::{Phase, Shared};
use crate::stats::{BOUNDS_US, Counts};
use std::fmt::Write;
use std::sync::Arc;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Of one version of a model.
type Row = (Arc<Loaded>, Counts);

pub fn text(shared: &Shared) -> String {
    let table = shared.serving.table();
    let loaded = table.models.values().flat_map(|entry| entry.versions.values());
    let rows: Vec<Row> = loaded.map(|loaded| (loaded.clone(), loaded.stats.counts())).collect();
    let mut out = String::with_capacity(4096);
    of_models(&mut out, &rows);
    histogram(&mut out, &rows);
    let texts = rows.iter().filter_map(|(loaded, _)| Some((labels(loaded), loaded.text().ok()?.stats())));
    crate::text::stats::write(&mut out, &texts.collect::<Vec<_>>());
    of_server(&mut out, shared);
    out
}

fn of_models(out: &mut String, rows: &[Row]) {
    let mut family = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Counts) -> i64| {
        head(out, name, kind, help);
        for (loaded, counts) in rows {
            let _ = writeln!(out, "{name}{{{}}} {}", labels(loaded), value(counts));
        }
    };
    family("nv_inference_request_success", "counter", "Requests that were answered", &|c| c.success as i64);
    family("nv_inference_count", "counter", "Rows that were computed", &|c| c.rows as i64);
    family("nv_inference_exec_count", "counter", "Calls of the network", &|c| c.executions as i64);
    family("nv_inference_pending_request_count", "gauge", "Requests that wait or are being computed", &|c| c.pending);
    let us = "in microseconds, added up over requests";
    let mut time = |name: &str, what: &str, value: &dyn Fn(&Counts) -> i64| {
        family(name, "counter", &format!("{what}, {us}"), value);
    };
    time("nv_inference_request_duration_us", "Time of requests from head to answer", &|c| c.request_us as i64);
    time("nv_inference_queue_duration_us", "Time of waiting", &|c| c.times.queue_us as i64);
    time("nv_inference_compute_input_duration_us", "Time of putting batches together", &|c| c.times.input_us as i64);
    time("nv_inference_compute_infer_duration_us", "Time of computing", &|c| c.times.infer_us as i64);
    time("nv_inference_compute_output_duration_us", "Time of taking batches apart", &|c| c.times.output_us as i64);
    head(out, "nv_inference_request_failure", "counter", "Requests that were not answered, by reason");
    for (loaded, counts) in rows {
        for (reason, count) in Reason::ALL.iter().zip(counts.failure) {
            let labels = labels(loaded);
            let _ = writeln!(out, "nv_inference_request_failure{{{labels},reason=\"{}\"}} {count}", reason.word());
        }
    }
}

fn histogram(out: &mut String, rows: &[Row]) {
    let name = "elastic_serve_request_seconds";
    head(out, name, "histogram", "Time of answered requests from head to answer");
    for (loaded, counts) in rows {
        let labels = labels(loaded);
        let mut below = 0;
        for (bound_us, count) in BOUNDS_US.iter().zip(counts.histogram) {
            below += count;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{}\"}} {below}", *bound_us as f64 / 1e6);
        }
        let all: u64 = counts.histogram.iter().sum();
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {all}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", counts.request_us as f64 / 1e6);
        let _ = writeln!(out, "{name}_count{{{labels}}} {all}");
    }
}

fn of_server(out: &mut String, shared: &Shared) {
    head(out, "elastic_serve_http_responses_total", "counter", "Answers over HTTP, by status");
    for (status, count) in shared.answers.counts() {
        let _ = writeln!(out, "elastic_serve_http_responses_total{{code=\"{status}\"}} {count}");
    }
    let one = |out: &mut String, name: &str, kind: &str, help: &str, value: u64| {
        head(out, name, kind, help);
        let _ = writeln!(out, "{name} {value}");
    };
    one(out, "elastic_serve_ready", "gauge", "1 if requests are answered", shared.readiness().is_ok().into());
    one(out, "elastic_serve_draining", "gauge", "1 after SIGTERM", (shared.phase() == Phase::Draining).into());
    one(out, "elastic_serve_connections", "gauge", "Open connections", shared.connections() as u64);
    let (loads, failures) = shared.loads();
    one(out, "elastic_serve_loads_total", "counter", "Versions that were loaded", loads);
    one(out, "elastic_serve_load_failures_total", "counter", "Versions that could not be loaded", failures);
    if let Some(mirror) = &shared.config.mirror {
        let status = mirror.status();
        one(
            out,
            "elastic_serve_mirror_away",
            "gauge",
            "1 if the last look at the bucket failed",
            status.away.is_some().into(),
        );
        one(out, "elastic_serve_mirror_passes_total", "counter", "Looks at the bucket", status.passes);
        one(out, "elastic_serve_mirror_failures_total", "counter", "Looks that failed", status.failures);
        one(out, "elastic_serve_mirror_versions_total", "counter", "Versions that were copied", status.versions);
        one(out, "elastic_serve_mirror_bytes_total", "counter", "Bytes of theirs", status.bytes);
        let refused = status.refused() as u64;
        one(out, "elastic_serve_mirror_refused", "gauge", "Versions in the bucket that are not whole", refused);
        let name = "elastic_serve_mirror_last_success_timestamp_seconds";
        head(out, name, "gauge", "Unix time of the last look that went well");
        let _ = writeln!(out, "{name} {}", status.last_ms as f64 / 1000.0);
    }
    head(out, "elastic_serve_model_state", "gauge", "1 for the state that a version is in");
    for row in shared.index() {
        let (name, version) = (escaped(&row.name), escaped(&row.version));
        let state = row.state;
        let _ =
            writeln!(out, "elastic_serve_model_state{{model=\"{name}\",version=\"{version}\",state=\"{state}\"}} 1");
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn labels(loaded: &Loaded) -> String {
    format!("model=\"{}\",version=\"{}\"", escaped(&loaded.name), loaded.version)
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
