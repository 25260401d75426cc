//! NumPy's .npy files, versions 1 to 3: features and classes as two arrays.

use crate::samples::Samples;

/// An array as it lies in the file.
#[derive(Debug)]
struct Array<'a> {
    shape: Vec<usize>,
    kind: Kind,
    data: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    F32,
    F64,
    U8,
    I32,
    I64,
}

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Kind::U8 => 1,
            Kind::F32 | Kind::I32 => 4,
            Kind::F64 | Kind::I64 => 8,
        }
    }
}

/// Features of shape (samples, …), multiplied by `scale`.
pub(crate) struct Features {
    samples: usize,
    width: usize,
    numbers: Vec<f32>,
}

pub(crate) fn features(bytes: &[u8], scale: f32) -> Result<Features, String> {
    let array = array(bytes)?;
    let (samples, axes) = match array.shape.split_first() {
        Some((samples, axes)) if *samples > 0 && !axes.is_empty() && axes.iter().all(|axis| *axis > 0) => {
            (*samples, axes)
        }
        _ => return Err(format!("has the shape {:?}; (samples, features…) is wanted, none of them 0", array.shape)),
    };
    let width = axes.iter().product();
    let mut numbers = Vec::with_capacity(samples * width);
    for (at, bytes) in array.data.chunks_exact(array.kind.bytes()).enumerate() {
        let number = real(array.kind, bytes);
        numbers.push(elastic_transform::scaled(number, scale).ok_or_else(|| {
            let (sample, place) = (at / width, at % width);
            format!(
                "sample {sample}, number {place} (both from 0) is {}; only finite numbers can be learnt from",
                number * scale
            )
        })?);
    }
    Ok(Features { samples, width, numbers })
}

/// Numbers of one sample.
pub(crate) fn width(bytes: &[u8]) -> Result<usize, String> {
    Ok(array(bytes)?.shape.iter().skip(1).product())
}

/// The samples of both arrays; `classes_bytes` of shape (samples).
pub(crate) fn join(features: Features, classes_bytes: &[u8], class_count: u32) -> Result<Samples, String> {
    let array = array(classes_bytes)?;
    if array.shape != [features.samples] {
        let (shape, wanted) = (&array.shape, features.samples);
        return Err(format!("has the shape {shape:?}; ({wanted},) is wanted, one class for each sample of data.x"));
    }
    let mut classes = Vec::with_capacity(features.samples);
    for (sample, bytes) in array.data.chunks_exact(array.kind.bytes()).enumerate() {
        let class = integer(array.kind, bytes).ok_or("holds reals; store the classes as integers: y.astype('<i4')")?;
        if class < 0 || class >= i64::from(class_count) {
            return Err(format!(
                "sample {sample} (from 0) has class {class}; data.classes = {class_count} allows 0 to {}",
                class_count - 1
            ));
        }
        classes.push(class as i32);
    }
    let Features { width, numbers, .. } = features;
    Ok(Samples::Rows { features: numbers, classes, width, class_count: class_count as usize })
}

fn real(kind: Kind, bytes: &[u8]) -> f32 {
    match kind {
        Kind::F32 => f32::from_le_bytes(bytes.try_into().expect("four bytes")),
        Kind::F64 => f64::from_le_bytes(bytes.try_into().expect("eight bytes")) as f32,
        Kind::U8 | Kind::I32 | Kind::I64 => integer(kind, bytes).expect("an integer kind") as f32,
    }
}

fn integer(kind: Kind, bytes: &[u8]) -> Option<i64> {
    match kind {
        Kind::U8 => Some(i64::from(bytes[0])),
        Kind::I32 => Some(i64::from(i32::from_le_bytes(bytes.try_into().expect("four bytes")))),
        Kind::I64 => Some(i64::from_le_bytes(bytes.try_into().expect("eight bytes"))),
        Kind::F32 | Kind::F64 => None,
    }
}

