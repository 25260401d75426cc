//! One op with inputs, run by both executors.

use crate::device::DEVICE;
use elastic_cuda::driver::Arena;
use elastic_cuda::lower::Region;
use elastic_cuda::program::Program;
use elastic_spec::job::Dtype;
use elastic_tensor::Init;
use elastic_tensor::exec::{Bound, Scratch, run};
use elastic_tensor::graph::{Graph, Role, Source, State, Type, Value};
use elastic_tensor::ops::{Key, Op};
use elastic_tensor::philox::{Stream as Numbers, unit};
use elastic_tensor::plan::{Goal, Plan};
use elastic_tensor::real::Single;
use std::collections::BTreeMap;

/// What an op reads.
#[derive(Clone, Debug)]
pub enum Input {
    Floats {
        shape: Vec<usize>,
        values: Vec<f32>,
    },
    /// One of a case at most.
    Ints {
        shape: Vec<usize>,
        values: Vec<i32>,
    },
}

/// Numbers in -1 to 1.
pub fn random(name: &str, len: usize) -> Vec<f32> {
    let numbers = Numbers::new(11, name);
    (0..len).map(|i| unit(numbers.words([i as u32, 0, 0, 0])[0]) * 2.0 - 1.0).collect()
}

/// Random floats of a shape.
pub fn floats(shape: &[usize]) -> Input {
    let name = format!("{shape:?}");
    given(shape, random(&name, shape.iter().product()))
}

pub fn given(shape: &[usize], values: Vec<f32>) -> Input {
    assert_eq!(values.len(), shape.iter().product::<usize>(), "as many values as the shape has");
    Input::Floats { shape: shape.to_vec(), values }
}

pub fn ints(shape: &[usize], values: &[i32]) -> Input {
    Input::Ints { shape: shape.to_vec(), values: values.to_vec() }
}

/// Any bits at all: NaNs of many kinds, infinities, denormals and zeros of both signs among them.
pub fn special_bits(name: &str, len: usize) -> Vec<f32> {
    let numbers = Numbers::new(13, name);
    let draws = (0..len).map(|i| numbers.words([i as u32, 0, 0, 0]));
    draws
        .map(|[draw, bits, ..]| match draw % 13 {
            0 => -0.0,
            1 => f32::from_bits(0x7f80_0001 | bits & 0x807f_ffff),
            2 => f32::from_bits(bits & 0x807f_ffff),
            3 => f32::INFINITY,
            4 => f32::NEG_INFINITY,
            5 => f32::MAX,
            _ => f32::from_bits(bits),
        })
        .collect()
}

/// Floats in which zeros of both signs, infinities, NaN, tiny and huge numbers stand among the others.
pub fn special(shape: &[usize]) -> Input {
    let all = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, -1e-40, 3e38, -3e38, 88.5, -88.5, 0.5];
    let len: usize = shape.iter().product();
    let values = random("special", len).into_iter().enumerate();
    given(shape, values.map(|(i, x)| if i % 3 == 1 { all[i / 3 % all.len()] } else { x }).collect())
}

/// What a call gives besides tensors.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub seed: u64,
    pub step: u64,
    pub scale: f32,
    pub label_smoothing: f32,
    pub shards: usize,
    /// Of all shards together.
    pub samples: usize,
    /// Slot of the first sample; from one to the next it is three.
    pub slot: u64,
    /// Keys random numbers.
    pub path: &'static str,
}

impl Call {
    fn slots(&self) -> Vec<u64> {
        (0..self.samples as u64).map(|sample| self.slot + 3 * sample).collect()
    }
}

pub const CALL: Call =
    Call { seed: 7, step: 3, scale: 0.37, label_smoothing: 0.1, shards: 1, samples: 16, slot: 1, path: "test" };

/// The op's outputs have the same bits by both executors (a NaN is a NaN).
pub fn check(op: Op, inputs: &[Input]) {
    check_with(CALL, op, inputs);
}

/// The same with the inputs as those of several shards, one behind the other.
pub fn check_shards(shards: usize, op: Op, inputs: &[Input]) {
    check_with(Call { shards, ..CALL }, op, inputs);
}

pub fn check_with(call: Call, op: Op, inputs: &[Input]) {
    let case = Case::new(call, op, inputs);
    if case.is_left_out() {
        return;
    }
    let (got, wanted) = (case.on_gpu(Dtype::F32), case.on_processor::<f32>());
    for number in 0..case.out.len() {
        case.same_bits(number, case.output(&got, number), case.output(&wanted, number));
    }
}

/// An op of inputs that lie in a state, ready to run.
pub struct Case {
    call: Call,
    what: String,
    plan: Plan,
    state: Vec<f32>,
    tokens: Vec<i32>,
    /// Type and first element of each output.
    out: Vec<(Type, usize)>,
    len: usize,
}

