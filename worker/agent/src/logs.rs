//! Keeps what workers print: a file for each view and rank, never deleted by a restart.
//!
//! `<logs>/<job>/slot0.attempt1.gen4.17.rank2.part0.log` holds what the worker in slot 0, started for the
//! first time, printed while it was rank 2 of view 4.17 (`gen0.0.rank-`: in no view yet), as it printed it.
//! A file is closed when the view changes or it is full; each slot of a job keeps its newest
//! [`Bounds::bytes`] in [`Bounds::files`] files. Serving them to the coordinator is `log_service`'s business.

use elastic_spec::api::LogFile;
use elastic_spec::view::read_standing_line;
use elastic_spec::{Epoch, JobId, Rank};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::warn;

/// What is kept of one slot of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// A file is closed at this size.
    pub file_bytes: u64,
    /// All files together; the oldest go first.
    pub bytes: u64,
    pub files: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { file_bytes: 8 << 20, bytes: 64 << 20, files: 256 }
    }
}

/// Longer lines are cut into pieces of this size.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// A disk that refused a line is not asked again before.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The place of a worker in its job at the time of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    pub view: Option<Epoch>,
    pub rank: Option<Rank>,
}

/// Which process prints, and where its files are.
#[derive(Clone, Debug)]
pub struct Series {
    pub dir: PathBuf,
    pub slot: u16,
    pub attempt: u32,
    pub bounds: Bounds,
    pub shelf: Shelf,
    /// The worker says between its lines where it stands: a job that runs a command.
    pub says_standing: bool,
}

/// What the agent knows of its logs: which files are being written, and where each job's are.
#[derive(Clone, Debug, Default)]
pub struct Shelf(Arc<Mutex<Shelved>>);

#[derive(Debug, Default)]
struct Shelved {
    open: BTreeSet<PathBuf>,
    dirs: BTreeMap<JobId, PathBuf>,
    bytes_kept: u64,
    lines_dropped: u64,
}

impl Shelf {
    fn locked(&self) -> MutexGuard<'_, Shelved> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_open(&self, path: &Path) -> bool {
        self.locked().open.contains(path)
    }

    pub fn put(&self, job: &JobId, dir: PathBuf) {
        self.locked().dirs.insert(job.clone(), dir);
    }

    /// Bytes that were kept, and lines that could not be, since the agent began.
    pub fn counted(&self) -> (u64, u64) {
        let shelved = self.locked();
        (shelved.bytes_kept, shelved.lines_dropped)
    }

    pub fn dir(&self, job: &JobId) -> Option<PathBuf> {
        self.locked().dirs.get(job).cloned()
    }
}

/// Copies lines from `output` into files until its end. Runs on a thread of its own: a slow disk then holds
/// up this worker's printing and nothing else. Where the disk refuses lines, they are dropped and the worker
/// prints on: it must not die of a closed pipe because its log has no room.
pub fn keep(output: impl Read, series: Series, standing: watch::Receiver<Standing>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    let mut current: Option<Writing> = None;
    let mut refused: Option<Refused> = None;
    let mut said: Option<Standing> = series.says_standing.then(Standing::default);
    loop {
        line.clear();
        match output.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => return warn!(%error, "a worker's output can no longer be read"),
        }
        if let Some((epoch, rank)) = said.and_then(|_| read_standing_line(&line)) {
            said = Some(Standing { view: Some(epoch), rank: Some(rank) });
            continue;
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        if let Some(refused) = refused.as_mut().filter(|refused| refused.since.elapsed() < AGAIN_AFTER) {
            refused.lines += 1;
            series.shelf.locked().lines_dropped += 1;
            continue;
        }
        let lost = refused.take().map_or(0, |refused| refused.lines);
        let now = said.unwrap_or_else(|| *standing.borrow());
        match put(&line, lost, &mut current, &series, now) {
            Ok(()) => series.shelf.locked().bytes_kept += line.len() as u64,
            Err(error) => {
                series.shelf.locked().lines_dropped += 1;
                if lost == 0 {
                    warn!(%error, dir = %series.dir.display(), "a worker's lines are dropped until they can be kept");
                }
                current = None;
                refused = Some(Refused { since: Instant::now(), lines: lost + 1 });
            }
        }
    }
}

