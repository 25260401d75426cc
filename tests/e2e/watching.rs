//! What others see of a run: TensorBoard's own reader reads every step of it.

use crate::cluster::{job_file, repo, run, submit_local};
use elastic_tests::skip::skip;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A Python with the pinned readers of others, or why there is none.
pub fn readers() -> Result<PathBuf, String> {
    let script = repo().join("tests/readers/python");
    let out = Command::new(script).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&out.stderr);
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).trim().into()),
        false => Err(said.lines().last().unwrap_or("tests/readers/python").to_string()),
    }
}

fn read_board(python: &Path, folder: &Path) -> Value {
    let script = repo().join("tests/readers/read_tensorboard.py");
    let out = run(Command::new(python).arg(script).arg(folder));
    serde_json::from_str(&out).expect("the script prints JSON")
}

/// What the event log says of a tag, in the precision that TensorBoard keeps.
fn expected(rows: &str, of_row: impl Fn(&Value) -> Option<f64>) -> Vec<(u64, f32)> {
    let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).expect("a row is JSON"));
    rows.filter_map(|row| Some((row["step"].as_u64()?, of_row(&row)? as f32))).collect()
}

fn found(board: &Value, tag: &str) -> Vec<(u64, f32)> {
    let points = board["scalars"][tag].as_array().unwrap_or_else(|| panic!("no {tag} in {board}"));
    points.iter().map(|p| (p[0].as_u64().expect("a step"), p[1].as_f64().expect("a value") as f32)).collect()
}

/// A file without its first two records: the format's version, and the spec, which says how many workers there may be.
fn behind_the_spec(file: &[u8]) -> &[u8] {
    (0..2).fold(file, |rest, _| {
        let length = u64::from_le_bytes(rest[..8].try_into().expect("eight bytes"));
        &rest[16 + length as usize..]
    })
}

#[test]
fn tensorboard_reads_every_step_once_with_the_values_of_the_event_log() {
    let python = match readers() {
        Ok(python) => python,
        Err(why) => return skip("tensorboard_reads_every_step_once_with_the_values_of_the_event_log", &why),
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args = ["--set", "train.epochs=6", "--set", "checkpoint.every=20"];
    let files: Vec<Vec<u8>> = ["1", "2"]
        .map(|workers| {
            let args: Vec<&str> = args.iter().copied().chain(["--workers", workers]).collect();
            let (result, proof) = submit_local(dir.path(), &job_file("digits"), &args, &[]);
            let folder = Path::new(result["run_dir"].as_str().expect("run_dir")).join("tensorboard");
            let board = read_board(&python, &folder);
            let ratio = |row: &Value| Some(row["correct"].as_f64()? / row["samples"].as_f64()?);
            assert_eq!(found(&board, "train/loss"), expected(&proof.rows, |row| row["loss"].as_f64()));
            assert_eq!(found(&board, "train/accuracy"), expected(&proof.rows, ratio));
            assert_eq!(found(&board, "train/lr"), expected(&proof.rows, |row| row["lr"].as_f64()));
            assert_eq!(found(&board, "train/grad_norm"), expected(&proof.rows, |row| row["grad_norm"].as_f64()));
            for key in ["loss", "accuracy"] {
                let validations = expected(&proof.rows, |row| row["validation"][key].as_f64());
                assert!(!validations.is_empty());
                assert_eq!(found(&board, &format!("validation/{key}")), validations);
            }
            assert_eq!(found(&board, "train/loss").len() as u64, result["steps"].as_u64().expect("steps"));
            assert_eq!(board["plugins"]["job"], "text");
            assert!(board["text"]["job"][0].as_str().expect("text").contains("\"optimizer\""), "{}", board["text"]);
            let file = std::fs::read_dir(&folder).expect("the folder").next().expect("a file").expect("its name");
            std::fs::read(file.path()).expect("the event file")
        })
        .into();
    assert_eq!(behind_the_spec(&files[0]), behind_the_spec(&files[1]), "one file for every number of workers");
}