/// The header: magic, version, length, and a Python dictionary of three entries.
fn array(bytes: &[u8]) -> Result<Array<'_>, String> {
    let broken = |at: usize, what: &str| format!("byte {at}: {what}; write the file again with numpy.save");
    if !bytes.starts_with(b"\x93NUMPY") {
        return Err(broken(0, "no .npy file (an .npz archive holds several: save each array by itself)"));
    }
    let cut_off = || broken(bytes.len(), "ends inside the header");
    let head = bytes.get(6..).and_then(|rest| rest.first_chunk::<6>()).ok_or_else(cut_off)?;
    let (start, length): (usize, usize) = match *head {
        [1, _, a, b, ..] => (10, u16::from_le_bytes([a, b]) as usize),
        [2 | 3, _, a, b, c, d] => (12, u32::from_le_bytes([a, b, c, d]) as usize),
        [version, ..] => return Err(broken(6, &format!("version {version}; versions 1 to 3 are read"))),
    };
    let header = bytes.get(start..start.saturating_add(length)).ok_or_else(cut_off)?;
    let header = std::str::from_utf8(header).map_err(|_| broken(start, "the header is no text"))?;
    let kind = kind(header).map_err(|what| format!("byte {start}: {what}"))?;
    match value_of(header, "fortran_order") {
        Some(order) if order.starts_with("False") => {}
        Some(order) if order.starts_with("True") => {
            return Err(format!("byte {start}: in Fortran's order; save numpy.ascontiguousarray(…) instead"));
        }
        _ => return Err(broken(start, "the header has no fortran_order")),
    }
    let shape = shape(header).ok_or_else(|| broken(start, "the header has no shape that can be read"))?;
    let data = &bytes[start + length..];
    let wanted = shape.iter().try_fold(kind.bytes(), |product, axis| product.checked_mul(*axis));
    if wanted != Some(data.len()) {
        let wanted = wanted.map_or("more than 2^64".to_string(), |wanted| wanted.to_string());
        let what = format!("{} bytes of data follow the header, and shape {shape:?} needs {wanted}", data.len());
        return Err(broken(start + length, &what));
    }
    Ok(Array { shape, kind, data })
}

/// What stands behind `'key':` in the header.
fn value_of<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(&format!("'{key}'"))?;
    Some(rest.trim_start().strip_prefix(':')?.trim_start())
}

fn kind(header: &str) -> Result<Kind, String> {
    let descr = value_of(header, "descr").ok_or("the header has no descr")?;
    let descr = descr.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).map(|(descr, _)| descr);
    match descr {
        Some("<f4") => Ok(Kind::F32),
        Some("<f8") => Ok(Kind::F64),
        Some("|u1" | "<u1" | "u1") => Ok(Kind::U8),
        Some("<i4") => Ok(Kind::I32),
        Some("<i8") => Ok(Kind::I64),
        other => {
            let shown: String = other.unwrap_or("a record").chars().take(20).flat_map(char::escape_debug).collect();
            Err(format!("holds {shown}; f4, f8, u1, i4 and i8 (little-endian) are read: save array.astype('<f4')"))
        }
    }
}

