//! Files of the run's directory, replaced whole: written aside, made durable, renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, IntoInnerError, Write};
use std::path::Path;

/// Makes the file at `path` what `write` writes; whoever reads it finds the old one or the new one, whole.
///
/// `by` names the writer among all that may write this file at once: process ids alone are the same in many
/// containers that share a directory.
pub fn replace(path: &Path, by: &str, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // The name is hidden and ends in .tmp: nobody takes it for the file itself.
    let aside = folder.join(format!(".{by}-{}.tmp", std::process::id()));
    let replaced = (|| {
        let mut file = BufWriter::new(File::create(&aside)?);
        write(&mut file)?;
        file.into_inner().map_err(IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&aside, path)
    })();
    if replaced.is_err() {
        let _ = fs::remove_file(&aside);
    }
    replaced?;
    File::open(folder)?.sync_all()
}

/// [`replace`] with bytes that lie ready.
pub fn replace_by(path: &Path, by: &str, bytes: &[u8]) -> io::Result<()> {
    replace(path, by, |file| file.write_all(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_fails_leaves_the_old_file_and_nothing_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper/file");
        replace_by(&path, "w1", b"old").unwrap();
        replace(&path, "w1", |file| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
    }
}
