//! Numbers: one pass over the digits, exact where the digits fit, the standard library's parser where they do not.

use super::{Kind, Read, Scanner};
use crate::refusal::{Refusal, quote};
use std::fmt::Display;

/// A number's text, and its digits as far as they fit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number<'a> {
    text: &'a [u8],
    negative: bool,
    /// All digits without the point, if there are at most 19.
    digits: Option<u64>,
    /// Power of ten that the digits are multiplied by.
    exponent: i32,
    whole: bool,
    token: bool,
}

impl Number<'_> {
    fn text(&self) -> &str {
        std::str::from_utf8(self.text).expect("a number's text is ASCII")
    }
}

impl<'a> Scanner<'a> {
    pub(super) fn number(&mut self) -> Read<Number<'a>> {
        self.expect(Kind::Number, "a value")?;
        let start = self.at;
        let negative = self.here() == Some(b'-');
        self.at += usize::from(negative);
        if self.lenient && matches!(self.here(), Some(b'N' | b'I')) {
            return self.token(start, negative);
        }
        let leading_zero = self.here() == Some(b'0');
        let mut digits = 0u64;
        let mut count = self.digits(&mut digits);
        if count == 0 || (leading_zero && count > 1) {
            return Err(self.mistake("a number begins with one 0 or with another digit"));
        }
        let (mut exponent, mut whole) = (0i32, true);
        if self.here() == Some(b'.') {
            self.at += 1;
            let behind = self.digits(&mut digits);
            if behind == 0 {
                return Err(self.mistake("a digit must follow the point of a number"));
            }
            exponent = -(behind.min(1 << 20) as i32);
            count += behind;
            whole = false;
        }
        if let Some(b'e' | b'E') = self.here() {
            self.at += 1;
            whole = false;
            let down = self.here() == Some(b'-');
            self.at += usize::from(matches!(self.here(), Some(b'-' | b'+')));
            let mut power = 0u64;
            match self.digits(&mut power) {
                0 => return Err(self.mistake("a digit must follow the e of a number")),
                // Further digits only make a huge power huger.
                1..=5 => exponent += if down { -(power as i32) } else { power as i32 },
                _ => return self.far(start, negative),
            }
        }
        let digits = (count <= 19).then_some(digits);
        Ok(Number { text: &self.text[start..self.at], negative, digits, exponent, whole, token: false })
    }

    /// A number with a power of six digits or more: the standard library knows what that is.
    fn far(&mut self, start: usize, negative: bool) -> Read<Number<'a>> {
        let text = &self.text[start..self.at];
        Ok(Number { text, negative, digits: None, exponent: 0, whole: false, token: false })
    }

    fn token(&mut self, start: usize, negative: bool) -> Read<Number<'a>> {
        match (self.here(), negative) {
            (Some(b'N'), false) => self.word(b"NaN")?,
            (Some(b'I'), _) => self.word(b"Infinity")?,
            _ => return Err(self.mistake("expected a digit")),
        }
        let text = &self.text[start..self.at];
        Ok(Number { text, negative, digits: None, exponent: 0, whole: false, token: true })
    }

    /// Reads digits into `value`, which overflows quietly: the caller looks at their count.
    fn digits(&mut self, value: &mut u64) -> usize {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let mut all = *value;
        let mut count = 0;
        for digit in rest {
            let digit = digit.wrapping_sub(b'0');
            if digit > 9 {
                break;
            }
            all = all.wrapping_mul(10).wrapping_add(u64::from(digit));
            count += 1;
        }
        *value = all;
        self.at += count;
        count
    }

    /// The f32 nearest to what stands there.
    pub fn f32(&mut self) -> Read<f32> {
        let number = self.number()?;
        if let Some(value) = exact_f32(&number) {
            return Ok(value);
        }
        if number.token {
            let value = if number.text.ends_with(b"N") { f32::NAN } else { f32::INFINITY };
            return Ok(if number.negative { -value } else { value });
        }
        let value: f32 = number.text().parse().map_err(|_| self.mistake("not a number"))?;
        match value.is_finite() {
            true => Ok(value),
            false => Err(Refusal::Invalid(format!("{} does not fit into FP32", quote(number.text())))),
        }
    }

    /// A whole number.
    pub fn i64(&mut self, what: impl Display) -> Read<i64> {
        self.expect(Kind::Number, &what)?;
        let number = self.number()?;
        let magnitude = number.digits.filter(|_| number.whole).map(i128::from);
        let value = magnitude.map(|m| if number.negative { -m } else { m }).and_then(|v| i64::try_from(v).ok());
        value.ok_or_else(|| Refusal::Invalid(format!("{what} must be a whole number, not {}", quote(number.text()))))
    }

    pub fn usize(&mut self, what: impl Display) -> Read<usize> {
        let value = self.i64(&what)?;
        usize::try_from(value).map_err(|_| Refusal::Invalid(format!("{what} must be 0 or more, not {value}")))
    }
}

/// Digits below 2^53 and powers of ten up to 10^22 are exact in f64, so one operation on them is off by half a unit in the
/// last place at most. Rounding that to f32 gives what rounding the exact value gives, unless it lies at the middle
/// between two floats. Those, and what is too small or too large for full precision, are left to the standard library.
fn exact_f32(number: &Number) -> Option<f32> {
    const POWERS: [f64; 23] = [
        1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19,
        1e20, 1e21, 1e22,
    ];
    /// Bits of an f64 behind those of an f32, and their middle.
    const BEHIND: u64 = (1 << 29) - 1;
    const MIDDLE: u64 = 1 << 28;
    let digits = number.digits.filter(|digits| *digits < 1 << 53)?;
    let power = *POWERS.get(number.exponent.unsigned_abs() as usize)?;
    let value = if number.exponent < 0 { digits as f64 / power } else { digits as f64 * power };
    let normal = value == 0.0 || (f64::from(f32::MIN_POSITIVE)..f64::from(f32::MAX)).contains(&value);
    if !normal || (value.to_bits() & BEHIND).abs_diff(MIDDLE) <= 1 {
        return None;
    }
    let value = value as f32;
    Some(if number.negative { -value } else { value })
}
