//! What holds for every pipeline file: mistakes are told all at once with their lines, no text makes the parser panic, and
//! the documentation and the examples are what the code says.

use elastic_spec::job::{Mistake, ParseContext};
use elastic_spec::pipeline::{Column, LIVE_LABEL, Parsed, Source, parse, reference_markdown};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

const VALID: &str = r#"
[ingest]
format = "csv"
path = "digits.csv.gz"
header = true
label = "digit"
slices = ["writer"]

[train]
job = "job.toml"

[[evaluate.thresholds]]
metric = "recall"
class = "7"
slice = "writer=3"
lower = 0.9

[[evaluate.changes]]
metric = "loss"
absolute = -0.05

[push]
registry = "s3://models/a"
"#;

fn context(flags: &[&str]) -> ParseContext {
    ParseContext {
        file: "pipeline.toml".to_string(),
        base_dir: "/p/digits".to_string(),
        overrides: flags.iter().map(|flag| flag.to_string()).collect(),
    }
}

fn parsed(text: &str, flags: &[&str]) -> Parsed {
    parse(text, &context(flags)).unwrap_or_else(|mistakes| panic!("{}", told(&mistakes)))
}

fn told(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("{mistake}\n")).collect()
}

fn refused(text: &str) -> String {
    told(&parse(text, &context(&[])).expect_err("the file has mistakes"))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_path_buf()
}

#[test]
fn defaults_are_filled_in_and_paths_start_at_the_files_folder() {
    let spec = parsed(VALID, &[]).spec;
    let Source::Csv { path, header: true, columns } = &spec.ingest.source else { panic!("{:?}", spec.ingest.source) };
    assert_eq!((path.as_str(), &columns.label), ("/p/digits/digits.csv.gz", &Column::Name("digit".into())));
    assert_eq!((spec.name.as_str(), spec.train.job.as_str()), ("digits", "/p/digits/job.toml"));
    assert_eq!((spec.ingest.evaluation, spec.check.requests, spec.export.formats.len()), (0.2, 16, 0));
    let push = spec.push.expect("it is asked");
    assert_eq!(
        (push.registry.as_str(), push.model.as_str(), push.label.as_str()),
        ("s3://models/a", "digits", LIVE_LABEL)
    );
    assert_eq!((spec.store.workspace.as_str(), spec.store.blobs), ("/p/digits/.pipeline", None));
    assert_eq!(spec.evaluate.thresholds[0].measure.to_string(), "recall of class 7 where writer=3");
    assert_eq!(parsed(VALID, &["push.label=canary"]).spec.push.map(|push| push.label), Some("canary".to_string()));
}

#[test]
fn all_mistakes_are_told_at_once_with_their_lines() {
    let text = VALID
        .replace("format = \"csv\"", "format = \"cvs\"")
        .replace("job = ", "jobb = ")
        .replace("lower = 0.9", "lower = 0.9\nupper = 0.1")
        .replace("absolute = -0.05", "")
        .replace("registry = ", "label = \"Not A Name\"\nregistry = ");
    let told = refused(&text);
    for says in [
        "pipeline.toml:3: ingest.format: is the text \"cvs\"; allowed: \"csv\", \"jsonl\", \"parquet\", \"text\", \"idx\"; did you mean `csv`?",
        "pipeline.toml:10: train.jobb: is no key of this section; did you mean `train.job`?",
        "pipeline.toml:16: evaluate.thresholds.lower: is 0.9, above upper = 0.1",
        "pipeline.toml:19: evaluate.changes.absolute: and `relative` are both missing; one of them is needed",
        "push.label: is \"Not A Name\"; allowed: 1 to 63 characters",
    ] {
        assert!(told.contains(says), "{says}\n{told}");
    }
    assert!(!told.contains("train.job: is missing"), "what is there under a misspelt name is not missing\n{told}");
}

