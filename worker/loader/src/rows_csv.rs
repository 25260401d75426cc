//! Comma separated numbers, one sample a line.

use crate::samples::Samples;
use std::str::FromStr;

/// How the columns are to be read.
pub(crate) struct Columns {
    /// The class; negative: from the end.
    pub label: i32,
    pub header: bool,
    pub scale: f32,
    pub classes: u32,
}

/// The samples of a file; what is wrong with it, with line and column.
pub(crate) fn read(bytes: &[u8], columns: &Columns) -> Result<Samples, String> {
    let mut reader =
        csv::ReaderBuilder::new().has_headers(columns.header).trim(csv::Trim::All).flexible(true).from_reader(bytes);
    let mut record = csv::ByteRecord::new();
    let (mut features, mut classes) = (Vec::new(), Vec::new());
    let mut first: Option<First> = None;
    while reader.read_byte_record(&mut record).map_err(|error| format!("{error}; the file must be plain CSV"))? {
        let line = line_of(&record, bytes);
        let First { width, label, line: first_line } = match first {
            Some(known) => known,
            None => *first.insert(First::of(&record, line, columns)?),
        };
        if record.len() != width {
            let found = record.len();
            return Err(format!(
                "line {line} has {found} columns, line {first_line} has {width}; all lines must have as many"
            ));
        }
        for (column, field) in record.iter().enumerate() {
            let wrong = |what: String| wrong(field, line, column, columns, &what);
            if column == label {
                classes.push(class(field, columns.classes).map_err(wrong)?);
            } else {
                features.push(feature(field, columns.scale).map_err(wrong)?);
            }
        }
    }
    match first {
        Some(First { width, .. }) => {
            Ok(Samples::Rows { features, classes, width: width - 1, class_count: columns.classes as usize })
        }
        None => Err("has no samples; one line a sample is wanted, numbers separated by commas".to_string()),
    }
}

