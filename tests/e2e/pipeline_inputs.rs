//! Raw files of every format, bad ones, blobs that are gone and disks that are full.

use crate::cluster::{Guarded, elastic, repo, wait_for};
use crate::pipeline::{Example, Pipeline, files, ran};
use elastic_tests::skip::skip;
use parquet::data_type::Int32Type;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// The digits: 64 pixels and a class each.
fn digits() -> Vec<Vec<i32>> {
    let file = std::fs::File::open(repo().join("examples/digits/digits.csv.gz")).expect("the digits");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("they unpack");
    text.lines().map(|line| line.split(',').map(|number| number.parse().expect("a number")).collect()).collect()
}

/// In an order that is that of the names, too.
fn column(at: usize) -> String {
    if at == 64 { "class".into() } else { format!("p{at:02}") }
}

fn jsonl(rows: &[Vec<i32>]) -> Vec<u8> {
    let line = |row: &Vec<i32>| {
        let fields: serde_json::Map<String, Value> =
            row.iter().enumerate().map(|(at, number)| (column(at), json!(number))).collect();
        Value::Object(fields).to_string() + "\n"
    };
    rows.iter().map(line).collect::<String>().into_bytes()
}

fn parquet(rows: &[Vec<i32>]) -> Vec<u8> {
    let columns: String = (0..65).map(|at| format!("required int32 {};", column(at))).collect();
    let schema = Arc::new(parse_message_type(&format!("message rows {{ {columns} }}")).expect("a schema"));
    let (mut bytes, properties) = (Vec::new(), Arc::new(WriterProperties::builder().build()));
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    for at in 0..65 {
        let numbers: Vec<i32> = rows.iter().map(|row| row[at]).collect();
        let mut column = group.next_column().expect("a column").expect("one more");
        column.typed::<Int32Type>().write_batch(&numbers, None, None).expect("numbers");
        column.close().expect("the column ends");
    }
    group.close().expect("the group ends");
    writer.close().expect("the file ends");
    bytes
}

/// Samples and classes.
fn idx(rows: &[Vec<i32>]) -> (Vec<u8>, Vec<u8>) {
    let head = |sides: &[usize]| {
        let sizes = sides.iter().flat_map(|side| (*side as u32).to_be_bytes());
        [0, 0, 8, sides.len() as u8].into_iter().chain(sizes).collect::<Vec<u8>>()
    };
    let bytes = |range: std::ops::Range<usize>| {
        rows.iter().flat_map(move |row| row[range.clone()].iter().map(|number| *number as u8)).collect::<Vec<u8>>()
    };
    ([head(&[rows.len(), 8, 8]), bytes(0..64)].concat(), [head(&[rows.len()]), bytes(64..65)].concat())
}

fn write(pipeline: &Pipeline, name: &str, bytes: &[u8]) -> String {
    std::fs::write(pipeline.path(name), bytes).expect("a writable folder");
    name.to_string()
}

/// The same rows in four formats are the same examples: only ingest runs again.
#[test]
fn csv_json_lines_parquet_and_idx_of_the_same_rows_make_the_same_model() {
    let pipeline = Pipeline::of(Example::Digits);
    let rows = digits();
    let (samples, classes) = idx(&rows);
    write(&pipeline, "digits.jsonl", &jsonl(&rows));
    write(&pipeline, "digits.parquet", &parquet(&rows));
    write(&pipeline, "digits.samples", &samples);
    write(&pipeline, "digits.classes", &classes);
    let (first, _) = pipeline.run(&["--set", "train.workers=1"]);
    pipeline.assert_undisturbed(&first);
    for settings in [
        &["ingest.format=jsonl", "ingest.path=digits.jsonl", "ingest.label=class"][..],
        &["ingest.format=parquet", "ingest.path=digits.parquet", "ingest.label=class"],
        &["ingest.format=idx", "ingest.path=digits.samples", "ingest.labels_path=digits.classes"],
    ] {
        let args: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let (ended, said) = pipeline.run(&[&args[..], &["--set", "train.workers=1"]].concat());
        assert_eq!(ran(&ended), ["ingest"], "{said}");
        pipeline.assert_undisturbed(&ended);
    }
}

