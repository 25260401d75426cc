//! 1,200 random operations against what NumPy says of them: 400 of broadcasting, 300 of slicing, 300 of reductions, 200
//! of other kinds. golden/numpy_cases.py made the file of results and names NumPy's version; inputs are drawn here again.

use elastic_tensor::eager::{DType, Index, Result, Storage, Tensor};
use safetensors::SafeTensors;
use serde_json::Value;

static FILE: &[u8] = include_bytes!("../golden/numpy.safetensors");

/// Numbers of input `slot` of a case: as `draw` in golden/numpy_cases.py.
fn draw(case: usize, slot: usize, spec: &Value) -> Tensor {
    let mut state = ((case * 8 + slot + 1) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as i64
    };
    let shape = sizes(&spec["shape"]);
    let len = shape.iter().product();
    let dtype: DType = spec["dtype"].as_str().unwrap().parse().unwrap();
    let special = spec["special"] == true;
    let data = match dtype {
        DType::Bool => Storage::Bool((0..len).map(|_| next() & 1 == 1).collect()),
        DType::U8 => Storage::U8((0..len).map(|_| (next() % 256) as u8).collect()),
        dtype if dtype.is_float() => {
            let mut float = || match next() {
                n if special && n % 7 == 0 => [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0][(n / 7 % 4) as usize],
                n => (n % 2001 - 1000) as f64 / 64.0,
            };
            Storage::F64((0..len).map(|_| float()).collect()).cast(dtype)
        }
        dtype => {
            let (under, shift) = spec["under"].as_i64().map_or((201, 100), |under| (under, 0));
            Storage::I64((0..len).map(|_| next() % under - shift).collect()).cast(dtype)
        }
    };
    Tensor::from_storage(data, &shape).unwrap()
}

fn sizes(value: &Value) -> Vec<usize> {
    ints(value).into_iter().map(|n| n as usize).collect()
}

fn ints(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect()
}

fn indices(value: &Value) -> Vec<Index> {
    let one = |entry: &Value| match entry {
        Value::String(word) if word == "rest" => Index::Rest,
        Value::String(_) => Index::New,
        Value::Number(at) => Index::At(at.as_i64().unwrap()),
        range => Index::Range { start: range[0].as_i64(), end: range[1].as_i64(), step: range[2].as_i64().unwrap() },
    };
    value.as_array().unwrap().iter().map(one).collect()
}

fn apply(op: &str, x: &[Tensor], args: &Value) -> Result<Tensor> {
    let reduced = |y: Result<Tensor>| if args["keep"] == true { y?.keep(&x[0], &ints(&args["axes"])) } else { y };
    let axes = || ints(&args["axes"]);
    let axis = || args["axis"].as_i64().unwrap();
    match op {
        "add" => x[0].add(&x[1]),
        "sub" => x[0].sub(&x[1]),
        "mul" => x[0].mul(&x[1]),
        "div" => x[0].div(&x[1]),
        "maximum" => x[0].maximum(&x[1]),
        "minimum" => x[0].minimum(&x[1]),
        "eq" => x[0].eq(&x[1]),
        "ne" => x[0].ne(&x[1]),
        "lt" => x[0].lt(&x[1]),
        "le" => x[0].le(&x[1]),
        "gt" => x[0].gt(&x[1]),
        "ge" => x[0].ge(&x[1]),
        "select" => x[0].select(&x[1], &x[2]),
        "slice" => x[0].slice(&indices(&args["index"])),
        "sum" => reduced(x[0].sum(&axes())),
        "mean" => reduced(x[0].mean(&axes())),
        "amax" => reduced(x[0].amax(&axes())),
        "amin" => reduced(x[0].amin(&axes())),
        "any" => reduced(x[0].any(&axes())),
        "all" => reduced(x[0].all(&axes())),
        "var" => reduced(x[0].var(&axes(), 0)),
        "argmax" => reduced(x[0].argmax(axes()[0])),
        "argmin" => reduced(x[0].argmin(axes()[0])),
        "permute" => x[0].permute(&axes()),
        "broadcast_to" => x[0].broadcast_to(&sizes(&args["shape"])),
        "concat" => Tensor::concat(&x.iter().collect::<Vec<_>>(), axis()),
        "take" => x[0].take(axis(), &x[1]),
        "gather" => x[0].gather(axis(), &x[1]),
        "matmul" => x[0].matmul(&x[1]),
        other => panic!("no case of {other}"),
    }
}

