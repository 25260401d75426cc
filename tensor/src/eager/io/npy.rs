//! NumPy's `.npy`: a header that is a Python dictionary, then the elements.
//!
//! Format: NumPy Enhancement Proposal 1, "A Simple File Format for NumPy Arrays", versions 1.0 to 3.0.

use super::super::dtype::DType;
use super::super::tensor::{Tensor, check_axes};
use super::super::{Result, tape};
use super::{bytes_of, elements, file_error, read, size_of, write};
use crate::ops::AXES_MAX;
use std::path::Path;

const MAGIC: &[u8] = b"\x93NUMPY";

/// The array in a file: bool, u1, i4, i8, f2, f4 or f8, little-endian, in C or Fortran order.
pub fn read_npy(path: impl AsRef<Path>) -> Result<Tensor> {
    parse_npy(&read(path.as_ref())?, &path.as_ref().display().to_string())
}

/// The same of bytes; `file` is what errors call them.
pub fn parse_npy(bytes: &[u8], file: &str) -> Result<Tensor> {
    let (header, start) = header_of(bytes, file)?;
    let data = &bytes[start..];
    let Header { dtype, shape, is_fortran } = header;
    check_axes("shape", &shape).or_else(|e| file_error(file, "the header", e.to_string()))?;
    let wanted = size_of(&shape, dtype);
    if wanted != Some(data.len()) {
        let wanted = wanted.map_or("more bytes than can be counted".to_string(), |n| format!("{n} bytes"));
        let message = format!("{dtype} {shape:?} takes {wanted}, but {} follow; write the array anew", data.len());
        return file_error(file, format!("byte {start}"), message);
    }
    let data = elements(data, dtype);
    if !is_fortran {
        return Tensor::from_storage(data, &shape);
    }
    let turned: Vec<usize> = shape.iter().rev().copied().collect();
    tape::no_grad(|| Tensor::from_storage(data, &turned)?.t())
}

struct Header {
    dtype: DType,
    shape: Vec<usize>,
    is_fortran: bool,
}

/// The header, and where the elements begin.
fn header_of(bytes: &[u8], file: &str) -> Result<(Header, usize)> {
    if bytes.get(..6) != Some(MAGIC) {
        return file_error(file, "byte 0", "does not begin as a .npy file does; write it with numpy.save");
    }
    let number = |range: std::ops::Range<usize>| {
        Some(bytes.get(range)?.iter().rev().fold(0usize, |n, byte| n << 8 | *byte as usize))
    };
    let (from, len): (usize, _) = match bytes.get(6..8) {
        Some([1, 0]) => (10, number(8..10)),
        Some([2 | 3, 0]) => (12, number(8..12)),
        Some([major, minor]) => {
            let message = format!("version {major}.{minor} is not known; there are 1.0, 2.0 and 3.0");
            return file_error(file, "byte 6", message);
        }
        _ => (10, None),
    };
    let text = len.and_then(|len| bytes.get(from..from.checked_add(len)?));
    let Some(text) = text else {
        return file_error(file, format!("byte {}", bytes.len()), "ends within the header; the file is cut off");
    };
    let mut parser = Parser { text, at: 0, file, from };
    let header = parser.header()?;
    Ok((header, from + text.len()))
}

/// Reads the dictionary: three keys, each once, in any order.
struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    file: &'a str,
    /// Where the text begins in the file.
    from: usize,
}

impl<'a> Parser<'a> {
    fn wrong<T>(&self, message: impl Into<String>) -> Result<T> {
        file_error(self.file, format!("byte {}", self.from + self.at), message)
    }

    fn header(&mut self) -> Result<Header> {
        let (mut dtype, mut order, mut shape) = (None, None, None);
        self.take(b'{')?;
        while !self.takes(b'}') {
            let key = self.string()?;
            self.take(b':')?;
            match key {
                b"descr" if dtype.is_none() => dtype = Some(self.dtype()?),
                b"fortran_order" if order.is_none() => order = Some(self.truth()?),
                b"shape" if shape.is_none() => shape = Some(self.shape()?),
                _ => return self.wrong("the keys are descr, fortran_order and shape, each once"),
            }
            if !self.takes(b',') {
                self.take(b'}')?;
                break;
            }
        }
        self.space();
        match (dtype, order, shape) {
            (Some(dtype), Some(is_fortran), Some(shape)) if self.at == self.text.len() => {
                Ok(Header { dtype, shape, is_fortran })
            }
            _ => self.wrong("the keys are descr, fortran_order and shape, and nothing follows them"),
        }
    }

