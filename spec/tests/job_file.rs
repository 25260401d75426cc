//! What holds for every job file: specs read back as printed, no text makes the parser panic, and the
//! documentation and the examples are what the code says.

use elastic_spec::job::*;
use elastic_spec::{Digest, job};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

const VALID: &str = r#"
name = "try"

[model]
kind = "mlp"
hidden = [32, 16]

[data]
kind = "csv"
path = "digits.csv.gz"
classes = 10
validation = 0.25

[train]
global_batch = 64
epochs = 3
lr = 0.01
optimizer = "sgd"
momentum = 0.9
schedule = "step"
decay_every = 10

[elastic]
max_workers = 2
"#;

fn context(flags: &[&str]) -> ParseContext {
    ParseContext {
        file: "job.toml".to_string(),
        base_dir: "/jobs/digits".to_string(),
        overrides: flags.iter().map(|flag| flag.to_string()).collect(),
    }
}

fn parsed(text: &str, flags: &[&str]) -> Parsed {
    parse(text, &context(flags)).unwrap_or_else(|mistakes| panic!("{}", told(&mistakes)))
}

fn told(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("{mistake}\n")).collect()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_path_buf()
}

#[test]
fn defaults_are_filled_in_and_paths_start_at_the_files_folder() {
    let spec = parsed(VALID, &[]).spec;
    assert_eq!(
        spec.data.source,
        DataSource::Csv {
            path: "/jobs/digits/digits.csv.gz".to_string(),
            label: -1,
            header: false,
            scale: 1.0,
            classes: 10
        }
    );
    assert_eq!((spec.train.shards, spec.elastic.max_workers, spec.elastic.min_workers), (16, 2, 1));
    assert_eq!(spec.train.optimizer, Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 });
    assert_eq!(spec.train.lr_schedule, LrSchedule::Step { warmup: 0, every: 10, gamma: 0.1 });
}

const COMMAND: &str = r#"
name = "ddp"
[command]
run = ["python3", "-u", "train.py", "$$HOME", ""]
processes = 2
env = { LOGLEVEL = "info", "odd name" = "a \"b\"" }
log_dir = "logs"
role = "trainer"
prefix = "${hostname}:${rank} "
redirects = "0:1,1:0"
show = [0, 1]
virtual_local_rank = true
[elastic]
min_workers = 2
"#;

#[test]
fn a_command_reads_back_as_it_was_written_and_counts_nodes() {
    let spec = parsed(COMMAND, &[]).spec;
    let command = spec.command().expect("it is a command").clone();
    assert_eq!(command.run, ["python3", "-u", "train.py", "$$HOME", ""]);
    assert_eq!((command.folder.as_str(), command.log_dir.as_deref()), ("/jobs/digits", Some("/jobs/digits/logs")));
    assert_eq!((command.env["odd name"].as_str(), command.grace_s), ("a \"b\"", 8));
    assert_eq!((command.role.as_str(), command.prefix.as_deref()), ("trainer", Some("${hostname}:${rank} ")));
    assert_eq!((command.redirects.to_string().as_str(), command.virtual_local_rank), ("0:1", true));
    let shown = [0, 1, 2].map(|local| [Stream::Stdout, Stream::Stderr].map(|stream| command.shows(local, stream)));
    assert_eq!(shown, [[false, true], [true, true], [false, false]]);
    assert_eq!((spec.elastic.min_workers, spec.elastic.max_workers), (2, 2));
    assert_eq!(JobSpec::from_json(&spec.canonical_json()), Ok(spec.clone()));
    assert_eq!(parsed(&spec.to_toml_resolved(), &[]).spec, spec);
    let other = parsed(COMMAND, &["command.processes=3"]).spec;
    assert_ne!(other.config_digest(), spec.config_digest());
    assert!(parsed(VALID, &[]).spec.command().is_none());
}

