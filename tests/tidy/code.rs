//! Rules for every Rust file: it opens with its purpose, keeps its size, argues its `unsafe`, bounds its queues,
//! leaves printing to the CLI, and holds no unfinished work and no path of somebody's machine.

use crate::{nothing, repo};

/// Lines of a file, the unit tests included. Longer ones have a row below.
const LINES_MAX: usize = 800;

/// (path, reason)
const LONG: &[(&str, &str)] = &[];

/// Files whose job is SIMD, a device or shared memory.
const UNSAFE: &[(&str, &str)] = &[
    ("tensor/src/gemm/pack_avx512.rs", "vector instructions that the compiler does not choose by itself"),
    ("tensor/src/gemm/kernel.rs", "makes the loops of those"),
    ("tensor/src/gemm/avx2.rs", "vector instructions that the compiler does not choose by itself"),
    ("tensor/src/gemm/avx512.rs", "vector instructions that the compiler does not choose by itself"),
    ("tensor/src/gemm/avx2_bf16.rs", "vector instructions that the compiler does not choose by itself"),
    ("tensor/src/gemm/avx512_bf16.rs", "vector instructions that the compiler does not choose by itself"),
    ("tensor/src/gemm/operand.rs", "calls those, where the processor has them"),
    ("tensor/src/bf16.rs", "vector instructions, and the bits of pairs as those of f32 for what moves them"),
    ("tensor/src/bf16/avx512.rs", "vector instructions that the compiler does not choose by itself"),
    ("tensor/src/mixed.rs", "takes slices of f32 as slices of its own float, which is an f32"),
    ("tensor/src/gemm/transpose.rs", "vector instructions that the compiler does not choose by itself"),
    ("tensor/src/gemm/indirect.rs", "calls those, where the processor has them"),
    ("tensor/src/simd.rs", "compiles loops for instruction sets that only some processors have"),
    ("tensor/src/tile.rs", "calls vector instructions where the processor has them"),
    ("tensor/src/tile/avx2.rs", "vector instructions that the compiler does not choose by itself"),
    ("tensor/src/tile/avx512.rs", "vector instructions that the compiler does not choose by itself"),
    ("tensor/src/gemm/portable.rs", "writes a tile of a matrix that other threads write tiles of"),
    ("tensor/src/gemm/shared.rs", "threads write tiles of one matrix, apart from each other"),
    ("tensor/src/team.rs", "lends a caller's task to threads that outlive the call"),
    ("tensor/src/ops/causal_attention.rs", "threads write the columns of their own heads between those of others"),
    ("tensor/src/team/parts.rs", "lends parts of one slice to several threads"),
    ("tensor/src/team/chunks.rs", "lends parts of one slice to several threads"),
    ("tensor/cuda/src/ffi.rs", "loads CUDA's libraries and looks up their functions"),
    ("tensor/cuda/src/libs.rs", "asks CUDA's libraries for their versions"),
    ("tensor/cuda/src/nvrtc.rs", "calls CUDA's compiler"),
    ("tensor/cuda/src/device.rs", "asks NVIDIA's driver what GPUs there are"),
    ("tensor/cuda/src/driver.rs", "calls NVIDIA's driver"),
    ("tensor/cuda/src/driver/context.rs", "calls NVIDIA's driver"),
    ("tensor/cuda/src/driver/event.rs", "calls NVIDIA's driver"),
    ("tensor/cuda/src/driver/graph.rs", "calls NVIDIA's driver"),
    ("tensor/cuda/src/driver/memory.rs", "memory of a GPU, and of the host for it"),
    ("tensor/cuda/src/driver/module.rs", "loads machine code into a GPU"),
    ("tensor/cuda/src/driver/stream.rs", "copies from and to a GPU and runs kernels on it"),
    ("tensor/cuda/src/selftest.rs", "runs kernels on a GPU"),
    ("tensor/cuda/src/program.rs", "runs kernels on a GPU"),
    ("tensor/cuda/src/forward.rs", "runs kernels on a GPU, and copies from and to it"),
    ("tensor/cuda/src/network/run.rs", "runs kernels on a GPU, and copies from and to it"),
    ("tensor/cuda/src/network/held.rs", "runs the optimizer on a GPU"),
    ("tensor/cuda/src/resident.rs", "runs kernels on a GPU, and copies from and to it"),
    ("tensor/cuda/src/plain.rs", "takes numbers as the bytes that they are"),
    ("tensor/cuda/src/optim.rs", "runs kernels on a GPU"),
    ("tensor/cuda/tests/ops/case.rs", "runs kernels on the tests' GPU"),
    ("tensor/cuda/tests/ops/optim.rs", "runs kernels on the tests' GPU"),
    ("tensor/cuda/src/fold.rs", "runs kernels on a GPU"),
    ("tensor/cuda/tests/ops/fold.rs", "runs kernels on the tests' GPU"),
    ("tensor/cuda/tests/driver.rs", "asks the fake driver what it counted, and runs kernels on it"),
    ("worker/collectives/nccl/src/communicator.rs", "calls NCCL"),
    ("worker/collectives/nccl/src/library.rs", "asks NCCL for its version, for ids and for the words of errors"),
    ("worker/collectives/nccl/src/lending.rs", "lets a communicator's pointer go from thread to thread"),
    ("worker/collectives/nccl/src/round.rs", "gives NCCL addresses of a device's memory"),
    ("worker/collectives/nccl/src/adder.rs", "runs kernels on a GPU"),
    ("worker/collectives/nccl/src/nccl_reduce.rs", "gives NCCL addresses of a device's memory"),
    ("worker/collectives/nccl/src/staged.rs", "copies from and to a GPU without waiting for each"),
    ("worker/collectives/nccl/tests/device_reduce.rs", "speaks with the fake driver, and copies on it"),
    ("worker/collectives/nccl/tests/threads.rs", "speaks with the fake NCCL, and gives it memory"),
    ("worker/collectives/nccl/tests/life/rank.rs", "speaks with the fake NCCL, and gives it memory"),
    ("tensor/src/memory.rs", "asks the system for huge pages"),
    ("tensor/src/float_mode.rs", "reads and sets the processor's floating-point mode"),
    ("tensor/tests/engine/traps_flush.rs", "sets the processor's floating-point mode as a foreign library would"),
    ("tensor/src/peak.rs", "measures what the vector instructions can do at most"),
    ("tensor/models/tests/allocations.rs", "counts what a step allocates"),
    ("tensor/tests/captured.rs", "counts what is allocated, as the allocator of the test"),
];

