//! Which stages a pipeline has, what each needs, and what decides its result: pure functions of what was asked.

use crate::cache::Parts;
use crate::ingest::TRANSFORM_VERSION;
use elastic_spec::Digest;
use elastic_spec::job::JobSpec;
use elastic_spec::pipeline::{PipelineSpec, Stage};
use serde_json::{Value, json};

/// A stage and the names of the artifacts that it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub stage: Stage,
    pub needs: &'static [&'static str],
}

/// In an order in which each stage finds what it needs.
pub fn plan(spec: &PipelineSpec) -> Vec<Node> {
    let all = [
        Node { stage: Stage::Ingest, needs: &[] },
        Node { stage: Stage::Train, needs: &["examples"] },
        Node { stage: Stage::Export, needs: &["model", "examples"] },
        Node { stage: Stage::Evaluate, needs: &["bundle", "examples"] },
        Node { stage: Stage::Check, needs: &["bundle", "examples"] },
        Node { stage: Stage::Push, needs: &["bundle", "evaluation", "answers"] },
    ];
    all.into_iter().filter(|node| node.stage != Stage::Push || spec.push.is_some()).collect()
}

/// What decides a stage's result beside its inputs. What only decides how it comes about is left out.
pub fn params(stage: Stage, spec: &PipelineSpec, job: &JobSpec) -> Value {
    match stage {
        Stage::Ingest => {
            let mut source = json!(spec.ingest.source);
            if let Some(source) = source.as_object_mut() {
                source.remove("path");
                source.remove("labels_path");
            }
            let ingest = &spec.ingest;
            json!({
                "source": source,
                "evaluation": ingest.evaluation,
                "seed": ingest.seed,
                "labels": ingest.labels,
                "slices": ingest.slices,
                "transform": TRANSFORM_VERSION,
            })
        }
        Stage::Train => essence(job),
        Stage::Export => json!({ "formats": spec.export.formats }),
        Stage::Evaluate => json!({ "thresholds": spec.evaluate.thresholds, "changes": spec.evaluate.changes }),
        Stage::Check => json!({ "requests": spec.check.requests }),
        Stage::Push => match &spec.push {
            Some(push) => json!({ "registry": push.registry, "model": push.model, "label": push.label }),
            None => Value::Null,
        },
    }
}

/// What of a job decides its bits: not where its data lies, nor who trains it, how often it is checkpointed, or on what.
pub fn essence(job: &JobSpec) -> Value {
    let mut value = json!(job);
    for section in ["elastic", "checkpoint", "resources"] {
        value.as_object_mut().expect("a spec is an object").remove(section);
    }
    if let Some(data) = value.get_mut("data").and_then(Value::as_object_mut) {
        data.remove("sha256");
        let sources =
            data.get_mut("source").and_then(Value::as_object_mut).into_iter().flat_map(|source| source.values_mut());
        for source in sources.filter_map(Value::as_object_mut) {
            source.remove("path");
            source.remove("tokenizer");
        }
    }
    if let Some(model) = value.get_mut("model").and_then(Value::as_object_mut) {
        model.remove("init");
    }
    value
}

/// All that decides a stage's result.
pub fn parts(stage: Stage, params: Value, inputs: &[(String, Digest)], program: &str) -> Parts {
    let inputs: serde_json::Map<String, Value> =
        inputs.iter().map(|(name, digest)| (name.clone(), json!(digest))).collect();
    [
        ("stage".to_string(), json!(stage.word())),
        ("program".to_string(), json!(program)),
        ("params".to_string(), params),
        ("inputs".to_string(), Value::Object(inputs)),
    ]
    .into()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use elastic_spec::job::ParseContext;

    pub fn spec(more: &str) -> PipelineSpec {
        let text = format!("[ingest]\nformat = \"csv\"\npath = \"a.csv\"\n[train]\njob = \"job.toml\"\n{more}");
        let context = ParseContext { file: "pipeline.toml".into(), base_dir: "/p".into(), overrides: vec![] };
        elastic_spec::pipeline::parse(&text, &context).unwrap().spec
    }

    fn job(flags: &[&str]) -> JobSpec {
        let text = "[model]\nkind = \"mlp\"\nhidden = []\n[data]\nkind = \"csv\"\npath = \"x\"\nclasses = 2\n\
                    [train]\nglobal_batch = 8\nsteps = 1\nlr = 0.1\n";
        let overrides = flags.iter().map(|flag| flag.to_string()).collect();
        elastic_spec::job::parse(text, &ParseContext { overrides, ..ParseContext::default() }).unwrap().spec
    }

    #[test]
    fn each_stage_finds_what_it_needs_in_those_before() {
        let plan = plan(&spec("[push]\nregistry = \"r\"\n"));
        let makes = |stage: Stage| match stage {
            Stage::Ingest => "examples",
            Stage::Train => "model",
            Stage::Export => "bundle",
            Stage::Evaluate => "evaluation",
            Stage::Check => "answers",
            Stage::Push => "pushed",
        };
        for (i, node) in plan.iter().enumerate() {
            let before: Vec<&str> = plan[..i].iter().map(|node| makes(node.stage)).collect();
            assert!(node.needs.iter().all(|need| before.contains(need)), "{node:?}");
        }
        assert_eq!(plan.len(), 6);
        assert_eq!(super::plan(&spec("")).len(), 5, "nothing is pushed that was not asked");
    }

    #[test]
    fn what_changes_no_bit_is_no_part_of_a_result() {
        let plain = essence(&job(&[]));
        for same in ["elastic.max_workers=1", "checkpoint.every=1", "resources.threads=2", "data.path=/y"] {
            assert_eq!(essence(&job(&[same])), plain, "{same}");
        }
        for other in ["train.seed=1", "data.scale=2.0", "model.hidden=[3]"] {
            assert_ne!(essence(&job(&[other])), plain, "{other}");
        }
        let (a, b) = (spec(""), spec("timeout = 5\nretries = 1\nworkers = 3\n"));
        for stage in Stage::ALL {
            assert_eq!(params(stage, &a, &job(&[])), params(stage, &b, &job(&[])), "{stage}");
        }
    }
}
