//! Ranks as threads of this program, on the fake NCCL: waits that end, aborts from another thread, and NCCL's own sum,
//! which is not exact.

mod common;

use elastic_cuda::libs::search::Surroundings;
use elastic_nccl::communicator::Transfer;
use elastic_nccl::{Aborter, Communicator, Nccl, NcclError, Seat, UniqueId};
use elastic_spec::Rank;
use libloading::os::unix::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Far more than any of this takes.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);

struct Fake {
    nccl: Arc<Nccl>,
    library: Library,
    dir: TempDir,
}

impl Fake {
    fn new() -> Fake {
        let dir = common::temp();
        let path = common::fake_in(dir.path(), &[]);
        let named = Some(format!("{}:-", dir.path().display()));
        let nccl = Nccl::find_in(&Surroundings { named, ..Surroundings::default() }).expect("it was just made");
        // SAFETY: a library of these tests, which does nothing when it is loaded.
        let library = unsafe { Library::new(path) }.expect("it was just loaded");
        Fake { nccl, library, dir }
    }

    /// A place to meet at, as the fake's `ncclGetUniqueId` makes it.
    fn id(&self, name: &str) -> UniqueId {
        let mut bytes = [0; UniqueId::BYTES];
        let path = self.dir.path().join(name).display().to_string();
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        UniqueId::from_bytes(bytes)
    }

    fn stream(&self) -> Stream<'_> {
        // SAFETY: the function takes nothing and gives a stream.
        Stream(self, unsafe {
            self.library.get::<extern "C" fn() -> *mut c_void>(b"fake_stream").expect("it has it")()
        })
    }

    /// A world of threads; each has a communicator and a stream.
    fn world<T: Send>(&self, name: &str, world: u16, f: impl Fn(u16, Communicator, &Stream<'_>) -> T + Sync) -> Vec<T> {
        let rank = |rank: u16| {
            let joining = self.nccl.join(Seat { rank: Rank(rank), world }, self.id(name)).expect("the seat is free");
            f(rank, joining.ready(LONG).expect("all come"), &self.stream())
        };
        thread::scope(|scope| {
            let ranks: Vec<_> = (0..world).map(|r| scope.spawn(move || rank(r))).collect();
            ranks.into_iter().map(|rank| rank.join().expect("a rank ends")).collect()
        })
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        let count = |name: &str| {
            // SAFETY: the function takes nothing and gives an int.
            unsafe { self.library.get::<extern "C" fn() -> c_int>(name.as_bytes()).expect("the fake has it")() }
        };
        // SAFETY: the function takes nothing and gives a text that stays.
        let said = unsafe {
            let last = self.library.get::<extern "C" fn() -> *const c_char>(b"fake_last_violation");
            CStr::from_ptr(last.expect("the fake has it")()).to_string_lossy().into_owned()
        };
        assert_eq!((count("fake_violations"), said.as_str()), (0, ""), "NCCL's rules were kept");
        assert_eq!(count("fake_living"), 0, "each communicator was ended");
    }
}

struct Stream<'a>(&'a Fake, *mut c_void);

impl Stream<'_> {
    fn is_done(&self) -> Result<bool, String> {
        // SAFETY: the function takes the stream and gives an int.
        let done = unsafe { self.0.library.get::<extern "C" fn(*mut c_void) -> c_int>(b"fake_stream_is_done") };
        Ok(done.expect("the fake has it")(self.1) != 0)
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        // SAFETY: the function takes the stream, which is not used any more.
        unsafe {
            self.0.library.get::<extern "C" fn(*mut c_void)>(b"fake_stream_end").expect("the fake has it")(self.1)
        };
    }
}

#[test]
fn a_rank_that_does_not_come_is_late_and_not_a_hang() {
    let fake = Fake::new();
    let joining = fake.nccl.join(Seat { rank: Rank(0), world: 2 }, fake.id("a")).expect("the seat is free");
    let late = joining.ready(SHORT).err().expect("nobody comes");
    assert!(late.to_string().starts_with("ncclCommInitRankConfig was not done after "), "{late}");
}

#[test]
fn a_seat_that_is_never_taken_up_is_given_back() {
    let fake = Fake::new();
    drop(fake.nccl.join(Seat { rank: Rank(0), world: 2 }, fake.id("a")).expect("the seat is free"));
}

#[test]
fn another_thread_aborts_a_rank_that_waits_for_the_others() {
    let fake = Fake::new();
    let joining = fake.nccl.join(Seat { rank: Rank(0), world: 2 }, fake.id("a")).expect("the seat is free");
    let aborter = joining.aborter();
    let waiting = thread::spawn(move || joining.ready(LONG).err());
    aborter.abort().expect("no call takes long");
    let said = waiting.join().expect("it ends").expect("nobody comes");
    assert!(matches!(said, NcclError::Aborted { .. }), "{said}");
}

