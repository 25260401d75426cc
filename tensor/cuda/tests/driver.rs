//! The shell around the driver, on a driver without a GPU (`tests/fake/libcuda.c`): what it does, that it frees what
//! it made, and that a failure of any call is an error that names the call.

mod common;

use elastic_cuda::CudaError;
use elastic_cuda::driver::{Arena, Argument, Context, Driver, Event, Graph, LaunchShape, Module, PinnedBytes, Stream};
use elastic_cuda::{Result, device};
use libloading::os::unix::Library;
use std::path::Path;
use tempfile::TempDir;

/// A driver of the test's own, and what it counts.
struct Fake {
    library: Library,
    dir: TempDir,
}

const KINDS: [&str; 8] =
    ["contexts", "modules", "memory", "pinned memory", "streams", "events", "graphs", "ready graphs"];

impl Fake {
    fn new() -> Fake {
        let dir = common::temp();
        let path = common::driver_in(dir.path());
        // SAFETY: a library of these tests, which does nothing when it is loaded.
        let library = unsafe { Library::new(&path) }.expect("the library was just made");
        Fake { library, dir }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("libcuda.so.1")
    }

    fn ask(&self, name: &str) -> i64 {
        // SAFETY: the function takes nothing and gives a long.
        unsafe { self.library.get::<extern "C" fn() -> i64>(name).expect("the fake has it")() }
    }

    fn live(&self) -> Vec<(&'static str, i64)> {
        // SAFETY: the function takes an int and gives a long.
        let live = unsafe { self.library.get::<extern "C" fn(i32) -> i64>("fake_live").expect("the fake has it") };
        let kinds = KINDS.iter().enumerate().map(|(kind, name)| (*name, live(kind as i32)));
        kinds.filter(|(_, count)| *count != 0).collect()
    }

    /// The call of this number, counted from now and from 1, fails with a code.
    fn fail(&self, at: i64, code: i64) {
        // SAFETY: the function takes two longs.
        unsafe { self.library.get::<extern "C" fn(i64, i64)>("fake_fail").expect("the fake has it")(at, code) };
    }

    fn failed_call(&self) -> String {
        // SAFETY: the function takes nothing and gives a text that stays.
        unsafe {
            let name = self.library.get::<extern "C" fn() -> *const std::ffi::c_char>("fake_last_call");
            std::ffi::CStr::from_ptr(name.expect("the fake has it")()).to_string_lossy().into_owned()
        }
    }
}

/// What the fake driver loads: the head of an ELF file whose table of no sections is at its end, and a source.
fn cubin(source: &str) -> Vec<u8> {
    let mut file = [&[0; 64], source.as_bytes(), &[0]].concat();
    let end = file.len() as u64;
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (file[16], file[18]) = (2, 190);
    file[40..48].copy_from_slice(&end.to_le_bytes());
    file
}

fn functions() -> Vec<u8> {
    cubin("KERNEL(fill, float*) KERNEL(other, )")
}

const COUNT: usize = 1000;

fn fill_shape() -> LaunchShape {
    LaunchShape { grid: [4, 1, 1], block: [256, 1, 1], shared_bytes: 0 }
}

