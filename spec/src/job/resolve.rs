//! From the sections of a job file to the spec: what each section means, and what must hold between keys.

use super::command;
use super::document::Table;
use super::groups;
use super::keys::JOB;
use super::mistake::{Mistake, Place};
use super::parse::ParseContext;
use super::section::Section;
use super::{
    Activation, CheckpointSpec, DataSource, DataSpec, Device, Dtype, ElasticSpec, JobSpec, Length, LrSchedule,
    ModelKind, ModelSpec, NonFinite, Norm, Optimizer, Positions, Reduce, ResourceSpec, Stem, TrainSpec, default_shards,
};
use crate::ids::JobId;

/// What a tree of values means.
pub(crate) struct Resolved<T> {
    /// There if nothing is wrong or missing.
    pub spec: Option<T>,
    pub wrong: Vec<Mistake>,
    pub missing: Vec<Mistake>,
    pub warnings: Vec<Mistake>,
}

pub(super) fn resolve(root: &Table, context: &ParseContext) -> Resolved<JobSpec> {
    let file = Place::File(context.file.clone());
    let open = |name| JOB.open(root, name, &file, &context.base_dir);
    let (mut wrong, mut missing, mut warnings) = (Vec::new(), Vec::new(), Vec::new());

    let mut top = open("");
    let name = read_name(&mut top, context);
    if command::place(root).is_some() {
        return resolve_command(root, context, top, name);
    }
    let mut model_section = open("model");
    let model = read_model(&mut model_section);
    let mut data_section = open("data");
    let data = read_data(&mut data_section, &mut model_section, model.as_ref());
    let mut train_section = open("train");
    let train = read_train(&mut train_section, model.as_ref(), data.as_ref(), &mut warnings);
    let mut elastic_section = open("elastic");
    let elastic = read_elastic(&mut elastic_section, train.as_ref().map(|train| train.shards), &mut warnings);
    let mut checkpoint_section = open("checkpoint");
    let checkpoint = read_checkpoint(&mut checkpoint_section);
    let mut resources_section = open("resources");
    let resources = read_resources(&mut resources_section);

    for section in
        [top, model_section, data_section, train_section, elastic_section, checkpoint_section, resources_section]
    {
        let (more_wrong, more_missing) = section.close();
        wrong.extend(more_wrong);
        missing.extend(more_missing);
    }
    // What is there under a misspelt name is not missing.
    missing.retain(|mistake| !wrong.iter().any(|other| is_meant(other, &mistake.field)));
    let spec = || {
        Some(JobSpec {
            name: name?,
            model: model?,
            data: data?,
            train: train?,
            elastic: elastic?,
            checkpoint: checkpoint?,
            resources: resources?,
        })
    };
    let spec = if wrong.is_empty() && missing.is_empty() { spec() } else { None };
    Resolved { spec, wrong, missing, warnings }
}

/// A job that is a command: its name, `[command]`, and how many nodes.
fn resolve_command(root: &Table, context: &ParseContext, top: Section, name: Option<String>) -> Resolved<JobSpec> {
    let file = Place::File(context.file.clone());
    let mut command_section = JOB.open(root, "command", &file, &context.base_dir);
    let command = command::read(&mut command_section, root, &context.base_dir);
    let mut elastic_section = JOB.open(root, "elastic", &file, &context.base_dir);
    let elastic = command::read_elastic(&mut elastic_section);
    let (mut wrong, mut missing) = (Vec::new(), Vec::new());
    for section in [top, command_section, elastic_section] {
        let (more_wrong, more_missing) = section.close();
        wrong.extend(more_wrong);
        missing.extend(more_missing);
    }
    missing.retain(|mistake| !wrong.iter().any(|other| is_meant(other, &mistake.field)));
    let spec = || Some(JobSpec::of_command(name?, command?, elastic?));
    let spec = if wrong.is_empty() && missing.is_empty() { spec() } else { None };
    Resolved { spec, wrong, missing, warnings: Vec::new() }
}

/// Whether `mistake` suggests `field`, or the section that it is in.
pub(crate) fn is_meant(mistake: &Mistake, field: &str) -> bool {
    let Some(suggestion) = &mistake.suggestion else { return false };
    let section = field.split('.').next().unwrap_or_default();
    suggestion == field || *suggestion == format!("[{section}]")
}

/// A run's name is made of it and a suffix, within the 63 characters of a [`JobId`].
pub(crate) const NAME_CHARS_MAX: usize = 40;

