//! Comma separated rows, with or without names above them.

use super::rows::Row;
use elastic_spec::pipeline::{Column, Columns};

pub fn read(
    bytes: &[u8],
    header: bool,
    columns: &Columns,
    slices: &[Column],
    add: &mut dyn FnMut(Row) -> Result<(), String>,
) -> Result<(), String> {
    let mut reader =
        csv::ReaderBuilder::new().has_headers(header).trim(csv::Trim::All).flexible(true).from_reader(bytes);
    let plain = |error: csv::Error| format!("{error}; the file must be plain CSV");
    let names: Vec<String> = match header {
        true => reader.byte_headers().map_err(plain)?.iter().map(lossy).collect(),
        false => Vec::new(),
    };
    let mut record = csv::ByteRecord::new();
    let mut first: Option<(Places, u64)> = None;
    while reader.read_byte_record(&mut record).map_err(plain)? {
        let line = line_of(&record, bytes);
        let (places, first_line) = match &first {
            Some((places, line)) => (places, *line),
            None => {
                let width = if header { names.len() } else { record.len() };
                let other = record.get(0).and_then(|field| field.iter().find(|byte| b";\t|".contains(byte)));
                if let (1, Some(other)) = (width, other) {
                    return Err(format!(
                        "line {line} is separated by {:?}; separate the columns by commas",
                        *other as char
                    ));
                }
                let places = Places::find(&names, width, columns, slices)?;
                let (places, line) = first.insert((places, if header { 1 } else { line }));
                (&*places, *line)
            }
        };
        if record.len() != places.width {
            let (found, width) = (record.len(), places.width);
            return Err(format!(
                "line {line} has {found} columns, line {first_line} has {width}; all lines must have as many"
            ));
        }
        let text = |at: usize| lossy(record.get(at).unwrap_or_default());
        let mut features = Vec::with_capacity(places.features.len());
        for at in &places.features {
            let field = text(*at);
            let number: f32 = field.parse().ok().filter(|number: &f32| number.is_finite()).ok_or_else(|| {
                let cure = match line == 1 && !header {
                    true => "; if the first line holds names, set ingest.header = true",
                    false => "",
                };
                format!("line {line}, column {at} (from 0): {:?} is no finite number{cure}", shown(&field))
            })?;
            features.push(number);
        }
        add(Row {
            place: format!("line {line}"),
            features,
            label: text(places.label),
            id: places.id.map(text),
            slices: places.slices.iter().map(|at| text(*at)).collect(),
        })?;
    }
    Ok(())
}

