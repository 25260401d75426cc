//! Input files as bytes: read whole, digested as they lie on the disk, unpacked where they are packed.

use crate::LoaderError;
use elastic_spec::Digest;
use elastic_spec::job::DataSpec;
use elastic_spec::limits::DATA_BYTES_MAX;
use std::io::Read;
use std::path::{Path, PathBuf};

/// One file of the data, as it lies on the disk.
pub(crate) struct Input {
    pub key: &'static str,
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

/// All files of the data, in the order in which their digest is taken.
pub(crate) fn read(data: &DataSpec, files: &dyn Fn(&str) -> PathBuf) -> Result<Vec<Input>, LoaderError> {
    data.inputs().into_iter().map(|input| one(input.key, files(input.path))).collect()
}

/// The file of one key.
pub(crate) fn one(key: &'static str, path: PathBuf) -> Result<Input, LoaderError> {
    let bytes = read_file(&path).map_err(|source| LoaderError::Unreadable { path: path.clone(), source })?;
    Ok(Input { key, path, bytes })
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::with_capacity(size.min(DATA_BYTES_MAX) as usize);
    file.take(DATA_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > DATA_BYTES_MAX {
        let message = format!("larger than {DATA_BYTES_MAX} bytes, the most that is read into memory");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// Of one file its own SHA-256, as `sha256sum` prints it; of several that of the lines `<hex>  <key>`.
pub(crate) fn digest(inputs: &[Input]) -> Option<Digest> {
    match inputs {
        [] => None,
        [input] => Some(Digest::of(&input.bytes)),
        several => {
            let line = |input: &Input| format!("{}  {}\n", Digest::of(&input.bytes), input.key);
            Some(Digest::of(several.iter().map(line).collect::<String>().as_bytes()))
        }
    }
}

/// The bytes of `input`, unpacked if they are a gzip stream (whatever the file is called).
pub(crate) fn unpacked(input: Input) -> Result<(PathBuf, Vec<u8>), LoaderError> {
    if !input.bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok((input.path, input.bytes));
    }
    let mut bytes = Vec::new();
    let unpack =
        flate2::bufread::MultiGzDecoder::new(&input.bytes[..]).take(DATA_BYTES_MAX + 1).read_to_end(&mut bytes);
    let problem = match unpack {
        Ok(_) if bytes.len() as u64 <= DATA_BYTES_MAX => return Ok((input.path, bytes)),
        Ok(_) => format!("unpacks to more than {DATA_BYTES_MAX} bytes, the most that is held in memory"),
        Err(error) => {
            let done = bytes.len();
            format!("the gzip stream breaks off after {done} unpacked bytes ({error}); pack or copy the file again")
        }
    };
    Err(LoaderError::Malformed { path: input.path, problem })
}