#[test]
fn what_is_wrong_with_a_command_is_told() {
    let all = |text: &str| told(&parse(text, &context(&[])).unwrap_err());
    assert!(all("[command]\n").contains("command.run: is missing"), "{}", all("[command]\n"));
    for (flag, says) in [
        ("command.run=[]", "names no program"),
        ("command.run=[1]", "is not a list of up to 4096 texts"),
        ("command.env={ A = 1 }", "names without '=', and texts"),
        ("command.processes=0", "an integer from 1 to 256"),
        ("command.redirects=\"4\"", "allowed: 0, 1 (stdout), 2 (stderr), 3 (both)"),
        ("command.show=[2]", "has 2; the processes of a node are 0 to 1"),
        ("elastic.max_workers=1", "is 2, above max_workers = 1"),
        ("train.lr=0.1", "stands beside [command]"),
    ] {
        let mistakes = parse(COMMAND, &context(&[flag])).unwrap_err();
        assert!(told(&mistakes).contains(says), "{flag}: {}", told(&mistakes));
    }
}

#[test]
fn a_job_without_a_name_is_called_like_its_folder() {
    let text = VALID.replace("name = \"try\"", "");
    assert_eq!(parsed(&text, &[]).spec.name, "digits");
    let elsewhere = ParseContext { base_dir: "/Jobs of Mine/".to_string(), ..context(&[]) };
    assert_eq!(parse(&text, &elsewhere).unwrap().spec.name, "job");
}

#[test]
fn flags_are_laid_over_the_file() {
    let flags = ["train.steps=7", "train.optimizer=adam", "train.clip_norm = 0.5", "checkpoint.dir=../out"];
    let text = VALID.replace("momentum = 0.9\n", "");
    let spec = parsed(&text, &flags).spec;
    assert_eq!(spec.train.length, Length::Steps(7));
    assert!(matches!(spec.train.optimizer, Optimizer::Adam { .. }));
    assert_eq!(spec.train.clip_norm, Some(0.5));
    assert_eq!(spec.checkpoint.dir.as_deref(), Some("/jobs/digits/../out"));
}

#[test]
fn checkpoints_may_lie_in_a_bucket() {
    let spec = parsed(VALID, &["checkpoint.dir=s3://models/states/"]).spec;
    assert_eq!(spec.checkpoint.dir.as_deref(), Some("s3://models/states"));
    for (bad, says) in [
        ("s3://Models/a", "names the bucket"),
        ("s3://models/a//b", "has the prefix"),
        ("s3://models/../b", "has the prefix"),
        ("gs://models/a", "allowed: s3://bucket/prefix, a path"),
    ] {
        let said = told(&parse(VALID, &context(&[&format!("checkpoint.dir={bad}")])).unwrap_err());
        assert!(said.contains(says), "{bad}: {said}");
    }
}

#[test]
fn many_workers_for_few_shards_bring_a_warning_with_the_efficiency() {
    assert_eq!(parsed(VALID, &[]).warnings, vec![]);
    let warnings = parsed(VALID, &["elastic.max_workers=6"]).warnings;
    assert_eq!(
        told(&warnings),
        "--set elastic.max_workers=6: elastic.max_workers: is 6, above an eighth of train.shards = 16: 6 workers \
         run at 89 % (shards / (workers * ceil(shards / workers))), 5 of them at 80 %\n"
    );
}

#[test]
fn a_setting_without_effect_brings_a_warning() {
    let flags = ["data.validation=0", "train.validate_every=3", "train.steps=5", "train.warmup=9"];
    let warnings = parsed(VALID, &flags).warnings;
    let fields: Vec<&str> = warnings.iter().map(|warning| warning.field.as_str()).collect();
    assert_eq!(fields, ["train.validate_every", "train.warmup"]);
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let text = format!("{VALID}# {}", "x".repeat(elastic_spec::limits::JOB_FILE_BYTES_MAX));
    let mistakes = parse(&text, &context(&[])).unwrap_err();
    assert_eq!(mistakes.len(), 1);
    assert!(mistakes[0].message.contains("at most 1048576"), "{}", told(&mistakes));
}

#[test]
fn a_spec_that_no_store_would_take_is_refused() {
    let text = VALID.replace("kind = \"mlp\"\nhidden = [32, 16]", "kind = \"own\"\nprogram = \"mine\"");
    assert_eq!(parsed(&text, &[]).warnings, vec![]);
    let notes = format!("params.notes = \"{}\"\n\n[data]", "x".repeat(600_000));
    let mistakes = parse(&text.replace("[data]", &notes), &context(&[])).unwrap_err();
    assert!(told(&mistakes).contains("at most 524288 can be stored"), "{:.200}", told(&mistakes));
}

