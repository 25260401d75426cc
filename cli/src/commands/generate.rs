//! `elastic generate`: a model goes on with a text, on the terminal.

use crate::exit::{Exit, Outcome, mistake};
use crate::models::{self, Asked, Weights};
use crate::show;
use anyhow::{Context, Result, anyhow};
use clap::{ArgGroup, ValueHint};
use elastic_bundle::{Asking, Completion, Finish, Generator, GeneratorSize, Penalties, Sampling, Wanted};
use elastic_transform::Text;
use serde_json::json;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("begin").args(["prompt", "prompt_file"]).required(true))]
#[command(after_help = "\
Examples:
  elastic generate models/gpt --prompt 'seven and five make '
  elastic generate runs/gpt-3f2a --prompt 'seven and ' --temperature 0 --stop .
  elastic generate models/gpt/1 --prompt 'two and ' --seed 7 --top-p 0.9 --max-tokens 100
  elastic generate gpt2 --prompt-file letter.txt --echo
  cat letter.txt | elastic generate gpt2 --prompt-file - --json | jq -r .text

The text appears token by token. A seed gives the same text again, and
`elastic serve` gives the same for the same prompt, seed and parameters. It ends
at --max-tokens, at a stop, at the model's own end, or where its context is full.

Exit codes: 0 generated, 1 it could not be, 2 mistakes on the command line or in
the prompt.")]
pub struct Args {
    /// A bundle, a model of a registry (its newest version), a run's directory, or a checkpoint
    #[arg(value_name = "BUNDLE|RUN|CHECKPOINT", value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    /// What the text begins with
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// A file with what it begins with; - is the standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub prompt_file: Option<PathBuf>,
    /// Most tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,
    /// How bold: 0 takes the likeliest token always
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = within::<0, 2>)]
    pub temperature: f64,
    /// Only the likeliest tokens that have this probability together
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = within::<0, 1>)]
    pub top_p: f64,
    /// Only so many of the likeliest tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// The same seed says the same [default: another one each time; --json tells it]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,
    /// Ends the text, and is not part of it (repeatable)
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// Show the prompt, too
    #[arg(long)]
    pub echo: bool,
    /// Which weights of a run
    #[arg(long, value_enum, default_value_t = Weights::Best)]
    pub weights: Weights,
    /// The run's directory, for a checkpoint that lies elsewhere
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub run: Option<PathBuf>,
    /// Threads to compute with [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// One JSON object on stdout, once the text is finished
    #[arg(long)]
    pub json: bool,
}

fn within<const LOW: u32, const HIGH: u32>(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    match (f64::from(LOW)..=f64::from(HIGH)).contains(&number) {
        true => Ok(number),
        false => Err(format!("must be {LOW} to {HIGH}")),
    }
}

pub fn run(args: Args) -> Outcome {
    let asked = Asked { run: args.run.as_deref(), weights: args.weights, labels: None };
    let prompt = prompt(&args)?;
    let named = models::find(&args.path, &asked)?;
    let name = &named.model.description.name;
    let text = named.model.text().map_err(|why| anyhow!("tokenizer.json: {why}"))?;
    let text = text.ok_or_else(|| mistake(anyhow!("the model {name:?} reads numbers, not text")))?;
    let tokens = text.encode(&prompt).map_err(|why| mistake(anyhow!("the prompt: {why}")))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.map_or(cores, usize::from);
    let size = GeneratorSize { threads, sequences: 1, prompt_tokens: PROMPT_TOKENS, memory_max: u64::MAX };
    let mut generator = Generator::new(&named.model, size).map_err(|why| anyhow!(why))?;
    generator.check(&tokens).map_err(mistake)?;
    let seed = args.seed.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()) >> 1);
    let begin = if args.echo { String::from_utf8_lossy(&prompt).into_owned() } else { String::new() };
    if !args.json {
        show::out(&begin)?;
    }
    let said = go_on(&mut generator, &tokens, &text, asking(&args, seed), !args.json)?;
    if !args.json {
        show::out("\n")?;
        return Ok(Exit::Ok);
    }
    let finish = match said.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    };
    let value = json!({
        "model": name,
        "step": named.provenance.step,
        "weights_sha256": named.provenance.weights_sha256,
        "seed": seed,
        "text": begin + &said.text,
        "tokens": said.tokens,
        "finish_reason": finish,
        "prompt_tokens": tokens.len(),
        "completion_tokens": said.tokens.len(),
    });
    show::out(&format!("{value}\n"))?;
    Ok(Exit::Ok)
}

/// Tokens of the prompt that are read in one pass: more gain nothing.
const PROMPT_TOKENS: usize = 256;

fn prompt(args: &Args) -> Result<Vec<u8>> {
    match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => Ok(text.clone().into_bytes()),
        (None, Some(path)) if path.as_os_str() == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("read the standard input")?;
            Ok(bytes)
        }
        (None, Some(path)) => std::fs::read(path).with_context(|| format!("read {}", path.display())).map_err(mistake),
        (None, None) => Err(mistake(anyhow!("say what the text begins with: --prompt TEXT"))),
    }
}

fn asking(args: &Args, seed: u64) -> Asking {
    Asking {
        sampling: Sampling { temperature: args.temperature, top_p: args.top_p, top_k: args.top_k, seed },
        penalties: Penalties::default(),
        max_tokens: args.max_tokens,
        stops: args.stop.clone(),
        likely: None,
        choice: 0,
    }
}

struct Spoken {
    text: String,
    tokens: Vec<i32>,
    finish: Finish,
}

/// Shows the text as it comes, where it is wanted.
fn go_on(generator: &mut Generator, tokens: &[i32], text: &Text, asking: Asking, is_shown: bool) -> Result<Spoken> {
    let mut completion = Completion::new(asking, tokens.len(), generator.context(), text.end());
    let mut spoken = Spoken { text: String::new(), tokens: Vec::new(), finish: Finish::Length };
    if completion.is_over() {
        return Ok(spoken);
    }
    let seat = generator.add(tokens, Wanted::Next).context("add the prompt")?;
    loop {
        // Until the prompt is read nothing is found.
        for found in generator.step() {
            let said = completion.next(generator.logits(&found), text);
            if is_shown {
                show::out(&said.text)?;
            }
            spoken.text += &said.text;
            spoken.tokens.push(said.token);
            match said.finish {
                Some(finish) => {
                    spoken.finish = finish;
                    return Ok(spoken);
                }
                None => assert!(generator.go_on(seat, said.token), "a completion ends with its context"),
            }
        }
    }
}
