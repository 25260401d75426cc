//! Documents say what is there: links lead somewhere, words are the glossary's, a promise names a test that exists,
//! exit codes are the code's.

use crate::{nothing, repo};
use std::collections::BTreeSet;
use std::path::Path;

/// Rows of all tables under the heading: cells, trimmed. The header row and the ruler are left out.
fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    let is_row = |line: &&str| line.trim_start().starts_with('|');
    let mut lines = text.lines().skip_while(|line| line.trim_start_matches('#').trim() != heading);
    assert!(lines.next().is_some(), "there is a heading \"{heading}\"");
    let body: Vec<&str> = lines.take_while(|line| !line.starts_with('#')).filter(is_row).collect();
    assert!(body.len() > 2, "there is a table under \"{heading}\"");
    let cells = |line: &&str| line.trim().trim_matches('|').split('|').map(|c| c.trim().to_string()).collect();
    body.iter().skip(2).map(cells).collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repo::root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Lines outside of code fences, with numbers from 1.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let keep = |(i, line): (usize, &'_ str)| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        (!fenced && !is_fence).then_some(i + 1)
    };
    let lines: Vec<&str> = text.lines().collect();
    let numbers: Vec<usize> = lines.iter().copied().enumerate().filter_map(keep).collect();
    numbers.into_iter().map(|n| (n, lines[n - 1])).collect()
}

/// GitHub's name for a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.trim().replace(' ', "-")
}

fn anchors(text: &str) -> Vec<String> {
    let headings = prose(text).into_iter().filter(|(_, line)| line.starts_with('#'));
    headings.map(|(_, line)| anchor(line.trim_start_matches('#').trim())).collect()
}

/// Targets of `[text](target)` in a line.
fn links(line: &str) -> Vec<&str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut found = Vec::new();
    for file in repo::files(&[".md"]) {
        let folder = Path::new(&file.path).parent().expect("a file lies in a folder").to_path_buf();
        for (number, line) in prose(&file.text) {
            for link in links(line).into_iter().filter(|l| !l.contains("://") && !l.starts_with("mailto:")) {
                let (path, place) = link.split_once('#').unwrap_or((link, ""));
                let target =
                    if path.is_empty() { repo::root().join(&file.path) } else { repo::root().join(&folder).join(path) };
                if !target.exists() {
                    found.push(format!("{}:{number}: {link}: no such file", file.path));
                } else if !place.is_empty() {
                    let text = std::fs::read_to_string(&target).unwrap_or_default();
                    if !anchors(&text).contains(&place.to_string()) {
                        found.push(format!("{}:{number}: {link}: no such heading", file.path));
                    }
                }
            }
        }
    }
    nothing(found, "a link is relative to the file that it stands in");
}

#[test]
fn the_words_of_the_glossary_are_the_words_of_the_code() {
    let code: String =
        repo::rust().into_iter().filter(|f| !f.path.starts_with("tests/tidy/")).map(|f| f.text).collect();
    let names: BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let mut found = Vec::new();
    let rows = table(&read("docs/glossary.md"), "Words");
    for row in &rows {
        let in_code = row.last().expect("a row has cells");
        for name in quoted(in_code) {
            let last = name.trim_end_matches("()").rsplit("::").next().unwrap_or(name);
            if !names.contains(last) {
                found.push(format!("{}: `{name}` is not in the code", row[0]));
            }
        }
    }
    let mut words: Vec<&String> = rows.iter().map(|row| &row[0]).collect();
    words.sort();
    found.extend(words.windows(2).filter(|w| w[0] == w[1]).map(|w| format!("{} has two meanings", w[0])));
    nothing(found, "docs/glossary.md and the code name a thing alike");
}

#[test]
fn documents_use_one_word_for_a_thing() {
    let rows = table(&read("docs/glossary.md"), "Words that we do not use");
    let mut found = Vec::new();
    // Decisions and measurements speak of other systems in those systems' words.
    let foreign = ["docs/adr/", "docs/performance/", "docs/glossary.md"];
    for file in repo::files(&[".md"]).iter().filter(|f| !foreign.iter().any(|p| f.path.starts_with(p))) {
        for (number, line) in prose(&file.text) {
            let lower = line.to_lowercase();
            let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric() && !"-_".contains(c)).collect();
            for row in rows.iter().filter(|row| words.contains(&row[0].as_str())) {
                found.push(format!("{}:{number}: \"{}\" ({})", file.path, row[0], row[1]));
            }
        }
    }
    nothing(found, "one meaning a word, one word a meaning");
}

#[test]
fn a_promise_names_a_test_or_bench_that_exists() {
    let code: String = repo::rust().into_iter().map(|f| f.text).collect();
    let mut found = Vec::new();
    let traps = table(&read("docs/numerics.md"), "Traps");
    for row in table(&read("docs/promises.md"), "Promises").into_iter().chain(traps) {
        let held_by = row.last().expect("a row has cells");
        let names = quoted(held_by);
        if names.is_empty() && !held_by.contains("not yet") {
            found.push(format!("\"{}\" names no test and does not say \"not yet\"", row[0]));
        }
        for name in names {
            let is_there = if name.starts_with("cargo ") {
                true
            } else if name.contains('/') {
                repo::root().join(name).exists()
            } else {
                code.contains(&format!("fn {name}(")) || code.contains(&format!("fn {name}<"))
            };
            if !is_there {
                found.push(format!("\"{}\": there is no `{name}`", row[0]));
            }
        }
    }
    nothing(found, "docs/promises.md and docs/numerics.md claim only what a test or a bench holds");
}