pub(crate) fn read_name(section: &mut Section, context: &ParseContext) -> Option<String> {
    let good = |name: &str| name.len() <= NAME_CHARS_MAX && JobId::parse(name).is_ok();
    if !section.has("name") {
        section.text("name");
        let folder = context.base_dir.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        return Some(if good(folder) { folder } else { "job" }.to_string());
    }
    let name = section.text("name")?;
    if good(&name) {
        return Some(name);
    }
    let shown = super::document::shortened(&name);
    section.wrong(
        "name",
        format!(
            "is \"{shown}\"; allowed: 1 to {NAME_CHARS_MAX} characters out of a-z, 0-9, '-', '.' and '_' that begin and end with a letter or digit"
        ),
    );
    None
}

fn read_model(section: &mut Section) -> Option<ModelSpec> {
    let kind = match section.choice("kind") {
        Some("mlp") => read_mlp(section),
        Some("cnn") => read_cnn(section),
        Some("resnet18") => read_resnet18(section),
        Some("gpt") => read_gpt(section),
        Some("own") => read_own(section),
        _ => None,
    };
    let init = section.path("init");
    let (init_except, freeze) = (section.texts("init_except"), section.texts("freeze"));
    if init.is_none() && !section.has("init") && init_except.as_ref().is_some_and(|except| !except.is_empty()) {
        section.wrong("init_except", "is given without `init`, so that there is nothing to except from");
    }
    let init_sha256 = section.digest("init_sha256");
    if init.is_none() && !section.has("init") && init_sha256.is_some() {
        section.wrong("init_sha256", "is given without `init`, so that there is nothing to check");
    }
    Some(ModelSpec { kind: kind?, init, init_sha256, init_except: init_except?, freeze: freeze? })
}

fn read_mlp(section: &mut Section) -> Option<ModelKind> {
    let hidden = section.ints("hidden");
    let activation = match section.choice("activation") {
        Some("gelu") => Activation::Gelu,
        _ => Activation::Relu,
    };
    Some(ModelKind::Mlp { hidden: hidden?, activation })
}

fn read_cnn(section: &mut Section) -> Option<ModelKind> {
    let image = read_image(section);
    let channels = section.ints("channels");
    let kernel: Option<u32> = section.int("kernel");
    if kernel.is_some_and(|kernel| kernel.is_multiple_of(2)) {
        section.wrong("kernel", "is even; allowed: an odd number, so that the padding is the same on both sides");
    }
    let (hidden, batch_norm) = (section.int("hidden"), section.truth("batch_norm"));
    Some(ModelKind::Cnn {
        image: image?,
        channels: channels?,
        kernel: kernel?,
        hidden: hidden?,
        batch_norm: batch_norm?,
    })
}

fn read_image(section: &mut Section) -> Option<[u32; 3]> {
    let image = section.ints("image").and_then(|image| <[u32; 3]>::try_from(image).ok())?;
    if image.iter().map(|side| u64::from(*side)).product::<u64>() > FEATURES_MAX {
        section.wrong("image", format!("has more than {FEATURES_MAX} numbers, the most that a sample may have"));
    }
    Some(image)
}

fn read_resnet18(section: &mut Section) -> Option<ModelKind> {
    let image = read_image(section);
    if let Some([_, height, width]) = image
        && height != width
    {
        let message = format!("is {height} high and {width} wide; allowed with resnet18: as high as wide");
        section.wrong("image", message);
    }
    let stem = section.choice("stem").map(|stem| if stem == "small" { Stem::Small } else { Stem::Full });
    let (width, zero_init_residual) = (section.int("width"), section.truth("zero_init_residual"));
    Some(ModelKind::Resnet18 { image: image?, stem: stem?, width: width?, zero_init_residual: zero_init_residual? })
}

/// Numbers of one sample.
const FEATURES_MAX: u64 = 1 << 24;
/// Numbers of a synthetic data set: it is held in memory by every worker.
const SYNTHETIC_NUMBERS_MAX: u64 = 1 << 31;

fn read_gpt(section: &mut Section) -> Option<ModelKind> {
    let (layers, heads, width) = (section.int("layers"), section.int::<u32>("heads"), section.int::<u32>("width"));
    let (context, dropout) = (section.int("context"), section.float32("dropout"));
    if let (Some(heads), Some(width)) = (heads, width)
        && !width.is_multiple_of(heads)
    {
        section.wrong("heads", format!("is {heads}, which does not divide width = {width}"));
    }
    let norm = section.choice("norm").map(|norm| if norm == "rms" { Norm::Rms } else { Norm::Layer });
    let rotary = section.choice("positions").map(|positions| positions == "rotary");
    if let (Some(true), Some(heads), Some(width)) = (rotary, heads, width)
        && !width.is_multiple_of(2 * heads)
    {
        let each = width / heads.max(1);
        section.wrong("positions", format!("rotary turns pairs of channels, but a head has {each} (width / heads)"));
    }
    let positions = rotary.map(|rotary| if rotary { Positions::Rotary } else { Positions::Learned });
    let (layers, heads, width, context) = (layers?, heads?, width?, context?);
    Some(ModelKind::Gpt { layers, heads, width, context, dropout: dropout?, norm: norm?, positions: positions? })
}

