//! A disk in memory that fails as real ones do: what was not synced may be lost, torn or reordered.
//!
//! For tests of the writer, here and in the simulator. Each directory and each file has what a power failure
//! leaves (its synced part) and what has happened since. A crash keeps, for every file, any selection of the
//! unsynced sectors of its unsynced writes, and for every directory any selection of its unsynced entry
//! changes, in order. A clone is the same disk.

use crate::disk::{Disk, DiskFile};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// A write is torn at multiples of this.
const SECTOR_BYTES: usize = 512;

/// What a sync is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncs {
    Kept,
    /// The disk says yes and does nothing: what a writer that forgets to sync would see.
    Ignored,
}

/// What the end of the machine takes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// kill -9: the kernel still writes everything.
    Process,
    /// Only what was synced is certain.
    Power { seed: u64 },
}

#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    nodes: Vec<Node>,
    syncs: Syncs,
    operations: u64,
    /// The operation that is interrupted, and everything after it.
    crash_at: Option<u64>,
}

type NodeId = usize;
const ROOT: NodeId = 0;

#[derive(Clone)]
enum Node {
    Dir { synced: Entries, since: Vec<Change> },
    File { synced: Vec<u8>, since: Vec<Write> },
}

type Entries = BTreeMap<String, NodeId>;
/// Entries set or removed together: a rename within a directory is one change.
type Change = Vec<(String, Option<NodeId>)>;

#[derive(Clone)]
struct Write {
    offset: usize,
    bytes: Vec<u8>,
}

impl Default for SimDisk {
    fn default() -> SimDisk {
        SimDisk::new(Syncs::Kept)
    }
}

impl SimDisk {
    pub fn new(syncs: Syncs) -> SimDisk {
        SimDisk::of(vec![Node::empty_dir()], syncs)
    }

    fn of(nodes: Vec<Node>, syncs: Syncs) -> SimDisk {
        SimDisk { state: Arc::new(Mutex::new(State { nodes, syncs, operations: 0, crash_at: None })) }
    }

    /// Operations so far: each is a place to crash at.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The operation with this number (from 0) is interrupted half way and fails, and all after it fail.
    pub fn crash_at(&self, operation: u64) {
        self.state().crash_at = Some(operation);
    }

    /// The disk as the machine finds it when it comes up again.
    pub fn after(&self, failure: Failure) -> SimDisk {
        let state = self.state();
        let mut draw = Draw(match failure {
            Failure::Process => 0,
            Failure::Power { seed } => seed.wrapping_mul(2).wrapping_add(1),
        });
        let nodes = state.nodes.iter().map(|node| node.after(failure, &mut draw)).collect();
        SimDisk::of(nodes, state.syncs)
    }

    /// Flips a bit of a file: for tests of readers.
    pub fn flip(&self, path: &Path, byte: usize, bit: u8) {
        self.change(path, |bytes| bytes[byte] ^= 1 << bit);
    }

    /// Changes a file's bytes behind everyone's back.
    pub fn change(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let id = state.find(path).expect("the file is there");
        let mut bytes = state.nodes[id].bytes().expect("it is a file");
        change(&mut bytes);
        state.nodes[id] = Node::File { synced: bytes, since: Vec::new() };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics with the disk in hand")
    }
}

/// A small generator: which unsynced pieces survive.
struct Draw(u64);

impl Draw {
    fn coin(&mut self) -> bool {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 60) & 1 == 1
    }
}

impl Node {
    fn empty_dir() -> Node {
        Node::Dir { synced: Entries::new(), since: Vec::new() }
    }

    fn after(&self, failure: Failure, draw: &mut Draw) -> Node {
        let mut survives = || failure == Failure::Process || draw.coin();
        match self {
            Node::Dir { synced, since } => {
                let mut entries = synced.clone();
                since.iter().filter(|_| survives()).for_each(|change| apply(&mut entries, change));
                Node::Dir { synced: entries, since: Vec::new() }
            }
            Node::File { synced, since } => {
                let mut bytes = synced.clone();
                for write in since {
                    for (i, sector) in write.bytes.chunks(SECTOR_BYTES).enumerate() {
                        if survives() {
                            put(&mut bytes, write.offset + i * SECTOR_BYTES, sector);
                        }
                    }
                }
                Node::File { synced: bytes, since: Vec::new() }
            }
        }
    }

    /// A file's bytes as programs see them.
    fn bytes(&self) -> Option<Vec<u8>> {
        let Node::File { synced, since } = self else { return None };
        let mut bytes = synced.clone();
        since.iter().for_each(|write| put(&mut bytes, write.offset, &write.bytes));
        Some(bytes)
    }

    /// A directory's entries as programs see them.
    fn entries(&self) -> Option<Entries> {
        let Node::Dir { synced, since } = self else { return None };
        let mut entries = synced.clone();
        since.iter().for_each(|change| apply(&mut entries, change));
        Some(entries)
    }
}

fn apply(entries: &mut Entries, change: &Change) {
    for (name, node) in change {
        match node {
            Some(node) => entries.insert(name.clone(), *node),
            None => entries.remove(name),
        };
    }
}

