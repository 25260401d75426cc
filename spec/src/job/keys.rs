//! Every key of a job file, once: its type and bounds, default, unit and meaning.
//!
//! The reader (`section`) checks by this table, suggestions for misspelt keys come from it, and so does
//! `docs/job-toml.md` (`reference`). What depends on several keys at once is in `resolve`.

/// One key of one section.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Empty for keys above the first section.
    pub section: &'static str,
    pub name: &'static str,
    pub when: When,
    pub kind: Kind,
    pub default: Default,
    /// Empty for what has none.
    pub unit: &'static str,
    pub doc: &'static str,
}

/// A key can belong to some values of another key of its section only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    Is(&'static str, &'static [&'static str]),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Text,
    /// Relative ones start at the job file's folder.
    Path,
    Bool,
    OneOf(&'static [&'static str]),
    Int {
        min: u64,
        max: u64,
    },
    /// The one integer that may be negative.
    Column,
    Ints {
        count_min: usize,
        count_max: usize,
        min: u64,
        max: u64,
    },
    Float {
        low: Bound,
        high: Bound,
    },
    /// A list of texts, none of them empty.
    Texts {
        count_max: usize,
    },
    /// A list of texts; they may be empty.
    Words {
        count_max: usize,
    },
    Digest,
    /// A column by its number, which may be negative, or by its name.
    AnyColumn,
    AnyColumns {
        count_max: usize,
    },
    /// A folder, or a place in a bucket.
    Address,
    Table,
    /// A list of tables, each with the keys of the section that is named here.
    Tables {
        count_max: usize,
        section: &'static str,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// The bound itself is allowed.
    With(f64),
    Without(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    Required,
    /// Nothing is set; the text says what that means.
    Absent(&'static str),
    /// A TOML value.
    Is(&'static str),
    /// Follows from other keys, as the text says.
    Rule(&'static str),
}

/// All that one kind of file may say.
#[derive(Debug)]
pub struct Words {
    pub keys: &'static [Key],
    pub sections: &'static [(&'static str, &'static str)],
    pub lists: &'static [(&'static str, &'static str)],
}

/// Of a job file.
pub static JOB: Words = Words { keys: KEYS, sections: SECTIONS, lists: LISTS };

/// A section and what it is about.
pub const SECTIONS: &[(&str, &str)] = &[
    ("model", "The network."),
    ("data", "What it learns from."),
    ("train", "How it learns."),
    ("elastic", "How many workers may share the work. Nothing here changes the result."),
    (
        "command",
        "Instead of `[model]`, `[data]` and `[train]`: any command, started on every node of the job as one group of processes, with the variables that PyTorch's `torchrun` sets ([commands.md](commands.md)). `[elastic]` then counts nodes.",
    ),
    ("checkpoint", "When the state is written, and where to."),
    ("resources", "What each worker computes with. Nothing here changes the result."),
];

/// What can stand several times inside a section, in double brackets, and what it is about.
pub const LISTS: &[(&str, &str)] = &[(
    "train.groups",
    "Parameters that learn at a rate or with a weight decay of their own, each group under `[[train.groups]]` behind \
     the other keys of `[train]`. A parameter is in the first group that matches it; one that no group matches has the \
     rates of `[train]`.",
)];

pub(super) const MODEL_KINDS: &[&str] = &["mlp", "cnn", "resnet18", "gpt", "own"];
pub(super) const STEMS: &[&str] = &["full", "small"];
const NORMS: &[&str] = &["layer", "rms"];
const POSITIONS: &[&str] = &["learned", "rotary"];
pub(super) const DATA_KINDS: &[&str] = &["csv", "npy", "text", "synthetic"];
pub(super) const OPTIMIZERS: &[&str] = &["sgd", "adam", "adamw"];
pub(super) const DTYPES: &[&str] = &["f32", "bf16"];
pub(super) const SCHEDULES: &[&str] = &["constant", "linear", "cosine", "step"];
pub(super) const NON_FINITE: &[&str] = &["fail", "skip"];

const WIDTH_MAX: u64 = 1 << 16;
const STEPS_MAX: u64 = 1 << 48;

const POSITIVE: Bound = Bound::Without(0.0);
const ZERO_UP: Bound = Bound::With(0.0);
const BELOW_ONE: Bound = Bound::Without(1.0);
const UP_TO_ONE: Bound = Bound::With(1.0);

pub(crate) const fn int(min: u64, max: u64) -> Kind {
    Kind::Int { min, max }
}

pub(crate) const fn float(low: Bound, high: Bound) -> Kind {
    Kind::Float { low, high }
}

const fn model(
    name: &'static str,
    kinds: &'static [&'static str],
    kind: Kind,
    default: Default,
    doc: &'static str,
) -> Key {
    Key { section: "model", name, when: When::Is("kind", kinds), kind, default, unit: "", doc }
}

const fn data(
    name: &'static str,
    kinds: &'static [&'static str],
    kind: Kind,
    default: Default,
    doc: &'static str,
) -> Key {
    Key { section: "data", name, when: When::Is("kind", kinds), kind, default, unit: "", doc }
}

const fn train(
    name: &'static str,
    when: When,
    kind: Kind,
    default: Default,
    unit: &'static str,
    doc: &'static str,
) -> Key {
    Key { section: "train", name, when, kind, default, unit, doc }
}

pub(crate) const fn plain(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: Default,
    unit: &'static str,
    doc: &'static str,
) -> Key {
    Key { section, name, when: When::Always, kind, default, unit, doc }
}

use self::Default::{Absent, Is, Required, Rule};

/// In the order in which they are documented.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    plain("", "name", Kind::Text, Rule("the name of the job file's folder, or `job`"), "",
        "What runs of this job are called: up to 40 characters out of a-z, 0-9, '-', '.' and '_'."),
    // model
    plain("model", "kind", Kind::OneOf(MODEL_KINDS), Required, "",
        "`mlp`: linear layers. `cnn`: convolutions, pooling, linear layers. `resnet18`: the residual network of He et al. (2015), with torchvision's names. `gpt`: a decoder with causal attention, with GPT-2's names. `own`: a program of your own that uses the worker library."),
    model("hidden", &["mlp"], Kind::Ints { count_min: 0, count_max: 64, min: 1, max: WIDTH_MAX }, Required,
        "Widths of the hidden layers; `[]` leaves one linear layer."),
    model("activation", &["mlp"], Kind::OneOf(&["relu", "gelu"]), Is("\"relu\""),
        "Between the layers."),
    model("image", &["cnn", "resnet18"], Kind::Ints { count_min: 3, count_max: 3, min: 1, max: 4096 }, Required,
        "Channels, height and width of a sample: `[1, 8, 8]`. A sample's numbers are in this order, width fastest. Of a `resnet18` height and width are equal."),
    model("channels", &["cnn"], Kind::Ints { count_min: 1, count_max: 64, min: 1, max: 4096 }, Required,
        "Output channels of each block of convolution, batch norm if wanted, ReLU, and 2x2 max-pool while the image is at least 2x2."),
    model("kernel", &["cnn"], int(1, 15), Is("3"),
        "Height and width of the convolutions; odd. The image is padded so that its size stays."),
    model("hidden", &["cnn"], int(0, WIDTH_MAX), Is("0"),
        "Width of the linear layer before the output; 0: none."),
    model("batch_norm", &["cnn"], Kind::Bool, Is("false"),
        "Batch norm after each convolution, with the statistics of each shard by itself."),
    model("stem", &["resnet18"], Kind::OneOf(STEMS), Is("\"full\""),
        "`full`: a 7x7 convolution with stride 2 and a 3x3 max-pool with stride 2, for large images. `small`: a 3x3 convolution with stride 1, as is usual for images of 32x32 and less."),
    model("width", &["resnet18"], int(1, 4096), Is("64"),
        "Channels of the stem and the first stage; the next three stages have 2, 4 and 8 times as many. Batch norm takes the statistics of each shard by itself."),
    model("zero_init_residual", &["resnet18"], Kind::Bool, Is("false"),
        "The scale of each block's last batch norm starts at 0, so that each block starts as the identity."),
    model("layers", &["gpt"], int(1, 512), Required, "Blocks of attention and feed-forward."),
    model("heads", &["gpt"], int(1, 512), Required, "Attention heads; divides `width`."),
    model("width", &["gpt"], int(1, WIDTH_MAX), Required, "Size of a token's vector."),
    model("context", &["gpt"], int(1, WIDTH_MAX), Required, "Tokens of a sample: how far the model looks back."),
    model("dropout", &["gpt"], float(ZERO_UP, BELOW_ONE), Is("0.0"), "Share of the activations set to zero in training."),
    model("norm", &["gpt"], Kind::OneOf(NORMS), Is("\"layer\""),
        "`layer`: layer norm, as in GPT-2. `rms`: RMS norm, a scale and no shift, as in Llama."),
    model("positions", &["gpt"], Kind::OneOf(POSITIONS), Is("\"learned\""),
        "`learned`: a vector for each place. `rotary`: queries and keys are turned by their place (base 10,000); a head then needs an even number of channels."),
    model("program", &["own"], Kind::Text, Required,
        "The worker program to start. With a `/` in it: a path. Else it is looked for on each node's PATH."),
    model("params", &["own"], Kind::Table, Is("{}"),
        "Handed to the program as it is. With text data, `params.context` is the length of a sample in tokens."),
    plain("model", "init", Kind::Path, Absent("random, by seed and parameter name"), "",
        "What replaces the random initialisation: a safetensors file with tensors of the same names (torchvision's, of a `resnet18`), or, of a `gpt`, a folder of Hugging Face with config.json and model.safetensors, whole or in parts. f16 and bf16 become f32 exactly. Up to 16 MiB a file travel with the job; larger ones must be at this path on every node."),
    plain("model", "init_sha256", Kind::Digest, Absent("taken when the job is submitted"), "",
        "Digest of what `init` names, checked by every worker. Of one file its SHA-256; of a folder that of the lines `<hex>  <name>` of its files, in the order of their names."),
    plain("model", "init_except", Kind::Texts { count_max: 256 }, Is("[]"), "",
        "Patterns of parameter names that begin at random although there is an `init`: `[\"fc.*\"]`. `*` stands for any characters, `?` for one."),
    plain("model", "freeze", Kind::Texts { count_max: 256 }, Is("[]"), "",
        "Patterns of parameter names that are not trained: `[\"wte.*\", \"h.0.*\"]`. Their bits and moments stay, without weight decay, and the gradient's norm is that of the others. Running statistics of batch norm go on."),
    // data
    plain("data", "kind", Kind::OneOf(DATA_KINDS), Required, "",
        "`csv`: one sample a line, plain or .gz. `npy`: two NumPy arrays. `text`: bytes or tokens, for `gpt`. `synthetic`: made from the seed."),
    data("path", &["csv", "text"], Kind::Path, Required,
        "The file. Up to 16 MiB travel with the job; a larger one must be at this path on every node."),
    data("label", &["csv"], Kind::Column, Is("-1"), "The column of the class, from 0; negative: from the end."),
    data("header", &["csv"], Kind::Bool, Is("false"), "Whether the first line holds names."),
    data("x", &["npy"], Kind::Path, Required, "A .npy file of shape (samples, features…): f32, f64, u8, i32 or i64."),
    data("y", &["npy"], Kind::Path, Required, "A .npy file of shape (samples): classes as integers."),
    data("scale", &["csv", "npy"], float(POSITIVE, Bound::With(1e9)), Is("1.0"), "Every feature is multiplied by it."),
    data("classes", &["csv", "npy"], int(2, WIDTH_MAX), Required, "Number of classes; labels are 0 to `classes` - 1."),
    data("tokenizer", &["text"], Kind::Path, Absent("tokens are bytes, 256 of them"),
        "A Hugging Face tokenizer.json with a byte-level BPE."),
    data("samples", &["synthetic"], int(1, 1 << 32), Required, "How many, validation included."),
    data("features", &["synthetic"], int(1, 1 << 24), Rule("of a `cnn` or `resnet18` the image's size, of a `gpt` the context; required otherwise"),
        "Numbers in a sample."),
    data("classes", &["synthetic"], int(2, WIDTH_MAX), Required, "Number of clusters; of a `gpt` the number of different tokens."),
    plain("data", "validation", float(ZERO_UP, BELOW_ONE), Is("0.1"), "share of the samples",
        "Kept for validation, chosen by the seed. 0: no validation."),
    plain("data", "sha256", Kind::Digest, Absent("taken when the job is submitted"), "",
        "Digest of the input, checked by every worker. Of one file its SHA-256; of several that of the lines `<hex>  <key>`, in the order of this page."),
    // train
    train("global_batch", When::Always, int(1, 1 << 20), Required, "samples", "Samples of one step, over all workers."),
    train("shards", When::Always, int(1, crate::limits::SHARDS_MAX as u64),
        Rule("the largest power of two up to 64 that divides `global_batch` and leaves at least 4 samples a shard (8 with batch norm), else 1"), "",
        "The fixed pieces of every batch, which workers share: a power of two that divides `global_batch`. Part of what decides the result's bits."),
    train("epochs", When::Always, int(1, STEPS_MAX), Absent("`steps` says it"), "epochs",
        "Length of the job, in passes over the training samples. Either this or `steps`."),
    train("steps", When::Always, int(1, STEPS_MAX), Absent("`epochs` says it"), "steps",
        "Length of the job, in optimizer steps. Either this or `epochs`."),
    train("seed", When::Always, int(0, u64::MAX), Is("0"), "", "Of initialisation, order of samples, split, dropout and synthetic data."),
    train("dtype", When::Always, Kind::OneOf(DTYPES), Is("\"f32\""), "",
        "`bf16`: products (linear layers, convolutions, attention) read their operands rounded to bf16 and add in f32; all else, and the weights, stay f32. Other bits than `f32`, and as exact: the same on every number of workers and every kind of processor. Faster where the processor has AVX-512 with bf16. Not for kind `own`, whose program chooses by itself."),
    train("optimizer", When::Always, Kind::OneOf(OPTIMIZERS), Is("\"adamw\""), "",
        "`adam` adds weight decay to the gradient, `adamw` applies it to the weights."),
    train("lr", When::Always, float(POSITIVE, Bound::With(1000.0)), Required, "", "Base learning rate."),
    train("momentum", When::Is("optimizer", &["sgd"]), float(ZERO_UP, BELOW_ONE), Is("0.0"), "", "Of SGD."),
    train("nesterov", When::Is("optimizer", &["sgd"]), Kind::Bool, Is("false"), "", "Nesterov's momentum; needs `momentum` above 0."),
    train("beta1", When::Is("optimizer", &["adam", "adamw"]), float(ZERO_UP, BELOW_ONE), Is("0.9"), "", "Decay of the first moment."),
    train("beta2", When::Is("optimizer", &["adam", "adamw"]), float(ZERO_UP, BELOW_ONE), Is("0.999"), "", "Decay of the second moment."),
    train("eps", When::Is("optimizer", &["adam", "adamw"]), float(POSITIVE, UP_TO_ONE), Is("1e-8"), "", "Added to the root of the second moment."),
    train("weight_decay", When::Is("optimizer", &["sgd", "adam"]), float(ZERO_UP, UP_TO_ONE), Is("0.0"), "", "Pulls the weights to 0."),
    train("weight_decay", When::Is("optimizer", &["adamw"]), float(ZERO_UP, UP_TO_ONE), Is("0.01"), "", "Pulls the weights to 0."),
    train("schedule", When::Always, Kind::OneOf(SCHEDULES), Is("\"constant\""), "",
        "What becomes of `lr` after the warm-up. `linear` and `cosine` fall until the last step, `step` falls at intervals."),
    train("warmup", When::Always, int(0, STEPS_MAX), Is("0"), "steps", "The rate rises linearly from `lr / warmup` to `lr`."),
    train("decay_to", When::Is("schedule", &["linear", "cosine"]), float(ZERO_UP, UP_TO_ONE), Is("0.0"), "factor on `lr`", "Reached at the last step."),
    train("decay_every", When::Is("schedule", &["step"]), int(1, STEPS_MAX), Required, "steps", "Interval of the falls."),
    train("decay_by", When::Is("schedule", &["step"]), float(POSITIVE, UP_TO_ONE), Is("0.1"), "factor", "The rate is multiplied by it at each fall."),
    train("clip_norm", When::Always, float(POSITIVE, Bound::With(1e9)), Absent("no clipping"), "",
        "Largest global norm of the gradient; a larger one is scaled down to it."),
    train("non_finite", When::Always, Kind::OneOf(NON_FINITE), Is("\"fail\""), "",
        "A step whose gradient is not finite: `fail` ends the job and says where it came from. `skip` leaves weights, moments and running statistics as they are, on every worker alike; the step counts, and its row says so."),
    train("ema", When::Always, float(POSITIVE, BELOW_ONE), Absent("no average"), "decay a step",
        "Keeps a moving average of the weights, `average = ema * average + (1 - ema) * weight` after each step that moves them, from the initial weights on; `0.999` is usual. Validation then evaluates the average. Both are in the checkpoints, the average as `NAME.average` in `optimizer.safetensors`; running statistics of batch norm are not averaged once more."),
    train("label_smoothing", When::Always, float(ZERO_UP, BELOW_ONE), Is("0.0"), "", "Share of the target spread over all classes."),
    train("validate_every", When::Always, int(0, STEPS_MAX), Is("0"), "steps", "Validate after every so many steps, and after the last. 0: after the last only."),
    plain("train", "groups", Kind::Tables { count_max: 64, section: "train.groups" }, Is("[]"), "",
        "Groups of parameters with rates of their own: see below."),
    plain("train.groups", "match", Kind::Texts { count_max: 256 }, Required, "",
        "Patterns of parameter names: `[\"wte.*\", \"h.0.*\"]`. `*` stands for any characters, `?` for one. One that matches no parameter is a mistake."),
    plain("train.groups", "lr_scale", float(ZERO_UP, Bound::With(1000.0)), Is("1.0"), "factor on `lr`",
        "Of every step, after warm-up and schedule. With 0 the weights stay and their moments go on."),
    plain("train.groups", "weight_decay", float(ZERO_UP, UP_TO_ONE), Absent("the optimizer's, on tensors of two and more axes as in no group"), "",
        "Of every parameter in the group, biases and norms too."),
    // elastic
    plain("elastic", "min_workers", int(1, crate::limits::WORKERS_MAX as u64), Is("1"), "workers",
        "With fewer the job pauses and its state is kept."),
    plain("elastic", "max_workers", int(1, crate::limits::WORKERS_MAX as u64), Rule("`train.shards`; of a command `min_workers`"), "workers",
        "At most so many take part; not above `train.shards`, since each needs a shard. Above an eighth of it, some counts of workers leave part of them idle."),
    plain("elastic", "reduce", Kind::OneOf(&["exact"]), Is("\"exact\""), "",
        "`exact`: sums along a fixed tree, so that the weights have the same bits for every number of workers and every fault."),
    plain("elastic", "restarts", int(0, 1_000_000), Is("16"), "restarts",
        "Restarts after faults that the job may spend before it is given up. Progress refills it."),
    // command
    plain("command", "run", Kind::Words { count_max: 4096 }, Required, "",
        "The program and its arguments: `[\"python3\", \"-u\", \"train.py\"]`. They are handed on as they are."),
    plain("command", "processes", int(1, crate::limits::PROCESSES_MAX as u64), Is("1"), "processes",
        "Of each node. A node runs one group of a job, and the group takes one of its slots."),
    plain("command", "folder", Kind::Path, Rule("the job file's folder"), "", "Where the processes start; it must be there on every node."),
    plain("command", "env", Kind::Table, Is("{}"), "", "Variables added to what the agent has: `{ LOGLEVEL = \"info\" }`."),
    plain("command", "grace", int(1, 600), Is("8"), "seconds",
        "From SIGTERM to SIGKILL when a generation ends. When the job is cancelled or its agent stops, at most 8."),
    plain("command", "log_dir", Kind::Path, Absent("the nodes' logs only"), "",
        "Where besides stdout, stderr and error file of each process are kept, by generation and rank."),
    plain("command", "role", Kind::Text, Is("\"default\""), "", "`ROLE_NAME` of the processes."),
    plain("command", "prefix", Kind::Text, Absent("`[rank 5] `, with several processes"), "",
        "What stands before each line that is shown. `${role_name}`, `${local_rank}`, `${rank}` and `${hostname}` are replaced."),
    plain("command", "redirects", Kind::Text, Is("\"0\""), "",
        "Streams that are kept in `log_dir` and not shown: 1 stdout, 2 stderr, 3 both, or `\"0:1,3:2\"` by the processes' places on their node."),
    plain("command", "show", Kind::Ints { count_min: 1, count_max: 256, min: 0, max: 255 }, Absent("all"), "places on a node",
        "The only processes of each node whose lines are shown and kept by the nodes; `log_dir` has all."),
    plain("command", "virtual_local_rank", Kind::Bool, Is("false"), "",
        "Each process has `LOCAL_RANK` 0 and sees one device alone: `CUDA_VISIBLE_DEVICES` holds the one of its place."),
    // checkpoint
    plain("checkpoint", "dir", Kind::Path, Absent("`checkpoints` in the run directory"), "",
        "Where checkpoints are written: a folder, which nodes had better share, or `s3://bucket/prefix`, with the credentials of each agent's environment. Each run has a folder of its own in it."),
    plain("checkpoint", "every", int(0, STEPS_MAX), Is("0"), "steps", "Interval. The last step always has one. 0: the last step only."),
    plain("checkpoint", "keep", int(1, 1_000_000), Is("3"), "checkpoints", "The newest verified ones that are kept."),
    // resources
    plain("resources", "device", Kind::OneOf(&["auto", "cpu", "cuda"]), Is("\"auto\""), "",
        "What to compute on. `auto`: an NVIDIA GPU where there is one, else the processor; in f32 the bits are the same, so nodes of one job may differ. `cuda`: a GPU, or a refusal that says what is missing; `elastic devices` shows what there is."),
    plain("resources", "threads", int(0, 1024), Is("0"), "threads",
        "Of one worker. 0: the node's cores divided by its workers."),
];