impl Case {
    pub fn new(call: Call, op: Op, inputs: &[Input]) -> Case {
        let what = format!("{} of {}", op.name(), inputs.iter().map(said).collect::<Vec<_>>().join(", "));
        let mut graph = Graph::default();
        let (mut state, mut offsets, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        let mut input = |graph: &mut Graph, input: &Input| match input {
            Input::Floats { shape, values } => {
                offsets.push(state.len());
                state.extend_from_slice(values);
                // Places in the state lie as those of parameters do: anywhere.
                let name = format!("x{}", offsets.len());
                let init = Init::Constant(0.0);
                graph.state(State { name, shape: shape.clone(), init, role: Role::Param }).expect("a new name")
            }
            Input::Ints { shape, values } => {
                tokens.clone_from(values);
                graph.input(Source::Targets, Type::int(shape))
            }
        };
        let x: Vec<Value> = inputs.iter().map(|x| input(&mut graph, x)).collect();
        let outputs = graph.apply(op, call.path, &x).unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut len = 0;
        let place = |y: &Value| {
            len += graph.ty(*y).len();
            (*y, len - graph.ty(*y).len())
        };
        let places: Vec<(Value, usize)> = outputs.iter().map(place).collect();
        let plan = Plan::new(&graph, &Goal { states: &offsets, out: &places, keep: &[] });
        let out = places.iter().map(|(y, at)| (graph.ty(*y).clone(), *at)).collect();
        Case { call, what, plan, state, tokens, out, len }
    }

    pub fn what(&self) -> &str {
        &self.what
    }

    /// Whether this run of the tests keeps to smaller cases; says so.
    pub fn is_left_out(&self) -> bool {
        let numbers = self.state.len().max(self.len);
        if numbers > DEVICE.numbers_max {
            println!("left out: {}: {numbers} numbers", self.what);
        }
        numbers > DEVICE.numbers_max
    }

    /// One output of those that a run gave.
    pub fn output<'a>(&self, all: &'a [f32], number: usize) -> &'a [f32] {
        let (ty, at) = &self.out[number];
        &all[*at..at + ty.len()]
    }

    /// The same bits; a NaN is a NaN.
    pub fn same_bits(&self, number: usize, got: &[f32], wanted: &[f32]) {
        let is_same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        let differ: Vec<usize> = (0..got.len()).filter(|i| !is_same((&got[*i], &wanted[*i]))).collect();
        let Some(first) = differ.first() else { return };
        let (what, (ty, _), count) = (&self.what, &self.out[number], differ.len());
        let (got, wanted) = (got[*first], wanted[*first]);
        panic!("{what}, output {number} {ty}: {count} differ, number {first} is {got:e}, not {wanted:e}");
    }

    pub fn on_processor<F: Single>(&self) -> Vec<f32> {
        let slots = self.call.slots();
        let Call { seed, step, scale, label_smoothing, shards, .. } = self.call;
        let key = Key { seed, step, scale, label_smoothing, shards, slots: &slots };
        let state = F::of_floats(&self.state);
        let bound = Bound { state, features: &[], tokens: &[], targets: &self.tokens, key };
        let mut out = vec![f32::NAN; self.len];
        run(&self.plan, &mut Scratch::<F>::new(1), &bound, F::of_floats_mut(&mut out));
        out
    }

    /// Runs on the tests' GPU, some times from memory full of NaN, and gives what was written.
    pub fn on_gpu(&self, dtype: Dtype) -> Vec<f32> {
        on_gpu(self, dtype).unwrap_or_else(|error| panic!("{}: {error}", self.what))
    }
}

fn said(input: &Input) -> String {
    match input {
        Input::Floats { shape, .. } => format!("{shape:?}"),
        Input::Ints { shape, .. } => format!("integers {shape:?}"),
    }
}

fn on_gpu(case: &Case, dtype: Dtype) -> Result<Vec<f32>, String> {
    let Case { call, plan, state, tokens, len, .. } = case;
    let program = Program::of(plan, dtype, call.shards, call.samples).map_err(|error| error.to_string())?;
    let slots: Vec<u8> = call.slots().iter().flat_map(|slot| slot.to_ne_bytes()).collect();
    let contents = BTreeMap::from([
        (Region::Arena, vec![0xff; 4 * plan.arena]),
        (Region::State, bytes_of(state)),
        (Region::Out, vec![0xff; 4 * len]),
        (Region::Targets, tokens.iter().flat_map(|x| x.to_ne_bytes()).collect()),
        (Region::Slots, slots),
        (Region::Call, elastic_cuda::call::bytes(call.seed, call.step, call.scale, call.label_smoothing).to_vec()),
    ]);
    run_program(&program, contents)
}

pub fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

/// Runs a program on regions with these contents as often as the device says, and gives what is in `Region::Out` then.
/// Writes to the state are a fault.
pub fn run_program(program: &Program, mut contents: BTreeMap<Region, Vec<u8>>) -> Result<Vec<f32>, String> {
    let (loaded, stream) = (&DEVICE.loaded, &DEVICE.stream);
    contents.insert(Region::Room, vec![0xff; program.room_bytes() as usize]);
    let mut first: Option<Vec<u8>> = None;
    for _ in 0..DEVICE.repeats {
        let mut arenas = BTreeMap::new();
        for (region, bytes) in &contents {
            let arena = Arena::new(loaded.context(), bytes.len() as u64).map_err(|error| error.to_string())?;
            stream.copy_in(&arena.whole(), bytes).map_err(|error| error.to_string())?;
            arenas.insert(*region, arena);
        }
        let base = |region| arenas.get(&region).map_or(0, |arena| arena.whole().address());
        let bound = program.bind(loaded, base).map_err(|error| error.to_string())?;
        // SAFETY: the regions have the sizes that the caller's plan and the program say, and live until the copy below
        // has waited.
        unsafe { bound.run(stream) }.map_err(|error| error.to_string())?;
        let mut out = vec![0; contents[&Region::Out].len()];
        stream.copy_out(&mut out, &arenas[&Region::Out].whole()).map_err(|error| error.to_string())?;
        let mut after = vec![0; contents[&Region::State].len()];
        stream.copy_out(&mut after, &arenas[&Region::State].whole()).map_err(|error| error.to_string())?;
        assert!(after == contents[&Region::State], "a kernel writes to its outputs and to nothing else");
        assert!(first.as_ref().is_none_or(|first| *first == out), "the same bits each time");
        first = Some(out);
    }
    let out = first.expect("it ran");
    Ok(out.chunks_exact(4).map(|bytes| f32::from_ne_bytes(bytes.try_into().expect("four"))).collect())
}