/// A sector behind a lost one leaves zeros between.
fn put(bytes: &mut Vec<u8>, offset: usize, piece: &[u8]) {
    if bytes.len() < offset + piece.len() {
        bytes.resize(offset + piece.len(), 0);
    }
    bytes[offset..offset + piece.len()].copy_from_slice(piece);
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl State {
    /// Counts an operation; an error if the machine is down. `Ok(true)`: it goes down in the middle of this one.
    fn begin(&mut self) -> io::Result<bool> {
        let operation = self.operations;
        self.operations += 1;
        match self.crash_at {
            Some(at) if operation > at => Err(io::Error::other("the machine is down")),
            Some(at) => Ok(operation == at),
            None => Ok(false),
        }
    }

    fn find(&self, path: &Path) -> io::Result<NodeId> {
        let mut at = ROOT;
        for part in path.components().filter(|c| matches!(c, std::path::Component::Normal(_))) {
            let entries = self.nodes[at].entries().ok_or_else(not_found)?;
            at = *entries.get(&*part.as_os_str().to_string_lossy()).ok_or_else(not_found)?;
        }
        Ok(at)
    }

    fn entries(&self, dir: NodeId) -> io::Result<Entries> {
        self.nodes[dir].entries().ok_or_else(|| io::ErrorKind::NotADirectory.into())
    }

    /// Changes entries of `dir`, unsynced.
    fn change(&mut self, dir: NodeId, change: Change) {
        if let Node::Dir { since, .. } = &mut self.nodes[dir] {
            since.push(change);
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<NodeId> {
        let dir = self.find(crate::disk::parent_of(path))?;
        if self.entries(dir)?.contains_key(&name_of(path)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.nodes.push(node);
        let id = self.nodes.len() - 1;
        self.change(dir, vec![(name_of(path), Some(id))]);
        Ok(id)
    }

    fn sync(&mut self, id: NodeId) {
        if self.syncs == Syncs::Ignored {
            return;
        }
        let node = &self.nodes[id];
        self.nodes[id] = match node.entries() {
            Some(entries) => Node::Dir { synced: entries, since: Vec::new() },
            None => Node::File { synced: node.bytes().unwrap_or_default(), since: Vec::new() },
        };
    }
}

fn down() -> io::Error {
    io::Error::other("the machine went down")
}

impl Disk for SimDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        if self.state().find(path).is_ok() {
            return Ok(());
        }
        let parent = crate::disk::parent_of(path);
        self.create_dir_all(parent)?;
        self.create_dir(path)?;
        self.sync_dir(parent)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let interrupted = state.begin()?;
        state.add(path, Node::empty_dir())?;
        if interrupted { Err(down()) } else { Ok(()) }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let interrupted = state.begin()?;
        let id = state.add(path, Node::File { synced: Vec::new(), since: Vec::new() })?;
        if interrupted { Err(down()) } else { Ok(Box::new(SimFile { disk: self.clone(), id, length: 0 })) }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let interrupted = state.begin()?;
        let id = state.find(path)?;
        if interrupted {
            return Err(down());
        }
        state.sync(id);
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let interrupted = state.begin()?;
        let id = state.find(from)?;
        let (from_dir, to_dir) = (state.find(crate::disk::parent_of(from))?, state.find(crate::disk::parent_of(to))?);
        if state.entries(to_dir)?.contains_key(&name_of(to)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        assert_eq!(from_dir, to_dir, "checkpoints are renamed within their directory");
        state.change(to_dir, vec![(name_of(from), None), (name_of(to), Some(id))]);
        if interrupted { Err(down()) } else { Ok(()) }
    }

    /// As real ones do it: entry by entry, each a place to crash at.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        for name in self.names(path)? {
            let mut state = self.state();
            let interrupted = state.begin()?;
            let dir = state.find(path)?;
            state.change(dir, vec![(name, None)]);
            if interrupted {
                return Err(down());
            }
        }
        let mut state = self.state();
        let interrupted = state.begin()?;
        let dir = state.find(crate::disk::parent_of(path))?;
        state.find(path)?;
        state.change(dir, vec![(name_of(path), None)]);
        if interrupted { Err(down()) } else { Ok(()) }
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state();
        if state.begin()? {
            return Err(down());
        }
        match state.find(dir) {
            Ok(id) => Ok(state.entries(id)?.into_keys().collect()),
            Err(_) => Ok(Vec::new()),
        }
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        let mut state = self.state();
        if state.begin()? {
            return Err(down());
        }
        let id = state.find(path)?;
        Ok(state.nodes[id].bytes().map_or(4096, |bytes| bytes.len() as u64))
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut state = self.state();
        if state.begin()? {
            return Err(down());
        }
        let id = state.find(path)?;
        let mut bytes = state.nodes[id].bytes().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
        bytes.truncate(limit.try_into().unwrap_or(usize::MAX));
        Ok(bytes)
    }
}

struct SimFile {
    disk: SimDisk,
    id: NodeId,
    length: usize,
}

impl DiskFile for SimFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let interrupted = state.begin()?;
        // What the kernel had taken when the machine went down: half of it.
        let taken = if interrupted { &bytes[..bytes.len() / 2] } else { bytes };
        let offset = self.length;
        if let Node::File { since, .. } = &mut state.nodes[self.id] {
            since.push(Write { offset, bytes: taken.to_vec() });
        }
        self.length += taken.len();
        if interrupted { Err(down()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.begin()? {
            return Err(down());
        }
        state.sync(self.id);
        Ok(())
    }
}
