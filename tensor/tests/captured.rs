//! A captured graph has the bits of define-by-run, allocates nothing while it runs, and says what it does not take.

use elastic_tensor::eager::{Captured, DType, Device, Index, Result, Storage, Tensor, checkpoint, no_grad, trace};
use elastic_tensor::half::Half;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts what this thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all is the system's; the count is a constant-initialised cell of the thread, which allocates nothing itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % sides
    }
}

/// One operation on tensors of the pool, or an error where their shapes do not fit.
fn operation(dice: &mut Dice, pool: &[Tensor]) -> Result<Tensor> {
    let (kind, a, b, c) = (dice.roll(34), dice.roll(pool.len()), dice.roll(pool.len()), dice.roll(pool.len()));
    let (x, y, z) = (&pool[a], &pool[b], &pool[c]);
    match kind {
        0 => x.add(y),
        1 => x.sub(y),
        2 | 3 => x.mul(y),
        4 => x.div(&y.mul(y)?.add_scalar(0.5)?),
        5 => x.maximum(y),
        6 => x.minimum(y),
        7 => x.gt(y)?.select(y, z),
        8 => x.tanh(),
        9 => x.sigmoid(),
        10 => x.silu()?.neg(),
        11 => x.relu(),
        12 => x.abs()?.add_scalar(0.1)?.ln(),
        13 => x.clamp(-1.0, 1.0)?.exp(),
        14 => x.powf(2.0)?.add_scalar(0.1)?.sqrt(),
        15 => x.gelu(),
        16 => x.mean(&[-1])?.keep(x, &[-1]),
        17 => x.amax(&[0])?.keep(x, &[0]),
        18 => x.sum(&[0]),
        19 => x.softmax(-1),
        20 => x.log_softmax(0),
        21 => x.slice(&[Index::every(-1)]),
        22 => x.slice(&[Index::Rest, (1..).into()]),
        23 => Tensor::concat(&[x, y], 0),
        24 => x.matmul(y),
        25 => x.matmul(&y.t()?),
        26 => x.take(0, &Tensor::from_vec(vec![1i64, 0, -1, 1], &[4])?),
        27 => Ok(x.detach().add_scalar(0.2)?.mul(y)?),
        28 => no_grad(|| x.mul(y))?.add(x),
        29 => checkpoint(&[x, y], |g| g[0].tanh()?.mul(&g[1])),
        30 => x.var(&[-1], 0),
        31 if x.dtype() == DType::F64 => x.neg(),
        31 => x.to_dtype(DType::Bf16)?.mul(&y.to_dtype(DType::Bf16)?)?.to_dtype(x.dtype()),
        32 => x.broadcast_to(&[2, 4, 6])?.sum(&[0]),
        _ => x.unsqueeze(0)?.matmul(&y.unsqueeze(0)?.transpose(-1, -2)?)?.squeeze(0),
    }
}

