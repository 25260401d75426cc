//! What a run's directory says about the run (`job.json`), and one line for each view that it lived through.
//!
//! Whoever makes something of a run later (an export, an evaluation) needs no coordinator and no job file for it.

use crate::batch::DataShape;
use crate::ids::Round;
use crate::job::JobSpec;
use crate::view::View;
use serde::{Deserialize, Serialize};

/// Names in a run's directory.
pub const JOB: &str = "job.json";
pub const TOKENIZER: &str = "tokenizer.json";
pub const VIEWS: &str = "views.jsonl";

const FORMAT: &str = "elastic-run";
const FORMAT_VERSION: u32 = 1;

/// The job as it was resolved, and what its data offered.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    pub spec: JobSpec,
    pub data: DataShape,
}

#[derive(Serialize, Deserialize)]
struct Written {
    format: String,
    format_version: u32,
    /// Its canonical JSON; what it may say is checked by [`JobSpec::from_json`].
    spec: serde_json::Value,
    data: DataShape,
}

impl About {
    /// The same run has the same bytes.
    pub fn to_json(&self) -> String {
        let spec = serde_json::to_value(&self.spec).expect("a spec is plain data");
        let written = Written { format: FORMAT.into(), format_version: FORMAT_VERSION, spec, data: self.data.clone() };
        serde_json::to_string_pretty(&written).expect("plain data has JSON") + "\n"
    }

    pub fn from_json(text: &str) -> Result<About, String> {
        let written: Written = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if (written.format.as_str(), written.format_version) != (FORMAT, FORMAT_VERSION) {
            let Written { format, format_version, .. } = written;
            return Err(format!(
                "it is {format} of version {format_version}, and this program reads {FORMAT} of version {FORMAT_VERSION}"
            ));
        }
        Ok(About { spec: JobSpec::from_json(&written.spec.to_string())?, data: written.data })
    }
}

/// A view as its writer saw it begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lived {
    pub term: u64,
    #[serde(rename = "gen")]
    pub gen_: u64,
    /// The round that the writer was in.
    pub round: Round,
    /// `worker@node` by rank, then learners with a `+` before.
    pub members: Vec<String>,
    /// Seconds since 1970.
    pub at: u64,
}

impl Lived {
    pub fn of(view: &View, round: Round, at: u64) -> Lived {
        let active = view.active().map(|m| format!("{}@{}", m.worker, m.node));
        let learners = view.members.iter().skip(view.world_size().into()).map(|m| format!("+{}@{}", m.worker, m.node));
        Lived { term: view.epoch.term.0, gen_: view.epoch.gen_.0, round, members: active.chain(learners).collect(), at }
    }
}