#[test]
fn what_no_reader_could_do_is_told_before_anything_is_read() {
    let ingest = |more: &str| format!("[ingest]\npath = \"a\"\n{more}\n[train]\njob = \"j\"\n");
    for (text, says) in [
        (ingest("format = \"csv\"\nlabel = \"y\""), "ingest.header: is false, and a column is called \"y\" here"),
        (ingest("format = \"jsonl\"\nlabel = 3"), "ingest.label: is the number 3; columns of \"jsonl\" have names"),
        (ingest("format = \"jsonl\""), "ingest.label: is missing; allowed: a column's name, or its number"),
        (ingest("format = \"csv\"\ncolumns = [0, -1]"), "ingest.columns: has -1, the column of the class"),
        (ingest("format = \"csv\"\nlabels = [\"a\", \"a\"]"), "ingest.labels: has \"a\" twice"),
        (
            ingest("format = \"text\"\nheader = true"),
            "ingest.header: is a key of format = \"csv\", and format is \"text\"",
        ),
        (
            ingest("format = \"csv\"\nevaluation = 1.0"),
            "ingest.evaluation: is the number 1.0; allowed: a number above 0, below 1",
        ),
        (
            ingest("format = \"text\"") + "[[evaluate.thresholds]]\nmetric = \"f1\"\nlower = 0.1\n",
            "is \"f1\", but a text has no classes",
        ),
        (
            ingest("format = \"csv\"") + "[[evaluate.thresholds]]\nmetric = \"loss\"\nslice = \"a=1\"\nlower = 0.1\n",
            "evaluate.thresholds.slice: is \"a=1\"; allowed: COLUMN=VALUE",
        ),
        (
            ingest("format = \"csv\"") + "[export]\nformats = [\"onxx\"]\n",
            "export.formats: has \"onxx\"; allowed: \"hf\"",
        ),
        (ingest("format = \"csv\"") + "[push]\n", "push.registry: is missing"),
    ] {
        let told = refused(&text);
        assert!(told.contains(says), "{says}\n{told}");
    }
}

#[test]
fn a_change_that_nothing_can_be_compared_with_brings_a_warning() {
    let text = VALID.replace("[push]\nregistry = \"s3://models/a\"\n", "");
    assert_eq!(parsed(VALID, &[]).warnings, vec![]);
    assert!(told(&parsed(&text, &[]).warnings).contains("no [push] names a registry"));
}

#[test]
fn the_reference_says_what_the_code_says() {
    let path = repository().join("docs/pipeline-toml.md");
    let page = reference_markdown();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &page).expect("a writable folder");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/pipeline-toml.md is out of date; UPDATE=1 cargo test --release -p elastic-spec writes it"
    );
}

#[test]
fn the_examples_are_good_pipeline_files() {
    for example in ["digits", "text"] {
        let folder = repository().join("examples/pipeline").join(example);
        let text = std::fs::read_to_string(folder.join("pipeline.toml")).expect("the example is part of the source");
        let parsed = parse(&text, &ParseContext { base_dir: folder.display().to_string(), ..context(&[]) });
        let parsed = parsed.unwrap_or_else(|mistakes| panic!("{example}:\n{}", told(&mistakes)));
        assert_eq!(parsed.warnings, vec![], "{example}");
        for (_, path) in parsed.spec.ingest.source.files() {
            assert!(Path::new(path).is_file(), "{path} is part of the source");
        }
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "(\\[\\[?[a-z.]{1,9}\\]\\]?\n|[a-z]{1,8} = [\\[\\]\"a-z0-9.-]{0,9}\n|[ -~]{0,9}\n){0,12}") {
        let _ = parse(&text, &context(&[]));
    }

    #[test]
    fn no_change_of_a_line_makes_the_parser_panic(line in 0usize..24, with in "[ -~]{0,20}") {
        let mut lines: Vec<&str> = VALID.lines().collect();
        let line = line % lines.len();
        lines[line] = &with;
        let _ = parse(&lines.join("\n"), &context(&[]));
    }
}
