//! The format of MNIST's files: a type, the sizes of the axes, then the numbers.

use super::rows::Row;

/// An array as its file holds it.
#[derive(Debug)]
pub struct Array<'a> {
    sides: Vec<usize>,
    kind: u8,
    bytes: &'a [u8],
}

const AXES_MAX: u8 = 8;

pub fn array(bytes: &[u8]) -> Result<Array<'_>, String> {
    let &[0, 0, kind, axes, ref rest @ ..] = bytes else {
        return Err("is no IDX file: it does not begin with two zero bytes, a type and a number of axes".into());
    };
    let size = size_of(kind).ok_or_else(|| format!("its type is 0x{kind:02x}, which IDX does not have"))?;
    if axes == 0 || axes > AXES_MAX || rest.len() < usize::from(axes) * 4 {
        return Err(format!("says it has {axes} axes; allowed: 1 to {AXES_MAX}, each with its size"));
    }
    let (heads, numbers) = rest.split_at(usize::from(axes) * 4);
    let sides: Vec<usize> =
        heads.chunks_exact(4).map(|side| u32::from_be_bytes([side[0], side[1], side[2], side[3]]) as usize).collect();
    let wanted = sides.iter().try_fold(size, |product, side| product.checked_mul(*side));
    match wanted {
        Some(wanted) if wanted == numbers.len() => Ok(Array { sides, kind, bytes: numbers }),
        Some(wanted) => Err(format!(
            "is {sides:?}, which takes {wanted} bytes behind its head, and there are {}; copy the file again",
            numbers.len()
        )),
        None => Err(format!("is {sides:?}, which is more than there is memory for")),
    }
}

pub fn read(
    samples: &Array<'_>,
    classes: &Array<'_>,
    add: &mut dyn FnMut(Row) -> Result<(), String>,
) -> Result<(), String> {
    if classes.sides.len() != 1 || classes.sides[0] != samples.sides[0] {
        let (classes, samples) = (&classes.sides, &samples.sides);
        return Err(format!(
            "holds {classes:?} classes, and ingest.path holds {samples:?} samples; each sample has one"
        ));
    }
    let width: usize = samples.sides[1..].iter().product();
    for row in 0..samples.sides[0] {
        let class = classes.at(row);
        add(Row {
            place: format!("sample {row} (from 0)"),
            features: (row * width..(row + 1) * width).map(|at| samples.at(at) as f32).collect(),
            label: format!("{class}"),
            ..Row::default()
        })?;
    }
    Ok(())
}

impl Array<'_> {
    fn at(&self, at: usize) -> f64 {
        let size = size_of(self.kind).expect("the type was checked");
        let bytes = &self.bytes[at * size..(at + 1) * size];
        match *bytes {
            [byte] if self.kind == 0x09 => f64::from(byte as i8),
            [byte] => f64::from(byte),
            [a, b] => f64::from(i16::from_be_bytes([a, b])),
            [a, b, c, d] if self.kind == 0x0d => f64::from(f32::from_be_bytes([a, b, c, d])),
            [a, b, c, d] => f64::from(i32::from_be_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => f64::from_be_bytes([a, b, c, d, e, f, g, h]),
            _ => unreachable!("sizes are 1, 2, 4 and 8"),
        }
    }
}

fn size_of(kind: u8) -> Option<usize> {
    match kind {
        0x08 | 0x09 => Some(1),
        0x0b => Some(2),
        0x0c | 0x0d => Some(4),
        0x0e => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn samples_and_classes_are_joined() {
        let samples = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2, 3, 255];
        let classes = [0, 0, 8, 1, 0, 0, 0, 2, 7, 9];
        let mut rows = Vec::new();
        read(&array(&samples).unwrap(), &array(&classes).unwrap(), &mut |row| {
            rows.push((row.features, row.label));
            Ok(())
        })
        .unwrap();
        assert_eq!(rows, [(vec![1.0, 2.0], "7".to_string()), (vec![3.0, 255.0], "9".into())]);
        let told = read(&array(&samples).unwrap(), &array(&samples).unwrap(), &mut |_| Ok(())).unwrap_err();
        assert!(told.contains("each sample has one"), "{told}");
    }

    #[test]
    fn a_truncated_file_says_what_it_lacks() {
        let told = array(&[0, 0, 8, 1, 0, 0, 0, 3, 1, 2]).unwrap_err();
        assert_eq!(told, "is [3], which takes 3 bytes behind its head, and there are 2; copy the file again");
        assert!(array(b"PNG").unwrap_err().contains("no IDX file"));
        assert!(array(&[0, 0, 7, 1, 0, 0, 0, 0]).unwrap_err().contains("0x07"));
        assert!(array(&[0, 0, 8, 2, 255, 255, 255, 255, 255, 255, 255, 255]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(kind in 7u8..16, axes in 0u8..4, rest in prop::collection::vec(0u8..4, 0..40)) {
            let bytes: Vec<u8> = [0, 0, kind, axes].into_iter().chain(rest).collect();
            if let Ok(array) = array(&bytes) {
                let _ = read(&array, &array, &mut |_| Ok(()));
            }
        }
    }
}
