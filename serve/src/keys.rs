//! API keys: who may ask. A file with one key a line; empty lines and lines that begin with # count for nothing.

use crate::refusal::Refusal;

/// Without any, everybody may ask.
#[derive(Clone, Default)]
pub struct Keys {
    keys: Vec<String>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.keys.len())
    }
}

impl Keys {
    pub fn parse(text: &str) -> Result<Keys, String> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if !line.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(format!("line {number}: a key has printable ASCII characters only, and no spaces"));
            }
            if line.len() < KEY_BYTES_MIN {
                return Err(format!("line {number}: a key has at least {KEY_BYTES_MIN} characters"));
            }
            keys.push(line.to_string());
        }
        match keys.is_empty() {
            true => Err("there is no key in it".into()),
            false => Ok(Keys { keys }),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// `authorization` as `Bearer KEY`, or the bare key of another header.
    pub fn check(&self, authorization: Option<&[u8]>, bare: Option<&[u8]>) -> Result<(), Refusal> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let bearer = authorization.and_then(|value| {
            let (word, key) = value.split_at_checked(7)?;
            word.eq_ignore_ascii_case(b"bearer ").then_some(key)
        });
        let Some(shown) = bearer.or(bare) else {
            return Err(Refusal::Unauthenticated("this server wants an API key: 'Authorization: Bearer KEY'".into()));
        };
        // Every key is compared whole: the time tells nothing of them but their number.
        let known = self.keys.iter().fold(false, |known, key| known | same(key.as_bytes(), shown));
        match known {
            true => Ok(()),
            false => Err(Refusal::Unauthenticated("the API key is not one of this server's".into())),
        }
    }
}

/// Takes the same time wherever the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

const KEY_BYTES_MIN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_keys_everybody_may_ask() {
        assert!(Keys::default().check(None, None).is_ok());
    }

    #[test]
    fn with_keys_one_of_them_must_be_shown() {
        let keys = Keys::parse("# team a\n0123456789abcdef\n\nfedcba9876543210\n").unwrap();
        assert!(keys.check(Some(b"Bearer fedcba9876543210"), None).is_ok());
        assert!(keys.check(None, Some(b"0123456789abcdef")).is_ok());
        for wrong in [&b"Bearer "[..], b"Bearer 0123456789abcdeX", b"Basic 0123456789abcdef", b""] {
            assert_eq!(keys.check(Some(wrong), None).unwrap_err().status(), 401);
        }
        assert_eq!(keys.check(None, None).unwrap_err().status(), 401);
    }

    #[test]
    fn a_file_of_bad_keys_is_refused_with_its_line() {
        assert!(Keys::parse("0123456789abcdef\nshort").unwrap_err().contains("line 2"));
        assert!(Keys::parse("# nothing\n").unwrap_err().contains("no key"));
    }
}