#[test]
fn columns_count_characters() {
    let mistakes = parse("\"ä\" = { ö = 1 }\nx = \"ü\" y\n", &context(&[])).unwrap_err();
    let places: Vec<_> = mistakes.iter().map(|mistake| (mistake.line(), mistake.column())).collect();
    assert_eq!(places[0].0, Some(1));
    assert!(places.contains(&(Some(2), Some(9))), "{places:?} {}", told(&mistakes));
}

#[test]
fn the_reference_says_what_the_code_says() {
    let path = repository().join("docs/job-toml.md");
    let page = job::reference_markdown();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a writable folder");
        std::fs::write(&path, &page).expect("a writable folder");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/job-toml.md is out of date; UPDATE=1 cargo test --release -p elastic-spec writes it"
    );
}

#[test]
fn the_examples_are_good_job_files() {
    let mut found = 0;
    for example in std::fs::read_dir(repository().join("examples")).expect("the examples are part of the source") {
        let folder = example.expect("a readable folder").path();
        let Ok(text) = std::fs::read_to_string(folder.join("job.toml")) else { continue };
        found += 1;
        let base_dir = folder.display().to_string();
        let context = ParseContext { base_dir, ..context(&[]) };
        let parsed = parse(&text, &context).unwrap_or_else(|m| panic!("{}:\n{}", folder.display(), told(&m)));
        assert_eq!(parsed.warnings, vec![], "{}", folder.display());
        for input in parsed.spec.inputs().iter().filter(|input| input.key != "init") {
            assert!(Path::new(input.path).is_file(), "{} is part of the example", input.path);
        }
    }
    assert!(found >= 3, "mlp, cnn and gpt have an example");
}

#[test]
fn a_spec_from_the_wire_is_held_to_the_rules_of_the_file() {
    let good = parsed(VALID, &[]).spec;
    assert_eq!(JobSpec::from_json(&good.canonical_json()), Ok(good.clone()));
    let bad = |change: fn(&mut JobSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        JobSpec::from_json(&spec.canonical_json()).expect_err("no job file says this")
    };
    assert!(bad(|spec| spec.train.shards = 3).contains("train.shards: is 3; allowed: a power of two"));
    assert!(bad(|spec| spec.train.global_batch = 0).contains("train.global_batch"));
    assert!(bad(|spec| spec.elastic.max_workers = 0).contains("elastic.max_workers"));
    assert!(bad(|spec| spec.name = "../../etc".to_string()).contains("name: is"));
    assert!(bad(|spec| spec.data.validation = 1.5).contains("data.validation"));
    assert!(JobSpec::from_json("{}").unwrap_err().contains("missing field"));
}

fn any_path() -> impl Strategy<Value = String> {
    "/[a-zA-Z0-9 ._\"\\\\\u{1}äß-]{1,20}(/[a-z. ]{1,8})?"
}

fn any_model() -> impl Strategy<Value = ModelKind> {
    let activation = prop_oneof![Just(Activation::Relu), Just(Activation::Gelu)];
    let mlp = (prop::collection::vec(1u32..=65536, 0..5), activation)
        .prop_map(|(hidden, activation)| ModelKind::Mlp { hidden, activation });
    let cnn = (any::<[u8; 3]>(), prop::collection::vec(1u32..=4096, 1..4), 0u32..8, 0u32..100, any::<bool>()).prop_map(
        |(image, channels, kernel, hidden, batch_norm)| {
            let image = image.map(|side| u32::from(side) + 1);
            ModelKind::Cnn { image, channels, kernel: kernel * 2 + 1, hidden, batch_norm }
        },
    );
    let gpt = (1u32..9, 1u32..9, 1u32..99, 1u32..999, 0.0f32..0.999, any::<[bool; 2]>()).prop_map(
        |(layers, heads, each, context, dropout, [rms, rotary])| {
            let norm = if rms { Norm::Rms } else { Norm::Layer };
            let (positions, each) = if rotary { (Positions::Rotary, 2 * each) } else { (Positions::Learned, each) };
            ModelKind::Gpt { layers, heads, width: heads * each, context, dropout, norm, positions }
        },
    );
    let params = (any::<i64>(), any::<u64>(), -1e300f64..1e300, "[a-z\\n\"]{0,9}", 1u32..65536).prop_map(|(a, b, c, d, context)| {
        serde_json::json!({ "a": a, "b": [b, { "c": c }], "d e": d, "empty": {}, "context": context })
    });
    let own = (any_path(), params).prop_map(|(program, params)| ModelKind::Own { program, params });
    let resnet18 = (1u32..9, 1u32..99, any::<bool>(), 1u32..=4096, any::<bool>()).prop_map(
        |(channels, side, small, width, zero_init_residual)| {
            let stem = if small { Stem::Small } else { Stem::Full };
            ModelKind::Resnet18 { image: [channels, side, side], stem, width, zero_init_residual }
        },
    );
    prop_oneof![mlp, cnn, resnet18, gpt, own]
}

