//! What was made of what: runs, executions, artifacts and events in SQLite.
//!
//! An execution is recorded before it begins and, together with its outputs, in one transaction when it is over. So what
//! the file tells is true at every moment, also after a kill.

use crate::artifact::Artifact;
use crate::cache::{Earlier, LastRun, Parts};
use anyhow::{Context, Result, anyhow};
use elastic_spec::Digest;
use elastic_spec::pipeline::Stage;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug)]
pub struct Lineage {
    db: Connection,
}

/// States of a run and of an execution.
pub const RUNNING: &str = "RUNNING";
pub const COMPLETE: &str = "COMPLETE";
pub const FAILED: &str = "FAILED";
pub const CACHED: &str = "CACHED";
/// States of an artifact.
pub const LIVE: &str = "LIVE";
pub const DELETED: &str = "DELETED";

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunRow {
    pub run: String,
    pub pipeline: String,
    pub state: String,
    pub reason: String,
    pub started_unix_ms: i64,
    pub ended_unix_ms: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExecutionRow {
    pub execution: i64,
    pub run: String,
    pub stage: String,
    pub state: String,
    pub key: String,
    pub attempt: i64,
    /// The execution whose outputs were taken.
    pub cached_from: Option<i64>,
    pub error: String,
    pub started_unix_ms: i64,
    pub ended_unix_ms: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArtifactRow {
    pub id: i64,
    pub kind: String,
    pub digest: String,
    pub state: String,
    #[serde(skip)]
    pub artifact: Artifact,
    pub made_unix_ms: i64,
}

/// Views that the training of a model lived through.
#[derive(Clone, Debug, Default)]
pub struct Lived<'a> {
    pub model: i64,
    pub views: &'a [Value],
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventRow {
    pub kind: String,
    pub name: String,
    pub at_unix_ms: i64,
    pub body: Value,
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS runs (
  run TEXT PRIMARY KEY, seq INTEGER NOT NULL, pipeline TEXT NOT NULL, asked TEXT NOT NULL, spec TEXT NOT NULL,
  state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', started INTEGER NOT NULL, ended INTEGER);
CREATE TABLE IF NOT EXISTS executions (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs(run), stage TEXT NOT NULL, key TEXT NOT NULL,
  parts TEXT NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL, cached_from INTEGER,
  error TEXT NOT NULL DEFAULT '', started INTEGER NOT NULL, ended INTEGER);
CREATE INDEX IF NOT EXISTS executions_key ON executions(stage, key);
CREATE TABLE IF NOT EXISTS artifacts (
  id INTEGER PRIMARY KEY, kind TEXT NOT NULL, digest TEXT NOT NULL, body TEXT NOT NULL, state TEXT NOT NULL,
  made INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS artifacts_digest ON artifacts(digest);
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, execution INTEGER NOT NULL REFERENCES executions(id), kind TEXT NOT NULL,
  name TEXT NOT NULL, artifact INTEGER REFERENCES artifacts(id), body TEXT NOT NULL DEFAULT 'null', at INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS events_execution ON events(execution);
CREATE INDEX IF NOT EXISTS events_artifact ON events(artifact);
PRAGMA user_version = 1;
";

impl Lineage {
    pub fn open(path: &Path) -> Result<Lineage> {
        let opening = || format!("open the lineage {}", path.display());
        let db = Connection::open(path).with_context(opening)?;
        let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).with_context(opening)?;
        if version > 1 {
            return Err(anyhow!("it is of version {version}, and this program reads version 1")).with_context(opening);
        }
        db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000;")
            .and_then(|()| db.execute_batch(SCHEMA))
            .with_context(opening)?;
        Ok(Lineage { db })
    }

    /// For those that only look: nothing is made.
    pub fn look(path: &Path) -> Result<Lineage> {
        if !path.exists() {
            let folder = path.parent().unwrap_or(path).display();
            return Err(anyhow!("{folder} is no workspace of a pipeline: no run has begun there"));
        }
        Lineage::open(path)
    }

    /// What a killed process left as running. Only for the owner of the workspace.
    pub fn bury(&mut self) -> Result<usize> {
        let reason = "the process that ran it is gone";
        let sql = "UPDATE executions SET state = ?1, error = ?2, ended = ?3 WHERE state = ?4";
        self.db.execute(sql, params![FAILED, reason, now(), RUNNING]).context("record what was cut off")
    }

    pub fn last_run(&self, pipeline: &str) -> Result<Option<LastRun>> {
        let sql = "SELECT run, state, asked FROM runs WHERE pipeline = ?1 ORDER BY seq DESC LIMIT 1";
        let row = |row: &Row<'_>| -> rusqlite::Result<(String, String, String)> {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        };
        let found = self.db.query_row(sql, [pipeline], row).optional().context("look for the last run")?;
        Ok(found.map(|(run, state, asked)| LastRun {
            run,
            is_running: state == RUNNING,
            asked: Digest::parse(&asked).unwrap_or_default(),
        }))
    }

    pub fn new_run(&mut self, pipeline: &str, asked: Digest, spec: &Value) -> Result<String> {
        let all = self.db.transaction().context("record a run")?;
        let seq: i64 = all.query_row("SELECT COALESCE(MAX(seq), 0) + 1 FROM runs", [], |row| row.get(0))?;
        let run = format!("{pipeline}-{seq}");
        let sql =
            "INSERT INTO runs (run, seq, pipeline, asked, spec, state, started) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        all.execute(sql, params![run, seq, pipeline, asked.to_string(), spec.to_string(), RUNNING, now()])
            .context("record a run")?;
        all.commit().context("record a run")?;
        Ok(run)
    }

    pub fn end_run(&mut self, run: &str, state: &str, reason: &str) -> Result<()> {
        let sql = "UPDATE runs SET state = ?2, reason = ?3, ended = ?4 WHERE run = ?1";
        self.db.execute(sql, params![run, state, reason, now()]).context("record the end of a run")?;
        Ok(())
    }

    /// An execution that begins, with its inputs by name.
    pub fn begin(&mut self, run: &str, stage: Stage, parts: &Parts, inputs: &[(String, i64)]) -> Result<i64> {
        let recording = || format!("record that {stage} begins");
        let all = self.db.transaction().with_context(recording)?;
        let attempt: i64 = all.query_row(
            "SELECT COUNT(*) + 1 FROM executions WHERE run = ?1 AND stage = ?2",
            params![run, stage.word()],
            |row| row.get(0),
        )?;
        let key = crate::cache::key(parts).to_string();
        let json = serde_json::to_string(parts).context("parts as JSON")?;
        let sql = "INSERT INTO executions (run, stage, key, parts, state, attempt, started) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        all.execute(sql, params![run, stage.word(), key, json, RUNNING, attempt, now()]).with_context(recording)?;
        let execution = all.last_insert_rowid();
        link(&all, execution, "INPUT", inputs).with_context(recording)?;
        all.commit().with_context(recording)?;
        Ok(execution)
    }

    /// The execution is over: its outputs exist from here on. Gives their ids. What it tells of the training is recorded
    /// with them, so that nothing is lost between the two.
    pub fn complete(
        &mut self,
        execution: i64,
        outputs: &[(String, Artifact)],
        lived: &Lived,
    ) -> Result<Vec<(String, i64)>> {
        let all = self.db.transaction().context("record a result")?;
        let mut ids = Vec::new();
        for (name, artifact) in outputs {
            ids.push((name.clone(), insert(&all, artifact).context("record a result")?));
        }
        link(&all, execution, "OUTPUT", &ids).context("record a result")?;
        all.execute("UPDATE executions SET state = ?2, ended = ?3 WHERE id = ?1", params![execution, COMPLETE, now()])
            .context("record a result")?;
        told_of_training(&all, lived).context("record the views of the training")?;
        all.commit().context("record a result")?;
        Ok(ids)
    }

    pub fn fail(&mut self, execution: i64, error: &str) -> Result<()> {
        let sql = "UPDATE executions SET state = ?2, error = ?3, ended = ?4 WHERE id = ?1";
        self.db.execute(sql, params![execution, FAILED, error, now()]).context("record a failure")?;
        Ok(())
    }

    /// An execution that takes the outputs of an earlier one. Once in a run.
    pub fn reuse(&mut self, run: &str, stage: Stage, parts: &Parts, from: i64, inputs: &[(String, i64)]) -> Result<()> {
        let all = self.db.transaction().context("record a reuse")?;
        let sql = "SELECT COUNT(*) FROM executions WHERE run = ?1 AND stage = ?2 AND (id = ?3 OR cached_from = ?3)";
        let known: i64 = all.query_row(sql, params![run, stage.word(), from], |row| row.get(0))?;
        if known == 0 {
            let key = crate::cache::key(parts).to_string();
            let json = serde_json::to_string(parts).context("parts as JSON")?;
            let sql = "INSERT INTO executions (run, stage, key, parts, state, attempt, cached_from, started, ended)
                       VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?7, ?7)";
            all.execute(sql, params![run, stage.word(), key, json, CACHED, from, now()]).context("record a reuse")?;
            let execution = all.last_insert_rowid();
            link(&all, execution, "INPUT", inputs).context("record a reuse")?;
            let outputs = events_of(&all, from, "OUTPUT")?;
            link(&all, execution, "OUTPUT", &outputs).context("record a reuse")?;
        }
        all.commit().context("record a reuse")
    }

    /// A file of somebody else's, known once by its digest.
    pub fn source(&mut self, artifact: &Artifact) -> Result<i64> {
        let sql = "SELECT id FROM artifacts WHERE digest = ?1";
        let known = self.db.query_row(sql, [artifact.digest().to_string()], |row| row.get(0)).optional();
        match known.context("look for an artifact")? {
            Some(id) => Ok(id),
            None => insert(&self.db, artifact).context("record an artifact"),
        }
    }

    /// Finished executions of a stage of this pipeline, newest first; whether they are whole is not looked at.
    pub fn earlier(&self, pipeline: &str, stage: Stage) -> Result<Vec<Earlier>> {
        let sql = "SELECT e.id, e.run, e.parts FROM executions e JOIN runs r ON r.run = e.run
                   WHERE e.stage = ?1 AND e.state = ?2 AND r.pipeline = ?3 ORDER BY e.id DESC LIMIT 1000";
        let mut query = self.db.prepare(sql).context("look for earlier executions")?;
        let rows = query.query_map(params![stage.word(), COMPLETE, pipeline], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
        })?;
        let mut found = Vec::new();
        for row in rows {
            let (execution, run, parts) = row.context("read an execution")?;
            let parts = serde_json::from_str(&parts).with_context(|| format!("parts of execution {execution}"))?;
            found.push(Earlier { execution, run, parts, lost: None });
        }
        Ok(found)
    }

    pub fn outputs(&self, execution: i64) -> Result<Vec<(String, ArtifactRow)>> {
        events_of(&self.db, execution, "OUTPUT")?.into_iter().map(|(name, id)| Ok((name, self.artifact(id)?))).collect()
    }

    pub fn inputs(&self, execution: i64) -> Result<Vec<(String, ArtifactRow)>> {
        events_of(&self.db, execution, "INPUT")?.into_iter().map(|(name, id)| Ok((name, self.artifact(id)?))).collect()
    }

    pub fn artifact(&self, id: i64) -> Result<ArtifactRow> {
        let sql = format!("SELECT {ARTIFACT} FROM artifacts WHERE id = ?1");
        let row = self.db.query_row(&sql, [id], artifact_row).with_context(|| format!("read artifact {id}"))?;
        whole(row)
    }

    /// A blob of it is gone.
    pub fn mark_deleted(&mut self, artifact: i64) -> Result<()> {
        let sql = "UPDATE artifacts SET state = ?2 WHERE id = ?1";
        self.db.execute(sql, params![artifact, DELETED]).context("record that an artifact is not whole")?;
        Ok(())
    }

    /// Artifacts whose digest, or whose bundle's content, begins so; newest first. Or all of a type.
    pub fn find(&self, text: &str) -> Result<Vec<ArtifactRow>> {
        let sql = format!(
            "SELECT {ARTIFACT} FROM artifacts WHERE digest LIKE ?1 || '%' OR kind = ?1
             OR json_extract(body, '$.facts.content_sha256') LIKE ?1 || '%' ORDER BY id DESC LIMIT 1000"
        );
        let mut query = self.db.prepare(&sql).context("look for artifacts")?;
        let rows = query.query_map([text], artifact_row)?.collect::<rusqlite::Result<Vec<_>>>()?;
        rows.into_iter().map(whole).collect()
    }

    /// Executions that made an artifact (`OUTPUT`) or read it (`INPUT`).
    pub fn executions_of(&self, artifact: i64, kind: &str) -> Result<Vec<ExecutionRow>> {
        let sql = format!(
            "SELECT {EXECUTION} FROM executions e WHERE e.id IN
             (SELECT execution FROM events WHERE artifact = ?1 AND kind = ?2) ORDER BY e.id"
        );
        self.executions(&sql, params![artifact, kind])
    }

    pub fn executions_in(&self, run: &str) -> Result<Vec<ExecutionRow>> {
        self.executions(&format!("SELECT {EXECUTION} FROM executions e WHERE e.run = ?1 ORDER BY e.id"), params![run])
    }

    fn executions(&self, sql: &str, with: impl rusqlite::Params) -> Result<Vec<ExecutionRow>> {
        let mut query = self.db.prepare(sql).context("look for executions")?;
        let row = |row: &Row<'_>| {
            Ok(ExecutionRow {
                execution: row.get(0)?,
                run: row.get(1)?,
                stage: row.get(2)?,
                state: row.get(3)?,
                key: row.get(4)?,
                attempt: row.get(5)?,
                cached_from: row.get(6)?,
                error: row.get(7)?,
                started_unix_ms: row.get(8)?,
                ended_unix_ms: row.get(9)?,
            })
        };
        Ok(query.query_map(with, row)?.collect::<rusqlite::Result<Vec<_>>>()?)
    }

    /// What happened in an execution besides its inputs and outputs.
    pub fn events(&self, execution: i64) -> Result<Vec<EventRow>> {
        let sql = "SELECT kind, name, at, body FROM events WHERE execution = ?1 AND artifact IS NULL ORDER BY id";
        let mut query = self.db.prepare(sql)?;
        let row = |row: &Row<'_>| {
            let body: String = row.get(3)?;
            let body = serde_json::from_str(&body).unwrap_or_default();
            Ok(EventRow { kind: row.get(0)?, name: row.get(1)?, at_unix_ms: row.get(2)?, body })
        };
        Ok(query.query_map([execution], row)?.collect::<rusqlite::Result<Vec<_>>>()?)
    }

    /// Newest first.
    pub fn runs(&self) -> Result<Vec<RunRow>> {
        let sql = "SELECT run, pipeline, state, reason, started, ended FROM runs ORDER BY seq DESC LIMIT 1000";
        let mut query = self.db.prepare(sql)?;
        let row = |row: &Row<'_>| {
            Ok(RunRow {
                run: row.get(0)?,
                pipeline: row.get(1)?,
                state: row.get(2)?,
                reason: row.get(3)?,
                started_unix_ms: row.get(4)?,
                ended_unix_ms: row.get(5)?,
            })
        };
        Ok(query.query_map([], row)?.collect::<rusqlite::Result<Vec<_>>>()?)
    }
}

