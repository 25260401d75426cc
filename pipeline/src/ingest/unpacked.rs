//! A file's bytes, unpacked if they are a gzip stream, whatever the file is called.

use super::IngestError;
use elastic_spec::limits::DATA_BYTES_MAX;
use std::io::Read;
use std::path::Path;

pub fn read(path: &Path) -> Result<Vec<u8>, IngestError> {
    let unreadable = |source| IngestError::Unreadable { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(DATA_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let malformed = |problem| IngestError::Malformed { path: path.into(), problem };
    if bytes.len() as u64 > DATA_BYTES_MAX {
        return Err(malformed(format!(
            "is larger than {DATA_BYTES_MAX} bytes, the most that is read; cut it in parts"
        )));
    }
    unpack(bytes, DATA_BYTES_MAX).map_err(malformed)
}

fn unpack(packed: Vec<u8>, most: u64) -> Result<Vec<u8>, String> {
    if !packed.starts_with(&[0x1f, 0x8b]) {
        return Ok(packed);
    }
    let mut bytes = Vec::new();
    match flate2::bufread::MultiGzDecoder::new(&packed[..]).take(most + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 <= most => Ok(bytes),
        Ok(_) => Err(format!("unpacks to more than {most} bytes, the most that is read; cut it in parts")),
        Err(error) => {
            let done = bytes.len();
            Err(format!(
                "the gzip stream breaks off after {done} unpacked bytes ({error}); pack or copy the file again"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_packed_file_is_unpacked_and_a_truncated_one_says_where_it_ends() {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(&[7; 5000]).unwrap();
        let packed = packer.finish().unwrap();
        assert_eq!(unpack(packed.clone(), 5000).unwrap(), vec![7; 5000]);
        assert!(unpack(packed.clone(), 4999).unwrap_err().contains("more than 4999 bytes"));
        let told = unpack(packed[..packed.len() - 9].to_vec(), 5000).unwrap_err();
        assert!(told.contains("breaks off after") && told.contains("copy the file again"), "{told}");
        assert_eq!(unpack(b"plain".to_vec(), 9).unwrap(), b"plain");
    }
}
