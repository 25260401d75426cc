//! A round from GPU memory to GPU memory by each way, with ranks as threads on the fakes of driver, compiler and NCCL: the
//! spec's bits for 1 to 4 ranks, waits that end, aborts from another thread.

mod common;
#[path = "../../../../tensor/cuda/tests/common/mod.rs"]
mod cuda;

use bytes::Bytes;
use elastic_collectives::local::Hub;
use elastic_collectives::{Group, GroupConfig, LinkConfig, LinkEvent, Links, Transport};
use elastic_cuda::arch::Capability;
use elastic_cuda::cache::Cache;
use elastic_cuda::driver::{Arena, Context, Event, Span, Stream};
use elastic_cuda::libs::Libraries;
use elastic_cuda::libs::search::Surroundings;
use elastic_cuda::loaded::Loaded;
use elastic_nccl::communicator::ABORT_WAITS;
use elastic_nccl::{
    Abort, Adder, DeviceReduce, GroupWire, Membership, Nccl, NcclError, NcclReduce, Seat, Spread, StagedReduce,
    UniqueId, Vectors,
};
use elastic_spec::layout::{Layout, Tail};
use elastic_spec::tree::{self, TreeNode};
use elastic_spec::view::{Pace, Role, View, ViewMember};
use elastic_spec::{Digest, Epoch, JobId, NodeId, Rank, Shard, WorkerId};
use libloading::os::unix::Library;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const SHARDS: u16 = 16;
const RANKS_MAX: u16 = 4;
/// Far more than any of this takes.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);
/// A wait of `SHORT`, or one that was aborted, ends within it: two waits of an abort, and a busy machine.
const SOON: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Nccl(Spread),
    /// Staged, between members inside this process.
    Local,
    /// Staged, over TCP.
    Links,
}

const WAYS: [Way; 4] = [Way::Nccl(Spread::Sends), Way::Nccl(Spread::Broadcast), Way::Local, Way::Links];

/// A test's own machine. Each rank has a driver of its own, as a process has: what frees memory waits for all that
/// runs on the driver, also for a transfer that waits for a rank of the same process.
struct Machine {
    gpus: Vec<Gpu>,
    nccl: Arc<Nccl>,
    runtime: Runtime,
    dir: TempDir,
}

struct Gpu {
    loaded: Loaded,
    context: Arc<Context>,
    driver: PathBuf,
}

impl Machine {
    fn new() -> Machine {
        static MADE: LazyLock<TempDir> = LazyLock::new(|| {
            let dir = common::temp();
            cuda::emulator_in(dir.path());
            common::fake_in(dir.path(), &[]);
            dir
        });
        let (made, dir) = (MADE.path(), common::temp());
        let nccl = Nccl::find_in(&only(&copies(made, dir.path(), &["libnccl.so.2"]))).expect("it was just made");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let gpus = (0..RANKS_MAX).map(|rank| Gpu::new(made, dir.path().join(format!("rank{rank}")))).collect();
        Machine { gpus, nccl, runtime: runtime.expect("threads can be started"), dir }
    }
}

fn only(folder: &Path) -> Surroundings {
    Surroundings { named: Some(format!("{}:-", folder.display())), ..Surroundings::default() }
}

/// Of libraries, which are others to the linker, with a state of their own.
fn copies(from: &Path, to: &Path, names: &[&str]) -> PathBuf {
    for name in names {
        std::fs::copy(from.join(name), to.join(name)).expect("it was made before");
    }
    to.to_path_buf()
}

impl Gpu {
    fn new(made: &Path, own: PathBuf) -> Gpu {
        std::fs::create_dir(&own).expect("the folder can be written");
        copies(made, &own, &["libcuda.so.1", "libnvrtc.so.13", "libnvrtc-builtins.so.13.0"]);
        let libraries = Libraries::open_in(&only(&own));
        let context = Context::open(libraries.driver.as_ref().expect("it was just made"), 0).expect("it has a GPU");
        let kept = Cache::in_dir(cuda::emulated_cubins());
        let loaded = Loaded::new(context.clone(), Capability { major: 9, minor: 0 }, libraries, kept);
        Gpu { loaded, context, driver: own.join("libcuda.so.1") }
    }

