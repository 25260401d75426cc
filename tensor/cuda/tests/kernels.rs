//! Every kernel through NVIDIA's compiler, for every target that it declares. No GPU is needed for that, only
//! the compiler's package, which `cargo xtask nvidia` installs. And machine code inside the program: a build that is given
//! cubins runs them without a compiler.

mod common;

use elastic_cuda::arch::Arch;
use elastic_cuda::nvrtc::{Cubin, Nvrtc, NvrtcVersion, Source, Usage};
use elastic_cuda::{CudaError, cache, kernels};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What a function may spill: (file, function, target) and bytes.
struct Allowance {
    of: [String; 3],
    bytes: u32,
}

fn allowances(text: &str) -> Vec<Allowance> {
    let rows = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let read = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(words.len() >= 5, "a row of spills.txt has file, function, target, bytes and a reason: {line}");
        let bytes = words[3].parse().unwrap_or_else(|_| panic!("bytes in spills.txt: {line}"));
        Allowance { of: [words[0], words[1], words[2]].map(String::from), bytes }
    };
    rows.map(read).collect()
}

/// What spills more than it may, and rows that are not needed.
fn judge(found: &[(String, Arch, Usage)], allowed: &[Allowance]) -> Vec<String> {
    let mut out = Vec::new();
    let mut used = BTreeSet::new();
    for (file, arch, usage) in found {
        let spilled = usage.spill_store_bytes.max(usage.spill_load_bytes);
        let of = [file.clone(), usage.function.clone(), arch.to_string()];
        let row = allowed.iter().position(|row| row.of == of);
        let bytes = row.map_or(0, |row| allowed[row].bytes);
        if spilled > bytes {
            out.push(format!("{} spills {spilled} bytes, {bytes} are allowed ({usage:?})", of.join(" ")));
        }
        if spilled > 0 {
            used.extend(row);
        }
    }
    let stale = (0..allowed.len()).filter(|row| !used.contains(row));
    out.extend(stale.map(|row| format!("{}: the row in spills.txt is not needed", allowed[row].of.join(" "))));
    out
}

/// NVIDIA's compiler; or none, which is said.
fn compiler(test: &str) -> Option<Nvrtc> {
    match common::nvidia() {
        Ok(nvidia) => {
            let lib = nvidia.join("lib");
            let builtins = lib.join("libnvrtc-builtins.so.13.0");
            Some(Nvrtc::load(&lib.join("libnvrtc.so.13"), Some(&builtins)).expect("the installed compiler"))
        }
        Err(why) => {
            println!("skipped: {test}: {why}");
            None
        }
    }
}

/// Every kernel for every target that it declares.
struct All {
    cubins: Vec<(Source<'static>, Arch, Result<Cubin, CudaError>)>,
    version: NvrtcVersion,
    seconds: f64,
}

/// Compiled once for the tests of this file; none without a compiler.
fn all(test: &str) -> Option<&'static All> {
    static ALL: OnceLock<Option<All>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let nvrtc = compiler(test)?;
        let start = Instant::now();
        let targets = |source| kernels::targets(&source).expect("targets").into_iter().map(move |arch| (source, arch));
        let wanted: Vec<(Source, Arch)> = kernels::all().flat_map(targets).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let next = std::iter::from_fn(|| wanted.get(next.fetch_add(1, Ordering::Relaxed)));
            next.map(|(source, arch)| (*source, *arch, nvrtc.compile(source, *arch))).collect::<Vec<_>>()
        };
        let cubins = std::thread::scope(|scope| {
            let other = scope.spawn(work);
            let mut cubins = work();
            cubins.extend(other.join().expect("the compiler does not panic"));
            cubins
        });
        Some(All { cubins, version: nvrtc.version(), seconds: start.elapsed().as_secs_f64() })
    });
    if all.is_none() {
        compiler(test);
    }
    all.as_ref()
}

