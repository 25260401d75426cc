//! `elastic nodes`.

use crate::args;
use crate::exit::{Exit, Outcome};
use crate::show::{out, table};
use crate::{json, reach};
use anyhow::Context;
use elastic_spec::api::NodeStatus;

pub async fn run(args: args::Nodes) -> Outcome {
    let nodes = reach::connect(&args.reach).await?.nodes().await.context("list the nodes")?;
    if args.json {
        out(&format!("{}\n", serde_json::Value::from_iter(nodes.iter().map(json::node))))?;
        return Ok(Exit::Ok);
    }
    if nodes.is_empty() {
        out("no nodes; `elastic agent --coordinator URL` on a machine makes it one\n")?;
        return Ok(Exit::Ok);
    }
    let row = |node: &NodeStatus| {
        vec![
            node.node.to_string(),
            node.host.clone(),
            format!("{}/{}", node.used, node.slots),
            if node.draining { "draining" } else { "ready" }.to_string(),
            format!("{} ms ago", node.silent_ms),
            node.strikes.to_string(),
            node.jobs.iter().map(|job| job.to_string()).collect::<Vec<_>>().join(" "),
        ]
    };
    let rows: Vec<_> = nodes.iter().map(row).collect();
    out(&table(&["NODE", "HOST", "USED", "STATE", "HEARD", "STRIKES", "JOBS"], &rows))?;
    Ok(Exit::Ok)
}
