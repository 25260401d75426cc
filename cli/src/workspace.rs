//! Finds the workspace of a pipeline: where `elastic pipeline run` put it, named by whatever a person has at hand.
//!
//! It lies beside the pipeline file, wherever commands are typed, unless `store.workspace` says otherwise.

use crate::exit::mistake;
use crate::result::short;
use anyhow::{Context, Result, anyhow};
use elastic_pipeline::lineage::Lineage;
use elastic_pipeline::workspace::lineage_of;
use elastic_spec::job::ParseContext;
use elastic_spec::limits::JOB_FILE_BYTES_MAX;
use std::path::{Path, PathBuf};

/// The name that a workspace has unless its pipeline file says otherwise.
const USUAL: &str = ".pipeline";
const FILE: &str = "pipeline.toml";

/// How deep below the current folder others are looked for, and how many folders are looked into.
const DEPTH_MAX: usize = 4;
const FOLDERS_MAX: usize = 2_000;

/// Its lineage, and where it is. `named`: a workspace, a folder that has one, or a pipeline file.
pub fn look(named: Option<&Path>) -> Result<(Lineage, PathBuf)> {
    let dir = match named {
        Some(named) => of(named)?,
        None => here()?,
    };
    Ok((Lineage::look(&lineage_of(&dir)).map_err(mistake)?, dir))
}

/// Whether a text names a place rather than a run or an artifact.
pub fn is_place(text: &str) -> bool {
    text.contains('/') || text.ends_with(".toml") || Path::new(text).exists()
}

/// The flag that finds this workspace from the current folder, as it is typed; none where none is needed.
pub fn flag(dir: &str) -> String {
    match short(dir) {
        usual if usual == USUAL => String::new(),
        dir => format!(" --workspace {}", quoted(&dir)),
    }
}

/// As one word of a shell.
pub fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-:=+,@%".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_string(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn of(named: &Path) -> Result<PathBuf> {
    if named.is_file() {
        return of_file(named);
    }
    if is_workspace(named) {
        return Ok(named.to_path_buf());
    }
    let file = named.join(FILE);
    match within(named)? {
        Some(dir) => Ok(dir),
        None if file.is_file() => of_file(&file),
        None => Err(mistake(anyhow!(
            "{} is neither a workspace of a pipeline nor a pipeline file, and has none in it; {HOW}",
            named.display()
        ))),
    }
}

const HOW: &str =
    "name the pipeline file: `elastic pipeline run` put the workspace beside it, unless store.workspace says otherwise";

fn here() -> Result<PathBuf> {
    if let Some(dir) = within(Path::new(""))? {
        return Ok(dir);
    }
    let here = std::env::current_dir().context("find the current folder")?;
    let found = below(Path::new(""));
    Err(mistake(match found.as_slice() {
        [] => anyhow!("there is no workspace of a pipeline in {}; {HOW}", here.display()),
        found => {
            let flags: Vec<String> = found.iter().map(|dir| format!("--workspace {}", quoted(dir))).collect();
            anyhow!("there is no workspace of a pipeline in {}; say {}", here.display(), flags.join(" or "))
        }
    }))
}

/// That of a folder: its pipeline file's, or the usual one.
fn within(folder: &Path) -> Result<Option<PathBuf>> {
    let usual = folder.join(USUAL);
    if is_workspace(&usual) {
        return Ok(Some(usual));
    }
    let file = folder.join(FILE);
    let dir = if file.is_file() { Some(of_file(&file)?) } else { None };
    Ok(dir.filter(|dir| is_workspace(dir)))
}

fn is_workspace(dir: &Path) -> bool {
    lineage_of(dir).is_file()
}

