//! The files that a job names: found, digested and, for a cluster, uploaded when they are small.

use crate::exit::mistake;
use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use elastic_proto::client::Coordinator;
use elastic_spec::Digest;
use elastic_spec::job::{JobSpec, folder};
use elastic_spec::limits::BLOB_BYTES_MAX;
use std::collections::BTreeMap;
use std::path::Path;

/// What was read for one input; None: it is not on this machine.
pub struct Found {
    pub section: &'static str,
    pub key: &'static str,
    pub path: String,
    pub bytes: Option<Bytes>,
}

impl Found {
    pub fn field(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }
}

/// Reads all inputs and fixes `data.sha256` and `model.init_sha256`. For a job that is trained here each must be here.
pub fn find_here(spec: &mut JobSpec) -> Result<()> {
    let found = find(spec)?;
    let missing: Vec<_> = found.iter().filter(|input| input.bytes.is_none()).collect();
    if !missing.is_empty() {
        let lines: Vec<_> = missing.iter().map(|i| format!("{}: {} does not exist", i.field(), i.path)).collect();
        return Err(mistake(anyhow!(lines.join("\n"))));
    }
    fix_digest(spec, &found)
}

/// Reads what is on this machine and fixes the digest of data and start where all of it is.
pub fn find(spec: &JobSpec) -> Result<Vec<Found>> {
    let data = spec.data.inputs().len();
    let mut found = Vec::new();
    for (i, input) in spec.inputs().into_iter().enumerate() {
        let section = if i < data { "data" } else { "model" };
        let files = match section == "model" && Path::new(input.path).is_dir() {
            true => files_of(input.path).with_context(|| format!("model.{}", input.key)).map_err(mistake)?,
            false => vec![input.path.to_string()],
        };
        for path in files {
            let bytes = read(&path).with_context(|| format!("{section}.{}", input.key)).map_err(mistake)?;
            found.push(Found { section, key: input.key, path, bytes });
        }
    }
    Ok(found)
}

/// None: it is not on this machine.
fn read(path: &str) -> Result<Option<Bytes>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(Bytes::from(bytes))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("read {path}")),
    }
}

/// What a model's folder of Hugging Face consists of: its configuration, and its weights whole or in parts.
fn files_of(dir: &str) -> Result<Vec<String>> {
    let at = |name: &str| format!("{dir}/{name}");
    if !Path::new(&at(folder::CONFIG)).exists() {
        bail!("{dir} is a folder without {}; allowed: a safetensors file, or a model's folder", folder::CONFIG);
    }
    if Path::new(&at(folder::WHOLE)).exists() {
        return Ok(vec![at(folder::CONFIG), at(folder::WHOLE)]);
    }
    let Some(index) = read(&at(folder::INDEX))? else {
        bail!("{dir} has neither {} nor {}", folder::WHOLE, folder::INDEX);
    };
    let parts = folder::parts(&index).map_err(|why| anyhow!("{dir}: {why}"))?;
    let parts = parts.iter().map(String::as_str);
    Ok([folder::CONFIG, folder::INDEX].into_iter().chain(parts).map(at).collect())
}

/// Of one file its own SHA-256; of several, that of the lines `<hex>  <key>`, of a model's folder `<hex>  <name>`
/// (docs/job-toml.md).
pub fn fix_digest(spec: &mut JobSpec, found: &[Found]) -> Result<()> {
    let of = |section: &'static str| found.iter().filter(move |input| input.section == section);
    let data: Option<Vec<_>> = of("data").map(|input| Some((input.key, Digest::of(input.bytes.as_ref()?)))).collect();
    let is = match data.as_deref() {
        None | Some([]) => None,
        Some([(_, digest)]) => Some(*digest),
        Some(several) => {
            let lines: String = several.iter().map(|(key, digest)| format!("{digest}  {key}\n")).collect();
            Some(Digest::of(lines.as_bytes()))
        }
    };
    fix("data.sha256", "the data", &mut spec.data.sha256, is)?;
    let name = |path: &str| Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let model: Option<BTreeMap<_, _>> =
        of("model").map(|input| Some((name(&input.path), Digest::of(input.bytes.as_ref()?)))).collect();
    fix(
        "model.init_sha256",
        "what model.init names",
        &mut spec.model.init_sha256,
        folder::digest(&model.unwrap_or_default()),
    )
}

/// Sets the digest of what is here, or holds it against the one that was said.
fn fix(field: &str, what: &str, said: &mut Option<Digest>, is: Option<Digest>) -> Result<()> {
    let Some(is) = is else { return Ok(()) };
    match said.replace(is) {
        Some(said) if said != is => Err(mistake(anyhow!(
            "{field}: {what} here has {is}, the job file says {said}: take the file that is meant, or correct the line"
        ))),
        _ => Ok(()),
    }
}

/// Uploads small inputs; returns (path in the spec, digest) of each. `say` hears of those that stay.
pub async fn upload(
    coordinator: &Coordinator,
    found: Vec<Found>,
    say: impl Fn(String),
) -> Result<Vec<(String, Digest)>> {
    let mut uploaded = Vec::new();
    for input in found {
        let field = input.field();
        match input.bytes {
            Some(bytes) if bytes.len() <= BLOB_BYTES_MAX => {
                let digest =
                    coordinator.put_blob(bytes).await.with_context(|| format!("upload {field} ({})", input.path))?;
                uploaded.push((input.path, digest));
            }
            Some(bytes) => say(format!(
                "{field}: {} has {} bytes, more than travels with a job; every node must see it under this path",
                input.path,
                bytes.len()
            )),
            None if !Path::new(&input.path).is_absolute() => bail!("{field}: {} is not an absolute path", input.path),
            None => {
                say(format!("{field}: {} is not on this machine; every node must see it under this path", input.path))
            }
        }
    }
    Ok(uploaded)
}
