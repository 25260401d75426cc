//! What the store keeps: jobs, nodes that are drained or struck, and digests of tokens. Never a step, never a view.

use crate::budget::Budget;
use crate::event::Record;
use crate::job::{Job, Origin};
use crate::node::{Drain, Node, Strikes};
use elastic_spec::access::Token;
use elastic_spec::api::{Fault, JobState};
use elastic_spec::facts::{Metrics, Published};
use elastic_spec::job::JobSpec;
use elastic_spec::layout::Tail;
use elastic_spec::{Digest, JobId, NodeId, Round, Step, TokenName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the records' form.
const FORM: u32 = 1;
const JOB: &str = "job/";
const NODE: &str = "node/";
const TOKEN: &str = "token/";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobRecord {
    form: u32,
    seq: u64,
    submitted_unix_ms: u64,
    spec_json: String,
    blobs: Vec<(String, Digest)>,
    /// Hexadecimal.
    secret: String,
    run_dir: String,
    resume: Option<JobId>,
    min: u16,
    max: u16,
    state: JobState,
    reason: String,
    has_begun: bool,
    attempts: BTreeMap<u16, u32>,
    budget: Budget,
    restarts: u32,
    owed: u16,
    first_fault: Option<(Step, Fault)>,
    last_fault: Option<Fault>,
    views: u64,
    round: Round,
    step: Step,
    steps_total: u64,
    metrics: Option<MetricsRecord>,
    published: Option<Published>,
    /// Absent in records of before there was this word.
    #[serde(default)]
    published_on: Option<NodeId>,
    stalls_ms: Vec<u32>,
    /// Of a command that is over; absent in all other records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
}

/// JSON has no NaN: what is not finite is written as none.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetricsRecord {
    step: Step,
    train: TailRecord,
    lr: Option<f64>,
    grad_norm: Option<f64>,
    /// Absent in records of before there was this word.
    #[serde(default)]
    skipped: u64,
    validation: Option<(Step, TailRecord)>,
    step_us: u64,
    /// Absent in records of before there was this word.
    #[serde(default)]
    input_wait_us: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TailRecord {
    loss: Option<f64>,
    count: u64,
    correct: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeRecord {
    form: u32,
    /// The agent that was running when a person asked for the drain.
    drained_incarnation: Option<u64>,
    strikes: u32,
    last_strike_unix_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenRecord {
    form: u32,
    token: Token,
}

pub(crate) fn of_token(token: &Token) -> Record {
    let value = serde_json::to_vec(&TokenRecord { form: FORM, token: token.clone() }).expect("a record is plain data");
    Record { key: token_key(&token.name), value: Some(value) }
}

pub(crate) fn token_key(name: &TokenName) -> String {
    format!("{TOKEN}{name}")
}

pub(crate) fn job_key(job: &JobId) -> String {
    format!("{JOB}{job}")
}

pub(crate) fn of_job(job: &Job) -> Record {
    let record = JobRecord {
        form: FORM,
        seq: job.seq,
        submitted_unix_ms: job.submitted_unix_ms,
        spec_json: job.launch.spec_json.clone(),
        blobs: job.launch.blobs.clone(),
        secret: job.launch.secret.iter().map(|b| format!("{b:02x}")).collect(),
        run_dir: job.launch.run_dir.clone(),
        resume: job.resume.clone(),
        min: job.min,
        max: job.max,
        state: job.state,
        reason: job.reason.clone(),
        has_begun: job.has_begun,
        attempts: job.attempts.clone(),
        budget: job.budget.clone(),
        restarts: job.restarts,
        owed: job.owed,
        first_fault: job.first_fault.clone(),
        last_fault: job.last_fault.clone(),
        views: job.views,
        round: job.seen.round,
        step: job.seen.step,
        steps_total: job.seen.steps_total,
        metrics: job.seen.metrics.map(MetricsRecord::from),
        published: job.seen.published.clone(),
        published_on: job.seen.published_on.clone(),
        stalls_ms: job.seen.stalls_ms.clone(),
        exit_code: job.exit_code,
    };
    let value = serde_json::to_vec(&record).expect("a record is plain data");
    Record { key: job_key(&job.id), value: Some(value) }
}

pub(crate) fn of_node(node: &Node) -> Record {
    let drained_incarnation = match node.drain {
        Drain::Operator { incarnation } => Some(incarnation),
        _ => None,
    };
    let is_plain = drained_incarnation.is_none() && node.strikes.count == 0;
    let record = NodeRecord {
        form: FORM,
        drained_incarnation,
        strikes: node.strikes.count,
        last_strike_unix_ms: node.strikes.last_unix_ms,
    };
    let value = serde_json::to_vec(&record).expect("a record is plain data");
    Record { key: format!("{NODE}{}", node.id), value: (!is_plain).then_some(value) }
}

/// What was read back: a job, a node, a token, or a key of someone else's.
pub(crate) enum Read {
    Job(Box<Job>),
    Node(Box<Node>),
    Token(Token),
    NotOurs,
}

pub(crate) fn read(record: &Record) -> Result<Read, String> {
    let Some(value) = &record.value else { return Ok(Read::NotOurs) };
    let told = |e: &dyn std::fmt::Display| format!("record {}: {e}", record.key);
    if let Some(id) = record.key.strip_prefix(JOB) {
        let id = JobId::parse(id).map_err(|e| told(&e))?;
        let stored: JobRecord = serde_json::from_slice(value).map_err(|e| told(&e))?;
        let job = job_from(id, stored).map_err(|e| told(&e))?;
        return Ok(Read::Job(Box::new(job)));
    }
    if let Some(id) = record.key.strip_prefix(NODE) {
        let id = NodeId::parse(id).map_err(|e| told(&e))?;
        let stored: NodeRecord = serde_json::from_slice(value).map_err(|e| told(&e))?;
        check_form(stored.form).map_err(|e| told(&e))?;
        let mut node = Node::new(id);
        if let Some(incarnation) = stored.drained_incarnation {
            node.drain = Drain::Operator { incarnation };
        }
        node.strikes = Strikes { count: stored.strikes, last_unix_ms: stored.last_strike_unix_ms };
        return Ok(Read::Node(Box::new(node)));
    }
    if record.key.starts_with(TOKEN) {
        let stored: TokenRecord = serde_json::from_slice(value).map_err(|e| told(&e))?;
        check_form(stored.form).map_err(|e| told(&e))?;
        return match token_key(&stored.token.name) == record.key {
            true => Ok(Read::Token(stored.token)),
            false => Err(told(&format_args!("holds the token {}", stored.token.name))),
        };
    }
    Ok(Read::NotOurs)
}

fn check_form(form: u32) -> Result<(), String> {
    match form == FORM {
        true => Ok(()),
        false => Err(format!("is of form {form}, this program reads form {FORM}")),
    }
}

fn job_from(id: JobId, stored: JobRecord) -> Result<Job, String> {
    check_form(stored.form)?;
    let spec = JobSpec::from_json(&stored.spec_json)?;
    let mut job = Job::new(Origin {
        id,
        seq: stored.seq,
        spec,
        spec_json: stored.spec_json,
        blobs: stored.blobs,
        secret: bytes_from_hex(&stored.secret).ok_or("the secret is not hexadecimal")?,
        run_dir: stored.run_dir,
        resume: stored.resume,
        submitted_unix_ms: stored.submitted_unix_ms,
    });
    if stored.min == 0 || stored.min > stored.max {
        return Err(format!("asks for {} to {} workers", stored.min, stored.max));
    }
    (job.min, job.max) = (stored.min, stored.max);
    (job.state, job.reason) = (stored.state, stored.reason);
    job.has_begun = stored.has_begun;
    job.attempts = stored.attempts;
    job.budget = stored.budget;
    (job.restarts, job.owed) = (stored.restarts, stored.owed);
    (job.first_fault, job.last_fault) = (stored.first_fault, stored.last_fault);
    job.views = stored.views;
    job.exit_code = stored.exit_code;
    job.seen.round = stored.round;
    (job.seen.step, job.seen.steps_total) = (stored.step, stored.steps_total);
    job.seen.metrics = stored.metrics.map(Metrics::from);
    (job.seen.published, job.seen.published_on) = (stored.published, stored.published_on);
    job.seen.stalls_ms = stored.stalls_ms;
    job.is_changed = false;
    Ok(job)
}

fn bytes_from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

impl From<Metrics> for MetricsRecord {
    fn from(m: Metrics) -> MetricsRecord {
        MetricsRecord {
            step: m.step,
            train: m.train.into(),
            lr: finite(m.lr),
            grad_norm: finite(m.grad_norm),
            skipped: m.skipped,
            validation: m.validation.map(|(step, tail)| (step, tail.into())),
            step_us: m.step_us,
            input_wait_us: m.input_wait_us,
        }
    }
}

impl From<MetricsRecord> for Metrics {
    fn from(m: MetricsRecord) -> Metrics {
        Metrics {
            step: m.step,
            train: m.train.into(),
            lr: m.lr.unwrap_or(f64::NAN),
            grad_norm: m.grad_norm.unwrap_or(f64::NAN),
            skipped: m.skipped,
            validation: m.validation.map(|(step, tail)| (step, tail.into())),
            step_us: m.step_us,
            input_wait_us: m.input_wait_us,
        }
    }
}

impl From<Tail> for TailRecord {
    fn from(t: Tail) -> TailRecord {
        TailRecord { loss: finite(t.loss), count: t.count, correct: t.correct }
    }
}

impl From<TailRecord> for Tail {
    fn from(t: TailRecord) -> Tail {
        Tail { loss: t.loss.unwrap_or(f64::NAN), count: t.count, correct: t.correct }
    }
}
