//! Parquet files, row by row.

use super::csv::Places;
use super::rows::Row;
use elastic_spec::pipeline::{Column, Columns};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as Record};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub fn read(
    file: File,
    columns: &Columns,
    slices: &[Column],
    add: &mut dyn FnMut(Row) -> Result<(), String>,
) -> Result<(), String> {
    // Sizes and offsets in a damaged file are arithmetic of the library; what it did not foresee is no end of ours.
    let read = catch_unwind(AssertUnwindSafe(|| rows(file, columns, slices, add)));
    read.unwrap_or_else(|_| {
        Err("is damaged in a way that Parquet's reader did not expect; write or copy it again".into())
    })
}

fn rows(
    file: File,
    columns: &Columns,
    slices: &[Column],
    add: &mut dyn FnMut(Row) -> Result<(), String>,
) -> Result<(), String> {
    let broken =
        |error: parquet::errors::ParquetError| format!("{error}; is it a whole Parquet file? write or copy it again");
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let schema = reader.metadata().file_metadata().schema();
    let names: Vec<String> = schema.get_fields().iter().map(|field| field.name().to_string()).collect();
    let places = Places::find(&names, names.len(), columns, slices)?;
    for (number, record) in reader.get_row_iter(None).map_err(broken)?.enumerate() {
        let record = record.map_err(|error| format!("row {number} (from 0): {}", broken(error)))?;
        let place = format!("row {number} (from 0)");
        let text = |at: usize| -> Result<String, String> {
            let name = &names[at];
            match field(&record, at) {
                Some(Field::Str(text)) => Ok(text.clone()),
                Some(Field::Bool(truth)) => Ok(truth.to_string()),
                Some(Field::Bytes(bytes)) => Ok(String::from_utf8_lossy(bytes.data()).into_owned()),
                Some(other) => match integer(other) {
                    Some(number) => Ok(number.to_string()),
                    None => number_of(other)
                        .map(|number| number.to_string())
                        .map_err(|what| format!("{place}: {name:?} {what}")),
                },
                None => Err(format!("{place} has no {name:?}")),
            }
        };
        let mut features = Vec::new();
        for at in &places.features {
            let name = &names[*at];
            let field = field(&record, *at).ok_or_else(|| format!("{place} has no {name:?}"))?;
            add_numbers(field, &mut features)
                .map_err(|what| format!("{place}: {name:?} {what}; name the columns of numbers with ingest.columns"))?;
        }
        add(Row {
            features,
            label: text(places.label)?,
            id: places.id.map(text).transpose()?,
            slices: places.slices.iter().map(|at| text(*at)).collect::<Result<_, _>>()?,
            place,
        })?;
    }
    Ok(())
}

fn field(record: &Record, at: usize) -> Option<&Field> {
    record.get_column_iter().nth(at).map(|(_, field)| field)
}

fn integer(field: &Field) -> Option<i128> {
    Some(match field {
        Field::Byte(number) => i128::from(*number),
        Field::Short(number) => i128::from(*number),
        Field::Int(number) => i128::from(*number),
        Field::Long(number) => i128::from(*number),
        Field::UByte(number) => i128::from(*number),
        Field::UShort(number) => i128::from(*number),
        Field::UInt(number) => i128::from(*number),
        Field::ULong(number) => i128::from(*number),
        _ => return None,
    })
}

fn number_of(field: &Field) -> Result<f32, String> {
    if let Some(number) = integer(field) {
        return Ok(number as f32);
    }
    match field {
        Field::Bool(truth) => Ok(f32::from(u8::from(*truth))),
        Field::Float16(number) => Ok(number.to_f32()),
        Field::Float(number) => Ok(*number),
        Field::Double(number) => Ok(*number as f32),
        Field::Null => Err("is null".into()),
        Field::Str(_) | Field::Bytes(_) => Err("is a text, which no model reads".into()),
        _ => Err("is no number".into()),
    }
}

fn add_numbers(field: &Field, numbers: &mut Vec<f32>) -> Result<(), String> {
    match field {
        Field::ListInternal(list) => list.elements().iter().try_for_each(|item| add_numbers(item, numbers)),
        other => {
            numbers.push(number_of(other)?);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::io::{Seek, Write};
    use std::sync::Arc;

    fn fixture() -> Vec<u8> {
        let schema = "message rows { required double a; required int32 b; required binary kind (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut bytes = Vec::new();
        let mut writer =
            SerializedFileWriter::new(&mut bytes, schema, Arc::new(WriterProperties::builder().build())).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&[0.5, 1.5], None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int32Type>().write_batch(&[7, -2], None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts = [ByteArray::from("cat"), ByteArray::from("dog")];
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        bytes
    }

    fn rows_of(bytes: &[u8], label: &str) -> Result<Vec<Row>, String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        let columns = Columns { label: Column::Name(label.into()), features: None, id: None };
        let mut rows = Vec::new();
        read(file, &columns, &[], &mut |row| {
            rows.push(row);
            Ok(())
        })?;
        Ok(rows)
    }

    #[test]
    fn rows_are_read_with_their_types() {
        let rows = rows_of(&fixture(), "kind").unwrap();
        let seen: Vec<_> = rows.iter().map(|row| (row.features.clone(), row.label.as_str())).collect();
        assert_eq!(seen, [(vec![0.5, 7.0], "cat"), (vec![1.5, -2.0], "dog")]);
        let told = rows_of(&fixture(), "b").unwrap_err();
        assert!(told.contains("row 0 (from 0): \"kind\" is a text") && told.contains("ingest.columns"), "{told}");
    }

    #[test]
    fn every_truncated_file_is_refused_and_no_damaged_one_makes_the_reader_panic() {
        let whole = fixture();
        for length in 0..whole.len() {
            let told = rows_of(&whole[..length], "kind").unwrap_err();
            assert!(told.contains("copy it again"), "{length}: {told}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x41;
            let _ = rows_of(&damaged, "kind");
        }
    }
}
