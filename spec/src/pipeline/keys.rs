//! Every key of a pipeline file, once: its type and bounds, default, unit and meaning.

use crate::job::keys::Default::{Absent, Is, Required, Rule};
use crate::job::keys::{Bound, Default, Key, Kind, When, Words, float, int, plain};

/// Of a pipeline file.
pub static PIPELINE: Words = Words { keys: KEYS, sections: SECTIONS, lists: LISTS };

const SECTIONS: &[(&str, &str)] = &[
    (
        "ingest",
        "Reads a raw file and splits its rows into those that are trained and those that the model is evaluated on.",
    ),
    ("train", "An elastic job."),
    ("export", "Makes a bundle of the trained model, and the files of others."),
    (
        "evaluate",
        "Whether the bundle is good enough. Without `[[evaluate.thresholds]]` and `[[evaluate.changes]]` its figures are kept and nothing is refused.",
    ),
    (
        "check",
        "Starts the real server with the bundle, asks it about samples kept for evaluation and compares its answers, bit for bit, with those computed here.",
    ),
    ("push", "Publishes the bundle in a registry as the next version. Without this section nothing is published."),
    ("store", "Where the pipeline keeps what it makes."),
];

const LISTS: &[(&str, &str)] = &[
    ("evaluate.thresholds", "A bound on a metric. Each needs `lower`, `upper` or both."),
    (
        "evaluate.changes",
        "A bound on the gain over the latest blessed model: the one that the registry's label points to, else its highest \
         version. A gain is a higher metric, or a lower loss, on the same samples. Where the registry has no other model, \
         the check is skipped, and this is said. Each needs `absolute`, `relative` or both.",
    ),
];

pub(super) const FORMATS: &[&str] = &["csv", "jsonl", "parquet", "text", "idx"];
pub(super) const METRICS: &[&str] = &["accuracy", "loss", "precision", "recall", "f1"];

const TABLES: &[&str] = &["csv", "jsonl", "parquet"];
const BOUND: Kind = float(Bound::With(-1e9), Bound::With(1e9));
const METRIC: Kind = Kind::OneOf(METRICS);
const RETRIES: Kind = int(0, 100);
const BACKOFF: Kind = float(Bound::With(0.0), Bound::With(3600.0));
const TIMEOUT: Kind = int(0, 1 << 31);
const RETRIES_DOC: &str = "Tries after one that failed for no mistake of the file's or the data's.";
const BACKOFF_DOC: &str = "Wait before the first retry; it doubles with each.";
const TIMEOUT_DOC: &str = "Longest time of one try. 0: no limit.";
const METRIC_DOC: &str = "`accuracy` and `loss` (the mean) are of all samples, the others of a class.";
const CLASS_DOC: &str = "With `precision`, `recall`, `f1`: the label of the class.";
const SLICE_DOC: &str = "`COLUMN=VALUE`: only samples with this value in this column, which `ingest.slices` must name.";

const fn ingest(
    name: &'static str,
    of: &'static [&'static str],
    kind: Kind,
    default: Default,
    doc: &'static str,
) -> Key {
    Key { section: "ingest", name, when: When::Is("format", of), kind, default, unit: "", doc }
}

