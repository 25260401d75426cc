//! `elastic evaluate`: asks a model about samples whose answers are known.

use crate::exit::{Exit, Outcome, mistake};
use crate::models::{self, Asked, Named, Weights};
use crate::show;
use anyhow::{Context, Result, anyhow, bail};
use clap::ValueHint;
use elastic_bundle::{Predictor, Score, Scorer, Shape};
use elastic_loader::{Data, Part};
use elastic_spec::job::DataSource;
use serde_json::{Value, json};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  elastic evaluate runs/digits-3f2a                        on the samples that the run kept for validation
  elastic evaluate models/digits --data test.csv.gz        a bundle, on a file; the class is the last column
  elastic evaluate models/digits --data test.csv --label 0 --header
  elastic evaluate models/digits --data x.npy --targets y.npy
  elastic evaluate models/gpt --data held-out.txt --json | jq .perplexity
  elastic evaluate models/digits --data test.csv --answers answers.jsonl

Each answer has the same bits that `elastic serve` gives for the same sample, in
whatever batch it comes.

Exit codes: 0 evaluated, 1 it could not be, 2 mistakes in the data or on the
command line.")]
pub struct Args {
    /// A bundle, a model of a registry (its newest version), a run's directory, or a checkpoint
    #[arg(value_name = "BUNDLE|RUN|CHECKPOINT", value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    /// Samples: a CSV, an .npy array (with --targets), or a text [default: what the run kept for validation]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub data: Option<PathBuf>,
    /// Column of the class in a CSV; negative: from the end
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    pub label: i32,
    /// The CSV's first line holds names
    #[arg(long)]
    pub header: bool,
    /// The classes of an .npy array
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub targets: Option<PathBuf>,
    /// Which weights of a run
    #[arg(long, value_enum, default_value_t = Weights::Best)]
    pub weights: Weights,
    /// Write the logits of each sample, one JSON object a line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub answers: Option<PathBuf>,
    /// The run's directory, for a checkpoint that lies elsewhere
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub run: Option<PathBuf>,
    /// Threads to compute with [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> Outcome {
    let asked = Asked { run: args.run.as_deref(), weights: args.weights, labels: None };
    let named = models::find(&args.path, &asked)?;
    let (data, part) = samples(&args, &named)?;
    let shape = Shape::from(&data.shape());
    if shape != named.model.description.data {
        let wanted = named.model.description.data;
        return Err(mistake(anyhow!("the samples are {}, and the model reads {}", words(shape), words(wanted))).into());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.map_or(cores, usize::from);
    let mut predictor = Predictor::new(&named.model, threads).map_err(|why| anyhow!(why))?;
    let score = ask(&mut predictor, &named, (&data, part), args.answers.as_deref())?;
    let digest = named.provenance.weights_sha256;
    if args.json {
        let mut value = serde_json::to_value(&score).context("the score as JSON")?;
        value["model"] = named.model.description.name.clone().into();
        value["step"] = named.provenance.step.into();
        value["weights_sha256"] = json!(digest);
        value["data_sha256"] = json!(data.sha256());
        show::out(&format!("{value}\n"))?;
    } else {
        show::out(&shown(&named, &score))?;
    }
    Ok(Exit::Ok)
}

fn words(shape: Shape) -> String {
    match shape {
        Shape::Features { features, classes } => format!("{features} numbers of {classes} classes"),
        Shape::Tokens { vocab, context } => format!("windows of {context} out of {vocab} tokens"),
    }
}

/// Raw: the model's transform scales them, as it does for the server.
fn samples(args: &Args, named: &Named) -> Result<(Data, Part)> {
    let path_of = |path: &str| PathBuf::from(path);
    let Some(path) = &args.data else {
        let about =
            named.about.as_ref().ok_or_else(|| mistake(anyhow!("a bundle has no samples; name some with --data")))?;
        let mut spec = about.spec.clone();
        match &mut spec.data.source {
            DataSource::Csv { scale, .. } | DataSource::Npy { scale, .. } => *scale = 1.0,
            DataSource::Text { .. } | DataSource::Synthetic { .. } => {}
        }
        let data = elastic_loader::open(&spec, &path_of).context("read the run's data").map_err(mistake)?;
        if data.validation_samples() == 0 {
            return Err(mistake(anyhow!(
                "the run kept no samples for validation (data.validation = 0); name some with --data"
            )));
        }
        return Ok((data, Part::Validation));
    };
    // Tokens are counted from the model's own tokenizer, not from a file of another.
    let tokenizer = tempfile_of(named)?;
    let (source, context) = source(args, path, named, tokenizer.as_ref().map(|file| file.path()))?;
    let data = elastic_loader::whole(&source, context, &path_of).map_err(|error| mistake(anyhow!("{error}")))?;
    Ok((data, Part::Train))
}

/// The loader reads files, so a bundle's tokenizer is given to it as one.
fn tempfile_of(named: &Named) -> Result<Option<tempfile::NamedTempFile>> {
    let Some(json) = &named.model.tokenizer else { return Ok(None) };
    let mut file = tempfile::NamedTempFile::new().context("create a temporary file")?;
    file.write_all(json).and_then(|()| file.flush()).context("write a temporary file")?;
    Ok(Some(file))
}

fn source(args: &Args, path: &Path, named: &Named, tokenizer: Option<&Path>) -> Result<(DataSource, Option<u32>)> {
    let text = |path: &Path| path.display().to_string();
    match named.model.description.data {
        Shape::Tokens { context, .. } => {
            let source = DataSource::Text { path: text(path), tokenizer: tokenizer.map(text) };
            Ok((source, Some(context as u32)))
        }
        Shape::Features { classes, .. } => {
            let (scale, classes) = (1.0, classes as u32);
            let is_array = path.extension().is_some_and(|ending| ending == "npy");
            Ok(match (is_array, &args.targets) {
                (true, Some(y)) => (DataSource::Npy { x: text(path), y: text(y), scale, classes }, None),
                (true, None) => return Err(mistake(anyhow!("{}: name its classes with --targets y.npy", text(path)))),
                (false, Some(_)) => {
                    return Err(mistake(anyhow!("--targets is for .npy arrays; {} is none", text(path))));
                }
                (false, None) => {
                    let (label, header) = (args.label, args.header);
                    (DataSource::Csv { path: text(path), label, header, scale, classes }, None)
                }
            })
        }
    }
}

/// Samples that are asked about at once.
const TOGETHER: u64 = 256;

fn ask(predictor: &mut Predictor, named: &Named, (data, part): (&Data, Part), answers: Option<&Path>) -> Result<Score> {
    let count = match part {
        Part::Train => data.train_samples(),
        Part::Validation => data.validation_samples(),
    };
    let mut out = match answers {
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("create {}", path.display()));
            Some(BufWriter::new(file.map_err(mistake)?))
        }
        None => None,
    };
    let mut scorer = Scorer::new(&named.model.description.labels);
    let together = TOGETHER.min((1 << 24) / predictor.logits_len().max(1) as u64).max(1);
    for begin in (0..count).step_by(together as usize) {
        let batch = data.samples(part, begin..(begin + together).min(count));
        let logits = scorer.add(predictor, &batch);
        let Some(out) = &mut out else { continue };
        for (at, row) in logits.chunks_exact(predictor.logits_len()).enumerate() {
            writeln!(out, "{}", answer(&batch, at, row)).context("write the answers")?;
        }
    }
    if let Some(mut out) = out {
        out.flush().context("write the answers")?;
    }
    let score = scorer.finish();
    if score.count == 0 {
        bail!("there is no sample that counts");
    }
    Ok(score)
}