const ARTIFACT: &str = "id, kind, digest, state, body, made";
const EXECUTION: &str = "e.id, e.run, e.stage, e.state, e.key, e.attempt, e.cached_from, e.error, e.started, e.ended";

type RawArtifact = (i64, String, String, String, String, i64);

fn artifact_row(row: &Row<'_>) -> rusqlite::Result<RawArtifact> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
}

fn whole((id, kind, digest, state, body, made_unix_ms): RawArtifact) -> Result<ArtifactRow> {
    let artifact = serde_json::from_str(&body).with_context(|| format!("read artifact {id}"))?;
    Ok(ArtifactRow { id, kind, digest, state, artifact, made_unix_ms })
}

fn insert(db: &Connection, artifact: &Artifact) -> Result<i64> {
    let body = serde_json::to_string(artifact).context("an artifact as JSON")?;
    let sql = "INSERT INTO artifacts (kind, digest, body, state, made) VALUES (?1, ?2, ?3, ?4, ?5)";
    db.execute(sql, params![artifact.kind.word(), artifact.digest().to_string(), body, LIVE, now()])?;
    Ok(db.last_insert_rowid())
}

fn link(db: &Connection, execution: i64, kind: &str, artifacts: &[(String, i64)]) -> rusqlite::Result<()> {
    let sql = "INSERT INTO events (execution, kind, name, artifact, at) VALUES (?1, ?2, ?3, ?4, ?5)";
    artifacts.iter().try_for_each(|(name, id)| db.execute(sql, params![execution, kind, name, id, now()]).map(drop))
}

