//! Tells whoever started `elastic run` why it failed, in the way of `torchrun`: the error file of the root cause, with
//! its code, becomes the launcher's own.

use elastic_spec::api::JobStatus;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where `TORCHELASTIC_ERROR_FILE` says. What cannot be written is told and changes nothing.
pub fn error_file(status: &JobStatus, code: u8) {
    let Some(path) = std::env::var_os("TORCHELASTIC_ERROR_FILE").filter(|path| !path.is_empty()) else { return };
    let told = content(status.error_file.as_deref(), &status.reason, code).to_string();
    if let Err(error) = std::fs::write(&path, told) {
        eprintln!("elastic: write TORCHELASTIC_ERROR_FILE={}: {error}", path.display());
    }
}

/// What the process wrote, with its code; where it wrote nothing of that form, the reason of the job's end.
fn content(written: Option<&str>, reason: &str, code: u8) -> Value {
    let written = written.and_then(|text| serde_json::from_str::<Value>(text).ok());
    let mut told = match written {
        Some(Value::Object(told)) if told.get("message").is_some_and(Value::is_object) => Value::Object(told),
        Some(Value::Object(told)) if told.get("message").is_some_and(Value::is_string) => {
            json!({ "message": { "message": told["message"], "extraInfo": { "timestamp": told.get("timestamp") } } })
        }
        _ => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            json!({ "message": { "message": reason, "extraInfo": { "timestamp": now.to_string() } } })
        }
    };
    told["message"]["errorCode"] = code.into();
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_keeps_all_it_has_and_gets_the_code() {
        let written =
            r#"{"message": {"message": "boom", "extraInfo": {"py_callstack": "Traceback", "timestamp": "7"}}}"#;
        let told = content(Some(written), "x", 9);
        assert_eq!((&told["message"]["message"], &told["message"]["errorCode"]), (&"boom".into(), &9.into()));
        assert_eq!(told["message"]["extraInfo"]["py_callstack"], "Traceback");
        let told = content(Some(r#"{"message": "boom", "timestamp": 3}"#), "x", 1);
        assert_eq!((&told["message"]["message"], &told["message"]["errorCode"]), (&"boom".into(), &1.into()));
    }

    #[test]
    fn without_it_the_reason_is_told() {
        for written in [None, Some("[]"), Some("no json"), Some("{}")] {
            let told = content(written, "rank 0 was killed by signal 9 on n0", 137);
            assert_eq!(told["message"]["message"], "rank 0 was killed by signal 9 on n0");
            assert_eq!(told["message"]["errorCode"], 137);
        }
    }
}
