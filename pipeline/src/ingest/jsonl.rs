//! One JSON object a line.

use super::rows::Row;
use elastic_spec::pipeline::{Column, Columns};
use serde_json::{Map, Value};

pub fn read(
    bytes: &[u8],
    columns: &Columns,
    slices: &[Column],
    add: &mut dyn FnMut(Row) -> Result<(), String>,
) -> Result<(), String> {
    let mut features: Option<Vec<String>> =
        columns.features.as_ref().map(|columns| columns.iter().map(Column::to_string).collect());
    let (label, id) = (columns.label.to_string(), columns.id.as_ref().map(Column::to_string));
    let slices: Vec<String> = slices.iter().map(Column::to_string).collect();
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate().map(|(i, line)| (i + 1, line)) {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let row: Map<String, Value> = serde_json::from_slice(line)
            .map_err(|error| format!("line {number}: {error}; each line is one JSON object"))?;
        // Sorted by name, as the map is.
        let features = features.get_or_insert_with(|| {
            let others = |name: &&String| **name != label && Some(*name) != id.as_ref() && !slices.contains(name);
            row.keys().filter(others).cloned().collect()
        });
        let place = format!("line {number}");
        let cell =
            |key: &str, name: &str| row.get(name).ok_or_else(|| format!("{place} has no {name:?} (ingest.{key})"));
        let text = |key: &str, name: &str| -> Result<String, String> {
            match cell(key, name)? {
                Value::String(text) => Ok(text.clone()),
                Value::Number(number) => Ok(number.to_string()),
                Value::Bool(truth) => Ok(truth.to_string()),
                _ => Err(format!("{place}: {name:?} is no text, number or truth")),
            }
        };
        let mut numbers = Vec::new();
        for name in features.iter() {
            add_numbers(cell("columns", name)?, &mut numbers)
                .map_err(|what| format!("{place}: {name:?} {what}; name the columns of numbers with ingest.columns"))?;
        }
        add(Row {
            features: numbers,
            label: text("label", &label)?,
            id: id.as_deref().map(|id| text("id", id)).transpose()?,
            slices: slices.iter().map(|slice| text("slices", slice)).collect::<Result<_, _>>()?,
            place,
        })?;
    }
    Ok(())
}

/// Numbers of a value, lists of lists in their order.
fn add_numbers(value: &Value, numbers: &mut Vec<f32>) -> Result<(), String> {
    match value {
        Value::Number(number) => {
            // By its text: rounded once.
            let number = number.to_string().parse::<f32>().map_err(|error| format!("is {number}: {error}"))?;
            numbers.push(number);
        }
        Value::Bool(truth) => numbers.push(f32::from(u8::from(*truth))),
        Value::Array(items) => items.iter().try_for_each(|item| add_numbers(item, numbers))?,
        Value::Null => return Err("is null".into()),
        Value::String(_) => return Err("is a text, which no model reads".into()),
        Value::Object(_) => return Err("is an object, which no model reads".into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(text: &[u8], slices: &[&str]) -> Result<Vec<Row>, String> {
        let columns = Columns { label: Column::Name("y".into()), features: None, id: None };
        let slices: Vec<Column> = slices.iter().map(|name| Column::Name(name.to_string())).collect();
        let mut rows = Vec::new();
        read(text, &columns, &slices, &mut |row| {
            rows.push(row);
            Ok(())
        })?;
        Ok(rows)
    }

    #[test]
    fn lists_become_numbers_in_the_order_of_the_names() {
        let found = rows(b"{\"b\": 3, \"a\": [1, [2.5]], \"y\": \"cat\", \"s\": true}\n\n", &["s"]).unwrap();
        assert_eq!((found[0].features.as_slice(), found[0].label.as_str()), ([1.0, 2.5, 3.0].as_slice(), "cat"));
        assert_eq!(found[0].slices, ["true"]);
    }

    #[test]
    fn mistakes_name_line_and_key() {
        for (text, says) in [
            ("{\"a\": 1, \"y\": 0}\n{\"y\": 0}", "line 2 has no \"a\" (ingest.columns)"),
            ("{\"a\": 1}", "line 1 has no \"y\" (ingest.label)"),
            ("{\"a\": \"x\", \"y\": 0}", "line 1: \"a\" is a text"),
            ("[1]", "line 1: "),
            ("{\"a\": 1, \"y\"", "line 1: EOF"),
        ] {
            let told = rows(text.as_bytes(), &[]).unwrap_err();
            assert!(told.contains(says), "{told}");
        }
    }

    proptest! {
        #[test]
        fn no_text_of_json_pieces_makes_the_reader_panic(text in "[\\[\\]{}\",:0-9a-y\n.e+-]{0,80}") {
            let _ = rows(text.as_bytes(), &[]);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = rows(&bytes, &[]);
        }
    }
}
