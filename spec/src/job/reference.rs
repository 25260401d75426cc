//! `docs/job-toml.md`, made from the table of keys, so that it cannot say anything else than the code does.

use super::keys::{Default, JOB, Key, When, Words};

const HEAD: &str = "# job.toml\n\
\n\
What a job is: its network, its data and how it is trained. `elastic submit job.toml` checks the whole file\n\
before anything else happens and tells all mistakes at once, each with its line. `elastic submit --dry-run`\n\
prints the job with every default filled in. `--set train.lr=0.1` changes a key for one submission; it may be\n\
given several times, and `--set train.steps=…` takes the place of `epochs` in the file (and the reverse).\n\
\n\
A relative path starts at the job file's folder, also in a `--set`. Unknown keys are mistakes.\n\
\n\
(This page is made from the code: `UPDATE=1 cargo test --release -p elastic-spec` writes it.)\n";

/// The smallest file, and one that says more.
const EXAMPLE: &str = "```toml\n\
[model]\n\
kind = \"mlp\"\n\
hidden = [128, 64]\n\
\n\
[data]\n\
kind = \"csv\"\n\
path = \"digits.csv.gz\"\n\
classes = 10\n\
\n\
[train]\n\
global_batch = 32\n\
epochs = 30\n\
lr = 0.002\n\
```\n";

/// The page that documents every key.
pub fn reference_markdown() -> String {
    page(&format!("{HEAD}\n{EXAMPLE}"), &JOB)
}

/// `head`, then all words.
pub(crate) fn page(head: &str, words: &Words) -> String {
    let mut page = head.to_string();
    page += "\n## Above the sections\n\n";
    page += &table(words, "");
    for (section, about) in words.sections {
        page += &format!("\n## [{section}]\n\n{about}\n\n");
        page += &table(words, section);
        for (list, about) in words.lists.iter().filter(|(list, _)| list.starts_with(&format!("{section}."))) {
            page += &format!("\n### [[{list}]]\n\n{about}\n\n");
            page += &table(words, list);
        }
    }
    page
}

fn table(words: &Words, section: &str) -> String {
    let rows = words.keys.iter().filter(|key| key.section == section).map(row);
    "| key | allowed | default | unit | meaning |\n|---|---|---|---|---|\n".to_string() + &rows.collect::<String>()
}

fn row(key: &Key) -> String {
    let default = match key.default {
        Default::Required => "required".to_string(),
        Default::Absent(meaning) => format!("none: {meaning}"),
        Default::Is(value) => format!("`{value}`"),
        Default::Rule(rule) => rule.to_string(),
    };
    let meaning = match key.when {
        When::Always => key.doc.to_string(),
        When::Is(selector, values) => {
            let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
            format!("With {selector} {}. {}", values.join(", "), key.doc)
        }
    };
    let cells = [format!("`{}`", key.name), key.kind.allowed(), default, key.unit.to_string(), meaning];
    format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
}
