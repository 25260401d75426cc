//! `docs/pipeline-toml.md`, made from the table of keys.

use super::keys::PIPELINE;

const HEAD: &str = "# pipeline.toml\n\
\n\
What is done from a raw file to a published model. `elastic pipeline run pipeline.toml` checks the whole file and the job\n\
file that it names before anything else happens, and tells all mistakes at once, each with its line. `--set push.label=x`\n\
changes a key for one run. How the stages work: [docs/pipeline.md](pipeline.md).\n\
\n\
A relative path starts at the pipeline file's folder. Unknown keys are mistakes.\n\
\n\
(This page is made from the code: `UPDATE=1 cargo test --release -p elastic-spec` writes it.)\n\
\n\
```toml\n\
[ingest]\n\
format = \"csv\"\n\
path = \"digits.csv.gz\"\n\
\n\
[train]\n\
job = \"job.toml\"\n\
\n\
[[evaluate.thresholds]]\n\
metric = \"accuracy\"\n\
lower = 0.9\n\
\n\
[push]\n\
registry = \"registry\"\n\
```\n";

/// The page that documents every key.
pub fn reference_markdown() -> String {
    crate::job::reference::page(HEAD, &PIPELINE)
}
