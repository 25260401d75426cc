//! Every kernel through NVIDIA's compiler, for every target that it declares. No GPU is needed for that, only
//! the compiler's package, which `cargo xtask nvidia` installs.

mod common;

use elastic_cuda::arch::Arch;
use elastic_cuda::nvrtc::{Nvrtc, Source, Usage};
use elastic_cuda::{CudaError, kernels};
use std::collections::BTreeSet;
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

#[test]
fn every_kernel_compiles_for_every_target_that_it_declares() {
    let Some(nvrtc) = compiler("every_kernel_compiles_for_every_target_that_it_declares") else { return };
    let start = Instant::now();
    let (mut files, mut cubins, mut found, mut broken) = (0, 0, Vec::new(), Vec::new());
    for source in kernels::all() {
        files += 1;
        for arch in kernels::targets(&source).expect("targets") {
            match nvrtc.compile(&source, arch) {
                Ok(cubin) => {
                    cubins += 1;
                    assert!(cubin.bytes.starts_with(b"\x7fELF"), "{} for {arch} is no cubin", source.name);
                    assert!(!cubin.usage.is_empty(), "{} for {arch} has no function: {}", source.name, cubin.log);
                    found.extend(cubin.usage.into_iter().map(|usage| (source.name.to_string(), arch, usage)));
                }
                Err(error) => broken.push(error.to_string()),
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let functions: BTreeSet<&str> = found.iter().map(|(_, _, usage)| usage.function.as_str()).collect();
    println!(
        "{files} files, {} kernels, {cubins} cubins by NVRTC {} in {seconds:.1} s; at most {} registers, {} bytes spilled",
        functions.len(),
        nvrtc.version(),
        found.iter().map(|(_, _, usage)| usage.registers).max().unwrap_or(0),
        found.iter().map(|(_, _, usage)| usage.spill_store_bytes).max().unwrap_or(0),
    );
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let text = std::fs::read_to_string(common::folder().join("kernels/spills.txt")).expect("the list of allowances");
    let wrong = judge(&found, &allowances(&text));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