    fn space(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn takes(&mut self, byte: u8) -> bool {
        self.space();
        let is_it = self.text.get(self.at) == Some(&byte);
        self.at += is_it as usize;
        is_it
    }

    fn take(&mut self, byte: u8) -> Result<()> {
        if self.takes(byte) { Ok(()) } else { self.wrong(format!("a `{}` is missing here", byte as char)) }
    }

    fn string(&mut self) -> Result<&'a [u8]> {
        self.space();
        let Some(quote) = self.text.get(self.at).copied().filter(|b| *b == b'\'' || *b == b'"') else {
            return self
                .wrong("a string is missing here; arrays of records are not read, save their fields one by one");
        };
        let rest = &self.text[self.at + 1..];
        let Some(len) = rest.iter().position(|b| *b == quote) else { return self.wrong("this string has no end") };
        self.at += len + 2;
        Ok(&rest[..len])
    }

    fn dtype(&mut self) -> Result<DType> {
        self.space();
        let start = self.at;
        let name = self.string()?;
        let dtype = match name {
            b"|b1" => DType::Bool,
            b"|u1" => DType::U8,
            b"<i4" => DType::I32,
            b"<i8" => DType::I64,
            b"<f2" => DType::F16,
            b"<f4" => DType::F32,
            b"<f8" => DType::F64,
            _ => {
                self.at = start;
                let name = String::from_utf8_lossy(name);
                let cure = match &name[..] {
                    "|V2" | "<V2" => "if it is bfloat16, save it as float32, or as safetensors, which names it",
                    _ if name.starts_with('>') => "it is big-endian; save a.astype(a.dtype.newbyteorder('<'))",
                    _ => "save it as bool, uint8, int32, int64, float16, float32 or float64",
                };
                return self.wrong(format!("elements are `{name}`: {cure}"));
            }
        };
        Ok(dtype)
    }

    fn truth(&mut self) -> Result<bool> {
        self.space();
        for (word, value) in [(&b"True"[..], true), (b"False", false)] {
            if self.text[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        self.wrong("True or False is missing here")
    }

    fn shape(&mut self) -> Result<Vec<usize>> {
        self.take(b'(')?;
        let mut shape = Vec::new();
        while !self.takes(b')') {
            shape.push(self.number()?);
            if shape.len() > AXES_MAX {
                return self.wrong(format!("there may be {AXES_MAX} axes; reshape the array"));
            }
            if !self.takes(b',') {
                self.take(b')')?;
                if shape.len() == 1 {
                    return self.wrong("a shape of one axis is written (n,)");
                }
                break;
            }
        }
        Ok(shape)
    }

    fn number(&mut self) -> Result<usize> {
        self.space();
        let digits: Vec<u8> = self.text[self.at..].iter().copied().take_while(u8::is_ascii_digit).collect();
        let number = String::from_utf8_lossy(&digits).parse();
        // An axis that is longer than any memory is a damaged file.
        let Some(number) = number.ok().filter(|n: &usize| *n <= isize::MAX as usize) else {
            return self.wrong("the length of an axis is missing here, or it is too large");
        };
        self.at += digits.len();
        Ok(number)
    }
}

/// The tensor as `numpy.save` writes it: version 1.0, C order. An error for bf16, which NumPy has not.
pub fn npy_bytes(x: &Tensor) -> Result<Vec<u8>> {
    let descr = match x.dtype() {
        DType::Bool => "|b1",
        DType::U8 => "|u1",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::F16 => "<f2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::Bf16 => {
            return super::super::type_error("npy", "NumPy has no bf16; convert to f32 first, or write safetensors");
        }
    };
    let axes: Vec<String> = x.shape().iter().map(usize::to_string).collect();
    let shape = if let [one] = &axes[..] { format!("({one},)") } else { format!("({})", axes.join(", ")) };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    // NumPy leaves room for the first axis to grow to 21 digits, then fills up to a multiple of 64.
    header += &" ".repeat(axes.first().map_or(0, |first| 21 - first.len()));
    let padding = 64 - (MAGIC.len() + 4 + header.len() + 1) % 64;
    header += &" ".repeat(padding);
    header.push('\n');
    let mut bytes = [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
    bytes.extend(bytes_of(&x.to_storage()?));
    Ok(bytes)
}

/// Writes the tensor to a file, replacing it.
pub fn write_npy(path: impl AsRef<Path>, x: &Tensor) -> Result<()> {
    write(path.as_ref(), &npy_bytes(x)?)
}
