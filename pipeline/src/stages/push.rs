//! Push: the bundle becomes the next version of a model, is read back, and gets the label.

use super::{Failure, Made, Place};
use crate::artifact::{Artifact, Kind};
use crate::fail::{self, Moment};
use crate::registry::Registry;
use anyhow::{Context, anyhow};
use elastic_spec::pipeline::Stage;
use serde_json::json;

pub fn run(place: &Place) -> Result<Made, Failure> {
    let push = place.asked.spec.push.as_ref().context("push is asked")?;
    let dir = place.fetched("bundle")?;
    let content = place.artifact("bundle")?.facts["content_sha256"].clone();
    let registry = Registry::open(&push.registry)?;
    let version = registry.publish(&push.model, &dir, || fail::at(Stage::Push, Moment::Work))?;
    fail::at(Stage::Push, Moment::Published);
    place.in_time()?;
    let found = registry.verify(&push.model, version)?;
    if content != json!(found) {
        return Err(Failure::last(anyhow!("version {version} holds {found}, and {content} was pushed")));
    }
    let moved = registry.push_label(&push.model, &push.label, version, &found)?;
    let facts = json!({
        "registry": push.registry,
        "model": push.model,
        "version": version,
        "label": push.label,
        "content_sha256": content,
    });
    let label = match moved.from {
        _ if moved.to != version => {
            format!("{} stays at {}, where it was put since this was pushed", push.label, moved.to)
        }
        Some(from) if from != version => format!("{}, which was at {from}", push.label),
        _ => push.label.clone(),
    };
    let words = format!("{}/{}/{version}, {label}", push.registry, push.model);
    let pushed = Artifact::new(Kind::Pushed, facts, vec![]);
    Ok(Made { outputs: vec![("pushed".into(), pushed)], words, ..Made::default() })
}
