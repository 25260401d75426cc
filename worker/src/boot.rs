//! From what the agent said to a state that can take part: job, data, network, checkpoint.
//!
//! Runs on the thread that will train, so that the worker already speaks while it reads. All that is
//! wrong here is the user's to mend (exit code 2), and no restart would cure it.

use crate::Builder;
use crate::bucket::{Bucket, is_bucket};
use crate::env::Env;
use crate::job::Job;
use crate::memory::{self, Memory};
use crate::publisher::{self, PointedFs};
use crate::state::State;
use anyhow::{Context, Result, bail};
use elastic_checkpoint::{Checkpoints, Keep, Origin};
use elastic_models::Files;
use elastic_spec::facts::{Launch, Published};
use elastic_spec::job::{JobSpec, ModelKind, folder};
use elastic_spec::{Digest, Epoch, JobId};
use elastic_tensor::Network;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a job's workers are started with.
pub struct Order {
    pub launch: Launch,
    pub spec: JobSpec,
    pub blobs: PathBuf,
}

/// A job that can be computed, and the state to begin with.
pub struct Booted {
    pub job: Job,
    pub state: State,
    /// The checkpoint that the state is of, if it is of one.
    pub restored: Option<Published>,
}

impl Order {
    pub fn read(env: &Env) -> Result<Order> {
        let text = std::fs::read_to_string(&env.launch).with_context(|| format!("read {}", env.launch.display()))?;
        let launch: Launch = serde_json::from_str(&text).with_context(|| format!("read {}", env.launch.display()))?;
        let spec = JobSpec::from_json(&launch.spec_json).map_err(anyhow::Error::msg)?;
        Ok(Order { launch, spec, blobs: env.blobs.clone() })
    }

    pub fn run_dir(&self) -> &Path {
        Path::new(&self.launch.run_dir)
    }

    /// Where checkpoints lie; with the bucket, if it is one.
    pub fn checkpoints(&self) -> Result<(Checkpoints, Option<Arc<Bucket>>)> {
        // A directory of the user's own may be shared by several runs.
        let dir = match (&self.spec.checkpoint.dir, self.run_dir().file_name()) {
            (Some(dir), Some(run)) if is_bucket(dir) => {
                let address = format!("{}/{}", dir.trim_end_matches('/'), run.to_string_lossy());
                let (bucket, path) = Bucket::open(&address).context("checkpoint.dir")?;
                let bucket = Arc::new(bucket);
                return Ok((Checkpoints::in_place(bucket.clone(), path), Some(bucket)));
            }
            (Some(dir), Some(run)) => Path::new(dir).join(run),
            _ => self.run_dir().join("checkpoints"),
        };
        Ok((Checkpoints::on(Arc::new(PointedFs), dir), None))
    }

    /// Nodes need not share the run directory of a job whose checkpoints every node sees.
    pub fn needs_shared_run_dir(&self) -> bool {
        !self.spec.checkpoint.dir.as_deref().is_some_and(is_bucket)
    }

    /// In whose name this worker publishes; the epoch is the view's at the time.
    pub fn origin(&self, job: &JobId) -> Origin {
        Origin {
            // Terms count in one coordinator's store, and so does the secret that it drew for this job.
            cluster: format!("{:016x}", Digest::of(&self.launch.secret).short()),
            job: job.clone(),
            config: self.spec.config_digest(),
            epoch: Epoch::default(),
        }
    }

    pub fn keep(&self) -> Keep {
        Keep { newest: self.spec.checkpoint.keep.max(1) as usize, in_use: Vec::new() }
    }

    /// Where an input lies on this node: by digest if it travelled with the job, else where the spec says.
    pub fn file(&self, path: &str) -> PathBuf {
        match self.launch.blobs.iter().find(|(name, _)| name == path) {
            Some((_, digest)) => self.blobs.join(digest.to_string()),
            None => PathBuf::from(path),
        }
    }
}