#[test]
fn the_documented_exit_codes_of_workers_are_the_codes() {
    let source = read("spec/src/view.rs");
    let (_, module) = source.split_once("pub mod exit").expect("spec/src/view.rs has the exit codes");
    let mut codes = BTreeSet::new();
    for line in module.lines().filter_map(|line| line.trim().strip_prefix("pub const ")) {
        let (name, value) = line.split_once(": i32 = ").expect("an exit code is an i32");
        codes.insert((name.to_string(), value.trim_end_matches(';').to_string()));
    }
    let rows = table(&read("docs/operations.md"), "Exit codes of a worker");
    let said: BTreeSet<_> = rows.iter().map(|row| (row[1].trim_matches('`').to_string(), row[0].clone())).collect();
    let found = codes.symmetric_difference(&said).map(|(name, value)| format!("{name} = {value}")).collect();
    nothing(found, "docs/operations.md lists exactly the constants of `elastic_spec::view::exit`");
}

#[test]
fn the_documented_exit_codes_of_the_command_line_are_the_codes() {
    let source = read("cli/src/exit.rs");
    let (_, list) = source.split_once("Exit codes:\n").expect("cli/src/exit.rs has the list");
    let lines = list.lines().take_while(|line| !line.trim().is_empty());
    let entry =
        |line: &str| line.trim().trim_end_matches("\";").split_once(' ').map(|(c, t)| [c.trim(), t.trim()].join(" "));
    let codes: BTreeSet<String> = lines.take_while(|line| line.starts_with("  ")).filter_map(entry).collect();
    let rows = table(&read("docs/operations.md"), "Exit codes of the command line");
    let said: BTreeSet<String> = rows.iter().map(|row| row.join(" ")).collect();
    let found = codes.symmetric_difference(&said).cloned().collect();
    nothing(found, "docs/operations.md lists exactly what `elastic --help` says");
}

#[test]
fn commands_and_flags_in_documents_are_those_of_the_command_line() {
    // A command's flags stand in `args` or beside the command.
    let args: String = repo::rust().into_iter().filter(|f| f.path.starts_with("cli/src/")).map(|f| f.text).collect();
    let names: BTreeSet<&str> = args.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let longs: BTreeSet<&str> = args.split("long = \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let mut found = Vec::new();
    for file in repo::files(&[".md"]) {
        for (number, line) in commands(&file.text) {
            let mut words = line.split_whitespace().take_while(|word| *word != "#" && *word != "|");
            let known = words.next().is_none_or(|command| {
                let mut variant = command.to_string();
                variant[..1].make_ascii_uppercase();
                command.starts_with('-') || names.contains(variant.as_str())
            });
            if !known {
                found.push(format!("{}:{number}: elastic {line}: no such command", file.path));
            }
            for flag in words.filter_map(|word| word.trim_matches(['`', ',', ')', '.']).strip_prefix("--")) {
                let flag = flag.split('=').next().unwrap_or(flag);
                if !longs.contains(flag) && !names.contains(flag.replace('-', "_").as_str()) && flag != "help" {
                    found.push(format!("{}:{number}: elastic {line}: no flag --{flag}", file.path));
                }
            }
        }
    }
    nothing(found, "documents show commands that work");
}

/// What stands behind `elastic` in code fences, at the beginning of a line or behind cargo's `--`. A line that ends
/// with a backslash goes on.
fn commands(text: &str) -> Vec<(usize, String)> {
    let shown: BTreeSet<usize> = prose(text).into_iter().map(|(number, _)| number).collect();
    let mut out: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
        let command = line.strip_prefix("elastic ").or(line.split_once("--bin elastic -- ").map(|(_, rest)| rest));
        match (goes_on, command) {
            (true, _) => out.last_mut().expect("a line before it").1 += &format!(" {}", line.trim_end_matches('\\')),
            (false, Some(command)) if !shown.contains(&number) && command.starts_with(|c: char| c.is_lowercase()) => {
                out.push((number, command.trim_end_matches('\\').to_string()));
            }
            (false, _) => continue,
        }
        goes_on = line.ends_with('\\');
    }
    out
}

#[test]
fn every_decision_is_listed_and_says_its_price() {
    let mut found = Vec::new();
    let list = read("docs/adr/README.md");
    for file in repo::files(&[".md"]).iter().filter(|f| f.path.starts_with("docs/adr/0")) {
        let name = file.path.rsplit('/').next().expect("a path has a name");
        if !list.contains(&format!("({name})")) {
            found.push(format!("{} is not in docs/adr/README.md", file.path));
        }
        for heading in ["Context", "Choice", "Price"] {
            if !anchors(&file.text).contains(&heading.to_lowercase()) {
                found.push(format!("{} has no heading {heading}", file.path));
            }
        }
    }
    nothing(found, "a decision: context, choice, price");
}

#[test]
fn rows_links_and_anchors_are_read() {
    assert_eq!(table("# A\n| x | y |\n|---|---|\n| 1 | `b` |\n", "A"), vec![vec!["1", "`b`"]]);
    assert_eq!(links("see [a](b.md#c) and [d](e)"), vec!["b.md#c", "e"]);
    assert_eq!(anchor("What is `here`, exactly?"), "what-is-here-exactly");
    assert_eq!(prose("a\n```\nb\n```\nc"), vec![(1, "a"), (5, "c")]);
}