/// Numbers of one sample, by the first line.
pub(crate) fn width(bytes: &[u8], header: bool) -> Result<usize, String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(header).flexible(true).from_reader(bytes);
    let mut record = csv::ByteRecord::new();
    match reader.read_byte_record(&mut record) {
        Ok(true) if record.len() > 1 => Ok(record.len() - 1),
        Ok(_) => Err("has no line of at least two columns".to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// The line that a record is on. The reader's own count stops before the empty lines that it skips.
fn line_of(record: &csv::ByteRecord, bytes: &[u8]) -> u64 {
    let Some(position) = record.position() else { return 0 };
    let ahead = bytes.get(position.byte() as usize..).unwrap_or_default();
    let empty = ahead.iter().take_while(|byte| b"\r\n".contains(byte)).filter(|byte| **byte == b'\n').count();
    position.line() + empty as u64
}

/// What the first line says about all.
#[derive(Clone, Copy)]
struct First {
    line: u64,
    width: usize,
    label: usize,
}

impl First {
    fn of(record: &csv::ByteRecord, line: u64, columns: &Columns) -> Result<First, String> {
        let width = record.len();
        let other = record.get(0).and_then(|field| field.iter().find(|byte| b";\t|".contains(byte)));
        if let (1, Some(other)) = (width, other) {
            let other = *other as char;
            return Err(format!("line {line} is separated by {other:?}; separate the columns by commas"));
        }
        if width < 2 {
            return Err(format!("line {line} has one column; a class and at least one number are wanted"));
        }
        let label = i64::from(columns.label) + if columns.label < 0 { width as i64 } else { 0 };
        match usize::try_from(label) {
            Ok(label) if label < width => Ok(First { line, width, label }),
            _ => Err(format!(
                "line {line} has {width} columns, and data.label = {}; set it to a column from 0 to {}, or from -{width} to -1",
                columns.label,
                width - 1
            )),
        }
    }
}

fn feature(field: &[u8], scale: f32) -> Result<f32, String> {
    let number = parsed::<f32>(field).ok_or("is no number")?;
    elastic_transform::scaled(number, scale).ok_or_else(|| "is not finite".to_string())
}

/// Classes may be written as `3` or `3.0`.
fn class(field: &[u8], classes: u32) -> Result<i32, String> {
    let number = parsed::<f64>(field).ok_or("is no class, which is an integer")?;
    if number.fract() != 0.0 || !number.is_finite() {
        return Err("is no class, which is an integer".to_string());
    }
    if number < 0.0 || number >= f64::from(classes) {
        return Err(format!("is no class from 0 to {}; data.classes = {classes} says how many there are", classes - 1));
    }
    Ok(number as i32)
}

fn parsed<T: FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn wrong(field: &[u8], line: u64, column: usize, columns: &Columns, what: &str) -> String {
    let shown: String = String::from_utf8_lossy(field).chars().take(40).flat_map(char::escape_debug).collect();
    let cure = match line == 1 && !columns.header {
        true => "; if the first line holds names, set data.header = true",
        false => "",
    };
    format!("line {line}, column {column} (from 0): \"{shown}\" {what}{cure}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COLUMNS: Columns = Columns { label: -1, header: false, scale: 0.5, classes: 3 };

    fn refused(text: &str, columns: &Columns) -> String {
        read(text.as_bytes(), columns).expect_err("the file is malformed")
    }

    #[test]
    fn the_class_column_is_taken_out_and_the_rest_is_scaled() {
        for (label, text) in [(-1, "1, 2,2\r\n3,4,0\n"), (0, "2,1,2\n\n0.0,3,4"), (1, "1,2e0,2\n3,0,4\n")] {
            let Samples::Rows { features, classes, width, class_count } =
                read(text.as_bytes(), &Columns { label, ..COLUMNS }).unwrap()
            else {
                panic!("csv gives rows")
            };
            assert_eq!((features, classes), (vec![0.5, 1.0, 1.5, 2.0], vec![2, 0]));
            assert_eq!((width, class_count), (2, 3));
        }
    }

    #[test]
    fn mistakes_name_line_and_column() {
        assert_eq!(
            refused("a,b,c\n1,2,0\n", &COLUMNS),
            "line 1, column 0 (from 0): \"a\" is no number; if the first line holds names, set data.header = true"
        );
        assert_eq!(refused("1,2,0\n1,x,0\n", &COLUMNS), "line 2, column 1 (from 0): \"x\" is no number");
        assert_eq!(
            refused("1,2,3\n", &COLUMNS),
            "line 1, column 2 (from 0): \"3\" is no class from 0 to 2; data.classes = 3 says how many there are; if the first line holds names, set data.header = true"
        );
        assert_eq!(
            refused("1,2,0\n1,0\n", &COLUMNS),
            "line 2 has 2 columns, line 1 has 3; all lines must have as many"
        );
        assert_eq!(
            refused("h,i\n1,inf,1\n", &Columns { header: true, ..COLUMNS }),
            "line 2, column 1 (from 0): \"inf\" is not finite"
        );
        assert_eq!(
            refused("1,2\n", &Columns { label: 2, ..COLUMNS }),
            "line 1 has 2 columns, and data.label = 2; set it to a column from 0 to 1, or from -2 to -1"
        );
        assert_eq!(refused("1;2;0\n", &COLUMNS), "line 1 is separated by ';'; separate the columns by commas");
        assert_eq!(refused("", &COLUMNS), "has no samples; one line a sample is wanted, numbers separated by commas");
        assert!(refused("1,2,1.5\n", &COLUMNS).contains("\"1.5\" is no class, which is an integer"));
        assert!(refused("1,2,nan\n", &COLUMNS).contains("\"nan\" is no class, which is an integer"));
        assert!(refused("1,2,-1\n", &COLUMNS).contains("is no class from 0 to 2"));
        assert!(refused("1e38,2,1\n", &Columns { scale: 1e9, ..COLUMNS }).contains("is not finite"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), label in -4i32..4, header: bool) {
            let _ = read(&bytes, &Columns { label, header, ..COLUMNS });
        }

        #[test]
        fn no_text_of_csv_pieces_makes_the_reader_panic(text in "[0-9,.\"\n\re-]{0,80}", label in any::<i32>()) {
            let _ = read(text.as_bytes(), &Columns { label, ..COLUMNS });
        }
    }
}
