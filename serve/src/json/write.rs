//! Numbers and texts as JSON, appended to an answer. Floats are printed with the fewest digits that read back as the same bits.

/// JSON has no word for what is not finite; null is what NumPy reads as NaN.
pub fn write_float(out: &mut Vec<u8>, value: f32) {
    match value.is_finite() {
        true => finite(out, value),
        false => out.extend_from_slice(b"null"),
    }
}

/// With the tokens that TensorFlow Serving has for it.
pub fn write_float_or_token(out: &mut Vec<u8>, value: f32) {
    match value {
        value if value.is_finite() => finite(out, value),
        value if value.is_nan() => out.extend_from_slice(b"NaN"),
        value if value > 0.0 => out.extend_from_slice(b"Infinity"),
        _ => out.extend_from_slice(b"-Infinity"),
    }
}

fn finite(out: &mut Vec<u8>, value: f32) {
    // Small whole numbers are common in tests and in features; their text is known without a search.
    if value.abs() < 1e6 && value.fract() == 0.0 && (value != 0.0 || value.is_sign_positive()) {
        write_int(out, value as i64);
        out.extend_from_slice(b".0");
        return;
    }
    serde_json::to_writer(out, &value).expect("a float is written into memory");
}

pub fn write_int(out: &mut Vec<u8>, value: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

pub fn write_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a text is written into memory");
}