/// Reads the data, builds the network and takes up the newest checkpoint that proves whole.
pub fn boot(order: &Order, build: &Builder) -> Result<Booted> {
    let data = elastic_loader::open(&order.spec, &|path| order.file(path)).context("read the data")?;
    let schedule = elastic_loader::schedule(&order.spec, &data).context("plan the steps")?;
    let samples = elastic_loader::Plan::from(&order.spec.train).shard_samples() as usize;
    let mut network = network(&order.spec, &data, samples, build)?;
    let planned = Memory::plan(&order.spec, &data.shape(), &*network);
    tracing::info!("planned memory besides the data: {}", planned.words());
    planned.check(1, memory::room(), &order.spec).map_err(anyhow::Error::msg)?;
    if let Some(device) = memory::on_device(&order.spec, &*network) {
        let words = memory::check_device(&device, &order.spec).map_err(anyhow::Error::msg)?;
        tracing::info!("planned memory of the device: {words}");
    }
    elastic_tensor::freeze(network.layout_mut(), &order.spec.model.freeze).map_err(anyhow::Error::msg)?;
    elastic_tensor::set_groups(network.layout_mut(), &order.spec.train.groups).map_err(anyhow::Error::msg)?;
    let computed = Job::new(order.spec.clone(), schedule, network, data);
    let mut state = computed.first_state();
    if let Some(path) = &order.spec.model.init {
        init_from(order, path, &computed, &mut state).with_context(|| format!("model.init \"{path}\""))?;
        computed.begin_average(&mut state);
    }
    let (checkpoints, _) = order.checkpoints()?;
    let restored = restore(&computed, &mut state, &checkpoints)?;
    Ok(Booted { job: computed, state, restored })
}

/// The network of a job for shards of `samples`.
pub fn network(
    spec: &JobSpec,
    data: &elastic_loader::Data,
    samples: usize,
    build: &Builder,
) -> Result<Box<dyn Network>> {
    let built = match (&spec.model.kind, build) {
        (ModelKind::Own { params, .. }, Some(build)) => build(&data.shape(), samples, params),
        (ModelKind::Own { program, .. }, None) => {
            bail!("model.kind = \"own\" is trained by its own program ({program}), not by `elastic worker`")
        }
        (kind, _) => elastic_models::build_in(spec.train.dtype, kind, &data.shape(), samples),
    };
    built.map_err(anyhow::Error::msg).context("build the model")
}

fn init_from(order: &Order, path: &str, job: &Job, state: &mut State) -> Result<()> {
    let file = |name: &str| if name.is_empty() { order.file(path) } else { order.file(&format!("{path}/{name}")) };
    let read = RefCell::new(BTreeMap::new());
    let files = Files {
        // A folder that travelled is not at its path; its configuration is among what did.
        is_folder: file(folder::CONFIG).exists() || Path::new(path).is_dir(),
        read: &|name| {
            let file = file(name);
            let bytes = std::fs::read(&file).map_err(|e| format!("read {}: {e}", file.display()))?;
            read.borrow_mut().insert(name.to_string(), Digest::of(&bytes));
            Ok(bytes)
        },
        has: &|name| file(name).exists(),
    };
    let layout = job.network.layout();
    elastic_models::start_from(&order.spec.model, layout, &files, &mut state.floats).map_err(anyhow::Error::msg)?;
    // Workers that began with other weights would never have one state.
    match (order.spec.model.init_sha256, folder::digest(&read.into_inner())) {
        (Some(wanted), Some(found)) if wanted != found => bail!(
            "these are not the weights that were submitted: model.init_sha256 is {wanted}, what is here has {found}; \
             give every node the same files, or submit again if they were changed on purpose"
        ),
        _ => Ok(()),
    }
}

fn restore(job: &Job, state: &mut State, checkpoints: &Checkpoints) -> Result<Option<Published>> {
    let dir = checkpoints.dir().display().to_string();
    let found = checkpoints.newest_verified().with_context(|| format!("read the checkpoints in {dir}"))?;
    for refused in &found.refused {
        tracing::warn!(path = %refused.path.display(), why = %refused.why, "a checkpoint is damaged; the one before is taken");
    }
    let Some(restored) = found.newest else { return Ok(None) };
    job.restore(state, &restored.contents).with_context(|| format!("restore {}", restored.path.display()))?;
    tracing::info!(step = %restored.contents.step, path = %restored.path.display(), "restored a checkpoint");
    Ok(Some(publisher::known(&restored.path, &restored.manifest)))
}
