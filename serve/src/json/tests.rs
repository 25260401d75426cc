//! Any text is read as serde_json reads it, or refused; never a panic.

use super::*;
use proptest::prelude::*;
use serde_json::Value;

fn floats(text: &str) -> Read<(Vec<usize>, Vec<f32>)> {
    let mut scanner = Scanner::new(text.as_bytes());
    let mut values = Vec::new();
    let shape = scanner.tensor("data", |s| {
        values.push(s.f32()?);
        Ok(())
    })?;
    scanner.end()?;
    Ok((shape, values))
}

#[test]
fn nested_lists_have_a_shape() {
    assert_eq!(floats("[[1,2.5],[ -3e1 ,4]]").unwrap(), (vec![2, 2], vec![1.0, 2.5, -30.0, 4.0]));
    assert_eq!(floats("7").unwrap(), (vec![], vec![7.0]));
    assert_eq!(floats("[]").unwrap(), (vec![0], vec![]));
}

#[test]
fn ragged_and_mixed_lists_are_refused() {
    for (text, why) in [
        ("[[1,2],[3]]", "ragged"),
        ("[[1,2],[3,4,5]]", "ragged"),
        ("[1,[2]]", "side by side"),
        ("[[1],2]", "side by side"),
        ("[[[1]],[2]]", "side by side"),
    ] {
        let error = floats(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn a_mistake_has_its_place() {
    let error = floats("[1,\n 2,,3]").unwrap_err().to_string();
    assert!(error.contains("line 2, column 4"), "{error}");
}

#[test]
fn depth_has_a_bound() {
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    assert!(Scanner::new(deep(JSON_DEPTH_MAX).as_bytes()).skip().is_ok());
    let error = Scanner::new(deep(JSON_DEPTH_MAX + 1).as_bytes()).skip().unwrap_err().to_string();
    assert!(error.contains("more than 100"), "{error}");
    assert!(Scanner::new("[".repeat(1 << 20).as_bytes()).skip().is_err());
}

#[test]
fn tokens_for_what_is_not_finite_are_the_lenient_scanners() {
    assert!(Scanner::new(b"NaN").f32().is_err());
    assert!(Scanner::lenient(b"NaN").f32().unwrap().is_nan());
    assert_eq!(Scanner::lenient(b"-Infinity").f32().unwrap(), f32::NEG_INFINITY);
    assert!(Scanner::lenient(b"-NaN").f32().is_err());
}

#[test]
fn a_number_too_large_for_its_type_is_refused() {
    for text in ["1e39", "-1e999999", "123456789012345678901234567890123456789012"] {
        assert!(Scanner::new(text.as_bytes()).f32().unwrap_err().to_string().contains("does not fit"), "{text}");
    }
    for text in ["1.0", "9223372036854775808", "1e3"] {
        assert!(Scanner::new(text.as_bytes()).i64("x").unwrap_err().to_string().contains("whole number"), "{text}");
    }
    assert_eq!(Scanner::new(b"-9223372036854775808").i64("x").unwrap(), i64::MIN);
}

#[test]
fn a_key_stands_once() {
    let mut scanner = Scanner::new(br#"{"a":1,"a":2}"#);
    assert!(scanner.skip().unwrap_err().to_string().contains("'a' stands twice"));
}

/// A value that JSON can hold.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f32>().prop_map(|f| serde_json::Number::from_f64(f.into()).map_or(Value::Null, Value::Number)),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(".{0,5}", inner, 0..5).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_as_serde_json_does(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut scanner = Scanner::new(&bytes);
        let ours = scanner.skip().and_then(|_| scanner.end());
        if let Err(theirs) = serde_json::from_slice::<Value>(&bytes) {
            prop_assert!(ours.is_err() || theirs.to_string().contains("out of range"));
        }
    }

    #[test]
    fn near_json_is_read_or_refused_as_serde_json_does(text in "[\\[\\]{}:,\"\\\\ue0-9.a-fE+ntrlsx \\-]{0,24}") {
        let mut scanner = Scanner::new(text.as_bytes());
        let ours = scanner.skip().and_then(|_| scanner.end());
        let theirs = serde_json::from_str::<Value>(&text);
        // Theirs takes a key twice, and looks at a number's size before anybody wants it.
        let twice = ours.as_ref().is_err_and(|e| e.to_string().contains("stands twice"));
        let large = theirs.as_ref().is_err_and(|e| e.to_string().contains("out of range"));
        prop_assert!(ours.is_ok() == theirs.is_ok() || twice || large, "{text}: {ours:?} {theirs:?}");
    }

    #[test]
    fn what_serde_json_writes_is_read(value in any_value(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let mut scanner = Scanner::new(text.as_bytes());
        let read = scanner.skip().unwrap();
        prop_assert!(scanner.end().is_ok());
        prop_assert_eq!(read, text.as_bytes());
        if let Value::String(expected) = &value {
            let read = Scanner::new(text.as_bytes()).text_value("x").unwrap();
            prop_assert_eq!(read.as_ref(), expected);
        }
    }

    #[test]
    fn decimal_texts_have_the_standard_librarys_bits(text in "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,12})?(e[+-]?[0-9]{1,2})?") {
        let expected: f32 = text.parse().unwrap();
        match Scanner::new(text.as_bytes()).f32() {
            Ok(value) => prop_assert_eq!(value.to_bits(), expected.to_bits()),
            Err(_) => prop_assert!(!expected.is_finite()),
        }
    }

    #[test]
    fn a_written_float_reads_back_with_its_bits(bits in any::<u32>()) {
        let value = f32::from_bits(bits);
        let mut out = Vec::new();
        write_float_or_token(&mut out, value);
        let read = Scanner::lenient(&out).f32().unwrap();
        prop_assert!(read.to_bits() == bits || (value.is_nan() && read.is_nan()));
    }

    #[test]
    fn a_written_whole_number_reads_back(value in any::<i64>()) {
        let mut out = Vec::new();
        write_int(&mut out, value);
        prop_assert_eq!(std::str::from_utf8(&out).unwrap(), value.to_string());
    }

    /// Where a second rounding would show: at the middle between two floats, and beside it.
    #[test]
    fn numbers_beside_the_middle_of_two_floats_are_read_as_the_standard_library_reads_them(
        // Any, and those from 2^15 to 2^50, whose middles have few enough digits for the quick way.
        bits in prop_oneof![0u32..0x7f7f_ffff, 0x4700_0000u32..0x5880_0000],
        beside in -2i64..=2,
    ) {
        let (low, high) = (f64::from(f32::from_bits(bits)), f64::from(f32::from_bits(bits + 1)));
        let middle = f64::from_bits((low / 2.0 + high / 2.0).to_bits().saturating_add_signed(beside));
        for text in [format!("{middle}"), format!("{middle:e}"), format!("{middle:.4}1"), format!("{middle:.9}")] {
            let expected: f32 = text.parse().unwrap();
            prop_assert_eq!(Scanner::new(text.as_bytes()).f32().unwrap().to_bits(), expected.to_bits(), "{}", text);
        }
    }
}