    fn memory(&self, bytes: &[u8]) -> Span {
        let span = Arena::new(&self.context, bytes.len() as u64).expect("there is room").whole();
        Stream::new(&self.context).expect("a stream").copy_in(&span, bytes).expect("as many bytes");
        span
    }

    fn read(&self, span: &Span) -> Vec<u8> {
        let mut bytes = vec![0; span.bytes() as usize];
        Stream::new(&self.context).expect("a stream").copy_out(&mut bytes, span).expect("as many bytes");
        bytes
    }

    fn pinned_made(&self) -> i64 {
        // SAFETY: a library of these tests, which is loaded already; the function takes an int and gives a long.
        unsafe {
            let library = Library::new(&self.driver).expect("it was loaded before");
            library.get::<extern "C" fn(i32) -> i64>(b"fake_made").expect("the fake has it")(3)
        }
    }
}

/// Shards in intervals, as the coordinator maps them, or scattered, as after faults.
fn view(world: u16, owner: impl Fn(u16) -> u16) -> View {
    let member = |rank: u16| ViewMember {
        worker: WorkerId(u64::from(rank) + 1),
        node: NodeId::parse("n").expect("a name"),
        address: String::new(),
        role: Role::Active,
    };
    let view = View {
        job: JobId::parse("j").expect("a name"),
        epoch: Epoch::new(1, 1),
        pace: Pace::Run,
        members: (0..world).map(member).collect(),
        shard_map: (0..SHARDS).map(|shard| Rank(owner(shard))).collect(),
    };
    view.check().expect("a view");
    view
}

fn in_intervals(world: u16) -> View {
    view(world, |shard| shard * world / SHARDS)
}

fn scattered(world: u16) -> View {
    view(world, |shard| (shard * 7 + shard / 5) % world)
}

/// Of all magnitudes, so that the order of a sum shows.
fn sum(layout: Layout, round: u64, node: TreeNode) -> Vec<u8> {
    let leaf = |shard: u16| {
        let mut state = round * 1000 + u64::from(shard) + 1;
        let mut draw = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        let mut float = || match draw() % 97 {
            0 => f32::from_bits(0x7f80_0001 | draw()),
            1 => -0.0,
            magnitude => (draw() as f32 / 1e9 - 1.0) * 1.7f32.powi((magnitude % 24) as i32 - 12),
        };
        let floats: Vec<f32> = (0..layout.floats).map(|_| float()).collect();
        layout.cut(&floats, Tail { loss: f64::from(shard) / 3.0, count: 2, correct: u64::from(shard) })
    };
    let leaves: Vec<(TreeNode, Vec<Bytes>)> =
        node.range().map(|shard| (TreeNode::leaf(Shard(shard)), leaf(shard))).collect();
    let of_chunk = |chunk: u32| {
        let held: BTreeMap<TreeNode, Bytes> =
            leaves.iter().map(|(leaf, chunks)| (*leaf, chunks[chunk as usize].clone())).collect();
        tree::fold(node, &held, &mut |a, b| layout.add(chunk, a, b)).expect("all leaves are there")
    };
    (0..layout.chunks()).flat_map(of_chunk).collect()
}

/// A rank's end of what carries the rounds, before it has met the others.
enum End {
    Nccl(UniqueId, Spread),
    Group(Box<GroupWire>),
}

