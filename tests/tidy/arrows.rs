//! Which crate may depend on which. Dependencies only point down; what a crate must not know is the point of it.

use crate::{nothing, repo};
use serde_json::Value;
use std::process::Command;

/// Crate, the crates of this repository that it may depend on, and why no others.
const ARROWS: &[(&str, &[&str], &str)] = &[
    ("elastic-spec", &[], "the words of the domain know nothing but themselves"),
    ("elastic-proto", &["elastic-spec"], "translates between wire and domain, and nothing else"),
    ("elastic-control", &["elastic-spec"], "every decision of the cluster, replayable without a runtime"),
    ("elastic-member", &["elastic-spec"], "the protocol of one rank, run unchanged by the simulator"),
    ("elastic-collectives", &["elastic-spec"], "moves frames; usable in a plain program without a coordinator"),
    (
        "elastic-nccl",
        &["elastic-spec", "elastic-cuda", "elastic-collectives"],
        "reduces between GPUs, by NCCL or staged over our own transports, for callers that need not know which; keeps \
         device libraries out of elastic-collectives",
    ),
    ("elastic-checkpoint", &["elastic-spec"], "knows bytes and names, not tensors, not the cluster"),
    (
        "elastic-loader",
        &["elastic-spec", "elastic-transform"],
        "a pure function from (seed, epoch, step, shard) to samples",
    ),
    ("elastic-transform", &["elastic-spec"], "what is done to a sample, the same for training and for serving"),
    ("elastic-tensor", &["elastic-spec"], "the engine is usable in a plain program without a cluster"),
    ("elastic-models", &["elastic-spec", "elastic-tensor"], "networks are built of the engine alone"),
    ("elastic-cuda", &["elastic-spec", "elastic-tensor"], "runs the engine's plans on a GPU, and knows no cluster"),
    (
        "elastic-bundle",
        &["elastic-spec", "elastic-transform", "elastic-tensor", "elastic-models"],
        "where training and serving meet: it knows neither",
    ),
    (
        "elastic-export",
        &["elastic-spec", "elastic-transform", "elastic-bundle", "elastic-tensor", "elastic-models"],
        "turns a bundle into the files of others; what trained it is not its business",
    ),
    ("elastic-objects", &["elastic-spec"], "bytes by name, for whoever keeps some; a digest is the domain's word"),
    (
        "elastic-serve",
        &[
            "elastic-spec",
            "elastic-transform",
            "elastic-bundle",
            "elastic-objects",
            "elastic-tensor",
            "elastic-models",
            "elastic-cuda",
        ],
        "answers requests with bundles, copied from buckets where they lie there; there is no path from it to the \
         training runtime",
    ),
    (
        "elastic-load",
        &["elastic-spec", "elastic-transform", "elastic-bundle", "elastic-models"],
        "sends requests to any server and times them; it knows bundles only to write one that echoes",
    ),
    (
        "elastic-pipeline",
        &["elastic-spec", "elastic-objects"],
        "orders stages and keeps their artifacts; each stage's work is a process of the product",
    ),
    (
        "elastic-web",
        &["elastic-spec", "elastic-proto"],
        "a listener for pages and metrics, for coordinator and agent alike; what there is to see they say",
    ),
    (
        "elastic-coordinator",
        &["elastic-spec", "elastic-control", "elastic-proto", "elastic-web"],
        "decides, never sits on the step path: it cannot even name a tensor",
    ),
    (
        "elastic-agent",
        &["elastic-spec", "elastic-proto", "elastic-web"],
        "never loads a device library: it must outlive any fault of the engine",
    ),
    (
        "elastic-worker",
        &[
            "elastic-spec",
            "elastic-member",
            "elastic-proto",
            "elastic-collectives",
            "elastic-checkpoint",
            "elastic-loader",
            "elastic-objects",
            "elastic-tensor",
            "elastic-models",
            "elastic-cuda",
        ],
        "trains; speaks with its agent, never with the coordinator; keeps checkpoints in buckets as in folders",
    ),
    (
        "elastic",
        &[
            "elastic-spec",
            "elastic-proto",
            "elastic-coordinator",
            "elastic-worker",
            "elastic-agent",
            "elastic-checkpoint",
            "elastic-cuda",
            "elastic-loader",
            "elastic-transform",
            "elastic-bundle",
            "elastic-export",
            "elastic-objects",
            "elastic-serve",
            "elastic-pipeline",
        ],
        "puts the parts together; nothing is decided here",
    ),
    (
        "own-model",
        &["elastic-spec", "elastic-worker", "elastic-tensor"],
        "what a user's own program needs, and no more",
    ),
    ("xtask", &[], "chores start the product like a person would"),
];

/// Crates that may see everything: they are the tests.
const FREE: &[&str] = &["elastic-tests", "elastic-sim"];

