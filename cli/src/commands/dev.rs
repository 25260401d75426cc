//! `elastic dev`: a cluster on this machine that stays up until Ctrl-C.

use crate::args;
use crate::cluster::{Inside, NodePlan, Plan};
use crate::exit::{Exit, Outcome};
use crate::{logging, page, show, signals};
use elastic_agent::LogsIn;
use elastic_proto::Access;

pub async fn run(args: args::Dev) -> Outcome {
    logging::to_stderr("warn");
    let nodes =
        (1..=args.nodes).map(|i| NodePlan { name: format!("node-{i}"), slots: args.slots, meet_at: None }).collect();
    let http = page::listen(args.http.as_deref(), &Access::default()).await?;
    let shown = http.as_ref().and_then(|http| page::url(http, &Access::default()));
    let plan = Plan {
        listen: args.listen.clone(),
        http,
        dir: args.data_dir.clone(),
        runs: args.runs.clone(),
        nodes,
        logs: LogsIn::State,
        token: None,
    };
    let mut inside = Inside::start(plan).await?;
    let url = &inside.url;
    show::out(&format!(
        "{} up at {url}; Ctrl-C ends them. In another terminal:\n\n  \
         export ELASTIC_COORDINATOR={url}\n  \
         elastic submit examples/digits/job.toml\n  \
         elastic nodes\n  \
         elastic drain node-1\n{}",
        show::plural(args.nodes.into(), "node"),
        shown.map(|url| format!("\nor look at {url}\n")).unwrap_or_default(),
    ))?;
    tokio::select! {
        () = signals::interrupted() => {}
        error = inside.broke() => return Err(error.into()),
    }
    eprintln!("\nstopping (Ctrl-C again stops at once) …");
    tokio::select! {
        () = inside.stop() => Ok(Exit::Ok),
        () = signals::interrupted() => Ok(Exit::Interrupted),
    }
}
