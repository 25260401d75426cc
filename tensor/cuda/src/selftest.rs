//! What `elastic-selftest` does on a machine with a GPU: finds, loads, runs and compares, and says each thing as it is
//! done, so that a run that ends early has said how far it came.

use crate::cache::{self, Cache, From};
use crate::device::Device;
use crate::driver::{Arena, Argument, Context, Function, LaunchShape, Module, Stream};
use crate::error::{CudaError, Result};
use crate::kernels;
use crate::libs::Libraries;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// How a self-test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    /// Something ran and was wrong.
    Failed,
    /// Nothing can run here.
    NoGpu,
}

/// Numbers to fill: none, one, a warp and its neighbours, primes, more than one grid.
const COUNTS: [usize; 8] = [0, 1, 31, 32, 33, 997, 65_536, 1_000_003];
/// Bytes beyond the numbers, which must stay as they were.
const MARGIN: usize = 256;
const POISON: u8 = 0xa5;
const REPEATS: usize = 3;

/// The whole self-test of the first GPU that can run it.
pub fn run(out: &mut dyn Write, cache: &Cache) -> io::Result<Verdict> {
    let libraries = Libraries::open();
    writeln!(out, "libraries")?;
    for line in libraries.lines() {
        match line.found {
            Ok(found) => writeln!(out, "  {:<18} {:<14} {}", line.library.name(), found.version, found.path.display())?,
            Err(why) => writeln!(out, "  {:<18} {why}", line.library.name())?,
        }
    }
    let (context, device) = match open(&libraries) {
        Ok(opened) => opened,
        Err(why) => {
            writeln!(out, "no GPU to test: {why}")?;
            return Ok(Verdict::NoGpu);
        }
    };
    let Device { ordinal, name, capability, memory_bytes, multiprocessors, .. } = &device;
    let gib = *memory_bytes as f64 / f64::from(1 << 30);
    writeln!(out, "GPU {ordinal}: {name}, {capability}, {gib:.1} GiB, {multiprocessors} multiprocessors")?;

    let mut failures = 0;
    writeln!(out, "kernels")?;
    let mut fill = None;
    for source in kernels::all() {
        let loaded = cache.get(&source, *capability, libraries.nvrtc.as_ref()).and_then(|ready| {
            let module = Module::load(&context, &ready.bytes)?;
            Ok((module, ready.arch, ready.from))
        });
        match loaded {
            Ok((module, arch, from)) => {
                writeln!(out, "  {:<24} {arch:<8} {}", source.name, words(&from))?;
                fill = fill.or((source.name == "fill.cu").then_some(module));
            }
            Err(error) => {
                failures += 1;
                writeln!(out, "  {:<24} FAILED: {error}", source.name)?;
            }
        }
    }
    writeln!(out, "fill")?;
    for count in COUNTS {
        let outcome = match &fill {
            Some(module) => module.function("fill").and_then(|fill| filled(&context, &fill, count)),
            None => Ok(Err("the kernel was not loaded".to_string())),
        };
        let said = match outcome {
            Ok(Ok(())) => "ok".to_string(),
            Ok(Err(why)) => format!("FAILED: {why}"),
            Err(error) => format!("FAILED: {error}"),
        };
        failures += u32::from(said != "ok");
        writeln!(out, "  {count:>9} numbers, {REPEATS} times  {said}")?;
    }
    match failures {
        0 => writeln!(out, "self-test passed")?,
        many => writeln!(out, "self-test FAILED: {many} of the above")?,
    }
    Ok(if failures == 0 { Verdict::Passed } else { Verdict::Failed })
}

fn words(from: &From) -> String {
    match from {
        From::Embedded => "embedded".into(),
        From::Brought => "brought along".into(),
        From::Disk => "kept by an earlier run".into(),
        From::Compiled { unkept: None } => "compiled".into(),
        From::Compiled { unkept: Some(why) } => format!("compiled, not kept: {why}"),
    }
}

fn open(libraries: &Libraries) -> std::result::Result<(Arc<Context>, Device), String> {
    let driver = libraries.driver.as_ref().map_err(|error| error.to_string())?;
    let device = crate::usable::usable_of(libraries)?;
    let context = Context::open(driver, device.ordinal).map_err(|error| error.to_string())?;
    Ok((context, device))
}

/// Fills poisoned memory some times, and compares every byte, those beyond the end included.
fn filled(context: &Arc<Context>, fill: &Function, count: usize) -> Result<std::result::Result<(), String>> {
    let stream = Stream::new(context)?;
    let bytes = 4 * count;
    let arena = Arena::new(context, (bytes + MARGIN) as u64)?;
    for repeat in 0..REPEATS {
        let value = -1.5 - repeat as f32;
        let mut wanted: Vec<u8> = std::iter::repeat_n(value.to_ne_bytes(), count).flatten().collect();
        wanted.resize(bytes + MARGIN, POISON);
        stream.copy_in(&arena.whole(), &vec![POISON; bytes + MARGIN])?;
        let shape = LaunchShape { grid: [64, 1, 1], block: [256, 1, 1], shared_bytes: 0 };
        let arguments = [Argument::Address(arena.whole().address()), Argument::U64(count as u64), Argument::F32(value)];
        // SAFETY: the parameters of `fill`; the arena has room for `count` floats, and the copy below waits.
        unsafe { stream.launch(fill, shape, &arguments) }?;
        let mut found = vec![0; bytes + MARGIN];
        stream.copy_out(&mut found, &arena.whole())?;
        if let Some(at) = (0..found.len()).find(|at| found[*at] != wanted[*at]) {
            let (found, wanted) = (found[at], wanted[at]);
            return Ok(Err(format!(
                "byte {at} of {bytes} and {MARGIN} beyond is {found:#04x}, not {wanted:#04x}, in run {repeat}"
            )));
        }
    }
    Ok(Ok(()))
}

/// Compiles every kernel for every target into a folder, for embedding: see `build.rs`.
pub fn compile(out: &mut dyn Write, dir: &Path) -> Result<()> {
    let libraries = Libraries::open();
    let nvrtc = libraries.nvrtc?;
    let (mut cubins, mut bytes) = (0, 0);
    for source in kernels::all() {
        let targets = kernels::targets(&source).map_err(|log| CudaError::Compile {
            what: source.name.into(),
            arch: "any target".into(),
            log,
        })?;
        for arch in targets {
            let cubin = nvrtc.compile(&source, arch)?;
            cache::write_into(dir, &source, arch, nvrtc.version(), &cubin.bytes)?;
            (cubins, bytes) = (cubins + 1, bytes + cubin.bytes.len());
        }
    }
    let said = writeln!(out, "{cubins} cubins, {bytes} bytes, by NVRTC {} in {}", nvrtc.version(), dir.display());
    said.map_err(|error| CudaError::File { path: "stdout".into(), what: "write to it", why: error.to_string() })
}
