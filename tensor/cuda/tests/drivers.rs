//! Drivers as they are found. What a fake driver says of itself is in the environment, which all threads of a process
//! share: so this is one test, in a program of its own.

mod common;

use elastic_cuda::driver::Driver;
use elastic_cuda::libs::Libraries;
use elastic_cuda::libs::search::Surroundings;
use elastic_cuda::{device, usable};

#[test]
fn stubs_old_drivers_and_drivers_without_a_gpu_are_lines_with_a_cure() {
    let dir = common::temp();
    common::driver_in(dir.path());
    let named = format!("{}:-", dir.path().display());
    let around = Surroundings { named: Some(named.clone()), ..Surroundings::default() };
    let says = |changed: &[(&str, &str)], wanted: &[&str]| {
        // SAFETY: the one test of this program: no other thread reads the environment.
        changed.iter().for_each(|(name, value)| unsafe { std::env::set_var(name, value) });
        let said = Libraries::open_in(&around).driver.err().map(|error| error.to_string()).unwrap_or_default();
        // SAFETY: as above.
        changed.iter().for_each(|(name, _)| unsafe { std::env::remove_var(name) });
        wanted.iter().for_each(|part| assert!(said.contains(part), "{changed:?}: {said:?}"));
    };
    let stub = [("FAKE_CUDA_VERSION", "0"), ("FAKE_CUDA_INIT", "34")];
    says(&stub, &["cuInit: CUDA_ERROR_STUB_LIBRARY (34)", "stub for linking", "LD_LIBRARY_PATH"]);
    let old = "the CUDA of NVIDIA's driver is version 11.8, and 12.0 is the oldest that works; update NVIDIA's driver";
    says(&[("FAKE_CUDA_VERSION", "11080")], &[old]);
    says(&[("FAKE_CUDA_INIT", "100")], &["cuInit: CUDA_ERROR_NO_DEVICE (100)", "CUDA_VISIBLE_DEVICES"]);
    says(&[("FAKE_CUDA_INIT", "12345")], &["cuInit: an error without a name (12345)", "`nvidia-smi`"]);
    says(&[("FAKE_CUDA_VERSION", "12000")], &[""]);

    let driver = Driver::load(&dir.path().join("libcuda.so.1")).expect("it works");
    let devices = device::all(&driver).expect("one GPU");
    assert_eq!((devices[0].name.as_str(), devices[0].memory_bytes), ("Fake GPU 0", 80 << 30));
    // SAFETY: as above.
    unsafe { std::env::set_var("ELASTIC_CUDA_LIBS", named) };
    assert_eq!(usable().map(|device| device.ordinal), Ok(0));
    for (name, value, wanted) in [
        ("FAKE_CUDA_CAPABILITY", "75", "GPU 0, Fake GPU 0, has compute capability 7.5; 8.0 (Ampere) is the oldest"),
        ("FAKE_CUDA_DEVICES", "0", "the driver sees no GPU"),
    ] {
        // SAFETY: as above.
        unsafe { std::env::set_var(name, value) };
        assert!(usable().is_err_and(|why| why.starts_with(wanted)), "{name}={value}");
        // SAFETY: as above.
        unsafe { std::env::remove_var(name) };
    }
}