/// One sample: what was asked, in raw numbers, and the logits, each printed so that it reads back with the same bits.
fn answer(batch: &elastic_spec::batch::Batch, at: usize, logits: &[f32]) -> Value {
    let n = batch.slots.len();
    let part = |len: usize| at * len / n..(at + 1) * len / n;
    let targets = &batch.targets[part(batch.targets.len())];
    match batch.tokens.is_empty() {
        true => json!({ "input": batch.features[part(batch.features.len())], "logits": logits, "target": targets[0] }),
        false => json!({ "tokens": batch.tokens[part(batch.tokens.len())], "logits": logits, "targets": targets }),
    }
}

fn shown(named: &Named, score: &Score) -> String {
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
    let mut text = format!("{}, step {}\n\n", named.model.description.name, named.provenance.step);
    let unit = if score.classes.is_empty() { "tokens" } else { "samples" };
    let accuracy = score.accuracy.map_or("-".into(), show::percent);
    text += &format!("  accuracy    {accuracy}  ({} of {} {unit})\n", score.correct, score.count);
    text += &format!("  loss        {}\n", number(score.loss));
    if score.perplexity.is_some() {
        text += &format!("  perplexity  {}\n", number(score.perplexity));
    }
    if score.classes.is_empty() {
        return text;
    }
    let rows: Vec<Vec<String>> = score
        .classes
        .iter()
        .map(|class| {
            let numbers = [class.precision, class.recall, class.f1].map(number);
            [vec![class.label.clone(), class.support.to_string()], numbers.to_vec()].concat()
        })
        .collect();
    text += "\n";
    text += &show::table(&["CLASS", "SAMPLES", "PRECISION", "RECALL", "F1"], &rows);
    // Wider ones no terminal shows; --json has them.
    if score.classes.len() <= CONFUSION_SHOWN {
        let mut heads = vec!["IS \\ GIVEN"];
        heads.extend(score.classes.iter().map(|class| class.label.as_str()));
        let line = |(class, row): (&elastic_bundle::ClassScore, &Vec<u64>)| {
            let cells = row.iter().map(|n| if *n == 0 { "\u{b7}".into() } else { n.to_string() });
            std::iter::once(class.label.clone()).chain(cells).collect()
        };
        let rows: Vec<Vec<String>> = score.classes.iter().zip(&score.confusion).map(line).collect();
        text += "\n";
        text += &show::table(&heads, &rows);
    }
    text
}

const CONFUSION_SHOWN: usize = 20;