/// A random program over four inputs. The choices depend on the seed and on shapes alone.
fn program(seed: u64, inputs: &[Tensor]) -> Result<Vec<(&'static str, Tensor)>> {
    let (mut dice, mut pool) = (Dice(seed), inputs.to_vec());
    while pool.len() < 24 {
        // Large results would only be slow.
        if let Ok(made) = operation(&mut dice, &pool)
            && made.len() < 400
        {
            pool.push(made);
        }
    }
    let mut loss = Tensor::zeros(&[], inputs[0].dtype());
    for x in &pool[12..] {
        loss = loss.add(&x.mean(&[])?)?;
    }
    Ok(vec![("loss", loss), ("last", pool[23].clone()), ("middle", pool[12].clone())])
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const SHAPES: [&[usize]; 4] = [&[4, 6], &[6], &[4, 1], &[6, 6]];

fn bits(x: &Tensor) -> Vec<u64> {
    // Which of two NaNs a sum keeps is nobody's promise.
    let of = |x: f64| if x.is_nan() { u64::MAX } else { x.to_bits() };
    let Storage::F64(xs) = x.to_storage().unwrap().cast(DType::F64) else { unreachable!("cast to f64") };
    xs.into_iter().map(of).collect()
}

fn capture(seed: u64, dtype: DType, threads: usize) -> Captured {
    let inputs: Vec<_> = NAMES.iter().zip(SHAPES).map(|(name, shape)| (*name, dtype, shape)).collect();
    let traced = trace(Device::Cpu, &inputs, |given| program(seed, given)).unwrap();
    traced.with_gradients("loss", &NAMES).unwrap().compile(threads).unwrap()
}

#[test]
fn random_programs_have_the_same_bits_captured_and_by_run() {
    for dtype in [DType::F32, DType::F64, DType::Bf16] {
        for seed in 0..150 {
            let data =
                |round: u64, i: usize| Tensor::randn(seed + 1000 * round, NAMES[i], SHAPES[i]).to_dtype(dtype).unwrap();
            let mut captured = capture(seed, dtype, 1 + seed as usize % 3);
            // The second round finds the memory as the first one left it.
            for round in 0..2 {
                let leaves: Vec<Tensor> = (0..4).map(|i| data(round, i).requires_grad().unwrap()).collect();
                let outputs = program(seed, &leaves).unwrap();
                let is_tracked = outputs[0].1.is_tracked();
                if is_tracked {
                    outputs[0].1.backward().unwrap();
                }
                (0..4).for_each(|i| captured.set(NAMES[i], &data(round, i)).unwrap());
                captured.run();
                for (name, wanted) in &outputs {
                    let got = captured.get(name).unwrap();
                    assert_eq!((got.dtype(), got.shape()), (wanted.dtype(), wanted.shape()));
                    assert_eq!(bits(&got), bits(wanted), "{name} of program {seed} in {dtype}");
                }
                for (name, leaf) in NAMES.iter().zip(&leaves) {
                    let wanted = leaf.grad().unwrap_or_else(|| Tensor::zeros(leaf.shape(), dtype));
                    let got = captured.gradient("loss", name).unwrap();
                    assert_eq!(bits(&got), bits(&wanted), "gradient of {name} of program {seed} in {dtype}");
                }
            }
        }
    }
}

#[test]
fn a_run_allocates_nothing() {
    for seed in 0..20 {
        let mut captured = capture(seed, DType::F32, 1);
        captured.run();
        let before = ALLOCATIONS.get();
        captured.run();
        assert_eq!(ALLOCATIONS.get() - before, 0, "program {seed}");
    }
    let traced = trace(Device::Cpu, &[("x", DType::F32, &[50, 70])], |g| Ok(vec![("y", g[0].mul(&g[0])?.t()?.t()?)]));
    let (mut captured, x) = (traced.unwrap().compile(1).unwrap(), Tensor::ones(&[50, 70], DType::F32));
    captured.run();
    let before = ALLOCATIONS.get();
    captured.set("x", &x).unwrap();
    captured.run();
    captured.carry("y", "x").unwrap();
    assert_eq!(ALLOCATIONS.get() - before, 0, "nor do inputs, nor what is carried over");
    let before = ALLOCATIONS.get();
    drop(vec![1]);
    assert_eq!(ALLOCATIONS.get() - before, 1, "allocations are counted");
}

#[test]
fn neighbours_are_fused_and_memory_is_shared() {
    let build = |given: &[Tensor]| {
        let x = &given[0];
        let y = x.mul(x)?.add_scalar(1.0)?.tanh()?.mul(&given[1])?.sigmoid()?.sub(x)?;
        Ok(vec![("loss", y.sum_all()?)])
    };
    let inputs = [("x", DType::F32, &[100, 1000][..]), ("w", DType::F32, &[1000])];
    let captured =
        trace(Device::Cpu, &inputs, build).unwrap().with_gradients("loss", &["x", "w"]).unwrap().compile(1).unwrap();
    // Forward, its sum, backward, and the sum over the rows for w: with the seed's fills, no more.
    assert!(captured.steps() <= 7, "{} steps", captured.steps());
    assert!(
        captured.arena_floats() <= 600_000,
        "{} floats: the 14 large values would take 1,400,000",
        captured.arena_floats()
    );
}

#[test]
fn integers_are_indices_and_targets_by_name() {
    let inputs = [("table", DType::F32, &[5, 3][..]), ("rows", DType::I64, &[4]), ("targets", DType::I32, &[4])];
    let build = |given: &[Tensor]| {
        let scores = given[0].embedding(&given[1].detach())?.matmul(&given[0].t()?)?;
        let best = scores.argmax(-1)?;
        Ok(vec![("loss", scores.cross_entropy(&given[2])?.sum_all()?), ("best", best)])
    };
    let traced = trace(Device::Cpu, &inputs, build).unwrap();
    let mut captured = traced.with_gradients("loss", &["table"]).unwrap().compile(1).unwrap();
    let table = Tensor::randn(1, "table", &[5, 3]);
    let rows = Tensor::from_vec(vec![4i64, 0, 4, 2], &[4]).unwrap();
    let targets = Tensor::from_vec(vec![1i32, -1, 0, 3], &[4]).unwrap();
    captured.set("table", &table).unwrap();
    captured.set("rows", &rows).unwrap();
    captured.set("targets", &targets).unwrap();
    captured.run();
    let leaf = table.requires_grad().unwrap();
    let by_run = build(&[leaf.clone(), rows, targets]).unwrap();
    by_run[0].1.backward().unwrap();
    assert_eq!(bits(&captured.get("loss").unwrap()), bits(&by_run[0].1));
    assert_eq!(captured.get("best").unwrap().to_vec::<i64>().unwrap(), by_run[1].1.to_vec::<i64>().unwrap());
    assert_eq!(bits(&captured.gradient("loss", "table").unwrap()), bits(&leaf.grad().unwrap()));
    let wrong = captured.set("rows", &Tensor::from_vec(vec![0i64, 5, 1, 2], &[4]).unwrap()).unwrap_err().to_string();
    assert!(wrong.contains("`rows` holds the index 5") && wrong.contains("under 5"), "{wrong}");
    assert!(captured.set("rows", &Tensor::from_vec(vec![0i64, -1, 1, 2], &[4]).unwrap()).is_err());
}

#[test]
fn booleans_are_masks_and_come_out_as_such() {
    let inputs = [("x", DType::F64, &[2, 2][..]), ("mask", DType::Bool, &[2, 1])];
    let traced = trace(Device::Cpu, &inputs, |g| {
        let small = g[0].lt(&Tensor::full(&[], 2.5, DType::F64))?;
        Ok(vec![
            ("y", g[1].select(&g[0], &g[0].neg()?)?),
            ("small", small.clone()),
            ("count", small.to_dtype(DType::F64)?.sum_all()?),
        ])
    });
    let mut captured = traced.unwrap().compile(1).unwrap();
    captured.set("x", &Tensor::from_vec(vec![1.0f64, 2.0, 3.0, f64::NAN], &[2, 2]).unwrap()).unwrap();
    captured.set("mask", &Tensor::from_vec(vec![true, false], &[2, 1]).unwrap()).unwrap();
    captured.run();
    assert_eq!(captured.get("y").unwrap().to_vec::<f64>().unwrap()[..3], [1.0, 2.0, -3.0]);
    assert_eq!(captured.get("small").unwrap().to_vec::<bool>().unwrap(), [true, true, false, false]);
    assert_eq!(captured.get("count").unwrap().item().unwrap(), 2.0);
}

#[test]
fn a_wrong_name_shape_or_type_is_told_with_what_there_is() {
    let mut captured = capture(1, DType::F32, 1);
    let told = |result: Result<()>, parts: &[&str]| {
        let error = result.unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "{error} lacks {part}"));
    };
    let x = Tensor::zeros(&[4, 6], DType::F32);
    told(captured.set("x", &x), &["no input `x`", "`a` (f32 [4, 6])", "`d` (f32 [6, 6])"]);
    told(captured.set("b", &x), &["`b` is f32 [6]", "f32 [4, 6] was given"]);
    told(captured.set("a", &x.to_dtype(DType::F64).unwrap()), &["`a` is f32 [4, 6]", "f64 [4, 6]"]);
    told(captured.get("lost").map(drop), &["no output `lost`", "`loss` (f32 [])", "`d loss / d a`"]);
    told(captured.gradient("loss", "x").map(drop), &["d loss / d x"]);
    told(captured.carry("loss", "a"), &["`loss` is f32 []", "`a` is f32 [4, 6]"]);
}