#[test]
fn bad_files_and_a_full_disk_are_told_with_place_and_cure_and_nothing_is_published() {
    let digits = Pipeline::of(Example::Digits);
    let with = |path: &str| format!("ingest.path={path}");
    digits.refused(&["--set", "ingest.format=cvs"], 2, &["ingest.format: is the text \"cvs\"", "did you mean `csv`?"]);
    digits.refused(
        &["--set", "train.set=[\"train.lr=-1\"]"],
        2,
        &["train.lr: is the integer -1; allowed: a number above 0"],
    );
    digits.refused(&["--set", "ingest.path=nowhere.csv"], 1, &["nowhere.csv"]);

    let ragged = write(&digits, "ragged.csv", b"1,2,0\n1,2,1\n1,0\n");
    digits.refused(&["--set", &with(&ragged)], 1, &["line 3 has 2 columns, line 1 has 3; all lines must have as many"]);
    let packed = std::fs::read(repo().join("examples/digits/digits.csv.gz")).expect("the digits");
    let truncated = write(&digits, "truncated.csv.gz", &packed[..packed.len() / 2]);
    digits.refused(&["--set", &with(&truncated)], 1, &["the gzip stream breaks off after", "copy the file again"]);
    let ragged = write(&digits, "ragged.jsonl", b"{\"a\": 1, \"y\": 0}\n{\"a\": 1\n");
    let args = ["--set", "ingest.format=jsonl", "--set", "ingest.label=y", "--set", &with(&ragged)];
    digits.refused(&args, 1, &["ragged.jsonl", "line 2"]);
    let whole = parquet(&self::digits()[..200]);
    let text = write(&digits, "one.txt", b"one paragraph");
    for (name, bytes) in [("half.parquet", &whole[..whole.len() / 2]), ("headless.parquet", &whole[..whole.len() - 8])]
    {
        let args = ["--set", "ingest.format=parquet", "--set", "ingest.label=class", "--set"];
        let path = with(&write(&digits, name, bytes));
        digits.refused(&[&args[..], &[&path]].concat(), 1, &[name, "copy it again"]);
    }
    let (samples, classes) = idx(&self::digits()[..20]);
    write(&digits, "few.classes", &classes[..classes.len() - 3]);
    let path = with(&write(&digits, "few.samples", &samples));
    let args = ["--set", "ingest.format=idx", "--set", "ingest.labels_path=few.classes", "--set", &path];
    digits.refused(&args, 1, &["few.classes", "copy the file again"]);
    let args = ["--set", "ingest.format=text", "--set", &with(&text), "--set", "evaluate.thresholds=[]"];
    digits.refused(&args, 2, &["data.kind", "the model reads numbers"]);

    digits.refused(
        &["--set", "evaluate.thresholds=[{metric = \"accuracy\", lower = 1.0}]"],
        1,
        &["the model is not blessed: accuracy is 0.", "below 1"],
    );

    // No file may grow above 160 KiB, as if the disk were full: the lineage fits, the rows do not.
    let script = "ulimit -f 160; trap '' XFSZ; exec \"$0\" \"$@\"";
    let mut full = Command::new("bash");
    full.args(["-c", script]).arg(elastic()).args([
        "pipeline",
        "run",
        "pipeline.toml",
        "--set",
        "store.workspace=full",
    ]);
    full.current_dir(digits.path("")).env_remove("ELASTIC_COORDINATOR").env("XDG_CONFIG_HOME", digits.path(""));
    let out = full.output().expect("bash starts");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("File too large"), "{said}");
    assert!(!digits.path("registry/digits").exists(), "{said}");
}

/// Gone between two runs, and in the middle of one: what made it runs again, and nothing that is not whole is published.
#[test]
fn blobs_that_are_gone_or_damaged_are_made_again_before_anything_is_published() {
    let pipeline = Pipeline::of(Example::Digits);
    let args = ["--set", "train.workers=1"];
    pipeline.killed_at("check-recorded", &args);
    let blobs = pipeline.path(".pipeline/store/blobs");
    let all = files(&blobs);
    let named = |text: &str| {
        let is = |(_, bytes): &(&String, &Vec<u8>)| String::from_utf8_lossy(bytes).contains(text);
        all.iter().find(is).map(|(name, _)| blobs.join(name)).unwrap_or_else(|| panic!("no blob has {text}"))
    };
    let signature = named("\"datatype\": \"FP32\"");
    std::fs::remove_file(&signature).expect("it goes");
    let (ended, said) = pipeline.run(&args);
    assert!(said.contains("signature.json") && said.contains("is gone"), "{said}");
    assert_eq!(ran(&ended), ["export", "push"], "what was made of it is the same and is not done again: {said}");
    pipeline.assert_undisturbed(&ended);

    let mut damaged = std::fs::read(&signature).expect("it is back");
    damaged[0] ^= 1;
    std::fs::write(&signature, damaged).expect("it is damaged");
    let (ended, said) = pipeline.run(&args);
    assert!(said.contains("is damaged"), "{said}");
    assert_eq!(ran(&ended), ["export"], "{said}");
    pipeline.assert_undisturbed(&ended);
}

