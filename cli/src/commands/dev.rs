//! `elastic dev`: a cluster on this machine that stays up until Ctrl-C.

use crate::args;
use crate::cluster::{Inside, NodePlan, Plan};
use crate::exit::{Exit, Outcome};
use crate::{logging, show, signals};
use elastic_agent::LogsIn;

pub async fn run(args: args::Dev) -> Outcome {
    logging::to_stderr("warn");
    let nodes = (1..=args.nodes).map(|i| NodePlan { name: format!("node-{i}"), slots: args.slots }).collect();
    let plan = Plan {
        listen: args.listen.clone(),
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
         elastic drain node-1\n",
        show::plural(args.nodes.into(), "node")
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