/// Once: another export of the same model tells the same.
fn told_of_training(db: &Connection, lived: &Lived) -> Result<()> {
    let sql = "SELECT MIN(execution) FROM events WHERE artifact = ?1 AND kind = 'OUTPUT'";
    let training: Option<i64> = db.query_row(sql, [lived.model], |row| row.get(0))?;
    let Some(training) = training.filter(|_| !lived.views.is_empty()) else { return Ok(()) };
    let sql = "SELECT COUNT(*) FROM events WHERE execution = ?1 AND kind = 'VIEW'";
    let known: i64 = db.query_row(sql, [training], |row| row.get(0))?;
    let sql = "INSERT INTO events (execution, kind, name, body, at) VALUES (?1, 'VIEW', ?2, ?3, ?4)";
    for (i, view) in lived.views.iter().enumerate().filter(|_| known == 0) {
        db.execute(sql, params![training, format!("view-{i}"), view.to_string(), now()])?;
    }
    Ok(())
}

fn events_of(db: &Connection, execution: i64, kind: &str) -> Result<Vec<(String, i64)>> {
    let sql =
        "SELECT name, artifact FROM events WHERE execution = ?1 AND kind = ?2 AND artifact IS NOT NULL ORDER BY id";
    let mut query = db.prepare(sql)?;
    let rows = query.query_map(params![execution, kind], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
}

/// For persons; nothing is decided by it.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Kind;
    use serde_json::json;

    fn parts() -> Parts {
        [("stage".to_string(), json!("ingest"))].into()
    }

    fn made(rows: u64) -> Artifact {
        Artifact::new(Kind::Examples, json!({ "rows": rows }), vec![])
    }

    #[test]
    fn what_was_done_is_found_and_a_reuse_is_recorded_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut lineage = Lineage::open(&dir.path().join("lineage.db")).unwrap();
        let run = lineage.new_run("digits", Digest::of(b"x"), &json!({})).unwrap();
        assert_eq!(run, "digits-1");
        let source = lineage.source(&Artifact::new(Kind::File, json!({ "sha256": "y" }), vec![])).unwrap();
        let inputs = [("path".to_string(), source)];
        let execution = lineage.begin(&run, Stage::Ingest, &parts(), &inputs).unwrap();
        assert_eq!(lineage.earlier("digits", Stage::Ingest).unwrap(), [], "it is not over");
        lineage.complete(execution, &[("examples".into(), made(3))], &Lived::default()).unwrap();
        assert_eq!(lineage.earlier("digits", Stage::Ingest).unwrap()[0].execution, execution);
        assert_eq!(lineage.earlier("others", Stage::Ingest).unwrap(), [], "another pipeline's work is its own");

        lineage.end_run(&run, COMPLETE, "").unwrap();
        let second = lineage.new_run("digits", Digest::of(b"x"), &json!({})).unwrap();
        for _ in 0..2 {
            lineage.reuse(&second, Stage::Ingest, &parts(), execution, &inputs).unwrap();
        }
        let rows = lineage.executions_in(&second).unwrap();
        assert_eq!((rows.len(), rows[0].state.as_str(), rows[0].cached_from), (1, CACHED, Some(execution)));
        let outputs = lineage.outputs(rows[0].execution).unwrap();
        assert_eq!(outputs[0].1.artifact, made(3));
        let found = lineage.find(&made(3).digest().to_string()[..8]).unwrap();
        assert_eq!(lineage.executions_of(found[0].id, "OUTPUT").unwrap().len(), 2);
        assert_eq!(lineage.inputs(execution).unwrap()[0].1.kind, "file");
    }

    #[test]
    fn the_views_of_a_training_are_told_with_what_was_made_of_its_model_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut lineage = Lineage::open(&dir.path().join("lineage.db")).unwrap();
        let run = lineage.new_run("digits", Digest::of(b"x"), &json!({})).unwrap();
        let training = lineage.begin(&run, Stage::Train, &parts(), &[]).unwrap();
        let made = |name: &str| vec![(name.to_string(), Artifact::new(Kind::Model, json!(name), vec![]))];
        let model = lineage.complete(training, &made("model"), &Lived::default()).unwrap()[0].1;
        let views = [json!({"gen": 1}), json!({"gen": 2})];
        for _ in 0..2 {
            let export = lineage.begin(&run, Stage::Export, &parts(), &[("model".into(), model)]).unwrap();
            lineage.complete(export, &made("bundle"), &Lived { model, views: &views }).unwrap();
        }
        let told: Vec<Value> = lineage.events(training).unwrap().into_iter().map(|event| event.body).collect();
        assert_eq!(told, views);
    }

    #[test]
    fn what_a_killed_process_left_as_running_is_buried() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lineage.db");
        let mut lineage = Lineage::open(&path).unwrap();
        let run = lineage.new_run("digits", Digest::of(b"x"), &json!({})).unwrap();
        lineage.begin(&run, Stage::Ingest, &parts(), &[]).unwrap();
        drop(lineage);
        let mut lineage = Lineage::open(&path).unwrap();
        assert_eq!(lineage.bury().unwrap(), 1);
        let row = &lineage.executions_in(&run).unwrap()[0];
        assert_eq!((row.state.as_str(), row.error.as_str()), (FAILED, "the process that ran it is gone"));
        assert!(lineage.last_run("digits").unwrap().unwrap().is_running, "the run itself goes on");
    }

    #[test]
    fn a_folder_that_is_no_workspace_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let told = Lineage::look(&dir.path().join("lineage.db")).unwrap_err().to_string();
        assert!(told.contains("is no workspace of a pipeline: no run has begun there"), "{told}");
        assert!(!dir.path().join("lineage.db").exists());
    }
}