/// A folder on a small disk of its own, gone with the test. None: this machine does not let one be made.
struct SmallDisk {
    dir: std::path::PathBuf,
}

impl SmallDisk {
    fn mounted_at(dir: &Path, size: &str) -> Option<SmallDisk> {
        std::fs::create_dir_all(dir).expect("a folder");
        let disk = SmallDisk { dir: dir.to_path_buf() };
        disk.mount(&format!("size={size}")).then_some(disk)
    }

    fn mount(&self, options: &str) -> bool {
        let out = Command::new("mount").args(["-t", "tmpfs", "-o", options, "elastic-test"]).arg(&self.dir).output();
        out.is_ok_and(|out| out.status.success())
    }

    fn grow_to(&self, size: &str) {
        assert!(self.mount(&format!("remount,size={size}")), "the disk grows");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // One that was not mounted is no error here.
        let _ = Command::new("umount").arg(&self.dir).output();
    }
}

/// First the registry's disk is full, then the workspace's: each says so, and goes on when there is room.
#[test]
fn a_full_disk_publishes_nothing_half_and_the_same_command_goes_on_when_there_is_room() {
    let test = "a_full_disk_publishes_nothing_half_and_the_same_command_goes_on_when_there_is_room";
    let pipeline = Pipeline::of(Example::Digits);
    let Some(registry) = SmallDisk::mounted_at(&pipeline.path("registry"), "16k") else {
        return skip(test, "no tmpfs can be mounted here");
    };
    let args = ["--set", "train.workers=1", "--set", "push.retries=0", "--set", "train.retries=0"];
    let out = pipeline.output(&args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("push: publish ") && said.contains("no space is left"), "{said}");
    let half = files(&pipeline.path("registry"));
    assert!(
        !half.keys().any(|name| name.ends_with("manifest.json") || name.ends_with("labels.json")),
        "{:?}",
        half.keys()
    );
    registry.grow_to("4m");
    let (ended, said) = pipeline.run(&args);
    assert_eq!(ran(&ended), ["push"], "{said}");
    pipeline.assert_undisturbed(&ended);

    let other = Pipeline::of(Example::Digits);
    let workspace = SmallDisk::mounted_at(&other.path(".pipeline"), "300k").expect("a second one");
    let mut told = Vec::new();
    for kib in (300..).step_by(300) {
        assert!(kib < 8000, "it never comes to an end");
        workspace.grow_to(&format!("{kib}k"));
        let (ended, said) = run_or_wait(&other, &args);
        match ended {
            Some(ended) if ended["state"] == "COMPLETE" => {
                other.assert_undisturbed(&ended);
                break;
            }
            _ => told.push((kib, ended.is_none())),
        }
        let is_told = ["no space is left", "No space left on device", "database or disk is full"];
        assert!(is_told.iter().any(|words| said.contains(words)), "{kib} KiB: {said}");
        assert!(files(&other.path("registry")).is_empty(), "{kib} KiB: nothing is published: {said}");
    }
    assert!(told.len() >= 2, "it was full in more than one place: {told:?}");
}

/// The end of a run; None: it waits for room, which it said, and was killed.
fn run_or_wait(pipeline: &Pipeline, args: &[&str]) -> (Option<Value>, String) {
    let open = |name: &str| std::fs::File::create(pipeline.path(name)).expect("a file");
    let child = pipeline.command(args).stdout(open("said.out")).stderr(open("said.err")).spawn();
    let mut child = Guarded(child.expect("elastic starts"));
    let said = |name: &str| std::fs::read_to_string(pipeline.path(name)).unwrap_or_default();
    let has_ended = wait_for("an end, or a word about why not", 60, || {
        let waits = said("said.err").contains("a checkpoint could not be written").then_some(false);
        child.0.try_wait().expect("its state").map(|_| true).or(waits)
    });
    child.kill();
    let ended = said("said.out").lines().last().and_then(|line| serde_json::from_str(line).ok());
    (ended.filter(|_| has_ended), said("said.err"))
}
