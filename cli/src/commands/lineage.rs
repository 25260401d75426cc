//! `elastic lineage`: what an artifact was made of, and what was made of it.

use crate::exit::{Exit, Outcome, mistake};
use crate::show;
use crate::workspace::look;
use anyhow::{Context, Result, anyhow};
use clap::ValueHint;
use elastic_pipeline::lineage::{ArtifactRow, ExecutionRow, Lineage};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  elastic lineage bundle                     the newest bundle, up to the raw file
  elastic lineage 3f2a9c04 --down            what was made of it
  elastic lineage model --workspace examples/pipeline/digits
  elastic lineage 3f2a9c04 --json --workspace work/pipeline.toml

ARTIFACT is the beginning of an artifact's digest or of a bundle's
content_sha256 (4 digits or more), or a type: file, examples, model, bundle,
export, evaluation, answers, pushed; then the newest of it is meant.")]
pub struct Args {
    pub artifact: String,
    /// What it was made of [default]
    #[arg(long)]
    pub up: bool,
    /// What was made of it
    #[arg(long, conflicts_with = "up")]
    pub down: bool,
    /// The pipeline file, its folder, or the workspace [default: that of this folder]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub workspace: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> Outcome {
    let (lineage, dir) = look(args.workspace.as_deref())?;
    let text = args.artifact.as_str();
    let is_word = text.len() >= 4 && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let found = if is_word { lineage.find(text)? } else { Vec::new() };
    let first = found.first().ok_or_else(|| {
        mistake(anyhow!("no artifact in {} begins with {text:?} or is of this type; see --help", dir.display()))
    })?;
    let mut walk = Walk { lineage: &lineage, down: args.down, seen: BTreeSet::new() };
    let tree = walk.tree(first, 0)?;
    match args.json {
        true => show::out(&format!("{tree}\n"))?,
        false => {
            let mut lines = String::new();
            print(&tree, 0, &mut lines);
            show::out(&lines)?;
        }
    }
    Ok(Exit::Ok)
}

struct Walk<'a> {
    lineage: &'a Lineage,
    down: bool,
    seen: BTreeSet<i64>,
}

/// Deepest tree: no pipeline has so many stages.
const DEPTH_MAX: usize = 64;

impl Walk<'_> {
    fn tree(&mut self, row: &ArtifactRow, depth: usize) -> Result<Value> {
        let mut node = serde_json::to_value(row).context("an artifact as JSON")?;
        node["facts"] = row.artifact.facts.clone();
        node["notes"] = row.artifact.notes.clone();
        if depth > DEPTH_MAX || !self.seen.insert(row.id) {
            node["shown_before"] = true.into();
            return Ok(node);
        }
        let (near, far) = if self.down { ("INPUT", "read_by") } else { ("OUTPUT", "made_by") };
        // One that was cached tells nothing new: its work was another's.
        let executions: Vec<ExecutionRow> = self
            .lineage
            .executions_of(row.id, near)?
            .into_iter()
            .filter(|one| one.cached_from.is_none() && one.state != elastic_pipeline::lineage::FAILED)
            .collect();
        let mut nodes = Vec::new();
        for one in &executions {
            let mut value = serde_json::to_value(one).context("an execution as JSON")?;
            value["events"] = json!(self.lineage.events(one.execution)?);
            let next = match self.down {
                true => self.lineage.outputs(one.execution)?,
                false => self.lineage.inputs(one.execution)?,
            };
            let mut artifacts = Vec::new();
            for (name, row) in next {
                let mut tree = self.tree(&row, depth + 1)?;
                tree["name"] = name.into();
                artifacts.push(tree);
            }
            value["artifacts"] = artifacts.into();
            nodes.push(value);
        }
        node[far] = nodes.into();
        Ok(node)
    }
}

fn print(node: &Value, depth: usize, lines: &mut String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let indent = "  ".repeat(depth);
    let digest = text(&node["digest"]);
    let mut said: Vec<String> = Vec::new();
    for (key, name) in [("content_sha256", "content "), ("path", ""), ("version", "version ")] {
        let value = node["facts"].get(key).or_else(|| node["notes"].get(key));
        if let Some(value) = value {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            let is_digest = key.ends_with("sha256");
            said.push(format!("{name}{}", if is_digest { &value[..value.len().min(16)] } else { &value }));
        }
    }
    if node["state"] == elastic_pipeline::lineage::DELETED {
        said.push("deleted".into());
    }
    let shown = &digest[..digest.len().min(16)];
    *lines += &format!("{indent}{} {shown}  {}\n", text(&node["kind"]), said.join(", "));
    for one in ["made_by", "read_by"].iter().filter_map(|key| node[*key].as_array()).flatten() {
        let views = one["events"].as_array().map_or(0, Vec::len);
        let views = if views > 0 { format!(", {}", show::plural(views as u64, "view")) } else { String::new() };
        *lines +=
            &format!("{indent}  {} of {} {}{views}\n", text(&one["stage"]), text(&one["run"]), text(&one["state"]));
        one["artifacts"].as_array().into_iter().flatten().for_each(|next| print(next, depth + 2, lines));
    }
}
