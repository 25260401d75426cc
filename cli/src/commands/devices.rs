//! `elastic devices`: what this machine can compute on, and what it lacks.

use crate::args;
use crate::exit::{Exit, Outcome};
use crate::show::{out, plural, table};
use elastic_cuda::CudaError;
use elastic_cuda::device::{self, Device};
use elastic_cuda::libs::search::Library;
use elastic_cuda::libs::{Libraries, LibraryLine};
use elastic_worker::memory::size;
use serde_json::{Value, json};

/// What was found.
struct Found {
    threads: usize,
    /// Or why the driver tells of none.
    gpus: Result<Vec<Device>, String>,
    libraries: Vec<LibraryLine>,
}

pub fn run(args: args::Devices) -> Outcome {
    let libraries = Libraries::open();
    let gpus = libraries.driver.as_ref().map_err(|why| why.to_string());
    let found = Found {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        gpus: gpus.and_then(|driver| device::all(driver).map_err(|why| why.to_string())),
        libraries: libraries.lines(),
    };
    match args.json {
        true => out(&format!("{}\n", as_json(&found)))?,
        false => out(&words(&found))?,
    }
    let has_gpu = found.gpus.is_ok_and(|gpus| gpus.iter().any(|gpu| gpu.refusal().is_none()));
    Ok(if args.need_gpu && !has_gpu { Exit::Failed } else { Exit::Ok })
}

fn words(found: &Found) -> String {
    let mut text = format!("processor, {}: trains every job\n\n", plural(found.threads as u64, "thread"));
    match &found.gpus {
        Err(why) => text += &format!("no GPU can be used: {why}\n"),
        Ok(gpus) if gpus.is_empty() => text += "no GPU: the driver sees none; look at CUDA_VISIBLE_DEVICES\n",
        Ok(gpus) => {
            let row = |gpu: &Device| {
                vec![
                    gpu.ordinal.to_string(),
                    gpu.name.clone(),
                    gpu.capability.to_string(),
                    size(gpu.memory_bytes),
                    gpu.multiprocessors.to_string(),
                    gpu.refusal().map_or("no job trains on it yet", |_| "too old").to_string(),
                ]
            };
            let heads = ["GPU", "NAME", "CAPABILITY", "MEMORY", "MULTIPROCESSORS", "STATE"];
            text += &table(&heads, &gpus.iter().map(row).collect::<Vec<_>>());
        }
    }
    let row = |line: &LibraryLine| {
        let (version, place) = match &line.found {
            Ok(loaded) => (loaded.version.clone(), loaded.path.display().to_string()),
            Err(CudaError::NoLibrary { .. }) => ("-".into(), "missing".into()),
            Err(_) => ("-".into(), "does not work".into()),
        };
        vec![line.library.name().to_string(), line.library.purpose().to_string(), version, place]
    };
    let rows: Vec<_> = found.libraries.iter().map(row).collect();
    text += &format!("\n{}", table(&["LIBRARY", "FOR", "VERSION", "WHERE"], &rows));
    // The driver's is said above.
    let others = found.libraries.iter().filter(|line| line.library != Library::Driver || found.gpus.is_ok());
    let problems: Vec<String> = others.filter_map(|line| line.found.as_ref().err().map(ToString::to_string)).collect();
    if !problems.is_empty() {
        text += &format!("\n{}\n", problems.join("\n"));
    }
    text
}

fn as_json(found: &Found) -> Value {
    let gpu = |gpu: &Device| {
        json!({
            "ordinal": gpu.ordinal,
            "name": gpu.name,
            "capability": gpu.capability.to_string(),
            "memory_bytes": gpu.memory_bytes,
            "multiprocessors": gpu.multiprocessors,
            "problem": gpu.refusal(),
        })
    };
    let library = |line: &LibraryLine| {
        let loaded = line.found.as_ref().ok();
        json!({
            "name": line.library.name(),
            "for": line.library.purpose(),
            "version": loaded.map(|loaded| &loaded.version),
            "path": loaded.map(|loaded| loaded.path.display().to_string()),
            "problem": line.found.as_ref().err().map(ToString::to_string),
        })
    };
    json!({
        "threads": found.threads,
        "gpus": found.gpus.iter().flatten().map(gpu).collect::<Vec<_>>(),
        "gpu_problem": found.gpus.as_ref().err(),
        "libraries": found.libraries.iter().map(library).collect::<Vec<_>>(),
    })
}
