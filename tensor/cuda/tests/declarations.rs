//! The declarations of CUDA's functions against NVIDIA's own headers, by a C compiler: nothing here has run on a GPU, and
//! a wrong argument would not be seen before it does.

mod common;
#[path = "common/in_c.rs"]
mod in_c;

use elastic_cuda::ffi::{driver::DriverFunctions, nvrtc::NvrtcFunctions};
use in_c::{compile, file};

#[test]
fn the_declarations_are_those_of_nvidias_headers() {
    let include = match common::nvidia() {
        Ok(nvidia) => nvidia.join("include"),
        Err(why) => return println!("skipped: the_declarations_are_those_of_nvidias_headers: {why}"),
    };
    let driver = file("cuda.h", "CUresult", DriverFunctions::DECLARED);
    compile(&driver, &[&include]).expect("cuda.h");
    compile(&file("nvrtc.h", "nvrtcResult", NvrtcFunctions::DECLARED), &[&include]).expect("nvrtc.h");
    // A check that cannot fail proves nothing.
    let wrong = driver.replace("size_t *, CUdevice", "int *, CUdevice");
    assert_ne!(wrong, driver);
    assert!(compile(&wrong, &[&include]).is_err_and(|said| said.contains("cuDeviceTotalMem_v2 is declared otherwise")));
}

#[test]
fn the_fakes_are_declared_as_nvidias_headers_are() {
    let include = match common::nvidia() {
        Ok(nvidia) => nvidia.join("include"),
        Err(why) => return println!("skipped: the_fakes_are_declared_as_nvidias_headers_are: {why}"),
    };
    for (source, define, header) in [("libcuda.c", "WITH_CUDA_H", "cuda.h"), ("libnvrtc.c", "WITH_NVRTC_H", "nvrtc.h")]
    {
        let path = common::folder().join("tests/fake").join(source);
        let text = format!("#define {define}\n#include <{header}>\n#include {path:?}\n");
        compile(&text, &[&include]).expect(source);
    }
}
