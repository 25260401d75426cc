//! The declarations of NCCL's functions and of its configuration against NVIDIA's own header, by a C compiler.

mod common;
#[path = "../../../../tensor/cuda/tests/common/in_c.rs"]
mod in_c;

use elastic_cuda::ffi::Declared;
use elastic_nccl::ffi::{NcclFunctions, ncclConfig_t};
use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};

/// NVIDIA's header, or a line that says why not.
fn header(test: &str) -> Option<PathBuf> {
    let include = common::nccl().map(|nccl| nccl.join("include"));
    include.inspect_err(|why| println!("skipped: {test}: {why}")).ok()
}

/// What `nccl.h` takes from CUDA's headers, which want more packages: a type.
fn check(text: &str, nccl: &Path) -> Result<(), String> {
    let cuda = common::temp();
    let runtime = "#include <stddef.h>\ntypedef struct CUstream_st* cudaStream_t;\n#define CUDART_VERSION 13000\n";
    for (name, text) in [("cuda_runtime.h", runtime), ("cuda_fp16.h", ""), ("cuda_bf16.h", "")] {
        std::fs::write(cuda.path().join(name), text).expect("a temporary folder can be written");
    }
    in_c::compile(text, &[nccl, cuda.path()])
}

#[test]
fn the_functions_are_declared_as_in_nccl_h() {
    let Some(include) = header("the_functions_are_declared_as_in_nccl_h") else { return };
    let header = std::fs::read_to_string(include.join("nccl.h")).expect("it was just found");
    let is_there = |symbol: &str| header.contains(&format!(" {symbol}("));
    let all = NcclFunctions::DECLARED.iter().copied();
    let (there, newer): (Vec<Declared>, Vec<Declared>) = all.partition(|f| is_there(f.symbols[0]));
    let newer: Vec<&str> = newer.iter().map(|f| f.symbols[0]).collect();
    assert_eq!(newer, ["ncclCommGrow", "ncclCommMemStats"], "what came after 2.28.9");
    let text = in_c::file("nccl.h", "ncclResult_t", &there);
    check(&text, &include).expect("nccl.h");
    // A check that cannot fail proves nothing.
    let wrong = text.replace("size_t, ncclDataType_t, int, ncclComm_t", "int, ncclDataType_t, int, ncclComm_t");
    assert!(check(&wrong, &include).is_err_and(|said| said.contains("ncclSend is declared otherwise")));
}

#[test]
fn the_configuration_lies_as_in_nccl_h() {
    let Some(include) = header("the_configuration_lies_as_in_nccl_h") else { return };
    let mut text = String::from("#include <stddef.h>\n#include <nccl.h>\n");
    let mut same = |left: &str, right: usize| {
        writeln!(text, "_Static_assert({left} == {right}, \"{left} is not {right}\");")
            .expect("a string takes any text");
    };
    same("sizeof(ncclConfig_t)", size_of::<ncclConfig_t>());
    same("sizeof(ncclUniqueId)", 128);
    same("offsetof(ncclConfig_t, blocking)", offset_of!(ncclConfig_t, blocking));
    same("offsetof(ncclConfig_t, netName)", offset_of!(ncclConfig_t, net_name));
    same("offsetof(ncclConfig_t, trafficClass)", offset_of!(ncclConfig_t, traffic_class));
    same("offsetof(ncclConfig_t, commName)", offset_of!(ncclConfig_t, comm_name));
    same("offsetof(ncclConfig_t, nChannelsPerNetPeer)", offset_of!(ncclConfig_t, channels_per_net_peer));
    same("offsetof(ncclConfig_t, nvlinkCentricSched)", offset_of!(ncclConfig_t, nvlink_centric_sched));
    for (name, code) in [("ncclInProgress", 7), ("ncclUint8", 1), ("ncclFloat32", 7), ("ncclSum", 0)] {
        same(name, code);
    }
    text += "ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;\n";
    check(&text, &include).expect("nccl.h");
}

#[test]
fn the_fake_is_declared_as_nccl_h_is() {
    let Some(include) = header("the_fake_is_declared_as_nccl_h_is") else { return };
    let text =
        format!("#define _GNU_SOURCE\n#define WITH_NCCL_H\n#include <nccl.h>\n#include {:?}\n", common::fake_source());
    check(&text, &include).expect("the fake's functions are NCCL's");
}