fn read_own(section: &mut Section) -> Option<ModelKind> {
    let params = section.json("params");
    // A bare name is looked up on the node's PATH; what has a slash is a file.
    let program = match section.text("program")? {
        file if file.contains('/') => section.path("program"),
        bare => Some(bare),
    };
    Some(ModelKind::Own { program: program?, params: params? })
}

fn read_data(section: &mut Section, model_section: &mut Section, model: Option<&ModelSpec>) -> Option<DataSpec> {
    let kind = section.choice("kind");
    let source = match kind {
        Some("csv") => read_csv(section),
        Some("npy") => read_npy(section),
        Some("text") => read_text(section),
        Some("synthetic") => read_synthetic(section, model),
        _ => None,
    };
    let (validation, sha256) = (section.float("validation"), section.digest("sha256"));
    if let (Some(model), Some(kind)) = (model, kind) {
        check_model_reads(section, model_section, &model.kind, kind);
    }
    Some(DataSpec { source: source?, validation: validation?, sha256 })
}

fn check_model_reads(section: &mut Section, model_section: &mut Section, model: &ModelKind, data: &str) {
    match (model, data) {
        (ModelKind::Gpt { .. }, "csv" | "npy") => section.wrong(
            "kind",
            format!("is \"{data}\", but model.kind = \"gpt\" reads tokens; allowed with it: \"text\", \"synthetic\""),
        ),
        (ModelKind::Mlp { .. } | ModelKind::Cnn { .. } | ModelKind::Resnet18 { .. }, "text") => {
            let reads = "is \"text\", but the model reads numbers; allowed with it: \"csv\", \"npy\", \"synthetic\"";
            section.wrong("kind", reads);
        }
        (ModelKind::Own { params, .. }, "text") if own_context(params).is_none() => model_section.wrong(
            "params",
            "has no `context`; with text data it holds the length of a sample in tokens, an integer from 1 to 65536",
        ),
        _ => {}
    }
}

/// The window length of a model of one's own.
pub(super) fn own_context(params: &serde_json::Value) -> Option<u32> {
    let context = params.get("context")?.as_u64()?;
    (1..=1 << 16).contains(&context).then_some(context as u32)
}

fn read_csv(section: &mut Section) -> Option<DataSource> {
    let (path, label, header) = (section.path("path"), section.column("label"), section.truth("header"));
    let (scale, classes) = (section.float32("scale"), section.int("classes"));
    Some(DataSource::Csv { path: path?, label: label?, header: header?, scale: scale?, classes: classes? })
}

fn read_npy(section: &mut Section) -> Option<DataSource> {
    let (x, y) = (section.path("x"), section.path("y"));
    let (scale, classes) = (section.float32("scale"), section.int("classes"));
    Some(DataSource::Npy { x: x?, y: y?, scale: scale?, classes: classes? })
}

fn read_text(section: &mut Section) -> Option<DataSource> {
    let (path, tokenizer) = (section.path("path"), section.path("tokenizer"));
    Some(DataSource::Text { path: path?, tokenizer })
}

fn read_synthetic(section: &mut Section, model: Option<&ModelSpec>) -> Option<DataSource> {
    let samples: Option<u64> = section.int("samples");
    let given: Option<u32> = section.int("features");
    let classes = section.int("classes");
    let wanted = match model.map(|model| &model.kind) {
        Some(ModelKind::Cnn { image, .. } | ModelKind::Resnet18 { image, .. }) => {
            Some((image.iter().product(), "model.image has"))
        }
        Some(ModelKind::Gpt { context, .. }) => Some((*context, "model.context is")),
        Some(ModelKind::Mlp { .. } | ModelKind::Own { .. } | ModelKind::Command(_)) | None => None,
    };
    if let (Some(given), Some((wanted, whose))) = (given, wanted)
        && given != wanted
    {
        section.wrong("features", format!("is {given}, but {whose} {wanted}; leave it out"));
    }
    if model.is_some() && wanted.is_none() && !section.has("features") {
        section.missing("features", "is missing; allowed: an integer from 1 to 2^24, the numbers in a sample");
    }
    let features = given.or(wanted.map(|(wanted, _)| wanted));
    if let (Some(samples), Some(features)) = (samples, features)
        && samples.saturating_mul(u64::from(features)) > SYNTHETIC_NUMBERS_MAX
    {
        let message = format!("is {samples}, with {features} numbers each; allowed: 2^31 numbers in all");
        section.wrong("samples", message);
    }
    Some(DataSource::Synthetic { samples: samples?, features: features?, classes: classes? })
}

