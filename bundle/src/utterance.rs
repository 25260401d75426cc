//! Bytes that come token by token, as text that can be shown at once: whole characters, and nothing of a stop.
//!
//! What may be the beginning of a stop, or of a character, is held back until it is known. Bytes that are no UTF-8 become
//! U+FFFD, as `String::from_utf8_lossy` does: however the bytes come in pieces, the text is the same.

#[derive(Clone, Debug, Default)]
pub struct Utterance {
    /// Texts that end it and are not part of it; none is empty.
    stops: Vec<Vec<u8>>,
    held: Vec<u8>,
    is_stopped: bool,
}

impl Utterance {
    pub fn new(stops: &[String]) -> Utterance {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).map(|stop| stop.clone().into_bytes()).collect();
        Utterance { stops, held: Vec::new(), is_stopped: false }
    }

    /// Begins with a part of a character that was said before.
    pub fn after(mut self, part: &[u8]) -> Utterance {
        self.held.extend_from_slice(part);
        self
    }

    /// Bytes of which nothing is certain yet.
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// Whether a stop has come.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// What of the text is certain now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.is_stopped {
            return String::new();
        }
        let known = self.held.len();
        self.held.extend_from_slice(bytes);
        if let Some(begin) = self.first_stop(known) {
            self.held.truncate(begin);
            self.is_stopped = true;
            return self.finish();
        }
        let certain = self.held.len() - self.begun();
        let (text, used) = whole_characters(&self.held[..certain]);
        self.held.drain(..used);
        text
    }

    /// What was held back, when nothing more comes.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }

    /// Where the stop begins that is complete first, in what was held with more than `known` bytes of it; of several
    /// that end together, the longest.
    fn first_stop(&self, known: usize) -> Option<usize> {
        let ends_at = |end: usize| {
            let found = self.stops.iter().filter(move |stop| self.held[..end].ends_with(stop));
            found.map(|stop| end - stop.len()).min()
        };
        (known + 1..=self.held.len()).find_map(ends_at)
    }

    /// Bytes at the end that may be the beginning of a stop.
    fn begun(&self) -> usize {
        let longest = |stop: &Vec<u8>| (1..stop.len()).rev().find(|len| self.held.ends_with(&stop[..*len]));
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

/// The text up to a character that is not complete, and its bytes.
fn whole_characters(bytes: &[u8]) -> (String, usize) {
    let (mut text, mut used) = (String::new(), 0);
    loop {
        match std::str::from_utf8(&bytes[used..]) {
            Ok(rest) => {
                text.push_str(rest);
                return (text, bytes.len());
            }
            Err(error) => {
                let valid = &bytes[used..used + error.valid_up_to()];
                text.push_str(std::str::from_utf8(valid).expect("the error says so"));
                used += valid.len();
                let Some(wrong) = error.error_len() else { return (text, used) };
                text.push(char::REPLACEMENT_CHARACTER);
                used += wrong;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said(stops: &[&str], pieces: &[&[u8]]) -> Vec<String> {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut utterance = Utterance::new(&stops);
        let mut out: Vec<String> = pieces.iter().map(|piece| utterance.push(piece)).collect();
        out.push(utterance.finish());
        out
    }

    #[test]
    fn a_character_is_shown_when_it_is_whole() {
        assert_eq!(said(&[], &[b"a\xe2", b"\x82", b"\xacb"]), ["a", "", "\u{20ac}b", ""]);
        assert_eq!(said(&[], &[b"a\xe2", b"x"]), ["a", "\u{fffd}x", ""]);
        assert_eq!(said(&[], &[b"a\xe2\x82"]), ["a", "\u{fffd}"]);
    }

    #[test]
    fn what_may_begin_a_stop_is_held_back() {
        assert_eq!(said(&["\n\nEnd"], &[b"one\n", b"\nE", b"lse"]), ["one", "", "\n\nElse", ""]);
        assert_eq!(said(&["\n\nEnd"], &[b"one\n", b"\nEnd of"]), ["one", "", ""]);
        assert_eq!(said(&["abc", "b"], &[b"xa", b"bc"]), ["x", "a", ""], "the stop that is complete first ends it");
        assert_eq!(said(&["bc", "abc"], &[b"xab", b"c"]), ["x", "", ""], "of two that end together, the longest");
        assert_eq!(said(&[""], &[b"a"]), ["a", ""]);
    }

    #[test]
    fn what_was_begun_before_is_gone_on_with() {
        let mut before = Utterance::default();
        assert_eq!((before.push(b"a\xe2\x82"), before.held()), ("a".into(), &b"\xe2\x82"[..]));
        let mut after = Utterance::new(&["b".into()]).after(before.held());
        assert_eq!([after.push(b"\xacx"), after.push(b"b")], ["\u{20ac}x", ""]);
        assert!(after.is_stopped());
    }

    /// Read at once, slowly.
    fn plain(stops: &[String], bytes: &[u8]) -> String {
        let cut = (1..=bytes.len()).find_map(|end| {
            let ends = stops.iter().filter(|stop| !stop.is_empty() && bytes[..end].ends_with(stop.as_bytes()));
            ends.map(|stop| end - stop.len()).min()
        });
        String::from_utf8_lossy(&bytes[..cut.unwrap_or(bytes.len())]).into_owned()
    }

    proptest! {
        #[test]
        fn however_the_bytes_come_the_text_is_that_before_the_first_stop(
            bytes in prop::collection::vec(prop::sample::select(&b"aab\xc3\xa9\xe2\x82\xac\xff"[..]), 0..40),
            stops in prop::collection::vec("[ab\u{e9}]{0,3}", 0..3),
            cuts in prop::collection::vec(0usize..6, 40),
        ) {
            let mut utterance = Utterance::new(&stops);
            let (mut text, mut rest) = (String::new(), &bytes[..]);
            for cut in cuts {
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                text += &utterance.push(piece);
                rest = behind;
            }
            text += &utterance.push(rest);
            text += &utterance.finish();
            prop_assert_eq!(text, plain(&stops, &bytes));
        }
    }
}