/// Lines could not be kept, and were not tried since.
struct Refused {
    since: Instant,
    lines: u64,
}

/// One line more, into the file of `now`, behind a word on how many lines are missing before it.
fn put(line: &[u8], lost: u64, current: &mut Option<Writing>, series: &Series, now: Standing) -> io::Result<()> {
    let mut file = match current.take() {
        Some(file) if file.standing == now && !file.is_full(line.len()) => file,
        before => {
            drop(before);
            std::fs::create_dir_all(&series.dir)?;
            Writing::open(series, now)?
        }
    };
    if lost > 0 {
        file.write(format!("[{lost} lines could not be kept]\n").as_bytes())?;
    }
    file.write(line)?;
    *current = Some(file);
    Ok(())
}

/// The file that is being written.
struct Writing {
    file: File,
    path: PathBuf,
    bytes: u64,
    standing: Standing,
    series: Series,
}

impl Writing {
    /// Takes up the last part of this standing if it has room, else begins the next.
    fn open(series: &Series, standing: Standing) -> io::Result<Writing> {
        let kept = list(&series.dir, &series.shelf)?;
        let same =
            |name: &&Name| name.slot == series.slot && name.attempt == series.attempt && name.standing == standing;
        let names: Vec<Name> = kept.iter().filter_map(|f| Name::parse(&f.name)).collect();
        let last = names.iter().filter(same).map(|name| name.part).max();
        let room = |part: u32| {
            let path = series.dir.join(series.name(standing, part).to_string());
            std::fs::metadata(path).is_ok_and(|m| m.len() < series.bounds.file_bytes)
        };
        let part = match last {
            None => 0,
            Some(part) if room(part) => part,
            Some(part) => part + 1,
        };
        series.make_room(&kept)?;
        let path = series.dir.join(series.name(standing, part).to_string());
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let bytes = file.metadata()?.len();
        series.shelf.locked().open.insert(path.clone());
        Ok(Writing { file, path, bytes, standing, series: series.clone() })
    }

    fn is_full(&self, more: usize) -> bool {
        self.bytes > 0 && self.bytes + more as u64 > self.series.bounds.file_bytes
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.series.shelf.locked().open.remove(&self.path);
    }
}

impl Series {
    fn name(&self, standing: Standing, part: u32) -> Name {
        Name { slot: self.slot, attempt: self.attempt, standing, part }
    }

    /// Removes this slot's oldest files until one more full file fits the bounds.
    fn make_room(&self, kept: &[LogFile]) -> io::Result<()> {
        let mine: Vec<_> = kept.iter().filter(|f| f.slot == self.slot).collect();
        let mut bytes: u64 = mine.iter().map(|f| f.bytes).sum();
        let mut files = mine.len();
        for file in mine.into_iter().filter(|f| f.sealed) {
            if bytes + self.bounds.file_bytes <= self.bounds.bytes && files < self.bounds.files {
                break;
            }
            std::fs::remove_file(self.dir.join(&file.name))?;
            bytes -= file.bytes;
            files -= 1;
        }
        Ok(())
    }
}

/// A file's name, and with it its place in the order of a slot's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    slot: u16,
    attempt: u32,
    standing: Standing,
    part: u32,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let view = self.standing.view.unwrap_or_default();
        let rank = self.standing.rank.map_or("-".to_string(), |r| r.to_string());
        write!(f, "slot{}.attempt{}.gen{view}.rank{rank}.part{}.log", self.slot, self.attempt, self.part)
    }
}

