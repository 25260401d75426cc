//! What a store's refusal means, and what cures it: from the library's errors to a word of ours.
//!
//! S3 says what is wrong in the body of its answers (`<Code>`), which the library only passes on as text. The same
//! code comes from every S3-compatible store, so it is looked for there; a status or a transport's fault is next.

use object_store::client::{HttpError, HttpErrorKind};
use std::error::Error as _;
use std::fmt;
use std::io;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    NoBucket,
    UnknownKey,
    WrongSecret,
    Expired,
    ClockSkew,
    WrongRegion,
    NoCredentials,
    Denied,
    /// Of the file system.
    Forbidden,
    Full,
    Unsupported,
    /// The store asks for fewer requests.
    Throttled,
    /// The store has a fault of its own.
    Fault,
    Unreachable,
    Interrupted,
    Slow,
    Other,
}

impl Cause {
    /// Whether waiting may cure it.
    pub fn is_passing(self) -> bool {
        matches!(self, Cause::Throttled | Cause::Fault | Cause::Unreachable | Cause::Interrupted | Cause::Slow)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::NoBucket => "there is no such bucket: create it, or mend its name or AWS_ENDPOINT_URL",
            Cause::UnknownKey => {
                "the store does not know this access key: check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"
            }
            Cause::WrongSecret => "the signature does not match: check AWS_SECRET_ACCESS_KEY",
            Cause::Expired => "the credentials have expired: get new ones (AWS_SESSION_TOKEN)",
            Cause::ClockSkew => "this machine's clock is not the store's: set it (timedatectl, NTP)",
            Cause::WrongRegion => "the bucket is in another region: set AWS_REGION to it",
            Cause::NoCredentials => {
                "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a web identity"
            }
            Cause::Denied => "access is denied: check the credentials, and what their policy allows in this bucket",
            Cause::Forbidden => "the file system does not allow it: check the folder's owner and mode",
            Cause::Full => "no space is left: free some, or raise the quota",
            Cause::Unsupported => "the store does not do this: use one with conditional writes (docs/storage.md)",
            Cause::Throttled => "the store asks for fewer requests (it was tried again for a while)",
            Cause::Fault => "the store has a fault of its own (it was tried again for a while)",
            Cause::Unreachable => "the store cannot be reached: check AWS_ENDPOINT_URL and the network",
            Cause::Interrupted => "the connection to the store breaks (it was tried again for a while)",
            Cause::Slow => "the store does not answer in time (it was tried again for a while)",
            Cause::Other => "the store refuses",
        })
    }
}

/// What an error of the library comes to.
#[derive(Debug)]
pub(crate) enum Meaning {
    NotFound,
    Exists,
    /// The condition of a read: it is another object by now.
    Replaced,
    Failed(Cause, String),
}

pub(crate) fn meaning(error: &object_store::Error) -> Meaning {
    use object_store::Error as E;
    let text = whole_text(error);
    let (code, status) = (code(&text), status(&text));
    if let Some(cause) = code.and_then(cause_of_code) {
        return Meaning::Failed(cause, detail(error, &text));
    }
    match error {
        E::NotFound { .. } => return Meaning::NotFound,
        // Two conditional writes at once; whether the name is taken shows when it is tried again.
        E::AlreadyExists { .. } if code == Some("ConditionalRequestConflict") => {
            return Meaning::Failed(Cause::Interrupted, detail(error, &text));
        }
        E::AlreadyExists { .. } => return Meaning::Exists,
        E::Precondition { .. } | E::NotModified { .. } => return Meaning::Replaced,
        _ => {}
    }
    let cause = match (status, error) {
        (Some(429 | 503), _) => Cause::Throttled,
        (Some(408), _) => Cause::Slow,
        (Some(501), _) | (None, E::NotImplemented { .. } | E::NotSupported { .. }) => Cause::Unsupported,
        (Some(500..=599), _) => Cause::Fault,
        (Some(401 | 403), _) => Cause::Denied,
        _ => cause_of_source(error, &text),
    };
    Meaning::Failed(cause, detail(error, &text))
}

