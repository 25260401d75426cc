//! The GPU of these tests: a driver and a compiler that run kernels on the processor; with `ELASTIC_TEST_DEVICE=gpu` this
//! machine's first GPU that can be used. No test takes the real one by itself: that a machine has a GPU changes nothing.

use crate::common;
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
    /// How often what must give the same bits is run. The real one shows what its threads do otherwise only now and then.
    pub repeats: usize,
    /// Cases of more numbers are left out (`ELASTIC_TEST_NUMBERS_MAX`): under NVIDIA's sanitizer each takes its time.
    pub numbers_max: usize,
    _dir: Option<tempfile::TempDir>,
}

/// One for all tests of the process. Its driver keeps to CUDA's rules for threads.
pub static DEVICE: LazyLock<Device> = LazyLock::new(|| match is_real() {
    true => open(&Libraries::open, Cache::of_user(), 3, None),
    false => {
        let dir = common::temp();
        common::emulator_in(dir.path());
        let named = Some(format!("{}:-", dir.path().display()));
        let libraries = || Libraries::open_in(&Surroundings { named: named.clone(), ..Surroundings::default() });
        open(&libraries, Cache::in_dir(common::emulated_cubins()), 2, Some(dir))
    }
});

/// Whether the tests run on this machine's GPU.
pub fn is_real() -> bool {
    match std::env::var("ELASTIC_TEST_DEVICE").as_deref() {
        Ok("gpu") => true,
        Ok("emulated") | Err(_) => false,
        Ok(other) => panic!("ELASTIC_TEST_DEVICE is \"gpu\" or \"emulated\", not {other:?}"),
    }
}

fn open(libraries: &dyn Fn() -> Libraries, cache: Cache, repeats: usize, dir: Option<tempfile::TempDir>) -> Device {
    let gpu = Gpu::open_with(libraries(), cache.clone(), 0);
    let mut gpu = gpu.unwrap_or_else(|why| panic!("no GPU for the tests: {why}"));
    // So that small networks have several.
    Arc::get_mut(&mut gpu).expect("it is new").bucket_bytes = 1024;
    let libraries = libraries();
    let driver = libraries.driver.as_ref().expect("the driver was just opened");
    let context = Context::open(driver, gpu.device.ordinal).expect("the same GPU");
    let stream = Stream::new(&context).expect("a stream");
    let loaded = Arc::new(Loaded::new(context, gpu.device.capability, libraries, cache));
    let text = std::env::var("ELASTIC_TEST_NUMBERS_MAX").ok();
    let numbers_max = text.map_or(usize::MAX, |text| text.parse().expect("ELASTIC_TEST_NUMBERS_MAX is a number"));
    Device { loaded, gpu, stream, repeats, numbers_max, _dir: dir }
}