/// All that the shell can do: gives the numbers that `fill` wrote, by hand, and replayed.
fn everything(path: &Path) -> Result<(Vec<f32>, Vec<f32>)> {
    let driver = Driver::load(path)?;
    assert_eq!(device::all(&driver)?.len(), 1);
    let context = Context::open(&driver, 0)?;
    context.memory()?;
    let module = Module::load(&context, &functions())?;
    let fill = module.function("fill")?;
    fill.allow_shared_bytes(100_000)?;
    assert_eq!(fill.usage()?.registers, 10);
    let arena = Arena::new(&context, 2 * 4 * COUNT as u64)?;
    let (left, right) = (arena.span(0, 4 * COUNT as u64)?, arena.span(4 * COUNT as u64, 4 * COUNT as u64)?);
    let (stream, other) = (Stream::new(&context)?, Stream::new(&context)?);
    let mut pinned = PinnedBytes::new(&context, 4 * COUNT)?;
    let (begin, end) = (Event::new(&context)?, Event::new(&context)?);
    let fill_with = |stream: &Stream, value: f32| {
        let arguments = [Argument::Address(left.address()), Argument::U64(COUNT as u64), Argument::F32(value)];
        // SAFETY: the parameters of `fill`; the arena lives to the end of this function, which waits.
        unsafe { stream.launch(&fill, fill_shape(), &arguments) }
    };
    stream.mark(&begin)?;
    assert!(begin.is_reached()?);
    fill_with(&stream, 1.5)?;
    stream.mark(&end)?;
    other.wait_for(&end)?;
    end.wait()?;
    assert_eq!(begin.ms_until(&end)?, 0.5);
    let mut by_hand = vec![0; 4 * COUNT];
    stream.copy_out(&mut by_hand, &left)?;

    // SAFETY: the arena and the pinned memory live to the end of this function, and the stream is waited for.
    let graph = Graph::capture(&stream, |stream| unsafe {
        stream.set_bytes(&left, 7)?;
        fill_with(stream, -2.0)?;
        stream.copy_within(&right, &left)?;
        stream.copy_out_later(&mut pinned, 0..4 * COUNT, &right)
    })?;
    stream.copy_in(&left, &by_hand)?;
    // SAFETY: as above.
    unsafe {
        stream.copy_in_later(&right, &pinned, 0..4 * COUNT)?;
        stream.replay(&graph)?;
    }
    stream.wait()?;
    assert!(stream.is_done()?);
    Ok((floats(&by_hand), floats(pinned.as_slice())))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_ne_bytes([four[0], four[1], four[2], four[3]])).collect()
}

#[test]
fn a_kernel_runs_by_hand_and_in_a_graph_and_all_is_freed() {
    let fake = Fake::new();
    let (by_hand, replayed) = everything(&fake.path()).expect("nothing fails");
    assert_eq!((by_hand, replayed), (vec![1.5; COUNT], vec![-2.0; COUNT]));
    assert_eq!((fake.ask("fake_launches"), fake.ask("fake_replays")), (2, 1));
    assert_eq!((fake.live(), fake.ask("fake_wrong")), (vec![], 0));
}