/// Foreign crate and the only crates of ours that may depend on it, with the reason.
const FOREIGN: &[(&str, &[&str], &str)] = &[
    ("etcd-client", &["elastic-coordinator"], "etcd is named only in its store and the leader lease"),
    ("redb", &["elastic-coordinator"], "the embedded store is the coordinator's"),
    (
        "tonic",
        &["elastic-proto", "elastic-coordinator", "elastic-agent", "elastic", "elastic-serve"],
        "gRPC is spoken by coordinator, agent, server and CLI; workers use a local socket",
    ),
    (
        "axum",
        &["elastic-serve", "elastic-coordinator", "elastic-web"],
        "pages and answers over HTTP come from the server and the coordinator",
    ),
    ("object_store", &["elastic-objects"], "one place knows what a bucket is"),
    ("rusqlite", &["elastic-pipeline"], "lineage is the pipeline's"),
    ("parquet", &["elastic-pipeline"], "files of others are read by ingest"),
    (
        "tokio-rustls",
        &["elastic-collectives", "elastic-proto", "elastic-coordinator", "elastic-serve", "elastic-web"],
        "TLS is spoken where something listens",
    ),
    ("libloading", &["elastic-cuda"], "a device's libraries are loaded by the engine of that device alone"),
    ("clap", &["elastic"], "flags are read by the CLI and nowhere else"),
    ("indicatif", &["elastic"], "only the CLI draws"),
];

/// All foreign crates that pure code may have: data and errors, no machinery.
const PURE: &[(&str, &[&str])] = &[
    ("elastic-spec", &["bytes", "serde", "serde_json", "sha2", "strsim", "thiserror", "toml", "toml-span"]),
    ("elastic-control", &["serde", "serde_json", "thiserror"]),
    ("elastic-member", &["bytes", "thiserror"]),
];

struct Edge {
    from: String,
    to: String,
}

/// Edges that are linked into the product (development edges are not).
fn edges() -> Vec<Edge> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(repo::root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let mut edges = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let from = package["name"].as_str().expect("a package has a name");
        let dependencies = package["dependencies"].as_array().expect("dependencies");
        for dependency in dependencies.iter().filter(|d| d["kind"].is_null()) {
            let to = dependency["name"].as_str().expect("a dependency has a name");
            edges.push(Edge { from: from.to_string(), to: to.to_string() });
        }
        // A crate without dependencies must have a row all the same.
        edges.push(Edge { from: from.to_string(), to: from.to_string() });
    }
    edges
}

#[test]
fn dependencies_only_point_down() {
    let edges = edges();
    let is_ours = |name: &str| edges.iter().any(|edge| edge.from == name && edge.to == name);
    let mut found = Vec::new();
    for edge in edges.iter().filter(|edge| is_ours(&edge.to) && !FREE.contains(&edge.from.as_str())) {
        match ARROWS.iter().find(|row| row.0 == edge.from) {
            None => found.push(format!("{} has no row in the table of arrows", edge.from)),
            Some((_, allowed, why)) if edge.from != edge.to && !allowed.contains(&edge.to.as_str()) => {
                found.push(format!("{} -> {}: {why}", edge.from, edge.to));
            }
            Some(_) => {}
        }
    }
    let gone = ARROWS.iter().filter(|row| !is_ours(row.0)).map(|row| format!("{} is no crate any more", row.0));
    found.extend(gone);
    nothing(found, "turn the dependency round (facts go up, wanted state comes down), or argue a new row");
}

#[test]
fn foreign_crates_stay_where_they_belong() {
    let mut found = Vec::new();
    for Edge { from, to } in edges().iter().filter(|edge| !FREE.contains(&edge.from.as_str())) {
        if let Some((_, allowed, why)) = FOREIGN.iter().find(|row| row.0 == to)
            && !allowed.contains(&from.as_str())
        {
            found.push(format!("{from} -> {to}: {why}"));
        }
        if let Some((_, allowed)) = PURE.iter().find(|row| row.0 == from)
            && from != to
            && !to.starts_with("elastic-")
            && !allowed.contains(&to.as_str())
        {
            found.push(format!("{from} -> {to}: {from} is pure, it may have only {}", allowed.join(", ")));
        }
    }
    nothing(found, "let the caller do it and hand over the result, or argue a new row in tests/tidy/arrows.rs");
}

#[test]
fn manifests_take_versions_and_lints_from_the_workspace() {
    let mut found = Vec::new();
    for file in repo::files(&["Cargo.toml"]).iter().filter(|file| file.path != "Cargo.toml") {
        if !file.text.contains("[lints]\nworkspace = true") {
            found.push(format!("{}: no `[lints] workspace = true`", file.path));
        }
        let mut section = "";
        for (number, line) in file.text.lines().enumerate() {
            if line.starts_with('[') {
                section = line;
            } else if section.ends_with("dependencies]") && line.contains('=') && !line.contains("workspace = true") {
                found.push(format!("{}:{}: {line}", file.path, number + 1));
            }
        }
    }
    nothing(found, "one version of a library for all, in [workspace.dependencies] of Cargo.toml");
}
