//! A spec as a `job.toml` in which nothing is left to defaults: what `--dry-run` shows.
//!
//! The text parses back to the same spec, whatever folder it is read in, as long as its paths are absolute.

use super::{
    Activation, CheckpointSpec, CommandSpec, DataSource, DataSpec, ElasticSpec, Group, JobSpec, Length, LrSchedule,
    ModelKind, ModelSpec, NonFinite, Norm, Optimizer, Positions, Reduce, ResourceSpec, Stem, TrainSpec,
};
use serde_json::Value as Json;

impl JobSpec {
    /// The job file that says everything.
    pub fn to_toml_resolved(&self) -> String {
        let JobSpec { name, model, data, train, elastic, checkpoint, resources } = self;
        let mut page = Page(String::new());
        page.line("name", text(name));
        if let ModelKind::Command(command) = &model.kind {
            print_command(&mut page, command);
            print_elastic(&mut page, elastic);
            return page.0;
        }
        print_model(&mut page, model);
        print_data(&mut page, data);
        print_train(&mut page, train);
        print_elastic(&mut page, elastic);
        print_checkpoint(&mut page, checkpoint);
        print_resources(&mut page, resources);
        page.0
    }
}

struct Page(String);

impl Page {
    fn section(&mut self, name: &str) {
        self.0 += &format!("\n[{name}]\n");
    }

    fn line(&mut self, key: &str, value: impl AsRef<str>) {
        self.0 += &format!("{key} = {}\n", value.as_ref());
    }
}

fn print_command(page: &mut Page, command: &CommandSpec) {
    let CommandSpec {
        run,
        processes,
        folder,
        env,
        grace_s,
        log_dir,
        role,
        prefix,
        redirects,
        show,
        virtual_local_rank,
    } = command;
    page.section("command");
    page.line("run", texts(run));
    page.line("processes", processes.to_string());
    page.line("folder", text(folder));
    let env = env.iter().map(|(name, value)| (name.clone(), Json::String(value.clone()))).collect();
    page.line("env", json(&Json::Object(env)));
    page.line("grace", grace_s.to_string());
    if let Some(log_dir) = log_dir {
        page.line("log_dir", text(log_dir));
    }
    page.line("role", text(role));
    if let Some(prefix) = prefix {
        page.line("prefix", text(prefix));
    }
    page.line("redirects", text(&redirects.to_string()));
    if let Some(show) = show {
        page.line("show", list(&show.iter().map(|place| u32::from(*place)).collect::<Vec<_>>()));
    }
    page.line("virtual_local_rank", virtual_local_rank.to_string());
}

fn print_model(page: &mut Page, ModelSpec { kind, init, init_sha256, init_except, freeze }: &ModelSpec) {
    page.section("model");
    match kind {
        ModelKind::Mlp { hidden, activation } => {
            page.line("kind", text("mlp"));
            page.line("hidden", list(hidden));
            let word = match activation {
                Activation::Relu => "relu",
                Activation::Gelu => "gelu",
            };
            page.line("activation", text(word));
        }
        ModelKind::Cnn { image, channels, kernel, hidden, batch_norm } => {
            page.line("kind", text("cnn"));
            page.line("image", list(image));
            page.line("channels", list(channels));
            page.line("kernel", kernel.to_string());
            page.line("hidden", hidden.to_string());
            page.line("batch_norm", batch_norm.to_string());
        }
        ModelKind::Resnet18 { image, stem, width, zero_init_residual } => {
            page.line("kind", text("resnet18"));
            page.line("image", list(image));
            let word = match stem {
                Stem::Full => "full",
                Stem::Small => "small",
            };
            page.line("stem", text(word));
            page.line("width", width.to_string());
            page.line("zero_init_residual", zero_init_residual.to_string());
        }
        ModelKind::Gpt { layers, heads, width, context, dropout, norm, positions } => {
            page.line("kind", text("gpt"));
            page.line("layers", layers.to_string());
            page.line("heads", heads.to_string());
            page.line("width", width.to_string());
            page.line("context", context.to_string());
            page.line("dropout", float32(*dropout));
            page.line("norm", text(if *norm == Norm::Rms { "rms" } else { "layer" }));
            page.line("positions", text(if *positions == Positions::Rotary { "rotary" } else { "learned" }));
        }
        ModelKind::Command(_) => unreachable!("a command is printed as one"),
        ModelKind::Own { program, params } => {
            page.line("kind", text("own"));
            page.line("program", text(program));
            page.line("params", json(params));
        }
    }
    if let Some(init) = init {
        page.line("init", text(init));
    }
    if let Some(sha256) = init_sha256 {
        page.line("init_sha256", text(&sha256.to_string()));
    }
    page.line("init_except", texts(init_except));
    page.line("freeze", texts(freeze));
}

