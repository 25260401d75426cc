//! The GPU of these tests: a driver and a compiler that run kernels on the processor.

use crate::common;
use elastic_cuda::arch::Capability;
use elastic_cuda::cache::Cache;
use elastic_cuda::driver::{Context, Stream};
use elastic_cuda::gpu::Gpu;
use elastic_cuda::libs::Libraries;
use elastic_cuda::libs::search::Surroundings;
use elastic_cuda::loaded::Loaded;
use std::sync::{Arc, LazyLock};

#[allow(dead_code, reason = "each test program uses its part")]
pub struct Device {
    pub loaded: Arc<Loaded>,
    pub gpu: Arc<Gpu>,
    pub stream: Stream,
    _dir: tempfile::TempDir,
}

/// One for all tests of the process. Its driver keeps to CUDA's rules for threads.
pub static DEVICE: LazyLock<Device> = LazyLock::new(|| {
    let dir = common::temp();
    common::emulator_in(dir.path());
    let named = Some(format!("{}:-", dir.path().display()));
    let open = || Libraries::open_in(&Surroundings { named: named.clone(), ..Surroundings::default() });
    let libraries = open();
    let driver = libraries.driver.as_ref().expect("the driver was just made");
    let context = Context::open(driver, 0).expect("it has a GPU");
    let stream = Stream::new(&context).expect("a stream");
    let loaded =
        Loaded::new(context, Capability { major: 9, minor: 0 }, libraries, Cache::in_dir(common::emulated_cubins()));
    let gpu = Gpu::open_with(open(), Cache::in_dir(common::emulated_cubins()), 0).expect("the same GPU");
    Device { loaded: Arc::new(loaded), gpu, stream, _dir: dir }
});
