//! How much memory a worker of a job will hold, known before it runs, and how much there is.
//!
//! The plan follows from the spec and the network alone. It leaves out the data, which every worker reads whole, and
//! what a process has anyway.

use crate::ahead::batches_max;
use crate::job::unit_of;
use elastic_spec::batch::DataShape;
use elastic_spec::job::{JobSpec, Optimizer};
use elastic_spec::limits::{LOG_BYTES_MAX, LOG_ROUNDS_MAX};
use elastic_tensor::{DeviceMemory, Network, moments_of};
use serde::Serialize;

/// Bytes of one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Parameters and running statistics; once more where the average of the weights is what is evaluated.
    pub state_bytes: u64,
    /// The optimizer's moments, and the average of the weights.
    pub optimizer_bytes: u64,
    /// Vectors as long as the gradient: a unit's sum, the sums that wait for their sibling in the tree, the reduced one, and
    /// it once more as chunks.
    pub gradient_bytes: u64,
    /// Activations and their gradients, of the largest unit of shards.
    pub arena_bytes: u64,
    /// Batches that are ready, being made or in use.
    pub input_bytes: u64,
    /// The copy of state and moments from which a checkpoint is written.
    pub checkpoint_bytes: u64,
    /// Reduced rounds, kept for members that are behind; at most.
    pub log_bytes: u64,
}

impl Memory {
    pub fn plan(spec: &JobSpec, shape: &DataShape, network: &dyn Network) -> Memory {
        let layout = network.layout();
        let shards = usize::from(spec.train.shards);
        let unit = unit_of(network, shards);
        let (state, gradient) = (4 * layout.floats() as u64, 4 * layout.reduced_floats() as u64);
        let ema = usize::from(spec.train.ema.is_some());
        let optimizer = 4 * (layout.param_floats() * (moments_of(&spec.train.optimizer) + ema)) as u64;
        let levels = u64::from((shards / unit).ilog2());
        Memory {
            state_bytes: state * (1 + ema as u64),
            optimizer_bytes: optimizer,
            gradient_bytes: gradient * (3 + levels),
            arena_bytes: 4 * network.arena_floats(unit) as u64,
            input_bytes: batch_bytes(spec, shape, unit) * batches_max(shards / unit) as u64,
            checkpoint_bytes: state + optimizer,
            log_bytes: (gradient * LOG_ROUNDS_MAX as u64).min(LOG_BYTES_MAX as u64),
        }
    }

