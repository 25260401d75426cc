//! The files of the repository, read once a test: paths with `/` from the root, text where it is text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

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
    let named = paths().iter().filter(|path| endings.iter().any(|end| path.ends_with(end)));
    let read = |path: &String| {
        let text = std::fs::read_to_string(root().join(path)).ok()?;
        Some(File { path: path.clone(), text, is_test_module: false })
    };
    let out: Vec<File> = named.filter_map(read).collect();
    assert!(!out.is_empty(), "the repository has files ending in {endings:?}");
    out
}

/// What is in the repository, or will be with the next commit. What a run or a tool left, and git ignores, is not.
fn paths() -> &'static [String] {
    static PATHS: OnceLock<Vec<String>> = OnceLock::new();
    PATHS.get_or_init(|| {
        let mut paths = known_to_git().unwrap_or_else(|| {
            let mut found = Vec::new();
            walk(&root(), &root(), &mut found);
            found
        });
        paths.sort();
        paths.dedup();
        paths
    })
}

/// None: there is no git here, or this is no clone.
fn known_to_git() -> Option<Vec<String>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let said = git.stderr(Stdio::null()).output().ok().filter(|said| said.status.success())?;
    let paths: Vec<String> = String::from_utf8(said.stdout).ok()?.split_terminator('\0').map(str::to_string).collect();
    paths.iter().any(|path| path == "Cargo.toml").then_some(paths)
}

pub fn rust() -> Vec<File> {
    let mut files = files(&[".rs"]);
    let modules: BTreeSet<String> = files.iter().flat_map(File::test_modules).collect();
    files.iter_mut().for_each(|file| file.is_test_module = modules.contains(&file.path));
    files
}

/// Folders that a build, a run or a tool makes.
fn is_made(name: &str) -> bool {
    name == "target" || name == "runs" || (name.starts_with('.') && name != ".ci" && name != ".cargo")
}

fn walk(root: &Path, dir: &Path, out: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).expect("a folder of the repository can be read").flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && !is_made(&entry.file_name().to_string_lossy()) {
            walk(root, &path, out);
        } else if kind.is_file() {
            out.push(path.strip_prefix(root).expect("found under the root").to_string_lossy().into_owned());
        }
    }
}

#[test]
fn comments_are_cut_and_addresses_are_kept() {
    assert_eq!(without_comment("let a = 1; // one"), "let a = 1; ");
    assert_eq!(without_comment("connect(\"http://x\") // y"), "connect(\"http://x\") ");
}

#[test]
fn what_a_run_left_in_the_examples_is_no_file_of_the_repository() {
    let made = root().join("examples/pipeline/digits/registry/tidy-test");
    std::fs::create_dir_all(&made).expect("a folder that git ignores");
    std::fs::write(made.join("left.md"), "see [nothing](nowhere.md)").expect("a file that git ignores");
    let found = known_to_git();
    std::fs::remove_dir_all(&made).expect("the folder goes");
    let Some(found) = found else {
        println!("skipped: what_a_run_left_in_the_examples_is_no_file_of_the_repository: no git, or no clone");
        return;
    };
    assert!(found.iter().any(|path| path == "examples/pipeline/digits/pipeline.toml"));
    assert!(!found.iter().any(|path| path.ends_with("tidy-test/left.md")), "{found:?}");
}