fn lossy(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

fn shown(field: &str) -> String {
    field.chars().take(40).collect()
}

/// The line that a record is on. The reader's own count stops before the empty lines that it skips.
fn line_of(record: &csv::ByteRecord, bytes: &[u8]) -> u64 {
    let Some(position) = record.position() else { return 0 };
    let ahead = bytes.get(position.byte() as usize..).unwrap_or_default();
    let empty = ahead.iter().take_while(|byte| b"\r\n".contains(byte)).filter(|byte| **byte == b'\n').count();
    position.line() + empty as u64
}

/// Where each column stands.
pub struct Places {
    pub width: usize,
    pub label: usize,
    pub features: Vec<usize>,
    pub id: Option<usize>,
    pub slices: Vec<usize>,
}

impl Places {
    /// `names` is empty where columns have only numbers.
    pub fn find(names: &[String], width: usize, columns: &Columns, slices: &[Column]) -> Result<Places, String> {
        let place = |key: &str, column: &Column| -> Result<usize, String> {
            match column {
                Column::Name(name) => names.iter().position(|other| other == name).ok_or_else(|| {
                    let shown: Vec<&str> = names.iter().take(20).map(String::as_str).collect();
                    let more = if names.len() > 20 { ", …" } else { "" };
                    format!("has no column {name:?} (ingest.{key}); there are {}{more}", shown.join(", "))
                }),
                Column::Number(number) => {
                    let at = i64::from(*number) + if *number < 0 { width as i64 } else { 0 };
                    usize::try_from(at).ok().filter(|at| *at < width).ok_or_else(|| {
                        format!(
                            "has {width} columns, and ingest.{key} says {number}; allowed: 0 to {}",
                            width.max(1) - 1
                        )
                    })
                }
            }
        };
        let label = place("label", &columns.label)?;
        let id = columns.id.as_ref().map(|column| place("id", column)).transpose()?;
        let slices = slices.iter().map(|column| place("slices", column)).collect::<Result<Vec<_>, _>>()?;
        let features = match &columns.features {
            Some(columns) => columns.iter().map(|column| place("columns", column)).collect::<Result<Vec<_>, _>>()?,
            None => (0..width).filter(|at| *at != label && Some(*at) != id && !slices.contains(at)).collect(),
        };
        if features.contains(&label) {
            return Err("ingest.columns has the column of the class, which the model may not read".to_string());
        }
        Ok(Places { width, label, features, id, slices })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn columns(label: Column) -> Columns {
        Columns { label, features: None, id: None }
    }

    fn rows(text: &[u8], header: bool, columns: &Columns, slices: &[Column]) -> Result<Vec<Row>, String> {
        let mut rows = Vec::new();
        read(text, header, columns, slices, &mut |row| {
            rows.push(row);
            Ok(())
        })?;
        Ok(rows)
    }

    #[test]
    fn columns_are_found_by_name_and_by_number() {
        let name = |name: &str| Column::Name(name.into());
        let text = b"id,a,kind,b,who\nr1,1,cat,2.5,x\n\nr2, 3,dog,4,y\n";
        let wanted = Columns { id: Some(name("id")), ..columns(name("kind")) };
        let found = rows(text, true, &wanted, &[name("who")]).unwrap();
        let seen: Vec<_> = found.iter().map(|r| (r.place.as_str(), r.features.clone(), r.label.as_str())).collect();
        assert_eq!(seen, [("line 2", vec![1.0, 2.5], "cat"), ("line 4", vec![3.0, 4.0], "dog")]);
        assert_eq!((found[1].id.as_deref(), found[1].slices[0].as_str()), (Some("r2"), "y"));
        let chosen = Columns { features: Some(vec![Column::Number(1)]), ..columns(Column::Number(-1)) };
        assert_eq!(rows(b"1,2,0\n3,4,1", false, &chosen, &[]).unwrap()[1].features, [4.0]);
    }

    #[test]
    fn mistakes_name_the_place_and_the_cure() {
        let last = columns(Column::Number(-1));
        for (text, header, says) in [
            ("1,2,0\n1,0\n", false, "line 2 has 2 columns, line 1 has 3; all lines must have as many"),
            ("a,b,c\n1,2,0\n", false, "\"a\" is no finite number; if the first line holds names, set ingest.header"),
            ("1;2;0\n", false, "separated by ';'"),
            ("1,inf,0\n", false, "line 1, column 1 (from 0): \"inf\" is no finite number"),
        ] {
            let told = rows(text.as_bytes(), header, &last, &[]).unwrap_err();
            assert!(told.contains(says), "{told}");
        }
        let told = rows(b"a,b\n1,2\n", true, &columns(Column::Name("c".into())), &[]).unwrap_err();
        assert_eq!(told, "has no column \"c\" (ingest.label); there are a, b");
        let told = rows(b"1,2\n", false, &columns(Column::Number(5)), &[]).unwrap_err();
        assert_eq!(told, "has 2 columns, and ingest.label says 5; allowed: 0 to 1");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), label in -4i32..4, header: bool) {
            let _ = rows(&bytes, header, &columns(Column::Number(label)), &[Column::Number(0)]);
        }

        #[test]
        fn no_text_of_csv_pieces_makes_the_reader_panic(text in "[0-9,.\"\n\re-]{0,80}", label: i32, header: bool) {
            let _ = rows(text.as_bytes(), header, &columns(Column::Number(label)), &[]);
        }
    }
}