/// In the order in which they are documented.
#[rustfmt::skip]
const KEYS: &[Key] = &[
    plain("", "name", Kind::Text, Rule("the name of the file's folder, or `job`"), "",
        "What the pipeline is called: up to 40 characters out of a-z, 0-9, '-', '.' and '_'."),
    // ingest
    plain("ingest", "format", Kind::OneOf(FORMATS), Required, "",
        "`csv`: one row a line, separated by commas. `jsonl`: one JSON object a line. `parquet`: a Parquet file. `text`: paragraphs, with empty lines between. `idx`: the two files of MNIST. All but Parquet may be packed with gzip, whatever they are called."),
    plain("ingest", "path", Kind::Path, Required, "", "The file; of `idx` the one with the samples."),
    ingest("labels_path", &["idx"], Kind::Path, Required, "The file with the classes."),
    ingest("header", &["csv"], Kind::Bool, Is("false"), "Whether the first line holds the columns' names."),
    ingest("label", &["csv"], Kind::AnyColumn, Is("-1"), "The column of the class: texts or integers."),
    ingest("label", &["jsonl", "parquet"], Kind::AnyColumn, Required, "The column of the class: texts or integers."),
    ingest("columns", TABLES, Kind::AnyColumns { count_max: 65536 }, Absent("all but those that another key names; of `jsonl` in the order of their names"),
        "The columns that the model reads, in this order. Each holds a number, a truth or, in `jsonl` and `parquet`, a list of numbers."),
    ingest("id", TABLES, Kind::AnyColumn, Absent("what is in the row"),
        "The column that a row is known by. Whether a row is trained or evaluated depends on it alone, so that more rows move none."),
    ingest("slices", TABLES, Kind::AnyColumns { count_max: 8 }, Is("[]"),
        "Columns by whose values evaluation is told apart, at most 64 values together. The model does not read them unless `columns` names them."),
    ingest("labels", &["csv", "jsonl", "parquet", "idx"], Kind::Texts { count_max: 65536 }, Absent("integers 0, 1, … as they are; texts in their order"),
        "Labels of the classes 0, 1, …, as the data has them. One that is not listed is a mistake."),
    plain("ingest", "evaluation", float(Bound::Without(0.0), Bound::Without(1.0)), Is("0.2"), "share of the rows",
        "Kept for evaluation; training never sees them."),
    plain("ingest", "seed", int(0, u64::MAX), Is("0"), "", "Of the split."),
    plain("ingest", "retries", RETRIES, Is("0"), "tries", RETRIES_DOC),
    plain("ingest", "backoff", BACKOFF, Is("1.0"), "s", BACKOFF_DOC),
    plain("ingest", "timeout", TIMEOUT, Is("0"), "s", "Longest time of one try, looked at between its steps. 0: no limit."),
    // train
    plain("train", "job", Kind::Path, Required, "",
        "A job file ([docs/job-toml.md](job-toml.md)). Its `[data]` needs no `kind`, `path`, `label`, `header` or `classes`: they are those of what ingest made, whatever stands there, and its `name` is the pipeline's. `scale`, `validation` and `tokenizer` are its own."),
    plain("train", "set", Kind::Texts { count_max: 256 }, Is("[]"), "", "Keys of the job file that are overruled: `[\"train.epochs=3\"]`."),
    plain("train", "workers", int(1, crate::limits::WORKERS_MAX as u64), Absent("as the job file says"), "workers", "Most workers at once. Changes no bit."),
    plain("train", "retries", RETRIES, Is("2"), "tries", "Tries after one that failed; each goes on from the newest checkpoint."),
    plain("train", "backoff", BACKOFF, Is("1.0"), "s", BACKOFF_DOC),
    plain("train", "timeout", TIMEOUT, Is("0"), "s", TIMEOUT_DOC),
    // export
    plain("export", "formats", Kind::Texts { count_max: 4 }, Is("[]"), "", "Beside the bundle: \"hf\", \"npz\", \"onnx\", \"safetensors\"."),
    plain("export", "retries", RETRIES, Is("2"), "tries", RETRIES_DOC),
    plain("export", "backoff", BACKOFF, Is("1.0"), "s", BACKOFF_DOC),
    plain("export", "timeout", TIMEOUT, Is("3600"), "s", TIMEOUT_DOC),
    // evaluate
    plain("evaluate", "thresholds", Kind::Tables { count_max: 256, section: "evaluate.thresholds" }, Is("[]"), "", "Bounds on metrics: see below."),
    plain("evaluate", "changes", Kind::Tables { count_max: 256, section: "evaluate.changes" }, Is("[]"), "", "Bounds on the gain over the latest blessed model: see below."),
    plain("evaluate", "retries", RETRIES, Is("2"), "tries", RETRIES_DOC),
    plain("evaluate", "backoff", BACKOFF, Is("1.0"), "s", BACKOFF_DOC),
    plain("evaluate", "timeout", TIMEOUT, Is("3600"), "s", TIMEOUT_DOC),
    plain("evaluate.thresholds", "metric", METRIC, Required, "", METRIC_DOC),
    plain("evaluate.thresholds", "class", Kind::Text, Absent("the worst of all classes"), "", CLASS_DOC),
    plain("evaluate.thresholds", "slice", Kind::Text, Absent("all samples"), "", SLICE_DOC),
    plain("evaluate.thresholds", "lower", BOUND, Absent("no bound"), "", "The metric must be at least so much."),
    plain("evaluate.thresholds", "upper", BOUND, Absent("no bound"), "", "The metric must be at most so much."),
    plain("evaluate.changes", "metric", METRIC, Required, "", METRIC_DOC),
    plain("evaluate.changes", "class", Kind::Text, Absent("the worst of all classes"), "", CLASS_DOC),
    plain("evaluate.changes", "slice", Kind::Text, Absent("all samples"), "", SLICE_DOC),
    plain("evaluate.changes", "absolute", BOUND, Absent("no bound"), "", "The gain must be at least so much; `-0.01` allows to lose so much."),
    plain("evaluate.changes", "relative", BOUND, Absent("no bound"), "share of the blessed model's", "The gain must be at least so much; `-0.05` allows to lose a twentieth."),
    // check
    plain("check", "requests", int(1, 1000), Is("16"), "samples", "How many the server is asked about."),
    plain("check", "retries", RETRIES, Is("2"), "tries", RETRIES_DOC),
    plain("check", "backoff", BACKOFF, Is("1.0"), "s", BACKOFF_DOC),
    plain("check", "timeout", TIMEOUT, Is("300"), "s", TIMEOUT_DOC),
    // push
    plain("push", "registry", Kind::Address, Required, "", "Where models are published, as `MODEL/VERSION/`: what `elastic serve` serves."),
    plain("push", "model", Kind::Text, Rule("`name`"), "", "What the model is called there."),
    plain("push", "label", Kind::Text, Is("\"live\""), "", "The label that is moved to the new version. Where a model has the label `live`, `elastic serve` answers with its version who names none."),
    plain("push", "retries", RETRIES, Is("2"), "tries", RETRIES_DOC),
    plain("push", "backoff", BACKOFF, Is("1.0"), "s", BACKOFF_DOC),
    plain("push", "timeout", TIMEOUT, Is("0"), "s", "Longest time of one try, looked at between its steps. 0: no limit."),
    // store
    plain("store", "workspace", Kind::Path, Is("\".pipeline\""), "", "A folder of this machine for lineage, stages under way and, without `blobs`, artifacts. One process at a time runs pipelines in it."),
    plain("store", "blobs", Kind::Address, Absent("in the workspace"), "", "Where artifacts are kept."),
];