fn shape(header: &str) -> Option<Vec<usize>> {
    let (axes, _) = value_of(header, "shape")?.strip_prefix('(')?.split_once(')')?;
    let axes = axes.split(',').map(str::trim).filter(|axis| !axis.is_empty());
    axes.map(|axis| axis.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn npy(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((header.len() as u16).to_le_bytes()),
            _ => bytes.extend((header.len() as u32).to_le_bytes()),
        }
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn header(descr: &str, shape: &str) -> String {
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}          \n")
    }

    fn read(x: &[u8], y: &[u8]) -> Result<(usize, Vec<f32>, Vec<i32>), String> {
        match join(features(x, 0.5)?, y, 3)? {
            Samples::Rows { features, classes, width, .. } => Ok((width, features, classes)),
            Samples::Windows { .. } => panic!("npy gives rows"),
        }
    }

    #[test]
    fn every_kind_and_version_is_read() {
        let wanted = Ok((2, vec![0.5, 1.0, 1.5, 2.0], vec![2, 0]));
        let numbers = [1u8, 2, 3, 4];
        let bytes = |to: fn(u8) -> Vec<u8>| numbers.iter().flat_map(|number| to(*number)).collect::<Vec<u8>>();
        let y = npy(1, &header("<i8", "(2,)"), &[2i64, 0].map(i64::to_le_bytes).concat());
        for (descr, data) in [
            ("<f4", bytes(|n| f32::from(n).to_le_bytes().to_vec())),
            ("<f8", bytes(|n| f64::from(n).to_le_bytes().to_vec())),
            ("|u1", numbers.to_vec()),
            ("<i4", bytes(|n| i32::from(n).to_le_bytes().to_vec())),
            ("<i8", bytes(|n| i64::from(n).to_le_bytes().to_vec())),
        ] {
            for version in 1..=3 {
                assert_eq!(
                    read(&npy(version, &header(descr, "(2, 2)"), &data), &y),
                    wanted,
                    "{descr} version {version}"
                );
            }
        }
        assert_eq!(read(&npy(1, &header("|u1", "(2, 1, 2)"), &numbers), &y), wanted);
    }

    #[test]
    fn mistakes_name_the_place_and_the_cure() {
        let x = npy(1, &header("|u1", "(2, 2)"), &[1, 2, 3, 4]);
        let y = npy(1, &header("|u1", "(2,)"), &[0, 3]);
        assert_eq!(read(&x, &y).unwrap_err(), "sample 1 (from 0) has class 3; data.classes = 3 allows 0 to 2");
        let y = npy(1, &header("|u1", "(3,)"), &[0, 1, 1]);
        assert_eq!(read(&x, &y).unwrap_err(), "has the shape [3]; (2,) is wanted, one class for each sample of data.x");
        let short = npy(1, &header("|u1", "(2, 2)"), &[1, 2, 3]);
        assert!(read(&short, &y).unwrap_err().contains("3 bytes of data follow the header, and shape [2, 2] needs 4"));
        assert!(read(b"PK\x03\x04", &y).unwrap_err().contains("no .npy file"));
        assert!(read(&npy(4, "", &[0; 9]), &y).unwrap_err().contains("version 4; versions 1 to 3 are read"));
        assert!(
            read(&npy(1, &header(">f4", "(2, 2)"), &[0; 16]), &y).unwrap_err().contains("save array.astype('<f4')")
        );
        let fortran = header("|u1", "(2, 2)").replace("False", "True");
        assert!(read(&npy(1, &fortran, &[0; 4]), &y).unwrap_err().contains("ascontiguousarray"));
        let huge = header("<f8", "(9999999999, 9999999999)");
        assert!(read(&npy(1, &huge, &[]), &y).unwrap_err().contains("needs more than 2^64"));
        let nan = npy(1, &header("<f4", "(1, 2)"), &[1.0, f32::NAN].map(f32::to_le_bytes).concat());
        assert!(read(&nan, &y).unwrap_err().starts_with("sample 0, number 1 (both from 0) is NaN"));
        let real = npy(1, &header("<f4", "(2,)"), &[0; 8]);
        assert!(read(&x, &real).unwrap_err().contains("y.astype('<i4')"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(version in 0u8..5, middle in ".{0,80}", data in prop::collection::vec(any::<u8>(), 0..40)) {
            let text = npy(version, &middle, &data);
            let _ = read(&text, &text);
            let _ = read(&data, &data);
        }

        #[test]
        fn no_header_makes_the_reader_panic(descr in "[<>|=]?[fiu][1248]", shape in "\\([0-9, ]{0,30}\\)", data in prop::collection::vec(any::<u8>(), 0..40)) {
            let text = npy(1, &header(&descr, &shape), &data);
            let _ = read(&text, &text);
        }
    }
}