type Function = fn(&[Tensor]) -> Result<Vec<(&'static str, Tensor)>>;

#[test]
fn what_cannot_be_captured_is_refused_while_it_is_traced() {
    let refused = |inputs: &[(&str, DType, &[usize])], f: Function, part| {
        let error = trace(Device::Cpu, inputs, f).err().expect("it is refused").to_string();
        assert!(error.contains(part), "{error} lacks {part}");
    };
    let one: &[(&str, DType, &[usize])] = &[("x", DType::F32, &[2])];
    refused(
        one,
        |g| Ok(vec![("y", if g[0].sum_all()?.item()? > 0.0 { g[0].clone() } else { g[0].neg()? })]),
        "no numbers yet",
    );
    refused(one, |g| Ok(vec![("y", g[0].add(&Tensor::zeros(&[2], DType::F64))?)]), "f32");
    refused(one, |g| g[0].add_(&g[0]).map(|()| Vec::new()), "being captured");
    refused(one, |g| g[0].sum_all()?.backward().map(|()| Vec::new()), "being captured");
    refused(one, |g| Ok(vec![("y", g[0].clone()), ("y", g[0].clone())]), "two outputs named `y`");
    refused(&[("x", DType::F32, &[2]), ("x", DType::F32, &[2])], |_| Ok(Vec::new()), "two inputs named `x`");
    refused(&[("i", DType::I64, &[2])], |g| Ok(vec![("y", g[0].add(&g[0])?)]), "being captured");
    let missing = trace(Device::Cuda(0), one, |g| Ok(vec![("y", g[0].clone())])).err().expect("it is not there");
    assert!(missing.to_string().contains("cuda:0"));
    let traced = || trace(Device::Cpu, one, |g| Ok(vec![("y", g[0].clone())])).unwrap();
    assert!(traced().with_gradients("y", &["x"]).err().expect("two numbers").to_string().contains("[2]"));
    assert!(traced().with_gradients("z", &["x"]).err().expect("no z").to_string().contains("no output `z`"));
    assert!(traced().with_gradients("y", &["z"]).err().is_some());
}

#[test]
fn an_input_may_be_an_output_and_sixteen_bits_are_rounded_where_they_come_out() {
    let traced =
        trace(Device::Cpu, &[("x", DType::Bf16, &[3])], |g| Ok(vec![("same", g[0].clone()), ("y", g[0].mul(&g[0])?)]));
    let mut captured = traced.unwrap().compile(1).unwrap();
    let x = Tensor::from_vec(vec![1.01f32, 2.5, -3.3], &[3]).unwrap().to_dtype(DType::Bf16).unwrap();
    captured.set("x", &x).unwrap();
    captured.run();
    assert_eq!(captured.get("same").unwrap().to_storage().unwrap(), x.to_storage().unwrap());
    let Storage::F32(exact) = x.to_storage().unwrap().cast(DType::F32) else { unreachable!("cast to f32") };
    let wanted = exact.iter().map(|x| Half::Bf16.of_f32(x * x)).collect();
    assert_eq!(captured.get("y").unwrap().to_storage().unwrap(), Storage::Bf16(wanted));
}
