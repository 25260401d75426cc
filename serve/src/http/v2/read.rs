//! A request of the open inference protocol (KServe v2) as rows and wanted outputs, with the binary tensor extension.

use crate::json::{Kind, Read, Scanner};
use crate::limits::{DIMENSIONS_MAX, NAME_BYTES_MAX, TENSORS_MAX};
use crate::model::Face;
use crate::outputs::{Wanted, find};
use crate::refusal::{Refusal, quote};
use crate::tensor::{self, Datatype, Numbers, Rows};
use std::time::Duration;

/// What is asked.
#[derive(Debug, PartialEq)]
pub struct Ask {
    pub id: Option<String>,
    pub timeout: Option<Duration>,
    pub rows: Rows,
    pub wanted: Vec<Wanted>,
}

/// `json` is the request, `binary` what stands behind it: tensors in the order in which they say their sizes.
pub fn read(face: &Face, json: &[u8], binary: &[u8]) -> Result<Ask, Refusal> {
    let mut ask = Loose::default();
    let mut scanner = Scanner::new(json);
    scanner.object("the request", |s, key| ask.key(s, key))?;
    scanner.end()?;
    let all_binary = ask.binary_output.unwrap_or(false);
    let [input] = <[Input; 1]>::try_from(ask.inputs).map_err(|inputs| {
        let (name, count) = (face.input().name, inputs.len());
        Refusal::Invalid(format!("the model takes one input, '{name}'; the request has {count}"))
    })?;
    let rows = rows(face, input, json, binary)?;
    let wanted = match ask.outputs {
        outputs if outputs.is_empty() => everything(face, all_binary),
        outputs => outputs.iter().map(|output| output.wanted(face, all_binary)).collect::<Result<_, _>>()?,
    };
    Ok(Ask { id: ask.id, timeout: ask.timeout, rows, wanted })
}

/// The body is the one input's bytes; what can be deduced of its shape is. All outputs come as bytes too.
pub fn read_raw(face: &Face, body: &[u8]) -> Result<Ask, Refusal> {
    let port = face.input();
    let shape: Vec<i64> = match port.shape.iter().filter(|n| **n < 0).count() {
        1 => {
            let row: i64 = port.shape[1..].iter().product::<i64>() * 4;
            if body.is_empty() || body.len() as i64 % row.max(1) != 0 {
                let (bytes, name) = (body.len(), port.name);
                let text =
                    format!("a raw body of {bytes} bytes is no whole number of rows: '{name}' has {row} bytes a row");
                return Err(Refusal::Invalid(text));
            }
            let rows = body.len() as i64 / row.max(1);
            [rows].into_iter().chain(port.shape[1..].iter().copied()).collect()
        }
        // Rows and length cannot both be deduced: it is one row.
        _ => vec![1, body.len() as i64 / 4],
    };
    let dims = tensor::check_shape(face, &shape)?;
    let numbers = tensor::from_bytes(face, port.datatype, body, dims.numbers)?;
    let rows = tensor::rows(face, dims, numbers)?;
    Ok(Ask { id: None, timeout: None, rows, wanted: everything(face, true) })
}

fn everything(face: &Face, binary: bool) -> Vec<Wanted> {
    face.kinds().iter().map(|output| Wanted { output: *output, binary, largest: None }).collect()
}

/// The request as it was read, before it is compared with the model.
#[derive(Default)]
struct Loose {
    id: Option<String>,
    timeout: Option<Duration>,
    binary_output: Option<bool>,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
}

#[derive(Default)]
struct Input {
    name: Option<String>,
    shape: Option<Vec<i64>>,
    datatype: Option<Datatype>,
    binary_size: Option<usize>,
    data: Data,
}

#[derive(Default)]
enum Data {
    #[default]
    Absent,
    /// With the shape that the lists have.
    Read(Vec<usize>, Numbers),
    /// Of a type that no model takes.
    Foreign,
    /// Stands there, before its datatype was known.
    Later(usize),
}

#[derive(Default)]
struct Output {
    name: Option<String>,
    binary: Option<bool>,
    largest: Option<usize>,
}