fn ends(machine: &Machine, way: Way, world: u16, layout: Layout) -> Vec<End> {
    if let Way::Nccl(spread) = way {
        static WORLDS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = WORLDS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut bytes = [0; UniqueId::BYTES];
        let path = machine.dir.path().join(format!("w{number}")).display().to_string();
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        return (0..world).map(|_| End::Nccl(UniqueId::from_bytes(bytes), spread)).collect();
    }
    let hub = Hub::new();
    let place = |rank: u16| {
        let (me, (events, heard)) = (WorkerId(u64::from(rank) + 1), tokio::sync::mpsc::channel(64));
        let transport: Arc<dyn Transport> = match way {
            Way::Links => {
                let config = LinkConfig::local(me, JobId::parse("j").expect("a name"), Digest::of(b"c"), b"s".to_vec());
                Arc::new(machine.runtime.block_on(Links::start(config, events)).expect("a port is free"))
            }
            _ => Arc::new(hub.join(me, events)),
        };
        (me, transport, heard)
    };
    let _inside = machine.runtime.enter();
    let places: Vec<(WorkerId, Arc<dyn Transport>, tokio::sync::mpsc::Receiver<LinkEvent>)> =
        (0..world).map(place).collect();
    let members: Vec<_> = places.iter().map(|(me, transport, _)| (*me, transport.address().to_string())).collect();
    let end = |(me, transport, heard)| {
        let config = GroupConfig { me, members: members.clone(), shards: SHARDS, layout, patience: LONG };
        let group = Group::join(transport, heard, config).expect("members are named once");
        End::Group(Box::new(GroupWire::new(group, machine.runtime.handle().clone())))
    };
    places.into_iter().map(end).collect()
}

impl End {
    fn meet(self, machine: &Machine, membership: Membership<'_>) -> Box<dyn DeviceReduce> {
        let gpu = &machine.gpus[usize::from(membership.rank.0)];
        match self {
            End::Group(wire) => Box::new(StagedReduce::new(&gpu.context, membership, *wire).expect("a stream")),
            End::Nccl(id, spread) => {
                let adder = Arc::new(Adder::new(&gpu.loaded).expect("the kernel compiles"));
                gpu.context.enter().expect("the context lives");
                let seat = Seat { rank: membership.rank, world: membership.view.world_size() };
                let communicator =
                    machine.nccl.join(seat, id).and_then(|joining| joining.ready(LONG)).expect("all come");
                Box::new(NcclReduce::new(communicator, membership, spread, adder).expect("there is room"))
            }
        }
    }
}

/// A rank with the memories of a round.
struct Member<'a> {
    gpu: &'a Gpu,
    membership: Membership<'a>,
    segments: Vec<Span>,
    reduced: Span,
    after: Event,
}

impl<'a> Member<'a> {
    fn new(machine: &'a Machine, membership: Membership<'a>, round: u64) -> Member<'a> {
        let gpu = &machine.gpus[usize::from(membership.rank.0)];
        let sums = membership.segments().into_iter().map(|node| gpu.memory(&sum(membership.layout, round, node)));
        Member {
            gpu,
            membership,
            segments: sums.collect(),
            reduced: gpu.memory(&vec![0xa5; membership.flat_bytes()]),
            after: Event::new(&gpu.context).expect("an event"),
        }
    }

    fn vectors(&self) -> Vectors<'_> {
        Vectors { segments: &self.segments, reduced: &self.reduced, after: &self.after }
    }

    fn check(&self, round: u64, what: &str) {
        let layout = self.membership.layout;
        let wanted = sum(layout, round, TreeNode::root(SHARDS));
        assert!(self.gpu.read(&self.reduced) == wanted, "{what}, round {round}: the spec's bits");
        for (span, node) in self.segments.iter().zip(self.membership.segments()) {
            assert!(self.gpu.read(span) == sum(layout, round, node), "{what}: a segment is only read");
        }
    }
}

