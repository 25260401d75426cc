//! Why a process failed: the error file that PyTorch's `@record` writes, else what it printed last.

use elastic_spec::facts::End;
use elastic_spec::limits::ERROR_FILE_BYTES_MAX;
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Longer error files are read in part, which is then no JSON, and told as they begin.
const FILE_BYTES_MAX: u64 = 1 << 20;
const MESSAGE_CHARS_MAX: usize = 1_000;
/// An error file older than this belongs to something that the process survived.
const FILE_AGE_MAX: Duration = Duration::from_secs(60);

/// When the error file was written: the process may have taken its time to end after it.
pub fn failed_at(error_file: &Path, now: SystemTime) -> Option<Instant> {
    let written = std::fs::metadata(error_file).ok()?.modified().ok()?;
    let age = now.duration_since(written).ok().filter(|age| *age < FILE_AGE_MAX)?;
    Instant::now().checked_sub(age)
}

/// Whether the error file tells of the end at `ended`: not of something, long before, that the process survived.
pub fn is_of_end(error_file: &Path, ended: SystemTime) -> bool {
    let written = std::fs::metadata(error_file).and_then(|file| file.modified());
    // One of the future is of a file system whose clock is ahead.
    written.is_ok_and(|written| ended.duration_since(written).is_ok_and(|age| age < FILE_AGE_MAX) || written > ended)
}

/// In words for a person; `error_file` where it is of this end.
pub fn message(error_file: Option<&Path>, end: &End, tail: &[String]) -> String {
    if let End::Unstartable(_) = end {
        return String::new();
    }
    let told = error_file.and_then(read).or_else(|| tail.iter().rev().find(|line| !line.trim().is_empty()).cloned());
    told.unwrap_or_default().trim().chars().take(MESSAGE_CHARS_MAX).collect()
}

/// The error file as it was written, for whoever started the job: where it is JSON of a size that travels.
pub fn whole(error_file: Option<&Path>, end: &End) -> Option<String> {
    if let End::Unstartable(_) = end {
        return None;
    }
    let mut text = String::new();
    let limit = ERROR_FILE_BYTES_MAX as u64 + 1;
    std::fs::File::open(error_file?).ok()?.take(limit).read_to_string(&mut text).ok()?;
    let is_json = text.len() <= ERROR_FILE_BYTES_MAX && serde_json::from_str::<Value>(&text).is_ok();
    is_json.then_some(text)
}

/// Whether rank 0 could not listen where all were told to meet.
pub fn is_port_taken(message: &str, tail: &[String]) -> bool {
    let says = |text: &str| text.contains("EADDRINUSE") || text.to_lowercase().contains("address already in use");
    says(message) || tail.iter().any(|line| says(line))
}

fn read(error_file: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(error_file).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match serde_json::from_str::<Value>(&text) {
        Ok(json) => words(&json["message"]).or_else(|| words(&json)),
        Err(_) => Some(text),
    }
    .filter(|words| !words.trim().is_empty())
}

/// `"text"`, or `{"message": "text", …}`.
fn words(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["message"].as_str()).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message_of(content: &str, tail: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("error.json");
        if !content.is_empty() {
            std::fs::write(&file, content).unwrap();
        }
        let tail: Vec<String> = tail.iter().map(|line| line.to_string()).collect();
        message(Some(&file), &End::Code(1), &tail)
    }

    #[test]
    fn both_forms_of_an_error_file_are_read() {
        let whole = r#"{"message": {"message": "RuntimeError: boom", "extraInfo": {"timestamp": "1712345678"}}}"#;
        assert_eq!(message_of(whole, &["other"]), "RuntimeError: boom");
        assert_eq!(message_of(r#"{"message": "text", "timestamp": 3}"#, &[]), "text");
        assert_eq!(message_of("no json", &[]), "no json");
    }

    #[test]
    fn a_whole_one_travels_as_it_was_written_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("error.json");
        let of = |content: &str, end: &End| {
            std::fs::write(&file, content).unwrap();
            whole(Some(&file), end)
        };
        let written = r#"{"message": {"message": "RuntimeError: boom", "extraInfo": {}}}"#;
        assert_eq!(of(written, &End::Code(1)).as_deref(), Some(written));
        assert_eq!(of(written, &End::Unstartable("x".into())), None);
        assert_eq!(of("no json", &End::Code(1)), None);
        let long = format!("{:?}", "x".repeat(ERROR_FILE_BYTES_MAX));
        assert_eq!(of(&long, &End::Code(1)), None);
        assert_eq!(whole(Some(&dir.path().join("absent")), &End::Code(1)), None);
        assert_eq!(whole(None, &End::Code(1)), None);
    }

    #[test]
    fn an_error_file_is_of_an_end_soon_after_it_and_of_no_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("error.json");
        let written = SystemTime::now();
        std::fs::File::create(&path).unwrap().set_modified(written).unwrap();
        for (after, is_of_it) in [(0, true), (59, true), (60, false), (7_200, false)] {
            assert_eq!(is_of_end(&path, written + Duration::from_secs(after)), is_of_it, "{after} s");
        }
        assert!(is_of_end(&path, written - Duration::from_secs(5)), "a clock that is ahead");
        assert!(!is_of_end(&dir.path().join("absent"), written));
    }

    #[test]
    fn without_one_the_last_words_count() {
        assert_eq!(message_of("", &["Traceback", "ValueError: bad", "  "]), "ValueError: bad");
        assert_eq!(message_of("{}", &["last"]), "last");
        assert_eq!(message_of("", &[]), "");
    }

    #[test]
    fn a_port_that_is_taken_is_told_from_other_failures() {
        assert!(is_port_taken("The server socket has failed to listen … EADDRINUSE", &[]));
        assert!(is_port_taken("", &["OSError: [Errno 98] Address already in use".into()]));
        assert!(!is_port_taken("Connection refused", &["x".into()]));
    }
}