impl Loose {
    fn key(&mut self, s: &mut Scanner<'_>, key: &str) -> Read<()> {
        match key {
            _ if s.kind()? == Kind::Null => s.null(),
            "id" => short_text(s, "'id'").map(|id| self.id = Some(id)),
            "parameters" => s.object("'parameters'", |s, key| match key {
                "timeout" => timeout_us(s).map(|timeout| self.timeout = timeout),
                "binary_data_output" => {
                    s.bool_value("'binary_data_output'").map(|binary| self.binary_output = Some(binary))
                }
                _ => s.skip().map(drop),
            }),
            "inputs" => s.list("'inputs'", |s, at| {
                bound(at, "inputs")?;
                let mut input = Input::default();
                s.object(format_args!("input {at}"), |s, key| input.key(s, key, at))?;
                self.inputs.push(input);
                Ok(())
            }),
            "outputs" => s.list("'outputs'", |s, at| {
                bound(at, "outputs")?;
                let mut output = Output::default();
                s.object(format_args!("output {at}"), |s, key| output.key(s, key, at))?;
                self.outputs.push(output);
                Ok(())
            }),
            _ => s.skip().map(drop),
        }
    }
}

fn bound(at: usize, what: &str) -> Read<()> {
    match at < TENSORS_MAX {
        true => Ok(()),
        false => Err(Refusal::Invalid(format!("more than {TENSORS_MAX} {what}"))),
    }
}

fn short_text(s: &mut Scanner<'_>, what: impl std::fmt::Display) -> Read<String> {
    let text = s.text_value(&what)?;
    match text.len() <= NAME_BYTES_MAX {
        true => Ok(text.into_owned()),
        false => Err(Refusal::Invalid(format!("{what} is longer than {NAME_BYTES_MAX} bytes"))),
    }
}

/// In µs, as Triton has it; 0 is none. Some clients send it as a text.
fn timeout_us(s: &mut Scanner<'_>) -> Read<Option<Duration>> {
    let us = match s.kind()? {
        Kind::Text => {
            let text = s.text_value("'timeout'")?;
            let not_a_number = |_| Refusal::Invalid(format!("'timeout' must be µs, not '{}'", quote(&text)));
            text.parse::<u64>().map_err(not_a_number)?
        }
        _ => s.usize("'timeout'")? as u64,
    };
    Ok((us > 0).then(|| Duration::from_micros(us)))
}

impl Input {
    fn key(&mut self, s: &mut Scanner<'_>, key: &str, at: usize) -> Read<()> {
        match key {
            "name" => short_text(s, format_args!("'name' of input {at}")).map(|name| self.name = Some(name)),
            "shape" => {
                let mut shape = Vec::new();
                s.list(format_args!("'shape' of input {at}"), |s, dimension| {
                    if dimension > DIMENSIONS_MAX {
                        return Err(Refusal::Invalid(format!("input {at} has more than {DIMENSIONS_MAX} dimensions")));
                    }
                    shape.push(s.i64("a dimension")?);
                    Ok(())
                })?;
                self.shape = Some(shape);
                Ok(())
            }
            "datatype" => {
                let name = s.text_value(format_args!("'datatype' of input {at}"))?;
                self.datatype = Some(Datatype::parse(&name)?);
                Ok(())
            }
            "parameters" if s.kind()? == Kind::Null => s.null(),
            "parameters" => s.object(format_args!("'parameters' of input {at}"), |s, key| match key {
                "binary_data_size" => s.usize("'binary_data_size'").map(|size| self.binary_size = Some(size)),
                "shared_memory_region" => {
                    Err(Refusal::Unimplemented("shared memory is not served; send the tensor's bytes".into()))
                }
                _ => s.skip().map(drop),
            }),
            "data" => {
                self.data = match self.datatype {
                    None => {
                        let place = s.place();
                        s.skip()?;
                        Data::Later(place)
                    }
                    Some(datatype) => data(s, datatype, self.shape.as_deref())?,
                };
                Ok(())
            }
            _ => s.skip().map(drop),
        }
    }
}

/// The lists of numbers behind `data`.
fn data(s: &mut Scanner<'_>, datatype: Datatype, shape: Option<&[i64]>) -> Read<Data> {
    // As many as the shape says, but never more than the text can hold: a shape alone allocates nothing.
    let said: i64 = shape.unwrap_or_default().iter().fold(1, |all, n| all.saturating_mul(*n));
    let capacity = usize::try_from(said).unwrap_or(0).min(s.left() / 2 + 1);
    match datatype {
        Datatype::Fp32 => {
            let mut values = Vec::with_capacity(capacity);
            let shape = s.tensor("'data'", |s| {
                values.push(s.f32()?);
                Ok(())
            })?;
            Ok(Data::Read(shape, Numbers::F32(values)))
        }
        Datatype::Int32 | Datatype::Int64 => {
            let mut values = Vec::with_capacity(capacity);
            let shape = s.tensor("'data'", |s| {
                let id = s.i64("a number of INT32")?;
                let outside = |_| Refusal::Invalid(format!("{id} does not fit into INT32"));
                values.push(i32::try_from(id).map_err(outside)?);
                Ok(())
            })?;
            Ok(Data::Read(shape, Numbers::I32(values)))
        }
        _ => s.skip().map(|_| Data::Foreign),
    }
}