#[test]
fn a_failure_of_any_call_names_it_and_leaks_nothing() {
    let fake = Fake::new();
    everything(&fake.path()).expect("nothing fails");
    fake.fail(0, 0);
    everything(&fake.path()).expect("nothing fails");
    let calls = fake.ask("fake_calls");
    assert!(calls > 60, "{calls} calls");
    let mut seen = std::collections::BTreeSet::new();
    for at in 1..=calls {
        fake.fail(at, 700);
        let outcome = everything(&fake.path());
        let failed = fake.failed_call();
        seen.insert(failed.clone());
        match outcome {
            Err(error) => {
                let said = error.to_string();
                // A name that ends in `_v2` is said without it.
                assert!(said.starts_with(failed.trim_end_matches("_v2")), "call {at}, {failed}: {said}");
                assert!(said.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{said}");
            }
            // What fails while all is given back cannot be mended, and ends nothing.
            Ok(_) => assert!(is_of_giving_back(&failed), "call {at}, {failed}, failed unseen"),
        }
        assert_eq!(fake.ask("fake_wrong"), 0, "call {at}, {failed}");
        assert_eq!(fake.live(), [], "call {at}, {failed}");
    }
    assert!(seen.len() >= 38, "{} functions failed: {seen:?}", seen.len());
}

fn is_of_giving_back(call: &str) -> bool {
    ["Destroy", "Free", "Unload", "Release", "cuCtxSetCurrent"].iter().any(|part| call.contains(part))
}

#[test]
fn memory_that_is_not_there_is_said_with_what_would_help() {
    let fake = Fake::new();
    let context = Context::open(&Driver::load(&fake.path()).expect("a driver"), 0).expect("a context");
    let said = Arena::new(&context, 1 << 33).err().expect("8 GiB are too many").to_string();
    let wanted = "cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (2): out of memory; less must fit: a smaller train.global_batch";
    assert!(said.starts_with(wanted), "{said}");
}

#[test]
fn spans_and_copies_stay_in_their_memory() {
    let fake = Fake::new();
    let context = Context::open(&Driver::load(&fake.path()).expect("a driver"), 0).expect("a context");
    let arena = Arena::new(&context, 100).expect("100 bytes");
    let stream = Stream::new(&context).expect("a stream");
    let is_refused = |result: Result<()>| matches!(result, Err(CudaError::OutOfRange { .. }));
    assert!(arena.span(0, 100).is_ok() && arena.span(100, 0).is_ok());
    assert!(is_refused(arena.span(1, 100).map(drop)));
    assert!(is_refused(arena.span(u64::MAX, 2).map(drop)));
    let span = arena.span(10, 20).expect("it is inside");
    assert_eq!(span.part(5, 15).expect("it is inside").address(), arena.whole().address() + 15);
    assert!(is_refused(span.part(5, 16).map(drop)) && is_refused(span.part(u64::MAX, 2).map(drop)));
    assert!(is_refused(stream.copy_in(&arena.whole(), &[0; 99])));
    assert!(is_refused(stream.copy_out(&mut [0; 101], &arena.whole())));
    let mut pinned = PinnedBytes::new(&context, 100).expect("100 bytes");
    // SAFETY: refused, so nothing is copied.
    unsafe {
        assert!(is_refused(stream.copy_in_later(&arena.whole(), &pinned, 1..101)));
        assert!(is_refused(stream.copy_out_later(&mut pinned, 0..99, &arena.whole())));
    }
}

#[test]
fn nothing_is_a_length() {
    let fake = Fake::new();
    let context = Context::open(&Driver::load(&fake.path()).expect("a driver"), 0).expect("a context");
    let arena = Arena::new(&context, 0).expect("no bytes");
    let stream = Stream::new(&context).expect("a stream");
    let pinned = PinnedBytes::new(&context, 0).expect("no bytes");
    assert!(pinned.as_slice().is_empty());
    stream.copy_in(&arena.whole(), &[]).expect("nothing to copy");
    let function =
        Module::load(&context, &functions()).and_then(|module| module.function("other")).expect("a function");
    let none = LaunchShape { grid: [0, 1, 1], ..fill_shape() };
    // SAFETY: `other` takes nothing.
    unsafe { stream.launch(&function, none, &[]) }.expect("nothing to run");
    assert_eq!(fake.ask("fake_launches"), 0);
}

#[test]
fn what_cannot_be_recorded_ends_the_recording_and_the_stream_goes_on() {
    let fake = Fake::new();
    let context = Context::open(&Driver::load(&fake.path()).expect("a driver"), 0).expect("a context");
    let stream = Stream::new(&context).expect("a stream");
    let waits = Graph::capture(&stream, |stream| stream.wait()).err().expect("no waiting in a recording");
    assert!(waits.to_string().starts_with("cuStreamSynchronize: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED (900)"));
    let allocates = Graph::capture(&stream, |_| Arena::new(&context, 8).map(drop)).err().expect("nor allocating");
    assert!(allocates.to_string().starts_with("cuMemAlloc"), "{allocates}");
    // A failure that the work does not pass on is seen at the end of the recording.
    let hidden = Graph::capture(&stream, |stream| {
        let _ = stream.wait();
        Ok(())
    });
    assert!(hidden.err().expect("the recording is broken").to_string().starts_with("cuStreamEndCapture"));
    stream.wait().expect("the stream works as before");
}

#[test]
fn a_panic_while_recording_leaves_a_stream_that_works() {
    let fake = Fake::new();
    let context = Context::open(&Driver::load(&fake.path()).expect("a driver"), 0).expect("a context");
    let stream = Stream::new(&context).expect("a stream");
    let work = || Graph::capture(&stream, |_| panic!("as a test"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
    stream.wait().expect("the stream works as before");
    drop(stream);
    drop(context);
    assert_eq!(fake.live(), []);
}

#[test]
fn what_is_no_cubin_and_no_function_is_refused() {
    let fake = Fake::new();
    let driver = Driver::load(&fake.path()).expect("a driver");
    let context = Context::open(&driver, 0).expect("a context");
    let load = |cubin: &[u8]| Module::load(&context, cubin).map(drop).map_err(|error| error.to_string());
    let mut other = functions();
    other[18] = 62; // x86-64
    assert!(load(b"").is_err_and(|said| said.starts_with("machine code of 0 bytes is not whole")));
    assert!(load(&other).is_err_and(|said| said.starts_with("cuModuleLoadData: an error without a name (200)")));
    let module = Module::load(&context, &functions()).expect("a cubin");
    let function = |name: &str| module.function(name).map(drop).map_err(|error| error.to_string());
    assert!(function("missing").is_err_and(|said| said.starts_with("cuModuleGetFunction")));
    assert!(function("fi\0ll").is_err_and(|said| said.contains("NUL")));
    let second = Context::open(&driver, 1).map(drop).map_err(|error| error.to_string());
    assert_eq!(second, Err("there is no GPU 1: 1 found, counted from 0; `elastic devices` lists them".into()));
}