impl Machine {
    /// Runs each rank in a thread.
    fn world<T: Send>(
        &self,
        way: Way,
        view: &View,
        layout: Layout,
        f: impl Fn(Membership<'_>, Box<dyn DeviceReduce>) -> T + Sync,
    ) -> Vec<T> {
        let ends = ends(self, way, view.world_size(), layout);
        thread::scope(|scope| {
            let start = |(rank, end): (usize, End)| {
                let (f, membership) = (&f, Membership { view, rank: Rank(rank as u16), layout });
                scope.spawn(move || f(membership, end.meet(self, membership)))
            };
            let ranks: Vec<_> = ends.into_iter().enumerate().map(start).collect();
            ranks.into_iter().map(|rank| rank.join().expect("a rank ends")).collect()
        })
    }
}

#[test]
fn by_each_way_one_to_four_ranks_have_the_specs_bits() {
    let machine = Machine::new();
    let layouts =
        [Layout { floats: 1003, block_floats: 64 }, Layout { floats: 333, block_floats: 7 }, Layout::TAIL_ONLY];
    for way in WAYS {
        for (ranks, layout) in (1..=4).flat_map(|ranks| layouts.map(|layout| (ranks, layout))) {
            for view in [in_intervals(ranks), scattered(ranks)] {
                let what = format!("{way:?}, {ranks} ranks, {layout:?}, {:?}", view.shard_map);
                machine.world(way, &view, layout, |membership, mut reduce| {
                    for round in 0..3 {
                        let member = Member::new(&machine, membership, round);
                        reduce.reduce(member.vectors(), LONG).unwrap_or_else(|error| panic!("{what}: {error}"));
                        member.check(round, &what);
                    }
                    reduce.close(LONG).unwrap_or_else(|error| panic!("{what}: {error}"));
                });
            }
        }
    }
}

/// A round of two of which the second never takes part: what ends the first's wait, and how long it took.
fn alone_of_two(
    machine: &Machine,
    way: Way,
    patience: Duration,
    also: impl Fn(Arc<dyn Abort>) + Sync,
) -> (NcclError, Duration) {
    let layout = Layout { floats: 1003, block_floats: 64 };
    let (give, take) = mpsc::sync_channel::<()>(1);
    let take = std::sync::Mutex::new(Some(take));
    let mut said = machine.world(way, &in_intervals(2), layout, |membership, mut reduce| {
        if membership.rank == Rank(1) {
            // Stays until the other has ended: that nobody is there any more is another error.
            let take = take.lock().expect("nobody panics with it").take().expect("one waits");
            let _ = take.recv_timeout(LONG);
            return None;
        }
        let member = Member::new(machine, membership, 0);
        let aborter = reduce.aborter();
        let error = thread::scope(|scope| {
            scope.spawn(|| also(aborter));
            let started = Instant::now();
            let error = reduce.reduce(member.vectors(), patience).expect_err("the other does not take part");
            (error, started.elapsed())
        });
        // The memories are ours again, and nothing begins any more but for another error.
        assert!(member.gpu.read(&member.segments[0]) == sum(layout, 0, membership.segments()[0]));
        give.send(()).expect("it waits");
        Some(error)
    });
    said.remove(0).expect("rank 0 has waited")
}

#[test]
fn by_each_way_an_abort_from_another_thread_ends_the_wait() {
    let machine = Machine::new();
    for way in WAYS {
        let (error, took) = alone_of_two(&machine, way, LONG, |aborter| {
            thread::sleep(SHORT);
            aborter.abort().expect("nothing is stuck");
            aborter.abort().expect("once more does nothing");
        });
        assert!(matches!(error, NcclError::Aborted { .. }), "{way:?}: {error}");
        assert!(took < SOON, "{way:?}: {took:?}");
    }
}

#[test]
fn by_each_way_a_rank_that_does_not_come_is_late_and_not_a_hang() {
    let machine = Machine::new();
    for way in WAYS {
        let (error, took) = alone_of_two(&machine, way, SHORT, drop);
        let said = error.to_string();
        assert!(said.contains("was not done after ") || said.starts_with("the links: waited "), "{way:?}: {said}");
        assert!(took >= SHORT && took < SOON, "{way:?}: {took:?}");
    }
}

#[test]
fn after_an_abort_no_round_begins() {
    let machine = Machine::new();
    for way in WAYS {
        machine.world(way, &in_intervals(1), Layout::TAIL_ONLY, |membership, mut reduce| {
            let member = Member::new(&machine, membership, 0);
            reduce.aborter().abort().expect("nothing is under way");
            let error = reduce.reduce(member.vectors(), LONG).expect_err("it was aborted");
            assert!(matches!(error, NcclError::Aborted { .. }), "{way:?}: {error}");
        });
    }
}

/// Keeps a stream busy, as a kernel that takes its time would.
fn nap_on(stream: &Stream, time: Duration) {
    extern "C" fn nap(ms: *mut c_void) {
        thread::sleep(Duration::from_millis(ms as u64));
    }
    type Call = extern "C" fn(*mut c_void, extern "C" fn(*mut c_void), *mut c_void);
    // SAFETY: a stream of the fake driver begins with the function that takes calls.
    let call = unsafe { *stream.handle().cast::<Call>() };
    call(stream.handle(), nap, std::ptr::without_provenance_mut(time.as_millis() as usize));
}

#[test]
fn by_each_way_a_round_waits_for_whoever_writes_its_segments() {
    let machine = Machine::new();
    let layout = Layout { floats: 1003, block_floats: 64 };
    for way in WAYS {
        machine.world(way, &in_intervals(1), layout, |membership, mut reduce| {
            let member = Member::new(&machine, membership, 0);
            let late = member.gpu.memory(&vec![0; membership.flat_bytes()]);
            let member = Member { segments: vec![late.clone()], ..member };
            let stream = Stream::new(&member.gpu.context).expect("a stream");
            let source = member.gpu.memory(&sum(layout, 0, membership.segments()[0]));
            nap_on(&stream, SHORT);
            // SAFETY: both live until the reduction has waited for the event behind the copy.
            unsafe { stream.copy_within(&late, &source) }.expect("as many bytes");
            stream.mark(&member.after).expect("the stream lives");
            reduce.reduce(member.vectors(), LONG).unwrap_or_else(|error| panic!("{way:?}: {error}"));
            member.check(0, "written late");
        });
    }
}

#[test]
fn a_stream_that_does_not_end_is_told_and_keeps_its_memory() {
    let machine = Machine::new();
    for way in [Way::Nccl(Spread::Sends), Way::Local] {
        machine.world(way, &in_intervals(1), Layout::TAIL_ONLY, |membership, mut reduce| {
            let member = Member::new(&machine, membership, 0);
            let stream = Stream::new(&member.gpu.context).expect("a stream");
            nap_on(&stream, 2 * ABORT_WAITS);
            stream.mark(&member.after).expect("the stream lives");
            let error = reduce.reduce(member.vectors(), SHORT).expect_err("it waits for more than its bound");
            assert!(matches!(error, NcclError::Hung { .. }), "{way:?}: {error}");
            assert!(error.to_string().ends_with("this process must end"), "{error}");
            // Freeing it would wait for the stream.
            let started = Instant::now();
            drop((member.segments, member.reduced));
            assert!(started.elapsed() < ABORT_WAITS / 2 && !stream.is_done().expect("the stream lives"), "{way:?}");
        });
    }
}

#[test]
fn by_each_way_memory_that_is_too_small_is_named() {
    let machine = Machine::new();
    for way in WAYS {
        machine.world(way, &in_intervals(1), Layout { floats: 9, block_floats: 4 }, |membership, mut reduce| {
            let member = Member::new(&machine, membership, 0);
            let short = Member { reduced: member.gpu.memory(&[0; 59]), ..member };
            let error = reduce.reduce(short.vectors(), LONG).expect_err("a byte is missing").to_string();
            assert_eq!(error, "the reduced value has 59 bytes, and the plan needs 60", "{way:?}");
        });
    }
}

#[test]
fn pinned_memory_is_used_again_when_the_frames_that_share_it_are_gone() {
    let machine = Machine::new();
    let layout = Layout { floats: 1003, block_floats: 64 };
    machine.world(Way::Local, &in_intervals(1), layout, |membership, mut reduce| {
        for round in 0..10 {
            let member = Member::new(&machine, membership, round);
            reduce.reduce(member.vectors(), LONG).expect("nobody else is needed");
        }
    });
    let made = machine.gpus[0].pinned_made();
    assert!(made <= 4, "{made} pieces of pinned memory for 10 rounds");
}