fn read_train(
    section: &mut Section,
    model: Option<&ModelSpec>,
    data: Option<&DataSpec>,
    warnings: &mut Vec<Mistake>,
) -> Option<TrainSpec> {
    let batch_norm = matches!(
        model.map(|model| &model.kind),
        Some(ModelKind::Cnn { batch_norm: true, .. } | ModelKind::Resnet18 { .. })
    );
    let global_batch = section.int("global_batch");
    let shards = read_shards(section, global_batch, batch_norm, warnings);
    let length = read_length(section);
    let seed = section.int("seed");
    let dtype = section.choice("dtype").map(|word| if word == "bf16" { Dtype::Bf16 } else { Dtype::F32 });
    if dtype == Some(Dtype::Bf16) && model.is_some_and(|model| matches!(model.kind, ModelKind::Own { .. })) {
        section
            .wrong("dtype", "is \"bf16\", but a model of kind \"own\" is compiled by its own program, which chooses");
    }
    let optimizer = read_optimizer(section);
    let lr = section.float("lr");
    let lr_schedule = read_schedule(section, length, warnings);
    let clip_norm = section.float("clip_norm");
    let non_finite = section.choice("non_finite").map(|chosen| match chosen {
        "skip" => NonFinite::Skip,
        _ => NonFinite::Fail,
    });
    let ema = section.float("ema");
    let label_smoothing = section.float32("label_smoothing");
    let validate_every = section.int("validate_every");
    let groups = groups::read(section);
    if section.has("validate_every") && data.is_some_and(|data| data.validation == 0.0) {
        warnings.push(section.at("validate_every", "has no effect, since data.validation is 0"));
    }
    Some(TrainSpec {
        global_batch: global_batch?,
        shards: shards?,
        length: length?,
        seed: seed?,
        dtype: dtype?,
        optimizer: optimizer?,
        lr: lr?,
        lr_schedule: lr_schedule?,
        clip_norm,
        non_finite: non_finite?,
        ema,
        label_smoothing: label_smoothing?,
        validate_every: validate_every?,
        groups: groups?,
    })
}

fn read_shards(
    section: &mut Section,
    global_batch: Option<u32>,
    batch_norm: bool,
    warnings: &mut Vec<Mistake>,
) -> Option<u16> {
    let given: Option<u16> = section.int("shards");
    if section.has("shards") && given.is_none() {
        return None;
    }
    let shards = given.or(global_batch.map(|batch| default_shards(batch, batch_norm)))?;
    if !shards.is_power_of_two() {
        section.wrong("shards", format!("is {shards}; allowed: a power of two"));
        return None;
    }
    let global_batch = global_batch?;
    if !global_batch.is_multiple_of(u32::from(shards)) {
        let largest = 1u32 << global_batch.trailing_zeros();
        let message = format!(
            "is {shards}, which does not divide global_batch = {global_batch}; allowed: a power of two up to {largest}"
        );
        section.wrong("shards", message);
        return None;
    }
    let each = global_batch / u32::from(shards);
    if batch_norm && each < BATCH_NORM_SAMPLES_FEW {
        let message =
            format!("leaves {each} samples a shard, few for batch norm, whose statistics are each shard's own");
        warnings.push(section.at("shards", message));
    }
    Some(shards)
}

const BATCH_NORM_SAMPLES_FEW: u32 = 8;

fn read_length(section: &mut Section) -> Option<Length> {
    let (epochs, steps) = (section.int("epochs"), section.int("steps"));
    match (section.has("epochs"), section.has("steps")) {
        (true, true) => {
            section.wrong("steps", "is given as well as `epochs`; one of the two says how long the job is");
            None
        }
        (false, false) => {
            section.missing("epochs", "is missing, and so is `steps`; one of the two says how long the job is");
            None
        }
        (true, false) => epochs.map(Length::Epochs),
        (false, true) => steps.map(Length::Steps),
    }
}