/// Memory for one transfer, which stays where it is.
fn memory(bytes: usize) -> usize {
    Box::leak(vec![7u8; bytes].into_boxed_slice()).as_mut_ptr() as usize
}

#[test]
fn another_thread_aborts_a_group_whose_other_end_never_comes() {
    let fake = Fake::new();
    let (give, take) = mpsc::sync_channel::<Aborter>(1);
    let said = thread::scope(|scope| {
        scope.spawn(move || {
            let started = Instant::now();
            take.recv().expect("rank 0 sends it").abort().expect("no call takes long");
            assert!(started.elapsed() < LONG);
        });
        let both = fake.world("a", 2, |rank, mut communicator, stream| {
            if rank == 1 {
                // Closes without ever having sent: the other is not at its end, so this is an error here too.
                return communicator.close(LONG).expect_err("rank 0 does not close");
            }
            let group = [Transfer::Receive { address: memory(8), bytes: 8, from: Rank(1) }];
            // SAFETY: the memory stays, and the stream is the fake's.
            unsafe { communicator.exchange(&group, stream.1, LONG) }.expect("it is put on the stream");
            give.send(communicator.aborter()).expect("it waits");
            communicator.finish(LONG, || stream.is_done()).expect_err("it was aborted")
        });
        drop(give);
        both
    });
    assert_eq!(said[0], NcclError::Aborted { call: "the stream" }, "a stream that was ended is not one that is done");
    assert!(matches!(said[1], NcclError::Call { call: "ncclCommFinalize", code: 6, .. }), "{:?}", said[1]);
}

#[test]
fn a_transfer_of_another_size_and_a_rank_of_another_world_are_errors() {
    let fake = Fake::new();
    let said = fake.world("a", 2, |rank, mut communicator, stream| {
        let group = match rank {
            0 => Transfer::Send { address: memory(8), bytes: 8, to: Rank(1) },
            _ => Transfer::Receive { address: memory(4), bytes: 4, from: Rank(0) },
        };
        // SAFETY: the memory stays, and the stream is the fake's.
        let put = unsafe { communicator.exchange(&[group], stream.1, LONG) };
        put.and_then(|()| communicator.finish(LONG, || stream.is_done())).and_then(|()| communicator.close(LONG)).err()
    });
    assert!(said.iter().any(|said| matches!(said, Some(NcclError::Call { code: 3, .. }))), "{said:?}");

    let said = fake.world("b", 1, |_, mut communicator, stream| {
        let group = [Transfer::Send { address: memory(8), bytes: 8, to: Rank(1) }];
        // SAFETY: the memory stays, and the stream is the fake's.
        unsafe { communicator.exchange(&group, stream.1, LONG) }.expect_err("there is no rank 1")
    });
    assert_eq!(
        said[0].to_string(),
        "ncclSend: invalid argument (4): ncclSend with rank 1 of 1; this is a fault of elastic itself; NCCL_DEBUG=WARN says which argument"
    );
}

#[test]
fn nccls_own_sum_is_there_for_benches_and_depends_on_the_number_of_ranks() {
    let fake = Fake::new();
    const LEAVES: usize = 12;
    const FLOATS: usize = 60;
    let leaf =
        |shard: usize, i: usize| ((shard * 7919 + i * 104729) % 10007) as f32 * 1.1f32.powi((shard * 5 % 12) as i32);
    let sums: Vec<Vec<u32>> = [1u16, 2, 3, 4]
        .into_iter()
        .map(|world| {
            let all = fake.world(&format!("w{world}"), world, |rank, mut communicator, stream| {
                let own = (0..LEAVES).filter(|shard| shard % usize::from(world) == usize::from(rank));
                let own: Vec<usize> = own.collect();
                let from: Vec<f32> = (0..FLOATS).map(|i| own.iter().map(|shard| leaf(*shard, i)).sum()).collect();
                let mut to = vec![0f32; FLOATS];
                let (at, out) = (from.as_ptr() as usize, to.as_mut_ptr() as usize);
                // SAFETY: both vectors stay until the stream is done.
                unsafe { communicator.all_reduce_fast(at, out, FLOATS, stream.1, LONG) }.expect("all come");
                communicator.finish(LONG, || stream.is_done()).expect("all come");
                communicator.close(LONG).expect("all close");
                to.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
            });
            assert!(all.iter().all(|one| *one == all[0]), "the ranks of one world agree");
            all[0].clone()
        })
        .collect();
    assert!(sums.iter().any(|sum| *sum != sums[0]), "the worlds do not, which is why it is not used");
}