fn any_source(model: ModelKind) -> BoxedStrategy<DataSource> {
    let csv = (any_path(), any::<i32>(), any::<bool>(), 1e-30f32..1e9, 2u32..65536)
        .prop_map(|(path, label, header, scale, classes)| DataSource::Csv { path, label, header, scale, classes });
    let npy = (any_path(), any_path(), 1e-30f32..1e9, 2u32..65536).prop_map(|(x, y, scale, classes)| DataSource::Npy {
        x,
        y,
        scale,
        classes,
    });
    let text =
        (any_path(), prop::option::of(any_path())).prop_map(|(path, tokenizer)| DataSource::Text { path, tokenizer });
    let fixed = match &model {
        ModelKind::Cnn { image, .. } | ModelKind::Resnet18 { image, .. } => Some(image.iter().product()),
        ModelKind::Gpt { context, .. } => Some(*context),
        _ => None,
    };
    let synthetic = (1u64..100, 1u32..10000, 2u32..65536).prop_map(move |(samples, features, classes)| {
        DataSource::Synthetic { samples, features: fixed.unwrap_or(features), classes }
    });
    match model {
        ModelKind::Gpt { .. } => prop_oneof![text, synthetic].boxed(),
        ModelKind::Own { .. } => prop_oneof![csv, npy, text, synthetic].boxed(),
        _ => prop_oneof![csv, npy, synthetic].boxed(),
    }
}

fn any_train() -> impl Strategy<Value = TrainSpec> {
    let moments = (0.0f64..0.9999, 0.0f64..0.9999, 1e-300f64..1.0, 0.0f64..1.0);
    let optimizer =
        (moments, 0u8..3, any::<bool>()).prop_map(|((beta1, beta2, eps, weight_decay), which, flag)| match which {
            0 => Optimizer::Sgd { momentum: beta1, nesterov: flag && beta1 > 0.0, weight_decay },
            1 => Optimizer::Adam { beta1, beta2, eps, weight_decay },
            _ => Optimizer::AdamW { beta1, beta2, eps, weight_decay },
        });
    let schedule = (0u64..99, 0.0f64..1.0, 1u64..99, 0u8..4).prop_map(|(warmup, end, every, which)| match which {
        0 => LrSchedule::Constant { warmup },
        1 => LrSchedule::Linear { warmup, end },
        2 => LrSchedule::Cosine { warmup, end },
        _ => LrSchedule::Step { warmup, every, gamma: 1.0 - end },
    });
    let length = (any::<bool>(), 1u64..1 << 48).prop_map(|(s, n)| if s { Length::Steps(n) } else { Length::Epochs(n) });
    let clip = (
        prop::option::of(1e-300f64..1e9),
        prop_oneof![Just(NonFinite::Fail), Just(NonFinite::Skip)],
        prop::option::of(1e-9f64..0.9999),
    );
    let patterns = prop::collection::vec("[a-z*?.\"\\\\]{1,9}", 1..3);
    let group = (patterns, 0.0f64..1000.0, prop::option::of(0.0f64..1.0));
    let group = group.prop_map(|(patterns, lr_scale, weight_decay)| Group { patterns, lr_scale, weight_decay });
    let every = (0u64..1 << 48, prop::collection::vec(group, 0..3));
    let numbers = (1e-300f64..1000.0, clip, 0.0f32..0.9999, every);
    let seed = (any::<u64>(), prop_oneof![Just(Dtype::F32), Just(Dtype::Bf16)]);
    (0u32..10, 1u32..999, seed, length, optimizer, schedule, numbers).prop_map(
        |(
            power,
            each,
            (seed, dtype),
            length,
            optimizer,
            lr_schedule,
            (lr, (clip_norm, non_finite, ema), label_smoothing, (validate_every, groups)),
        )| {
            TrainSpec {
                global_batch: each << power,
                shards: 1 << power,
                length,
                seed,
                dtype,
                optimizer,
                lr,
                lr_schedule,
                clip_norm,
                non_finite,
                ema,
                label_smoothing,
                validate_every,
                groups,
            }
        },
    )
}