fn of_file(file: &Path) -> Result<PathBuf> {
    let reading = || format!("read the pipeline file {}", file.display());
    let bytes = std::fs::metadata(file).with_context(reading)?.len();
    if bytes > JOB_FILE_BYTES_MAX as u64 {
        return Err(mistake(anyhow!("{} has {bytes} bytes, too many for a pipeline file; {HOW}", file.display())));
    }
    let text = std::fs::read_to_string(file).with_context(reading)?;
    let whole = std::path::absolute(file).with_context(reading)?;
    let base_dir = whole.parent().unwrap_or(Path::new("/")).display().to_string();
    let context = ParseContext { file: file.display().to_string(), base_dir, overrides: Vec::new() };
    let parsed = elastic_spec::pipeline::parse(&text, &context).map_err(|mistakes| {
        let told: Vec<String> = mistakes.iter().map(|mistake| mistake.to_string()).collect();
        mistake(anyhow!(told.join("\n")))
    })?;
    Ok(PathBuf::from(short(&parsed.spec.store.workspace)))
}

/// Workspaces with the usual name in folders below, nearest first.
fn below(root: &Path) -> Vec<String> {
    let (mut found, mut looked) = (Vec::new(), 0);
    let mut folders = std::collections::VecDeque::from([(root.to_path_buf(), 0)]);
    while let Some((folder, depth)) = folders.pop_front() {
        looked += 1;
        if looked > FOLDERS_MAX {
            break;
        }
        let at = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
        let mut names: Vec<String> = std::fs::read_dir(at)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        for name in names {
            let path = folder.join(&name);
            match name.strip_prefix('.') {
                Some(_) if name == USUAL && is_workspace(&path) => found.push(path.display().to_string()),
                Some(_) => {}
                None if depth < DEPTH_MAX => folders.push_back((path, depth + 1)),
                None => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(lineage_of(dir), "").unwrap();
    }

    #[test]
    fn a_workspace_is_named_by_itself_by_its_folder_or_by_the_pipeline_file() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        workspace(&at("a/.pipeline"));
        assert_eq!(of(&at("a")).unwrap(), at("a/.pipeline"));
        assert_eq!(of(&at("a/.pipeline")).unwrap(), at("a/.pipeline"));
        let text = |extra: &str| {
            format!(
                "{extra}[ingest]\nformat = \"csv\"\npath = \"x\"\n[train]\njob = \"job.toml\"\n[push]\nregistry = \"r\"\n"
            )
        };
        std::fs::write(at("a/pipeline.toml"), text("")).unwrap();
        assert_eq!(of(&at("a/pipeline.toml")).unwrap(), at("a/.pipeline"));
        std::fs::create_dir_all(at("b")).unwrap();
        std::fs::write(at("b/pipeline.toml"), text("") + "[store]\nworkspace = \"../work\"\n").unwrap();
        workspace(&at("work"));
        let found = of(&at("b")).unwrap();
        assert_eq!(found.canonicalize().unwrap(), at("work").canonicalize().unwrap());
        let told = of(&at("c")).unwrap_err().to_string();
        assert!(told.contains("name the pipeline file"), "{told}");
    }

    #[test]
    fn workspaces_below_are_found_nearest_first_and_hidden_folders_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["b/.pipeline", "a/deep/.pipeline", ".hidden/.pipeline", "1/2/3/4/5/.pipeline"] {
            workspace(&root.path().join(dir));
        }
        std::fs::create_dir_all(root.path().join("c/.pipeline")).unwrap();
        let found = below(root.path());
        let ends = found.iter().map(|dir| dir.strip_prefix(&format!("{}/", root.path().display())).unwrap());
        assert_eq!(ends.collect::<Vec<_>>(), ["b/.pipeline", "a/deep/.pipeline"]);
    }

    #[test]
    fn what_is_printed_can_be_typed() {
        assert_eq!(quoted("examples/pipeline/digits/.pipeline"), "examples/pipeline/digits/.pipeline");
        assert_eq!(quoted("my work/it's"), r"'my work/it'\''s'");
        assert_eq!(flag(".pipeline"), "");
        assert_eq!(flag("a b/.pipeline"), " --workspace 'a b/.pipeline'");
    }
}