/// How far a result may be off: sums are added in another order than NumPy's. Everything else is exact.
fn tolerance(op: &str, dtype: DType, x: &Tensor, y: &Tensor) -> f64 {
    let ulp = if dtype == DType::F64 { 1e-15 } else { 5e-7 };
    let terms = (x.len() / y.len().max(1)).max(1) as f64;
    // Inputs are under 16 in size.
    match op {
        "sum" => 16.0 * terms * ulp,
        "mean" => 16.0 * ulp,
        "var" | "matmul" => 256.0 * terms * ulp,
        _ => 0.0,
    }
}

#[test]
fn twelve_hundred_random_operations_have_numpys_results() {
    let (_, metadata) = SafeTensors::read_metadata(FILE).unwrap();
    let metadata = metadata.metadata().clone().unwrap();
    let file = SafeTensors::deserialize(FILE).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&metadata["cases"]).unwrap();
    assert_eq!((cases.len(), file.len()), (1200, 1200));
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let x: Vec<Tensor> =
            case["in"].as_array().unwrap().iter().enumerate().map(|(slot, spec)| draw(number, slot, spec)).collect();
        let op = case["op"].as_str().unwrap();
        let wanted = file.tensor(&number.to_string()).unwrap();
        let y = apply(op, &x, &case["args"]);
        let why = match &y {
            Ok(y) => differs(op, y, &wanted, &x[0]),
            Err(error) => Some(error.to_string()),
        };
        wrong.extend(why.map(|why| format!("{number} {case}: {why}")));
    }
    assert!(
        wrong.is_empty(),
        "{} of {} differ, such as\n{}",
        wrong.len(),
        cases.len(),
        wrong[..wrong.len().min(10)].join("\n")
    );
}

fn differs(op: &str, y: &Tensor, wanted: &safetensors::tensor::TensorView<'_>, x: &Tensor) -> Option<String> {
    let dtype = format!("{:?}", wanted.dtype()).to_lowercase();
    if y.dtype().name() != dtype || y.shape() != wanted.shape() {
        return Some(format!("is {} {:?}, not {dtype} {:?}", y.dtype(), y.shape(), wanted.shape()));
    }
    let data = wanted.data();
    let exact: Vec<f64> = match y.dtype() {
        DType::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) as f64).collect(),
        DType::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        DType::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
        DType::I32 => data.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as f64).collect(),
        DType::F16 => {
            let bits = data.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
            let Storage::F64(xs) = Storage::F16(bits).cast(DType::F64) else { unreachable!("cast to f64") };
            xs
        }
        _ => data.iter().map(|b| *b as f64).collect(),
    };
    let Storage::F64(got) = y.to_storage().unwrap().cast(DType::F64) else { unreachable!("cast to f64") };
    let allowed = tolerance(op, y.dtype(), x, y);
    // Which of -0 and 0 is the larger is nobody's promise.
    let signed = !matches!(op, "maximum" | "minimum" | "amax" | "amin") && allowed == 0.0;
    let fits = |(got, wanted): (&f64, &f64)| {
        let is_same = got == wanted && (!signed || got.is_sign_negative() == wanted.is_sign_negative());
        is_same || (got.is_nan() && wanted.is_nan()) || (got - wanted).abs() <= allowed && allowed > 0.0
    };
    let at = got.iter().zip(&exact).position(|pair| !fits(pair))?;
    Some(format!("element {at} is {}, not {}", got[at], exact[at]))
}
