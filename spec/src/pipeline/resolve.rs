//! From the text of a `pipeline.toml` to a [`PipelineSpec`]: all mistakes at once, or the spec and what to beware of.

use super::keys::PIPELINE;
use super::{
    Change, Check, Column, Columns, Evaluate, Export, Format, Ingest, Measure, Metric, Parsed, Patience, PipelineSpec,
    Push, Source, Store, Threshold, Train,
};
use crate::ids::JobId;
use crate::job::document::{Table, read, shortened};
use crate::job::parse::judged;
use crate::job::resolve::{Resolved, is_meant, read_name};
use crate::job::section::Section;
use crate::job::{Mistake, ParseContext, Place};

/// Reads a whole pipeline file. `Err` holds every mistake, in the order of the file.
pub fn parse(text: &str, context: &ParseContext) -> Result<Parsed, Vec<Mistake>> {
    let document = read(text, context);
    let resolved = resolve(&document.root, context);
    judged(document, resolved, context).map(|(spec, warnings)| Parsed { spec, warnings })
}

fn resolve(root: &Table, context: &ParseContext) -> Resolved<PipelineSpec> {
    let file = Place::File(context.file.clone());
    let open = |name| PIPELINE.open(root, name, &file, &context.base_dir);
    let mut sections: Vec<Section> = ["", "ingest", "train", "export", "evaluate", "check", "store"].map(open).into();
    let [top, ingest, train, export, evaluate, check, store] = &mut sections[..] else { unreachable!("seven") };
    let name = read_name(top, context);
    let ingest = read_ingest(ingest);
    let train = read_train(train);
    let export = read_export(export);
    let evaluate = read_evaluate(evaluate, ingest.as_ref());
    let check = read_check(check);
    let store = read_store(store);
    let mut push = None;
    if root.contains_key("push") {
        let mut section = open("push");
        push = read_push(&mut section, name.as_deref());
        sections.push(section);
    }
    let (mut wrong, mut missing, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    if let (Some(evaluate), Some(section)) = (&evaluate, sections.iter().find(|section| section.name == "evaluate"))
        && !evaluate.changes.is_empty()
        && push.is_none()
        && !root.contains_key("push")
    {
        warnings.push(section.at("changes", "compare with the registry's model, and no [push] names a registry"));
    }
    for section in sections {
        let (more_wrong, more_missing) = section.close();
        wrong.extend(more_wrong);
        missing.extend(more_missing);
    }
    missing.retain(|mistake: &Mistake| !wrong.iter().any(|other| is_meant(other, &mistake.field)));
    let spec = || {
        Some(PipelineSpec {
            name: name?,
            ingest: ingest?,
            train: train?,
            export: export?,
            evaluate: evaluate?,
            check: check?,
            push,
            store: store?,
        })
    };
    let spec = if wrong.is_empty() && missing.is_empty() { spec() } else { None };
    Resolved { spec, wrong, missing, warnings }
}

fn read_patience(section: &mut Section) -> Option<Patience> {
    let (retries, backoff, timeout) = (section.int("retries"), section.float("backoff"), section.int("timeout"));
    let timeout_s = timeout.map(|seconds: u64| (seconds > 0).then_some(seconds));
    Some(Patience { retries: retries?, backoff_ms: (backoff? * 1e3) as u64, timeout_s: timeout_s? })
}

fn read_ingest(section: &mut Section) -> Option<Ingest> {
    let format = section.choice("format");
    let path = section.path("path");
    let is_table = matches!(format, Some("csv" | "jsonl" | "parquet"));
    let (mut columns, mut slices, mut labels) = (None, Some(Vec::new()), Some(Vec::new()));
    if is_table {
        let (label, features, id) =
            (section.any_column("label"), section.any_columns("columns"), column(section, "id"));
        slices = section.any_columns("slices");
        columns = label.map(|label| Columns { label, features, id });
        check_columns(section, format, columns.as_ref(), slices.as_deref());
    }
    if is_table || format == Some("idx") {
        labels = if section.has("labels") { section.texts("labels") } else { section.texts("labels").or(Some(vec![])) };
    }
    check_labels(section, labels.as_deref());
    let source = match format {
        Some("csv") => {
            let header = section.truth("header");
            if let (Some(false), Some(columns)) = (header, &columns) {
                check_numbers(section, columns, slices.as_deref());
            }
            (|| Some(Source::Csv { path: path?, header: header?, columns: columns? }))()
        }
        Some("jsonl") => (|| Some(Source::Jsonl { path: path?, columns: columns? }))(),
        Some("parquet") => (|| Some(Source::Parquet { path: path?, columns: columns? }))(),
        Some("text") => (|| Some(Source::Text { path: path? }))(),
        Some("idx") => {
            let labels_path = section.path("labels_path");
            (|| Some(Source::Idx { path: path?, labels_path: labels_path? }))()
        }
        _ => None,
    };
    let (evaluation, seed, patience) = (section.float("evaluation"), section.int("seed"), read_patience(section));
    Some(Ingest {
        source: source?,
        evaluation: evaluation?,
        seed: seed?,
        labels: labels?,
        slices: slices?,
        patience: patience?,
    })
}

fn column(section: &mut Section, name: &'static str) -> Option<Column> {
    section.any_column(name)
}

/// What no reader of a format could find.
fn check_columns(section: &mut Section, format: Option<&str>, columns: Option<&Columns>, slices: Option<&[Column]>) {
    let Some(Columns { label, features, id }) = columns else { return };
    let named = [("label", Some(label)), ("id", id.as_ref())];
    let listed = features.iter().flatten().map(|column| ("columns", Some(column)));
    let sliced = slices.into_iter().flatten().map(|column| ("slices", Some(column)));
    let all: Vec<_> = named.into_iter().chain(listed).chain(sliced).collect();
    if format == Some("jsonl") {
        for (key, column) in &all {
            if let Some(Column::Number(number)) = column {
                section.wrong(key, format!("is the number {number}; columns of \"jsonl\" have names"));
            }
        }
    }
    if features.as_ref().is_some_and(Vec::is_empty) {
        section.wrong("columns", "is an empty list; leave the key out for all columns");
    }
    if features.iter().flatten().any(|column| column == label) {
        section.wrong("columns", format!("has {label}, the column of the class, which the model may not read"));
    }
}

fn check_numbers(section: &mut Section, columns: &Columns, slices: Option<&[Column]>) {
    let Columns { label, features, id } = columns;
    let all = [label].into_iter().chain(features.iter().flatten()).chain(id).chain(slices.into_iter().flatten());
    for column in all {
        if let Column::Name(name) = column {
            let shown = shortened(name);
            section.wrong(
                "header",
                format!("is false, and a column is called \"{shown}\" here; only a header names columns"),
            );
            return;
        }
    }
}

fn check_labels(section: &mut Section, labels: Option<&[String]>) {
    let labels = labels.unwrap_or_default();
    if labels.len() == 1 {
        section.wrong("labels", "has one label; a model tells at least two classes apart");
    }
    if let Some(twice) = labels.iter().enumerate().find(|(i, label)| labels[..*i].contains(label)) {
        section.wrong("labels", format!("has \"{}\" twice", shortened(twice.1)));
    }
}

fn read_train(section: &mut Section) -> Option<Train> {
    let (job, set, patience) = (section.path("job"), section.texts("set"), read_patience(section));
    let workers = section.int("workers");
    Some(Train { job: job?, set: set?, workers, patience: patience? })
}

fn read_export(section: &mut Section) -> Option<Export> {
    let (words, patience) = (section.texts("formats"), read_patience(section));
    let known = [Format::Hf, Format::Npz, Format::Onnx, Format::Safetensors];
    let mut formats = Vec::new();
    for word in words? {
        match known.into_iter().find(|format| format.word() == word) {
            Some(format) => formats.push(format),
            None => {
                let shown = shortened(&word);
                section
                    .wrong("formats", format!("has \"{shown}\"; allowed: \"hf\", \"npz\", \"onnx\", \"safetensors\""));
            }
        }
    }
    formats.sort();
    formats.dedup();
    Some(Export { formats, patience: patience? })
}

fn read_evaluate(section: &mut Section, ingest: Option<&Ingest>) -> Option<Evaluate> {
    let mut thresholds = Vec::new();
    for mut table in section.tables("thresholds").unwrap_or_default() {
        let measure = read_measure(&mut table, ingest);
        let (lower, upper) = (table.float("lower"), table.float("upper"));
        if !table.has("lower") && !table.has("upper") {
            table.missing("lower", "and `upper` are both missing; one of them is needed");
        }
        if let (Some(lower), Some(upper)) = (lower, upper)
            && lower > upper
        {
            table.wrong("lower", format!("is {lower}, above upper = {upper}"));
        }
        thresholds.extend(measure.map(|measure| Threshold { measure, lower, upper }));
        section.take_up(table);
    }
    let mut changes = Vec::new();
    for mut table in section.tables("changes").unwrap_or_default() {
        let measure = read_measure(&mut table, ingest);
        let (absolute, relative) = (table.float("absolute"), table.float("relative"));
        if !table.has("absolute") && !table.has("relative") {
            table.missing("absolute", "and `relative` are both missing; one of them is needed");
        }
        changes.extend(measure.map(|measure| Change { measure, absolute, relative }));
        section.take_up(table);
    }
    Some(Evaluate { thresholds, changes, patience: read_patience(section)? })
}

fn read_measure(table: &mut Section, ingest: Option<&Ingest>) -> Option<Measure> {
    let metric = match table.choice("metric") {
        Some("accuracy") => Some(Metric::Accuracy),
        Some("loss") => Some(Metric::Loss),
        Some("precision") => Some(Metric::Precision),
        Some("recall") => Some(Metric::Recall),
        Some("f1") => Some(Metric::F1),
        _ => None,
    };
    let (class, slice) = (table.text("class"), table.text("slice"));
    if let (Some(metric), Some(_)) = (metric, &class)
        && !metric.is_of_a_class()
    {
        table.wrong("class", format!("is given, but {} is of all samples", metric.word()));
    }
    let is_text = ingest.is_some_and(|ingest| ingest.source.is_text());
    if let (Some(metric), true) = (metric, is_text)
        && metric.is_of_a_class()
    {
        table.wrong(
            "metric",
            format!("is \"{}\", but a text has no classes; allowed: \"accuracy\", \"loss\"", metric.word()),
        );
    }
    if let (Some(slice), Some(ingest)) = (&slice, ingest) {
        let named = slice.split_once('=').map(|(column, _)| column);
        if !named.is_some_and(|named| ingest.slices.iter().any(|column| column.to_string() == named)) {
            let columns: Vec<String> = ingest.slices.iter().map(Column::to_string).collect();
            let message = format!(
                "is \"{}\"; allowed: COLUMN=VALUE with a column of ingest.slices = [{}]",
                shortened(slice),
                columns.join(", ")
            );
            table.wrong("slice", message);
        }
    }
    Some(Measure { metric: metric?, class, slice })
}

fn read_check(section: &mut Section) -> Option<Check> {
    let (requests, patience) = (section.int("requests"), read_patience(section));
    Some(Check { requests: requests?, patience: patience? })
}

fn read_push(section: &mut Section, name: Option<&str>) -> Option<Push> {
    let registry = section.address("registry");
    let given = section.text("model");
    let label = section.text("label");
    for (key, text) in [("model", &given), ("label", &label)] {
        if let Some(text) = text
            && JobId::parse(text).is_err()
        {
            let shown = shortened(text);
            section.wrong(key, format!("is \"{shown}\"; allowed: 1 to 63 characters out of a-z, 0-9, '-', '.' and '_' that begin and end with a letter or digit"));
        }
    }
    let model = given.or_else(|| name.map(str::to_string));
    Some(Push { registry: registry?, model: model?, label: label?, patience: read_patience(section)? })
}

fn read_store(section: &mut Section) -> Option<Store> {
    let workspace = section.path("workspace");
    let blobs = if section.has("blobs") { section.address("blobs") } else { section.text("blobs") };
    Some(Store { workspace: workspace?, blobs })
}