fn rows(face: &Face, mut input: Input, json: &[u8], binary: &[u8]) -> Result<Rows, Refusal> {
    let name = face.input().name;
    match &input.name {
        Some(found) if found == name => {}
        Some(found) => {
            return Err(Refusal::Invalid(format!("unknown input '{}'; the model takes '{name}'", quote(found))));
        }
        None => return Err(Refusal::invalid("input 0 has no 'name'")),
    }
    let missing = |key: &str| Refusal::Invalid(format!("input '{name}' has no '{key}'"));
    let datatype = input.datatype.ok_or_else(|| missing("datatype"))?;
    tensor::check_datatype(face, datatype)?;
    let shape = input.shape.ok_or_else(|| missing("shape"))?;
    let dims = tensor::check_shape(face, &shape)?;
    if let Data::Later(place) = input.data {
        let mut scanner = Scanner::new(json);
        scanner.seek(place);
        input.data = data(&mut scanner, datatype, Some(&shape))?;
    }
    let spare = |used: usize| match binary.len() == used {
        true => Ok(()),
        false => Err(Refusal::Invalid(format!("{} bytes behind the JSON belong to no tensor", binary.len() - used))),
    };
    let numbers = match (input.data, input.binary_size) {
        (Data::Read(lists, numbers), None) => {
            spare(0)?;
            let nested = lists.iter().map(|n| *n as i64).eq(shape.iter().copied());
            if lists.len() != 1 && !nested {
                return Err(Refusal::Invalid(format!(
                    "input '{name}' has data of shape {lists:?}, its shape is {shape:?}"
                )));
            }
            numbers
        }
        (Data::Absent, Some(size)) => {
            let Some(bytes) = binary.get(..size) else {
                return Err(Refusal::Invalid(format!(
                    "input '{name}' says 'binary_data_size' {size}, but {} bytes stand behind the JSON",
                    binary.len()
                )));
            };
            spare(size)?;
            tensor::from_bytes(face, datatype, bytes, dims.numbers)?
        }
        (Data::Absent, None) => return Err(missing("data")),
        (_, Some(_)) => return Err(Refusal::Invalid(format!("input '{name}' has both 'data' and 'binary_data_size'"))),
        (Data::Foreign | Data::Later(_), None) => return Err(missing("data")),
    };
    tensor::rows(face, dims, numbers)
}

impl Output {
    fn key(&mut self, s: &mut Scanner<'_>, key: &str, at: usize) -> Read<()> {
        match key {
            "name" => short_text(s, format_args!("'name' of output {at}")).map(|name| self.name = Some(name)),
            "parameters" if s.kind()? == Kind::Null => s.null(),
            "parameters" => s.object(format_args!("'parameters' of output {at}"), |s, key| match key {
                "binary_data" => s.bool_value("'binary_data'").map(|binary| self.binary = Some(binary)),
                "classification" => s.usize("'classification'").map(|n| self.largest = (n > 0).then_some(n)),
                "shared_memory_region" => {
                    Err(Refusal::Unimplemented("shared memory is not served; read the tensor's bytes".into()))
                }
                _ => s.skip().map(drop),
            }),
            _ => s.skip().map(drop),
        }
    }

    fn wanted(&self, face: &Face, all_binary: bool) -> Result<Wanted, Refusal> {
        let name = self.name.as_deref().ok_or_else(|| Refusal::invalid("an output has no 'name'"))?;
        let (output, binary) = (find(face, name)?, self.binary.unwrap_or(all_binary));
        let numbers = matches!(output, crate::model::Output::Logits | crate::model::Output::Probabilities);
        if self.largest.is_some() && !numbers {
            return Err(Refusal::Invalid(format!("output '{name}' cannot be classified: it is no list of scores")));
        }
        Ok(Wanted { output, binary, largest: self.largest })
    }
}

#[cfg(test)]
mod tests;