impl Key {
    /// `train.lr`, or the bare name above the sections.
    pub fn path(&self) -> String {
        if self.section.is_empty() { self.name.to_string() } else { format!("{}.{}", self.section, self.name) }
    }
}

impl Kind {
    /// What is allowed, in words: for mistakes and for the reference.
    pub fn allowed(&self) -> String {
        match self {
            Kind::Text => "a text".to_string(),
            Kind::Path => "a path".to_string(),
            Kind::Bool => "true or false".to_string(),
            Kind::OneOf(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                words.join(", ")
            }
            Kind::Int { min, max: u64::MAX } => format!("an integer from {min} to 2^64 - 1"),
            Kind::Int { min, max } => format!("an integer from {min} to {}", power(*max)),
            Kind::Column => "an integer from -2^31 to 2^31 - 1".to_string(),
            Kind::Ints { count_min, count_max, min, max } if count_min == count_max => {
                format!("a list of {count_min} integers from {min} to {}", power(*max))
            }
            Kind::Ints { count_min, count_max, min, max } => {
                format!("a list of {count_min} to {count_max} integers from {min} to {}", power(*max))
            }
            Kind::Float { low, high } => {
                let low = match low {
                    Bound::With(bound) => format!("from {}", plainly(*bound)),
                    Bound::Without(bound) => format!("above {}", plainly(*bound)),
                };
                let high = match high {
                    Bound::With(bound) => format!("up to {}", plainly(*bound)),
                    Bound::Without(bound) => format!("below {}", plainly(*bound)),
                };
                format!("a number {low}, {high}")
            }
            Kind::Texts { count_max } => format!("a list of up to {count_max} texts"),
            Kind::Words { count_max } => format!("a list of up to {count_max} texts"),
            Kind::Digest => "64 hexadecimal digits".to_string(),
            Kind::AnyColumn => "a column's name, or its number from 0 (negative: from the end)".to_string(),
            Kind::AnyColumns { count_max } => {
                format!("a list of up to {count_max} columns, each a name or a number from 0 (negative: from the end)")
            }
            Kind::Address => "the path of a folder, or s3://bucket/prefix".to_string(),
            Kind::Table => "a table".to_string(),
            Kind::Tables { count_max, section } => format!("up to {count_max} tables, each under [[{section}]]"),
        }
    }
}

fn plainly(bound: f64) -> String {
    if bound >= 1e6 { format!("{bound:e}") } else { format!("{bound}") }
}

/// Large powers of two read better as such.
fn power(number: u64) -> String {
    if number >= 1 << 20 && number.is_power_of_two() {
        format!("2^{}", number.trailing_zeros())
    } else {
        number.to_string()
    }
}