/// (word, why not): nowhere.
const UNFINISHED: &[(&str, &str)] = &[
    ("todo!(", "finish it"),
    ("unimplemented!(", "finish it"),
    ("#[ignore", "a test runs, or says why it skips (docs/testing.md)"),
    ("dbg!(", "left over from a search"),
    ("FIXME", "mend it"),
    ("assert!(true", "checks nothing"),
];

/// (word, why not): not in the product.
const UNBOUNDED: &[(&str, &str)] = &[
    ("unbounded_channel", "every queue has a bound"),
    ("mpsc::channel()", "every queue has a bound: sync_channel"),
    ("thread_rng", "seeds are arguments"),
];

/// Crates that talk to a person.
const PRINTS: &[&str] = &["cli/", "xtask/", "examples/", "tests/", "bench/"];

/// (path, reason)
const PRINTS_TOO: &[(&str, &str)] = &[
    ("tensor/cuda/src/bin/elastic-selftest.rs", "a program of its own, which tells a person what ran"),
    ("worker/collectives/nccl/src/bin/elastic-nccl-selftest.rs", "the same, of NCCL"),
    ("worker/src/fail.rs", "a fail point says so in the moment before it kills the process"),
    ("worker/src/lib.rs", "the entry of a worker process: why it ends goes to its log, which the agent keeps"),
];

/// Names that say nothing about what the thing is for.
const EMPTY_NAMES: &[&str] = &["Manager", "Handler", "Helper", "Helpers", "Util", "Utils"];

/// The rules' own tables hold the words that they look for.
fn is_tidy(path: &str) -> bool {
    path.starts_with("tests/tidy/")
}

#[test]
fn every_file_opens_with_what_it_is_for() {
    let found = repo::rust()
        .iter()
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| format!("{}:1: does not begin with `//! `", file.path))
        .collect();
    nothing(found, "say first what the file is for and what it leaves to others");
}

#[test]
fn files_are_short_enough_to_be_read_in_ten_minutes() {
    let mut found = Vec::new();
    for file in repo::rust() {
        let lines = file.text.lines().count();
        let has_row = LONG.iter().any(|row| row.0 == file.path);
        match (lines > LINES_MAX, has_row) {
            (true, false) => found.push(format!("{}: {lines} lines, more than {LINES_MAX}", file.path)),
            (false, true) => found.push(format!("{} no longer needs its row: {lines} lines", file.path)),
            _ => {}
        }
    }
    nothing(found, "split it by what it is about, or add a row with the reason in tests/tidy/code.rs");
}

#[test]
fn unfinished_work_and_unbounded_queues_do_not_land() {
    let mut found = Vec::new();
    for file in repo::rust().iter().filter(|file| !is_tidy(&file.path)) {
        let mut look = |(number, line): (usize, &str), banned: &[(&str, &str)]| {
            let hits = banned.iter().filter(|row| line.contains(row.0));
            found.extend(hits.map(|(word, why)| format!("{}:{number}: {word} ({why})", file.path)));
        };
        file.all_code_lines().for_each(|line| look(line, UNFINISHED));
        if !file.is_test_code() {
            file.code_lines().for_each(|line| look(line, UNBOUNDED));
        }
    }
    nothing(found, "");
}