impl Name {
    fn parse(text: &str) -> Option<Name> {
        let mut fields = text.strip_suffix(".log")?.split('.');
        let mut field = |key: &str| fields.next()?.strip_prefix(key);
        let slot = field("slot")?.parse().ok()?;
        let attempt = field("attempt")?.parse().ok()?;
        let epoch = Epoch::new(field("gen")?.parse().ok()?, field("")?.parse().ok()?);
        let rank = match field("rank")? {
            "-" => None,
            rank => Some(Rank(rank.parse().ok()?)),
        };
        let part = field("part")?.parse().ok()?;
        let view = (epoch != Epoch::default()).then_some(epoch);
        let standing = Standing { view, rank };
        fields.next().is_none().then_some(Name { slot, attempt, standing, part })
    }
}

/// The logs in a job's directory, in the order of printing slot by slot. No directory: no logs.
pub fn list(dir: &Path, shelf: &Shelf) -> io::Result<Vec<LogFile>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let text = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = Name::parse(&text) else { continue };
        // A file that was rotated away between the two calls is not there any more.
        let Ok(metadata) = entry.metadata() else { continue };
        let file = LogFile {
            epoch: name.standing.view,
            rank: name.standing.rank,
            slot: name.slot,
            attempt: name.attempt,
            name: text,
            bytes: metadata.len(),
            sealed: !shelf.is_open(&entry.path()),
        };
        found.push((name, file));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, file)| file).collect())
}

/// The file of that name, if it is the name of a log: whatever a peer asks for, it stays in `dir`.
pub fn path_of(dir: &Path, name: &str) -> Option<PathBuf> {
    Name::parse(name).filter(|parsed| parsed.to_string() == name).map(|_| dir.join(name))
}

