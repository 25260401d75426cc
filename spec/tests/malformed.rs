//! Every file in `tests/malformed` is refused, with exactly the text that stands beside it.
//!
//! `UPDATE=1 cargo test -p elastic-spec` rewrites the texts: read the difference before you commit it.

use elastic_spec::job::{ParseContext, parse};
use std::path::{Path, PathBuf};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/malformed");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder is part of the source")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    files
}

/// Flags stand in the file itself: `# --set train.lr=0.1`.
fn flags(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("# --set ")).map(str::to_string).collect()
}

fn told(path: &Path) -> String {
    let bytes = std::fs::read(path).expect("a readable file");
    let text = String::from_utf8(bytes).expect("the corpus is text");
    let context =
        ParseContext { file: "job.toml".to_string(), base_dir: "/jobs/here".to_string(), overrides: flags(&text) };
    match parse(&text, &context) {
        Ok(_) => "accepted\n".to_string(),
        Err(mistakes) => mistakes.iter().map(|mistake| format!("{mistake}\n")).collect(),
    }
}

#[test]
fn every_malformed_file_is_refused_with_the_text_beside_it() {
    let files = files();
    assert!(files.len() >= 30, "the corpus has {} files", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let beside = path.with_extension("txt");
        let told = told(&path);
        assert_ne!(told, "accepted\n", "{}", path.display());
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&beside, &told).expect("a writable folder");
        } else if std::fs::read_to_string(&beside).unwrap_or_default() != told {
            wrong.push(format!("{}:\n{told}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "not as written beside:\n{}", wrong.join("\n"));
}