fn cause_of_code(code: &str) -> Option<Cause> {
    Some(match code {
        "NoSuchBucket" | "InvalidBucketName" => Cause::NoBucket,
        "InvalidAccessKeyId" => Cause::UnknownKey,
        "SignatureDoesNotMatch" => Cause::WrongSecret,
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "ExpiredTokenException" => Cause::Expired,
        "RequestTimeTooSkewed" => Cause::ClockSkew,
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => Cause::WrongRegion,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => Cause::Denied,
        "QuotaExceeded" | "XMinioStorageFull" | "EntityTooLarge" => Cause::Full,
        "NotImplemented" => Cause::Unsupported,
        "SlowDown" | "Throttling" | "ThrottlingException" | "TooManyRequests" | "RequestLimitExceeded" => {
            Cause::Throttled
        }
        "ServiceUnavailable" | "InternalError" | "InternalFailure" => Cause::Fault,
        "RequestTimeout" => Cause::Slow,
        // A body that does not hash to what was signed was changed on the way: sent again, it may arrive.
        "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" => Cause::Interrupted,
        _ => return None,
    })
}

fn cause_of_source(error: &object_store::Error, text: &str) -> Cause {
    let mut source = error.source();
    while let Some(at) = source {
        if let Some(http) = at.downcast_ref::<HttpError>() {
            return match http.kind() {
                HttpErrorKind::Connect => Cause::Unreachable,
                HttpErrorKind::Timeout => Cause::Slow,
                _ => Cause::Interrupted,
            };
        }
        if let Some(io) = at.downcast_ref::<io::Error>() {
            return match io.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Cause::Forbidden,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Cause::Full,
                io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => Cause::Interrupted,
                _ => Cause::Other,
            };
        }
        source = at.source();
    }
    match text.contains("without LOCATION") {
        true => Cause::WrongRegion,
        false => Cause::Other,
    }
}

/// All that the error and its sources say.
fn whole_text(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(at) = source {
        text.push('\n');
        text.push_str(&at.to_string());
        source = at.source();
    }
    text
}

fn code(text: &str) -> Option<&str> {
    between(text, "<Code>", "</Code>")
}

fn status(text: &str) -> Option<u16> {
    let rest = text.split_once("status code: ")?.1;
    rest.get(..3)?.parse().ok()
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    Some(text.split_once(open)?.1.split_once(close)?.0)
}

/// The shortest that still tells: the store's own words, or the innermost source's.
fn detail(error: &object_store::Error, text: &str) -> String {
    if let Some(code) = code(text) {
        return match between(text, "<Message>", "</Message>") {
            Some(message) => cut(&format!("{code}: {message}")),
            None => cut(code),
        };
    }
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(at) = source {
        words = at.to_string();
        source = at.source();
    }
    cut(&words)
}

fn cut(words: &str) -> String {
    words.trim().chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: &str, body: &str) -> object_store::Error {
        let text = format!("Server returned non-2xx status code: {status}: {body}");
        object_store::Error::Generic { store: "S3", source: text.into() }
    }

    fn cause(error: &object_store::Error) -> (Cause, String) {
        match meaning(error) {
            Meaning::Failed(cause, detail) => (cause, detail),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_stores_own_word_goes_before_the_status() {
        let body = "<Error><Code>RequestTimeTooSkewed</Code><Message>too far</Message></Error>";
        let (cause_, detail) = cause(&said("403 Forbidden", body));
        assert_eq!((cause_, detail.as_str()), (Cause::ClockSkew, "RequestTimeTooSkewed: too far"));
        assert!(!cause_.is_passing());
    }

    #[test]
    fn a_bucket_that_is_missing_is_not_taken_for_an_object_that_is() {
        let body = "<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>";
        let source = said("404 Not Found", body).to_string().into();
        let error = object_store::Error::NotFound { path: "a".into(), source };
        assert_eq!(cause(&error).0, Cause::NoBucket);
        let source = said("404 Not Found", "<Error><Code>NoSuchKey</Code></Error>").to_string().into();
        assert!(matches!(meaning(&object_store::Error::NotFound { path: "a".into(), source }), Meaning::NotFound));
    }

    #[test]
    fn statuses_that_pass_are_told_from_those_that_do_not() {
        for (status, wanted, passes) in [
            ("503 Service Unavailable", Cause::Throttled, true),
            ("429 Too Many Requests", Cause::Throttled, true),
            ("500 Internal Server Error", Cause::Fault, true),
            ("502 Bad Gateway", Cause::Fault, true),
            ("403 Forbidden", Cause::Denied, false),
            ("501 Not Implemented", Cause::Unsupported, false),
            ("400 Bad Request", Cause::Other, false),
        ] {
            let (cause, _) = cause(&said(status, ""));
            assert_eq!((cause, cause.is_passing()), (wanted, passes), "{status}");
        }
    }

    #[test]
    fn a_full_disk_is_told_as_one() {
        let source = io::Error::from(io::ErrorKind::StorageFull);
        let error = object_store::Error::Generic { store: "LocalFileSystem", source: source.into() };
        assert_eq!(cause(&error).0, Cause::Full);
    }
}