/// At most `max` bytes from `offset` on; fewer or none at the end.
pub fn read(path: &Path, offset: u64, max: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::view::standing_line;

    fn series(dir: &Path, bounds: Bounds) -> Series {
        Series { dir: dir.to_path_buf(), slot: 0, attempt: 1, bounds, shelf: Shelf::default(), says_standing: false }
    }

    fn names(dir: &Path) -> Vec<String> {
        list(dir, &Shelf::default()).unwrap().into_iter().map(|f| f.name).collect()
    }

    fn standing(gen_: u64, rank: u16) -> Standing {
        Standing { view: Some(Epoch::new(1, gen_)), rank: Some(Rank(rank)) }
    }

    #[test]
    fn a_name_reads_back_as_written_and_others_are_no_logs() {
        for standing in [Standing::default(), standing(17, 2)] {
            let name = Name { slot: 3, attempt: 2, standing, part: 4 };
            assert_eq!(Name::parse(&name.to_string()), Some(name));
        }
        for bad in
            ["", "x.log", "slot0.attempt1.gen0.0.rank-.part0.log.bak", "../slot0.attempt1.gen0.0.rank-.part0.log"]
        {
            assert_eq!(Name::parse(bad), None, "{bad}");
            assert_eq!(path_of(Path::new("/logs"), bad), None, "{bad}");
        }
        assert_eq!(path_of(Path::new("/logs"), "slot00.attempt1.gen0.0.rank-.part0.log"), None);
    }

    #[test]
    fn what_is_printed_in_another_view_goes_to_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let (set, now) = watch::channel(standing(2, 0));
        keep(&b"one\n"[..], series(dir.path(), Bounds::default()), now.clone());
        set.send_replace(standing(3, 1));
        keep(&b"two\nno end"[..], series(dir.path(), Bounds::default()), now);
        let expected = ["slot0.attempt1.gen1.2.rank0.part0.log", "slot0.attempt1.gen1.3.rank1.part0.log"];
        assert_eq!(names(dir.path()), expected);
        assert_eq!(std::fs::read_to_string(dir.path().join(expected[1])).unwrap(), "two\nno end\n");
    }

    #[test]
    fn a_command_says_between_its_lines_which_generation_they_belong_to() {
        let dir = tempfile::tempdir().unwrap();
        let (_set, now) = watch::channel(standing(9, 9));
        let text = format!(
            "before\n{}one\n{}two\n",
            standing_line(Epoch::new(1, 2), Rank(0)),
            standing_line(Epoch::new(1, 3), Rank(1))
        );
        let series = Series { says_standing: true, ..series(dir.path(), Bounds::default()) };
        keep(text.as_bytes(), series, now);
        let expected = [
            "slot0.attempt1.gen0.0.rank-.part0.log",
            "slot0.attempt1.gen1.2.rank0.part0.log",
            "slot0.attempt1.gen1.3.rank1.part0.log",
        ];
        assert_eq!(names(dir.path()), expected);
        assert_eq!(std::fs::read_to_string(dir.path().join(expected[2])).unwrap(), "two\n");
    }

    #[test]
    fn a_slot_keeps_its_newest_lines_within_its_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let (_set, now) = watch::channel(Standing::default());
        let lines: String = (0..40).map(|i| format!("line {i:02}\n")).collect();
        let bounds = Bounds { file_bytes: 16, bytes: 48, files: 9 };
        keep(lines.as_bytes(), series(dir.path(), bounds), now);
        let kept = list(dir.path(), &Shelf::default()).unwrap();
        assert!(kept.iter().map(|f| f.bytes).sum::<u64>() <= 48, "{kept:?}");
        let text: String = kept.iter().map(|f| std::fs::read_to_string(dir.path().join(&f.name)).unwrap()).collect();
        assert!(text.ends_with("line 38\nline 39\n"), "{text}");
        assert!(kept.len() == 3, "{kept:?}");
    }

    #[test]
    fn the_number_of_files_is_bounded_too() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { file_bytes: 100, bytes: 1_000, files: 3 };
        for gen_ in 1..9 {
            let (_set, now) = watch::channel(standing(gen_, 0));
            keep(&b"x\n"[..], series(dir.path(), bounds), now);
        }
        let kept: Vec<_> =
            list(dir.path(), &Shelf::default()).unwrap().iter().map(|f| f.epoch.unwrap().gen_.0).collect();
        assert_eq!(kept, [6, 7, 8]);
    }

    #[test]
    fn a_series_goes_on_where_an_earlier_agent_stopped() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["one\n", "two\n"] {
            let (_set, now) = watch::channel(Standing::default());
            keep(text.as_bytes(), series(dir.path(), Bounds::default()), now);
        }
        let name = &names(dir.path())[0];
        assert_eq!(read(&dir.path().join(name), 4, 100).unwrap(), b"two\n");
    }

    /// Prints while something is in the way of the logs, takes it away, and prints until a log is there.
    struct Printer {
        logs: PathBuf,
        reads: u32,
    }

    impl Read for Printer {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.reads += 1;
            let text: &[u8] = match self.reads {
                1 => b"lost\nlost\n",
                2 => {
                    std::fs::remove_file(&self.logs)?;
                    b"again\n"
                }
                _ if names(&self.logs).is_empty() && self.reads < 10_000 => {
                    std::thread::sleep(Duration::from_millis(5));
                    b"again\n"
                }
                _ => b"",
            };
            into[..text.len()].copy_from_slice(text);
            Ok(text.len())
        }
    }

    #[test]
    fn lines_that_the_disk_refuses_are_dropped_and_later_ones_kept() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        std::fs::write(&logs, "in the way").unwrap();
        let (_set, now) = watch::channel(Standing::default());
        keep(Printer { logs: logs.clone(), reads: 0 }, series(&logs, Bounds::default()), now);
        let text = std::fs::read_to_string(logs.join(&names(&logs)[0])).unwrap();
        assert!(text.starts_with('[') && text.ends_with(" lines could not be kept]\nagain\n"), "{text}");
    }
}