#[test]
fn every_kernel_compiles_for_every_target_that_it_declares() {
    let Some(all) = all("every_kernel_compiles_for_every_target_that_it_declares") else { return };
    let (mut found, mut broken) = (Vec::new(), Vec::new());
    for (source, arch, cubin) in &all.cubins {
        match cubin {
            Ok(cubin) => {
                assert!(cubin.bytes.starts_with(b"\x7fELF"), "{} for {arch} is no cubin", source.name);
                assert!(!cubin.usage.is_empty(), "{} for {arch} has no function: {}", source.name, cubin.log);
                found.extend(cubin.usage.iter().map(|usage| (source.name.to_string(), *arch, usage.clone())));
            }
            Err(error) => broken.push(error.to_string()),
        }
    }
    let functions: BTreeSet<&str> = found.iter().map(|(_, _, usage)| usage.function.as_str()).collect();
    println!(
        "{} files, {} kernels, {} cubins by NVRTC {} in {:.1} s; at most {} registers, {} bytes spilled",
        kernels::all().count(),
        functions.len(),
        all.cubins.len() - broken.len(),
        all.version,
        all.seconds,
        found.iter().map(|(_, _, usage)| usage.registers).max().unwrap_or(0),
        found.iter().map(|(_, _, usage)| usage.spill_store_bytes).max().unwrap_or(0),
    );
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let text = std::fs::read_to_string(common::folder().join("kernels/spills.txt")).expect("the list of allowances");
    let wrong = judge(&found, &allowances(&text));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{said}");
    said
}

/// A build that is given cubins has a program of its own.
#[test]
fn a_program_with_embedded_cubins_needs_no_compiler() {
    let Some(all) = all("a_program_with_embedded_cubins_needs_no_compiler") else { return };
    let dir = common::temp();
    let cubins = dir.path().join("cubins");
    for (source, arch, cubin) in &all.cubins {
        let bytes = &cubin.as_ref().expect("every kernel compiles").bytes;
        cache::write_into(&cubins, source, *arch, all.version, bytes).expect("room for a cubin");
    }
    // In a target directory of its own: the programs under test stay as they are.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("embedded");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--offline", "-p", "elastic-cuda", "--bin", "elastic-selftest", "--target-dir"]);
    run(build.arg(&target).current_dir(common::folder()).env("ELASTIC_EMBED_CUBINS", &cubins));

    common::driver_in(dir.path());
    let mut selftest = Command::new(target.join("debug/elastic-selftest"));
    selftest.env("ELASTIC_CUDA_LIBS", format!("{}:-", dir.path().display())).env("XDG_CACHE_HOME", dir.path());
    let said = run(&mut selftest);
    let lines = |start: &str| said.lines().filter(|line| line.contains(start)).collect::<Vec<_>>();
    assert_eq!(lines(".cu ").len(), kernels::all().count(), "a line for each kernel: {said}");
    assert!(lines(".cu ").iter().all(|line| line.contains("sm_90") && line.ends_with("embedded")), "{said}");
}

#[test]
fn a_spill_above_its_allowance_and_a_row_without_a_spill_are_found() {
    let usage = |bytes| Usage { function: "f".into(), spill_store_bytes: bytes, ..Usage::default() };
    let found = |bytes| [("a.cu".to_string(), Arch::plain(9, 0), usage(bytes))];
    let row = allowances("# head\n\na.cu f sm_90 16 measured faster than with fewer threads\n");
    assert_eq!(judge(&found(16), &row), [""; 0]);
    assert_eq!(judge(&found(0), &[]), [""; 0]);
    assert!(judge(&found(20), &row)[0].starts_with("a.cu f sm_90 spills 20 bytes, 16 are allowed"));
    assert!(judge(&found(4), &[])[0].starts_with("a.cu f sm_90 spills 4 bytes, 0 are allowed"));
    assert_eq!(judge(&found(0), &row), ["a.cu f sm_90: the row in spills.txt is not needed"]);
}

#[test]
fn products_and_sums_round_apart_and_headers_come_with_the_source() {
    let Some(nvrtc) = compiler("products_and_sums_round_apart_and_headers_come_with_the_source") else { return };
    let code = |sum: &str| {
        let header = format!("__device__ float sum(float a, float b, float c) {{ return {sum}; }}");
        let text = "#include \"sum.cuh\"\nextern \"C\" __global__ void f(float* x) { x[3] = sum(x[0], x[1], x[2]); }";
        let source = Source { name: "f.cu", text, headers: &[("sum.cuh", &header)] };
        nvrtc.compile(&source, Arch::plain(9, 0)).expect("it compiles").bytes
    };
    let plain = code("a * b + c");
    assert_eq!(plain, code("__fadd_rn(__fmul_rn(a, b), c)"), "rounded twice, as on the processor");
    assert_ne!(plain, code("__fmaf_rn(a, b, c)"), "rounded once");
    assert_ne!(code("a / b"), code("__fdividef(a, b)"), "an approximation only where the source says so");
    let lacking = Source { name: "f.cu", text: "#include \"sum.cuh\"", headers: &[] };
    let Err(CudaError::Compile { log, .. }) = nvrtc.compile(&lacking, Arch::plain(9, 0)) else { panic!("no header") };
    assert!(log.contains("sum.cuh"), "{log}");
}