fn print_data(page: &mut Page, DataSpec { source, validation, sha256 }: &DataSpec) {
    page.section("data");
    match source {
        DataSource::Csv { path, label, header, scale, classes } => {
            page.line("kind", text("csv"));
            page.line("path", text(path));
            page.line("label", label.to_string());
            page.line("header", header.to_string());
            page.line("scale", float32(*scale));
            page.line("classes", classes.to_string());
        }
        DataSource::Npy { x, y, scale, classes } => {
            page.line("kind", text("npy"));
            page.line("x", text(x));
            page.line("y", text(y));
            page.line("scale", float32(*scale));
            page.line("classes", classes.to_string());
        }
        DataSource::Text { path, tokenizer } => {
            page.line("kind", text("text"));
            page.line("path", text(path));
            if let Some(tokenizer) = tokenizer {
                page.line("tokenizer", text(tokenizer));
            }
        }
        DataSource::Synthetic { samples, features, classes } => {
            page.line("kind", text("synthetic"));
            page.line("samples", samples.to_string());
            page.line("features", features.to_string());
            page.line("classes", classes.to_string());
        }
    }
    page.line("validation", float(*validation));
    if let Some(sha256) = sha256 {
        page.line("sha256", text(&sha256.to_string()));
    }
}

fn print_train(page: &mut Page, train: &TrainSpec) {
    let TrainSpec {
        global_batch,
        shards,
        length,
        seed,
        dtype,
        optimizer,
        lr,
        lr_schedule,
        clip_norm,
        non_finite,
        ema,
        label_smoothing,
        validate_every,
        groups,
    } = train;
    page.section("train");
    page.line("global_batch", global_batch.to_string());
    page.line("shards", shards.to_string());
    match length {
        Length::Epochs(epochs) => page.line("epochs", epochs.to_string()),
        Length::Steps(steps) => page.line("steps", steps.to_string()),
    }
    page.line("seed", seed.to_string());
    page.line("dtype", text(dtype.word()));
    print_optimizer(page, *optimizer);
    page.line("lr", float(*lr));
    print_schedule(page, *lr_schedule);
    if let Some(clip_norm) = clip_norm {
        page.line("clip_norm", float(*clip_norm));
    }
    let word = match non_finite {
        NonFinite::Fail => "fail",
        NonFinite::Skip => "skip",
    };
    page.line("non_finite", text(word));
    if let Some(ema) = ema {
        page.line("ema", float(*ema));
    }
    page.line("label_smoothing", float32(*label_smoothing));
    page.line("validate_every", validate_every.to_string());
    for Group { patterns, lr_scale, weight_decay } in groups {
        page.section("[train.groups]");
        page.line("match", texts(patterns));
        page.line("lr_scale", float(*lr_scale));
        if let Some(weight_decay) = weight_decay {
            page.line("weight_decay", float(*weight_decay));
        }
    }
}