#[test]
fn only_the_cli_prints() {
    let may = |path: &str| {
        PRINTS.iter().any(|prefix| path.starts_with(prefix))
            || path.ends_with("build.rs")
            || path.contains("/examples/")
            || PRINTS_TOO.iter().any(|row| row.0 == path)
    };
    let mut found = Vec::new();
    for file in repo::rust().iter().filter(|file| !may(&file.path) && !file.is_test_code()) {
        for (number, line) in file.code_lines() {
            if ["println!(", "print!(", "eprintln!(", "eprint!("].iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{number}: {}", file.path, line.trim()));
            }
        }
    }
    nothing(found, "return it, or log it with tracing: a library's output belongs to its caller");
}

#[test]
fn names_say_what_a_thing_is_for() {
    let mut found = Vec::new();
    for file in repo::rust().iter().filter(|file| !is_tidy(&file.path)) {
        for (number, line) in file.all_code_lines() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let Some(_) = words.find(|word| ["struct", "enum", "trait", "mod"].contains(word)) else { continue };
            let Some(name) = words.next() else { continue };
            let lower = name.to_lowercase();
            if EMPTY_NAMES.iter().any(|empty| name.ends_with(empty) || lower == empty.to_lowercase()) {
                found.push(format!("{}:{number}: {name}", file.path));
            }
        }
    }
    nothing(found, "name it after what it does for the domain (docs/glossary.md)");
}

#[test]
fn unsafe_stands_only_where_its_file_is_for_it_and_is_argued() {
    let mut found = Vec::new();
    let mut used = Vec::new();
    for file in repo::rust().iter().filter(|file| !is_tidy(&file.path)) {
        let lines: Vec<&str> = file.text.lines().collect();
        for (number, line) in file.all_code_lines().filter(|(_, line)| has_word(line, "unsafe")) {
            if line.contains("unsafe_op_in_unsafe_fn") || line.contains("unsafe_code") {
                continue;
            }
            if !UNSAFE.iter().any(|row| row.0 == file.path) {
                found.push(format!("{}:{number}: unsafe in a file that is not for it", file.path));
            }
            used.push(file.path.clone());
            let above = &lines[number.saturating_sub(8)..number];
            let is_block = line.contains("unsafe {") || line.contains("unsafe impl");
            if is_block && !above.iter().any(|line| line.contains("SAFETY:")) {
                found.push(format!("{}:{number}: no `// SAFETY:` above it", file.path));
            }
        }
    }
    let stale = UNSAFE.iter().filter(|row| !used.contains(&row.0.to_string()));
    found.extend(stale.map(|row| format!("{} no longer needs its row", row.0)));
    nothing(found, "say what must hold and who makes it hold; a new file needs a row in tests/tidy/code.rs");
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(is_part);
        let after = line[at + word.len()..].chars().next().is_some_and(is_part);
        let in_string = line[..at].matches('"').count() % 2 == 1;
        !before && !after && !in_string
    })
}

#[test]
fn etcd_is_named_by_its_client_only_in_its_store_and_the_lease() {
    let mut found = Vec::new();
    for file in repo::rust().iter().filter(|file| !file.is_test_code()) {
        let may = file.path.starts_with("coordinator/") && (file.path.contains("etcd") || file.path.contains("lease"));
        for (number, _) in file.code_lines().filter(|(_, line)| !may && line.contains("etcd_client")) {
            found.push(format!("{}:{number}", file.path));
        }
    }
    nothing(found, "the rest of the coordinator knows a store, not etcd");
}

#[test]
fn nothing_names_somebodys_machine() {
    let mut places = vec!["/home/".to_string(), "/root/".to_string(), "/Users/".to_string()];
    // Where this checkout happens to lie, unless that is a place that everybody has.
    let here = repo::root().parent().map(|p| p.display().to_string()).unwrap_or_default();
    if !["", "/", "/tmp", "/usr", "/opt", "/srv", "/var", "/etc", "/builds", "/src"].contains(&here.as_str()) {
        places.push(format!("{here}/"));
    }
    let mut found = Vec::new();
    let endings = [".rs", ".md", ".toml", ".sh", ".py", ".txt", ".proto", ".json", ".yml", ".yaml", "run"];
    for file in repo::files(&endings).iter().filter(|file| !is_tidy(&file.path)) {
        for (number, line) in file.text.lines().enumerate() {
            let names = |place: &String| {
                line.match_indices(place.as_str()).any(|(at, _)| {
                    // A path inside a longer one ("https://x/home/") is not the machine's.
                    !line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || "._-/}".contains(c))
                })
            };
            if places.iter().any(names) {
                found.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    nothing(found, "use a relative path, a temporary folder or an option");
}
