//! What a request for a text wishes of it besides its prompt: the parameters that OpenAI's clients and Triton's share.

use crate::json::{Kind, Read, Scanner};
use crate::limits::{STOP_BYTES_MAX, STOPS_MAX};
use crate::refusal::{Refusal, quote};
use elastic_bundle::{Asking, Penalties, Sampling};
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;

/// The defaults are OpenAI's.
#[derive(Clone, Debug, PartialEq)]
pub struct Wishes {
    max_tokens: usize,
    temperature: f64,
    top_p: f64,
    top_k: usize,
    /// None: another one for each request.
    seed: Option<u64>,
    penalties: Penalties,
    stops: Vec<String>,
}

impl Default for Wishes {
    fn default() -> Wishes {
        Wishes {
            max_tokens: 16,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            seed: None,
            penalties: Penalties::default(),
            stops: Vec::new(),
        }
    }
}

impl Wishes {
    /// Reads the value of a key; false, and nothing is read, if it is none of these.
    pub fn key(&mut self, s: &mut Scanner<'_>, key: &str) -> Read<bool> {
        match key {
            "max_tokens" => self.max_tokens = s.usize("'max_tokens'")?,
            "temperature" => self.temperature = number(s, key, 0.0..=2.0)?,
            "top_p" => self.top_p = number(s, key, 0.0..=1.0)?,
            // -1 is what vLLM's clients say for all.
            "top_k" => match s.i64("'top_k'")? {
                -1 => self.top_k = 0,
                k => self.top_k = usize::try_from(k).map_err(|_| out_of(key, k, "0 or more"))?,
            },
            "seed" => self.seed = Some(s.i64("'seed'")? as u64),
            "presence_penalty" => self.penalties.presence = number(s, key, -2.0..=2.0)?,
            "frequency_penalty" => self.penalties.frequency = number(s, key, -2.0..=2.0)?,
            "stop" => self.stops = stops(s)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Of the request's first text.
    pub fn asking(self, likely: Option<usize>) -> Asking {
        let Wishes { max_tokens, temperature, top_p, top_k, seed, penalties, stops } = self;
        let seed = seed.unwrap_or_else(anything);
        let sampling = Sampling { temperature, top_p, top_k, seed };
        Asking { sampling, penalties, max_tokens, stops, likely, choice: 0 }
    }
}

/// A number that nobody can tell before: seeds and ids.
pub fn anything() -> u64 {
    RandomState::new().hash_one(crate::clock::now_us())
}

fn out_of(key: &str, found: impl std::fmt::Display, allowed: &str) -> Refusal {
    Refusal::Invalid(format!("'{key}' must be {allowed}, not {found}"))
}

/// In f64, as `elastic generate` reads it: the same number gives the same text.
fn number(s: &mut Scanner<'_>, key: &str, range: RangeInclusive<f64>) -> Read<f64> {
    let found = s.kind()?;
    if found != Kind::Number {
        return Err(out_of(key, found.word(), "a number"));
    }
    let text = std::str::from_utf8(s.skip()?).unwrap_or_default();
    let allowed = || format!("{} to {}", range.start(), range.end());
    let value: f64 = text.parse().map_err(|_| out_of(key, quote(text), &allowed()))?;
    match range.contains(&value) {
        true => Ok(value),
        false => Err(out_of(key, quote(text), &allowed())),
    }
}

fn stops(s: &mut Scanner<'_>) -> Read<Vec<String>> {
    let mut stops = Vec::new();
    let mut one = |s: &mut Scanner<'_>, what: &str| {
        let stop = s.text_value(what)?;
        if stop.is_empty() || stop.len() > STOP_BYTES_MAX {
            return Err(out_of("stop", format!("of {}", stop.len()), &format!("of 1 to {STOP_BYTES_MAX} bytes")));
        }
        if stops.len() == STOPS_MAX {
            return Err(Refusal::Invalid(format!("'stop' has more than {STOPS_MAX} texts")));
        }
        stops.push(stop.into_owned());
        Ok(())
    };
    match s.kind()? {
        Kind::List => s.list("'stop'", |s, at| one(s, &format!("'stop', place {at},")))?,
        _ => one(s, "'stop', where it is no list,")?,
    }
    Ok(stops)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(key: &str, value: &str) -> Result<Wishes, String> {
        let mut wishes = Wishes::default();
        let mut scanner = Scanner::new(value.as_bytes());
        let read = wishes.key(&mut scanner, key).and_then(|known| scanner.end().map(|()| known));
        read.map_err(|refusal| refusal.to_string()).map(|known| {
            assert!(known);
            wishes
        })
    }

    #[test]
    fn a_temperature_is_read_to_its_last_bit() {
        assert_eq!(wish("temperature", "0.7").unwrap().temperature.to_bits(), 0.7f64.to_bits());
    }

    #[test]
    fn what_is_out_of_bounds_is_told_with_them() {
        let why = |key, value| wish(key, value).unwrap_err();
        assert_eq!(why("temperature", "2.5"), "'temperature' must be 0 to 2, not 2.5");
        assert_eq!(why("top_p", "\"1\""), "'top_p' must be a number, not a string");
        assert_eq!(why("top_k", "-2"), "'top_k' must be 0 or more, not -2");
        assert_eq!(why("max_tokens", "-1"), "'max_tokens' must be 0 or more, not -1");
        assert_eq!(why("stop", "[1]"), "'stop', place 0, must be a string, not a number");
        assert_eq!(why("stop", "\"\""), "'stop' must be of 1 to 1024 bytes, not of 0");
        assert_eq!(wish("top_k", "-1").unwrap().top_k, 0);
        assert_eq!(wish("stop", "[\"a\", \"b\"]").unwrap().stops, ["a", "b"]);
    }
}