fn read_optimizer(section: &mut Section) -> Option<Optimizer> {
    match section.choice("optimizer") {
        Some("sgd") => {
            let (momentum, nesterov) = (section.float("momentum"), section.truth("nesterov"));
            let weight_decay = section.float("weight_decay");
            if nesterov == Some(true) && momentum == Some(0.0) {
                section.wrong("nesterov", "is true, but momentum is 0; Nesterov's rule needs a momentum above 0");
            }
            Some(Optimizer::Sgd { momentum: momentum?, nesterov: nesterov?, weight_decay: weight_decay? })
        }
        Some(adam) => {
            let (beta1, beta2) = (section.float("beta1"), section.float("beta2"));
            let (eps, weight_decay) = (section.float("eps"), section.float("weight_decay"));
            let (beta1, beta2, eps, weight_decay) = (beta1?, beta2?, eps?, weight_decay?);
            Some(match adam {
                "adam" => Optimizer::Adam { beta1, beta2, eps, weight_decay },
                _ => Optimizer::AdamW { beta1, beta2, eps, weight_decay },
            })
        }
        None => None,
    }
}

fn read_schedule(section: &mut Section, length: Option<Length>, warnings: &mut Vec<Mistake>) -> Option<LrSchedule> {
    let chosen = section.choice("schedule");
    let warmup: Option<u64> = section.int("warmup");
    if let (Some(warmup), Some(Length::Steps(steps))) = (warmup, length)
        && warmup >= steps
    {
        let message = format!("is {warmup}, so the rate of {steps} steps never gets to the end of its rise");
        warnings.push(section.at("warmup", message));
    }
    match chosen? {
        "constant" => Some(LrSchedule::Constant { warmup: warmup? }),
        "step" => {
            let (every, gamma) = (section.int("decay_every"), section.float("decay_by"));
            Some(LrSchedule::Step { warmup: warmup?, every: every?, gamma: gamma? })
        }
        falling => {
            let end = section.float("decay_to");
            let (warmup, end) = (warmup?, end?);
            Some(match falling {
                "linear" => LrSchedule::Linear { warmup, end },
                _ => LrSchedule::Cosine { warmup, end },
            })
        }
    }
}

fn read_elastic(section: &mut Section, shards: Option<u16>, warnings: &mut Vec<Mistake>) -> Option<ElasticSpec> {
    let min_workers: Option<u16> = section.int("min_workers");
    let given: Option<u16> = section.int("max_workers");
    section.choice("reduce");
    let restarts = section.int("restarts");
    if section.has("max_workers") && given.is_none() {
        return None;
    }
    let max_workers = given.or(shards);
    if let (Some(min), Some(max), Some(shards)) = (min_workers, max_workers, shards) {
        if max > shards {
            section.wrong(
                "max_workers",
                format!(
                    "is {max}, above train.shards = {shards}; each worker needs a shard, so allowed: up to {shards}"
                ),
            );
        } else if min > max {
            let limit = if given.is_some() { "max_workers" } else { "train.shards" };
            section.wrong("min_workers", format!("is {min}, above {limit} = {max}"));
        } else if given.is_some() && max > (shards / 8).max(1) {
            warnings.push(section.at("max_workers", efficiency_warning(min, max, shards)));
        }
    }
    Some(ElasticSpec {
        min_workers: min_workers?,
        max_workers: max_workers?,
        reduce: Reduce::Exact,
        restarts: restarts?,
    })
}

/// The share of the workers' time that is used: shards / (workers * ceil(shards / workers)).
pub fn efficiency(shards: u16, workers: u16) -> f64 {
    f64::from(shards) / (f64::from(workers) * f64::from(shards.div_ceil(workers)))
}

fn efficiency_warning(min: u16, max: u16, shards: u16) -> String {
    let percent = |workers| 100.0 * efficiency(shards, workers);
    let worst = (min..=max).min_by(|a, b| percent(*a).total_cmp(&percent(*b))).unwrap_or(max);
    let worst = match worst == max || percent(worst) >= percent(max) {
        true => String::new(),
        false => format!(", {worst} of them at {:.0} %", percent(worst)),
    };
    format!(
        "is {max}, above an eighth of train.shards = {shards}: {max} workers run at {:.0} % (shards / (workers * ceil(shards / workers))){worst}",
        percent(max)
    )
}

fn read_checkpoint(section: &mut Section) -> Option<CheckpointSpec> {
    let (dir, every, keep) = (section.place("dir"), section.int("every"), section.int("keep"));
    Some(CheckpointSpec { dir, every: every?, keep: keep? })
}

fn read_resources(section: &mut Section) -> Option<ResourceSpec> {
    let (device, threads) = (section.choice("device"), section.int("threads"));
    let device = match device? {
        "cpu" => Device::Cpu,
        "cuda" => Device::Cuda,
        _ => Device::Auto,
    };
    Some(ResourceSpec { device, threads: threads? })
}