prop_compose! {
    fn any_spec()
        (model in any_model(), train in any_train())
        (patterns in prop::collection::vec("[a-z*?.\"\\\\]{1,9}", 0..3), freeze in prop::collection::vec("[a-z*.]{1,9}", 0..3),
         source in any_source(model.clone()), model in Just(model), train in Just(train),
         name in "[a-z0-9]([a-z0-9._-]{0,30}[a-z0-9])?", init in prop::option::of(any_path()),
         dir in prop::option::of(any_path()), validation in 0.0f64..1.0, sha in prop::option::of(any::<[u8; 32]>()),
         min in 1u16..1024, max in 1u16..1024, (restarts, every, keep) in (0u32..1000, 0u64..1 << 48, 1u32..1000),
         threads in 0u16..1025, device in prop::sample::select(vec![Device::Auto, Device::Cpu, Device::Cuda]))
        -> JobSpec {
        let max_workers = max.min(train.shards);
        let is_own = matches!(model, ModelKind::Own { .. });
        let train = TrainSpec { dtype: if is_own { Dtype::F32 } else { train.dtype }, ..train };
        JobSpec {
            name,
            model: ModelSpec {
                kind: model,
                init_sha256: sha.filter(|_| init.is_some()).map(Digest),
                init_except: if init.is_some() { patterns } else { vec![] },
                init,
                freeze,
            },
            data: DataSpec { source, validation, sha256: sha.map(Digest) },
            elastic: ElasticSpec { min_workers: min.min(max_workers), max_workers, reduce: Reduce::Exact, restarts },
            train,
            checkpoint: CheckpointSpec { dir, every, keep },
            resources: ResourceSpec { device, threads },
        }
    }
}

proptest! {
    #[test]
    fn a_spec_reads_back_as_it_was_printed(spec in any_spec()) {
        let printed = spec.to_toml_resolved();
        match parse(&printed, &context(&[])) {
            Ok(parsed) => prop_assert_eq!(parsed.spec, spec),
            Err(mistakes) => prop_assert!(false, "{}\n{}", told(&mistakes), printed),
        }
    }

    #[test]
    fn a_spec_reads_back_from_its_canonical_json(spec in any_spec()) {
        prop_assert_eq!(JobSpec::from_json(&spec.canonical_json()), Ok(spec));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), flag in ".{0,30}") {
        let _ = parse(&String::from_utf8_lossy(&bytes), &context(&[&flag]));
    }

    #[test]
    fn no_text_of_toml_pieces_makes_the_parser_panic(
        pieces in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..60)
    ) {
        let _ = parse(&pieces.concat(), &context(&[]));
    }

    #[test]
    fn no_change_of_a_good_file_makes_the_parser_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), prop::sample::select(PIECES.to_vec())), 1..8)
    ) {
        let mut text: Vec<char> = VALID.chars().collect();
        for (at, length, piece) in edits {
            let from = at.index(text.len() + 1);
            let to = (from + length.index(12)).min(text.len());
            text.splice(from..to, piece.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(mistakes) = parse(&text, &context(&[])) {
            prop_assert!(!mistakes.is_empty());
            let lines = text.lines().count().max(1) as u32;
            prop_assert!(mistakes.iter().all(|m| m.line().is_none_or(|line| (1..=lines).contains(&line))), "{}", told(&mistakes));
        }
    }
}

const PIECES: [&str; 44] = [
    "\n",
    "\n",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ".",
    ",",
    "\"",
    "\"\"\"",
    "'",
    "'''",
    "#",
    " ",
    "\t",
    "\r\n",
    "\\",
    "\\u",
    "\\x41",
    "-",
    "+",
    "_",
    "0x",
    "1",
    "9999999999999999999999",
    "1e5",
    "nan",
    "-inf",
    "true",
    "2026-01-01T00:00:00Z",
    "a",
    "a.b",
    "model",
    "[model]",
    "[train]\n",
    "lr = ",
    "kind = \"mlp\"\n",
    "hidden = [",
    "params.x = {",
    "ü",
    "\u{0}",
];