fn print_optimizer(page: &mut Page, optimizer: Optimizer) {
    let (word, decay) = match optimizer {
        Optimizer::Sgd { weight_decay, .. } => ("sgd", weight_decay),
        Optimizer::Adam { weight_decay, .. } => ("adam", weight_decay),
        Optimizer::AdamW { weight_decay, .. } => ("adamw", weight_decay),
    };
    page.line("optimizer", text(word));
    match optimizer {
        Optimizer::Sgd { momentum, nesterov, .. } => {
            page.line("momentum", float(momentum));
            page.line("nesterov", nesterov.to_string());
        }
        Optimizer::Adam { beta1, beta2, eps, .. } | Optimizer::AdamW { beta1, beta2, eps, .. } => {
            page.line("beta1", float(beta1));
            page.line("beta2", float(beta2));
            page.line("eps", float(eps));
        }
    }
    page.line("weight_decay", float(decay));
}

fn print_schedule(page: &mut Page, schedule: LrSchedule) {
    let (word, warmup) = match schedule {
        LrSchedule::Constant { warmup } => ("constant", warmup),
        LrSchedule::Linear { warmup, .. } => ("linear", warmup),
        LrSchedule::Cosine { warmup, .. } => ("cosine", warmup),
        LrSchedule::Step { warmup, .. } => ("step", warmup),
    };
    page.line("schedule", text(word));
    page.line("warmup", warmup.to_string());
    match schedule {
        LrSchedule::Constant { .. } => {}
        LrSchedule::Linear { end, .. } | LrSchedule::Cosine { end, .. } => page.line("decay_to", float(end)),
        LrSchedule::Step { every, gamma, .. } => {
            page.line("decay_every", every.to_string());
            page.line("decay_by", float(gamma));
        }
    }
}

fn print_elastic(page: &mut Page, elastic: &ElasticSpec) {
    let ElasticSpec { min_workers, max_workers, reduce, restarts } = elastic;
    page.section("elastic");
    page.line("min_workers", min_workers.to_string());
    page.line("max_workers", max_workers.to_string());
    match reduce {
        Reduce::Exact => page.line("reduce", text("exact")),
    }
    page.line("restarts", restarts.to_string());
}

fn print_checkpoint(page: &mut Page, CheckpointSpec { dir, every, keep }: &CheckpointSpec) {
    page.section("checkpoint");
    if let Some(dir) = dir {
        page.line("dir", text(dir));
    }
    page.line("every", every.to_string());
    page.line("keep", keep.to_string());
}

fn print_resources(page: &mut Page, ResourceSpec { device, threads }: &ResourceSpec) {
    page.section("resources");
    page.line("device", text(device.word()));
    page.line("threads", threads.to_string());
}

/// The shortest text that reads back as the same number.
fn float(number: f64) -> String {
    format!("{number:?}")
}

fn float32(number: f32) -> String {
    format!("{number:?}")
}

fn list(numbers: &[u32]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    format!("[{}]", numbers.join(", "))
}

fn texts(all: &[String]) -> String {
    format!("[{}]", all.iter().map(|one| text(one)).collect::<Vec<_>>().join(", "))
}

fn text(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            c if c.is_control() => out += &format!("\\U{:08X}", c as u32),
            c => out.push(c),
        }
    }
    out + "\""
}

fn json(value: &Json) -> String {
    match value {
        // TOML has no null; a spec that holds one does not read back, which is how it is found.
        Json::Null => text("null"),
        Json::Bool(truth) => truth.to_string(),
        Json::Number(number) => match number.as_f64() {
            Some(real) if number.is_f64() => float(real),
            _ => number.to_string(),
        },
        Json::String(string) => text(string),
        Json::Array(items) => format!("[{}]", items.iter().map(json).collect::<Vec<_>>().join(", ")),
        Json::Object(object) if object.is_empty() => "{}".to_string(),
        Json::Object(object) => {
            let entries: Vec<String> =
                object.iter().map(|(key, value)| format!("{} = {}", text(key), json(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
    }
}