    fn parts(&self) -> [(&'static str, u64); 7] {
        [
            ("state", self.state_bytes),
            ("optimizer", self.optimizer_bytes),
            ("gradients", self.gradient_bytes),
            ("arena", self.arena_bytes),
            ("inputs", self.input_bytes),
            ("checkpoint copy", self.checkpoint_bytes),
            ("log of rounds", self.log_bytes),
        ]
    }

    pub fn total_bytes(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// `5.2 GiB: state 474 MiB, optimizer 949 MiB, …`
    pub fn words(&self) -> String {
        let parts = self.parts().map(|(name, bytes)| format!("{name} {}", size(bytes)));
        format!("{}: {}", size(self.total_bytes()), parts.join(", "))
    }

    /// Whether `workers` of them fit into `room`; else the plan, what there is, and what may be done.
    pub fn check(&self, workers: u16, room: Option<Room>, spec: &JobSpec) -> Result<(), String> {
        let Some(Room { bytes, of }) = room else { return Ok(()) };
        let needed = self.total_bytes().saturating_mul(workers.into());
        if needed <= bytes {
            return Ok(());
        }
        let many = match workers {
            1 => String::new(),
            workers => format!(", {} for {workers} of them", size(needed)),
        };
        Err(format!("a worker needs {}{many}; {of} leaves {}; {}", self.words(), size(bytes), self.cure(workers, spec)))
    }

    fn cure(&self, workers: u16, spec: &JobSpec) -> String {
        let train = &spec.train;
        let mut cures = Vec::new();
        if workers > 1 {
            cures.push("start fewer workers here (--workers)".to_string());
        }
        if self.arena_bytes > self.total_bytes() / 3 {
            let shards = u32::from(train.shards) * 2;
            if train.global_batch.is_multiple_of(shards) {
                cures.push(format!("make shards smaller (train.shards = {shards})"));
            }
            cures.push(format!("take a smaller train.global_batch than {}", train.global_batch));
        }
        match train.optimizer {
            Optimizer::Sgd { momentum: 0.0, .. } => {}
            _ => cures.push("take an optimizer with fewer moments (train.optimizer = \"sgd\")".to_string()),
        }
        cures.push("take a smaller model, or a machine with more memory".to_string());
        cures.join(", or ")
    }
}

/// Of a unit of so many shards.
fn batch_bytes(spec: &JobSpec, shape: &DataShape, unit: usize) -> u64 {
    let words = match shape {
        DataShape::Features { features, .. } => features + 1,
        DataShape::Tokens { context, .. } => 2 * context,
    };
    let samples = elastic_loader::Plan::from(&spec.train).shard_samples() * unit as u64;
    // And the slot of each.
    samples * (4 * words as u64 + 8)
}

/// What a worker of the job will hold on its device, if it has one.
pub fn on_device(spec: &JobSpec, network: &dyn Network) -> Option<DeviceMemory> {
    let moments = moments_of(&spec.train.optimizer) + usize::from(spec.train.ema.is_some());
    network.device_memory(unit_of(network, spec.train.shards.into()), moments)
}

/// Whether what a network will hold on its device fits there: the plan in words; or the plan, what there is, and what may be
/// done.
pub fn check_device(memory: &DeviceMemory, spec: &JobSpec) -> Result<String, String> {
    let DeviceMemory { device, parts, free_bytes } = memory;
    let needed: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let parts: Vec<String> = parts.iter().map(|(name, bytes)| format!("{name} {}", size(*bytes))).collect();
    let plan = format!("{} on {device}: {}", size(needed), parts.join(", "));
    let free = free_bytes.as_ref().map_err(|why| format!("{device}: {why}"))?;
    if needed <= *free {
        return Ok(plan);
    }
    let shards = u32::from(spec.train.shards) * 2;
    Err(format!(
        "a worker needs {plan}; {} are free there; start fewer workers on it, or make shards smaller (train.shards = \
         {shards}), or take a smaller model",
        size(*free)
    ))
}

/// What may still be taken, and whose bound it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub bytes: u64,
    pub of: &'static str,
}

/// The least of what the machine and the control groups of this process leave. None where the system does not tell.
pub fn room() -> Option<Room> {
    room_by(&|path| std::fs::read_to_string(path).ok())
}

fn room_by(read: &dyn Fn(&str) -> Option<String>) -> Option<Room> {
    let machine = read("/proc/meminfo").and_then(|text| {
        let kib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let bytes = 1024 * (kib("MemAvailable")? + kib("SwapFree").unwrap_or(0));
        Some(Room { bytes, of: "this machine" })
    });
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_string();
    // A limit may be set at any group above; inside a container the path may lead nowhere, and its own is at the root.
    let above = std::iter::successors(Some(path.trim_end_matches('/')), |path| Some(path.rsplit_once('/')?.0));
    let limits = above.filter_map(|path| limit(&format!("/sys/fs/cgroup{path}"), read));
    let old = number("/sys/fs/cgroup/memory/memory.limit_in_bytes", read).and_then(|most| {
        // Without a limit version 1 says a number near 2^63.
        let used = number("/sys/fs/cgroup/memory/memory.usage_in_bytes", read)?;
        (most < 1 << 60).then(|| Room { bytes: most.saturating_sub(used), of: CONTROL_GROUP })
    });
    machine.into_iter().chain(limits).chain(old).min_by_key(|room| room.bytes)
}

const CONTROL_GROUP: &str = "the memory limit of this control group";

fn number(path: &str, read: &dyn Fn(&str) -> Option<String>) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// Files that were read count as used, and are dropped when memory is short.
fn limit(group: &str, read: &dyn Fn(&str) -> Option<String>) -> Option<Room> {
    let most = number(&format!("{group}/memory.max"), read)?;
    let used = number(&format!("{group}/memory.current"), read)?;
    let stat = read(&format!("{group}/memory.stat")).unwrap_or_default();
    let cache = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    let used = used.saturating_sub(cache.unwrap_or(0));
    Some(Room { bytes: most.saturating_sub(used), of: CONTROL_GROUP })
}

/// 512 B, 1.5 KiB, 474 MiB, 5.2 GiB.
pub fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut amount = bytes as f64;
    let mut unit = "B";
    for next in units {
        if amount < 1023.5 {
            break;
        }
        (amount, unit) = (amount / 1024.0, next);
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ if amount < 9.95 => format!("{amount:.1} {unit}"),
        _ => format!("{amount:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::job::{ParseContext, parse};

    fn spec(train: &str) -> JobSpec {
        let text = format!(
            "[model]\nkind = \"mlp\"\nhidden = [100]\n[data]\nkind = \"synthetic\"\nsamples = 64\nfeatures = 9\n\
             classes = 10\n[train]\nsteps = 1\nlr = 0.1\n{train}"
        );
        parse(&text, &ParseContext::default()).unwrap_or_else(|mistakes| panic!("{mistakes:?}")).spec
    }

    fn planned(spec: &JobSpec) -> Memory {
        crate::planned::planned(spec, &|path| path.into()).unwrap().unwrap().memory
    }

    #[test]
    fn the_plan_counts_every_vector() {
        let memory = planned(&spec("global_batch = 32\nshards = 8"));
        let params = 9 * 100 + 100 + 100 * 10 + 10;
        assert_eq!(memory.state_bytes, 4 * params);
        assert_eq!(memory.optimizer_bytes, 8 * params, "AdamW has two moments");
        assert_eq!(memory.gradient_bytes, 3 * 4 * params, "all shards are one unit");
        assert_eq!(memory.checkpoint_bytes, 12 * params);
        assert_eq!(memory.input_bytes, 3 * 32 * (4 * 10 + 8), "one ahead, one in use, one being made");
        // The unit's 32 samples have at least their hidden layer and its gradient.
        assert!(memory.arena_bytes >= 2 * 4 * 32 * 100 && memory.arena_bytes < 1 << 20, "{memory:?}");
        let averaged = planned(&spec("global_batch = 32\nshards = 8\nema = 0.999"));
        assert_eq!((averaged.state_bytes, averaged.optimizer_bytes), (8 * params, 12 * params));
        assert_eq!(averaged.checkpoint_bytes, 16 * params);
        let sgd = planned(&spec("global_batch = 32\noptimizer = \"sgd\""));
        assert_eq!(sgd.optimizer_bytes, 0);
        let total: u64 = memory.parts().iter().map(|(_, bytes)| bytes).sum();
        assert!(memory.words().starts_with(&format!("{}: state ", size(total))), "{}", memory.words());
    }

    #[test]
    fn a_plan_that_does_not_fit_is_told_with_what_there_is_and_the_cure() {
        let spec = spec("global_batch = 4096\nshards = 8");
        let memory = planned(&spec);
        let room = |bytes| Some(Room { bytes, of: "this machine" });
        assert_eq!(memory.check(1, room(memory.total_bytes()), &spec), Ok(()));
        assert_eq!(memory.check(4, None, &spec), Ok(()), "where nobody tells, nothing is refused");
        let told = memory.check(2, room(2 * memory.total_bytes() - 1), &spec).unwrap_err();
        for part in [
            "a worker needs ",
            ", arena ",
            " for 2 of them; this machine leaves ",
            "--workers",
            "train.shards = 16",
            "than 4096",
            "train.optimizer = \"sgd\"",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn a_plan_for_a_device_is_told_and_one_that_does_not_fit_is_refused_with_the_cure() {
        let parts = vec![("state", 474 << 20), ("arena", 5 << 30)];
        let memory =
            |free_bytes| DeviceMemory { device: "GPU 0, NVIDIA H100".into(), parts: parts.clone(), free_bytes };
        let spec = spec("global_batch = 32\nshards = 8");
        let plan = "5.5 GiB on GPU 0, NVIDIA H100: state 474 MiB, arena 5.0 GiB";
        assert_eq!(check_device(&memory(Ok(80 << 30)), &spec).as_deref(), Ok(plan));
        let told = check_device(&memory(Ok(2 << 30)), &spec).unwrap_err();
        for part in [plan, "; 2.0 GiB are free there", "fewer workers", "train.shards = 16"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert_eq!(
            check_device(&memory(Err("it is lost".into())), &spec).unwrap_err(),
            "GPU 0, NVIDIA H100: it is lost"
        );
    }

    #[test]
    fn the_least_of_machine_and_control_groups_is_the_room() {
        let files = |path: &str| -> Option<String> {
            Some(match path {
                "/proc/meminfo" => "MemTotal: 9 kB\nMemAvailable:    4000 kB\nSwapFree:   96 kB\n".into(),
                "/proc/self/cgroup" => "0::/a/b\n".into(),
                "/sys/fs/cgroup/a/b/memory.max" => "max\n".into(),
                "/sys/fs/cgroup/a/memory.max" => "2000000\n".into(),
                "/sys/fs/cgroup/a/memory.current" => "1500000\n".into(),
                "/sys/fs/cgroup/a/memory.stat" => "anon 9\ninactive_file 400000\n".into(),
                _ => return None,
            })
        };
        assert_eq!(room_by(&files), Some(Room { bytes: 900_000, of: CONTROL_GROUP }));
        let machine = |path: &str| files(path).filter(|_| path == "/proc/meminfo");
        assert_eq!(room_by(&machine), Some(Room { bytes: 4096 * 1024, of: "this machine" }));
        assert_eq!(room_by(&|_| None), None);
        let old = |path: &str| match path {
            "/sys/fs/cgroup/memory/memory.limit_in_bytes" => Some("1000\n".to_string()),
            "/sys/fs/cgroup/memory/memory.usage_in_bytes" => Some("400\n".to_string()),
            path => machine(path),
        };
        assert_eq!(room_by(&old), Some(Room { bytes: 600, of: CONTROL_GROUP }));
    }

    #[test]
    fn sizes_are_told_in_units_of_1024() {
        let told = [0, 1023, 1024, 1536, 10 << 10, 474 << 20, 5_583_457_485, 1 << 50].map(size);
        assert_eq!(told, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10 KiB", "474 MiB", "5.2 GiB", "1.0 PiB"]);
    }
}
