//! The files of the repository, read once a test: paths with `/` from the root, text where it is text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the repository").to_path_buf()
}

/// A text file.
pub struct File {
    pub path: String,
    pub text: String,
    /// Compiled for unit tests alone.
    is_test_module: bool,
}

impl File {
    /// The lines that are code of the product: no comments, and nothing from the unit tests at the end on.
    /// A line keeps its number (from 1). Strings stay, so that a banned path in one is found.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.first_test_line();
        self.text.lines().enumerate().take(end).map(|(i, line)| (i + 1, without_comment(line)))
    }

    /// The same with the unit tests.
    pub fn all_code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, without_comment(line)))
    }

    /// Unit tests stand at the end of a file, behind `#[cfg(test)]` and `mod`.
    fn first_test_line(&self) -> usize {
        let lines: Vec<&str> = self.text.lines().collect();
        let begins = |i: &usize| {
            lines[*i].trim() == "#[cfg(test)]" && lines.get(i + 1).is_some_and(|next| next.starts_with("mod "))
        };
        (0..lines.len()).find(begins).unwrap_or(lines.len())
    }

    pub fn is_test_code(&self) -> bool {
        self.path.starts_with("tests/") || self.path.contains("/tests/") || self.is_test_module
    }

    /// Paths that `#[cfg(test)] mod name;` in this file may stand for.
    fn test_modules(&self) -> Vec<String> {
        let stem = self.path.trim_end_matches(".rs");
        let folder = match stem.rsplit_once('/') {
            Some((parent, "lib" | "main" | "mod")) => parent,
            _ => stem,
        };
        let lines: Vec<&str> = self.text.lines().collect();
        let declared = lines.windows(2).filter(|pair| pair[0].trim() == "#[cfg(test)]");
        let names = declared.filter_map(|pair| pair[1].trim().strip_prefix("mod ")?.strip_suffix(';'));
        names.flat_map(|name| [format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")]).collect()
    }
}

/// Cuts at `//` unless it follows a colon or a quote (addresses in strings).
fn without_comment(line: &str) -> &str {
    let mut from = 0;
    while let Some(at) = line[from..].find("//").map(|at| at + from) {
        if at > 0 && matches!(line.as_bytes()[at - 1], b':' | b'"') {
            from = at + 2;
        } else {
            return &line[..at];
        }
    }
    line
}

/// All files with one of these endings, in order of their paths.
pub fn files(endings: &[&str]) -> Vec<File> {
    let mut out = Vec::new();
    walk(&root(), &root(), endings, &mut out);
    out.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!out.is_empty(), "the repository has files ending in {endings:?}");
    out
}

pub fn rust() -> Vec<File> {
    let mut files = files(&[".rs"]);
    let modules: BTreeSet<String> = files.iter().flat_map(File::test_modules).collect();
    files.iter_mut().for_each(|file| file.is_test_module = modules.contains(&file.path));
    files
}

/// Folders that a build, a run or a tool makes; git ignores them.
fn is_made(name: &str) -> bool {
    name == "target" || name == "runs" || (name.starts_with('.') && name != ".ci" && name != ".cargo")
}

fn walk(root: &Path, dir: &Path, endings: &[&str], out: &mut Vec<File>) {
    for entry in std::fs::read_dir(dir).expect("a folder of the repository can be read").flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && !is_made(&name) {
            walk(root, &path, endings, out);
        } else if kind.is_file() && endings.iter().any(|end| name.ends_with(end)) {
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let path = path.strip_prefix(root).expect("found under the root").to_string_lossy().into_owned();
            out.push(File { path, text, is_test_module: false });
        }
    }
}

#[test]
fn comments_are_cut_and_addresses_are_kept() {
    assert_eq!(without_comment("let a = 1; // one"), "let a = 1; ");
    assert_eq!(without_comment("connect(\"http://x\") // y"), "connect(\"http://x\") ");
}
