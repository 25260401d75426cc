//! Whether a cubin is whole. The driver takes a pointer and no length, and believes what the file says of itself.

use crate::error::{CudaError, Result};

const HEAD_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
/// Of a section that takes no room in the file.
const NO_BITS: u32 = 8;

/// An error unless all that the file's head and sections point at lies in it.
pub fn check(file: &[u8]) -> Result<()> {
    let bad = |why: String| Err(CudaError::NotWhole { bytes: file.len() as u64, why });
    if file.len() < HEAD_BYTES || !file.starts_with(b"\x7fELF\x02\x01") {
        return bad("it does not begin as an ELF file of 64 bits".into());
    }
    let fits = |at: u64, bytes: u64| at.checked_add(bytes).is_some_and(|end| end <= file.len() as u64);
    let (segments, sections) = (u64_at(file, 32), u64_at(file, 40));
    let (segment_bytes, segment_count) = (u16_at(file, 54), u16_at(file, 56));
    let (section_bytes, section_count) = (u16_at(file, 58), u16_at(file, 60));
    if !fits(segments, u64::from(segment_bytes) * u64::from(segment_count)) {
        return bad("its segments' table ends behind it".into());
    }
    if !fits(sections, u64::from(section_bytes) * u64::from(section_count)) {
        return bad("its sections' table ends behind it".into());
    }
    if section_count > 0 && usize::from(section_bytes) != SECTION_BYTES {
        return bad(format!("a section's entry has {section_bytes} bytes, not {SECTION_BYTES}"));
    }
    for section in 0..usize::from(section_count) {
        let entry = &file[sections as usize + section * SECTION_BYTES..][..SECTION_BYTES];
        let (kind, at, bytes) = (u32_at(entry, 4), u64_at(entry, 24), u64_at(entry, 32));
        if kind != NO_BITS && !fits(at, bytes) {
            return bad(format!("its section {section} ends behind it"));
        }
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head, a section of 8 bytes, and the table of this one section.
    fn file() -> Vec<u8> {
        let mut file = vec![0; HEAD_BYTES + 8 + SECTION_BYTES];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[40..48].copy_from_slice(&72u64.to_le_bytes());
        file[58..60].copy_from_slice(&64u16.to_le_bytes());
        file[60..62].copy_from_slice(&1u16.to_le_bytes());
        file[72 + 24..72 + 32].copy_from_slice(&64u64.to_le_bytes());
        file[72 + 32..72 + 40].copy_from_slice(&8u64.to_le_bytes());
        file
    }

    #[test]
    fn a_whole_file_passes_and_every_cut_one_is_refused() {
        assert_eq!(check(&file()), Ok(()));
        for length in 0..file().len() {
            assert!(matches!(check(&file()[..length]), Err(CudaError::NotWhole { .. })), "cut at {length}");
        }
    }

    #[test]
    fn places_outside_are_refused_however_large() {
        for (at, why) in [(32, "segments"), (40, "sections' table"), (72 + 24, "section 0"), (72 + 32, "section 0")] {
            for value in [137u64, u64::MAX] {
                let mut file = file();
                file[54..58].copy_from_slice(&[1, 0, 1, 0]);
                file[at..at + 8].copy_from_slice(&value.to_le_bytes());
                assert!(check(&file).is_err_and(|error| error.to_string().contains(why)), "{value} at {at}");
            }
        }
        let mut empty = file();
        empty[72 + 4] = NO_BITS as u8;
        empty[72 + 32] = 255;
        assert_eq!(check(&empty), Ok(()), "a section without bits may be of any size");
    }
}
