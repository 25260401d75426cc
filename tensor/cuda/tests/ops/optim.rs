//! The optimizer's step on the tests' GPU against `elastic_tensor::apply_on`: the same bits of state, moments, average and
//! report after each of several steps.

use crate::case::random;
use crate::device::DEVICE;
use elastic_cuda::driver::{Arena, Argument, Graph, LaunchShape, Span, Stream};
use elastic_cuda::optim::{Now, OptimizerStep, Rule, Vectors};
use elastic_spec::job::Optimizer;
use elastic_spec::layout::BLOCK_FLOATS;
use elastic_tensor::team::Team;
use elastic_tensor::{
    GroupRates, ParamInfo, RunningPair, StateLayout, Update, UpdateReport, apply_on, ema, moments_of,
};
use std::sync::Arc;

const PLAIN: GroupRates = GroupRates { lr_scale: 1.0, weight_decay: None };

fn info(name: String, offset: usize, len: usize) -> ParamInfo {
    ParamInfo { name, shape: vec![len], offset, len, decay: true, trainable: true, group: PLAIN }
}

/// Parameters of these lengths, changed by `change`, and batch norms of these widths.
fn layout(params: &[usize], norms: &[usize], change: impl Fn(usize, &mut ParamInfo)) -> StateLayout {
    let mut layout = StateLayout::default();
    let mut end = 0;
    for (i, len) in params.iter().enumerate() {
        let mut param = info(format!("p{i}"), end, *len);
        change(i, &mut param);
        layout.params.push(param);
        end += len;
    }
    for (i, len) in norms.iter().enumerate() {
        let mean = end..end + len;
        let var = mean.end..mean.end + len;
        end = var.end;
        for (what, at) in [("mean", &mean), ("var", &var)] {
            layout.buffers.push(ParamInfo { trainable: false, ..info(format!("{what}{i}"), at.start, *len) });
        }
        layout.running.push(RunningPair { mean, var, momentum: 0.1 + i as f64 * 0.07 });
    }
    layout
}

/// Decays, groups and frozen tensors of all kinds, at odd places, around the edges of pieces and chunks.
fn mixed() -> StateLayout {
    let params = [3, 4094, 1, 100, 20_007, 7, BLOCK_FLOATS, 2, 5, 2 * BLOCK_FLOATS + 1];
    layout(&params, &[1, 5, 300], |i, param| {
        param.decay = i % 3 != 1;
        param.trainable = ![3, 7].contains(&i);
        param.group = match i {
            1 | 2 => GroupRates { lr_scale: 0.25, weight_decay: None },
            5 => GroupRates { lr_scale: 3.0, weight_decay: Some(0.3) },
            8 => GroupRates { lr_scale: 0.0, weight_decay: Some(0.0) },
            _ => PLAIN,
        };
    })
}

fn optimizers() -> [Optimizer; 5] {
    let sgd = |momentum, nesterov| Optimizer::Sgd { momentum, nesterov, weight_decay: 0.01 };
    let (beta1, beta2, eps, weight_decay) = (0.9, 0.95, 1e-8, 0.1);
    let adam = Optimizer::Adam { beta1, beta2, eps, weight_decay };
    [sgd(0.0, false), sgd(0.9, false), sgd(0.9, true), adam, Optimizer::AdamW { beta1, beta2, eps, weight_decay }]
}

/// Everything that a step may change, in the host's memory.
#[derive(Clone)]
struct Training {
    state: Vec<f32>,
    moments: Vec<Vec<f32>>,
    average: Option<Vec<f32>>,
}

impl Training {
    /// As it might be amid a job: numbers of both signs and zeros, second moments that are not negative.
    fn new(layout: &StateLayout, rule: &Rule) -> Training {
        let mut state = random("state", layout.floats());
        state.iter_mut().skip(2).step_by(11).for_each(|x| *x = -0.0);
        let params = layout.param_floats();
        let moment = |i: usize| random(&format!("moment{i}"), params).into_iter();
        let moments = (0..moments_of(&rule.optimizer)).map(|i| match i {
            0 => moment(i).collect(),
            _ => moment(i).map(|x| x * x).collect(),
        });
        let average = rule.ema.map(|_| state[..params].to_vec());
        Training { moments: moments.collect(), average, state }
    }

    fn step(&mut self, layout: &StateLayout, rule: &Rule, now: Now, mut reduced: Vec<f32>) -> UpdateReport {
        let (team, Now { step, lr, correction }) = (Team::new(1), now);
        let (reduced, state, moments) = (&mut reduced[..], &mut self.state[..], &mut self.moments[..]);
        let clip_norm = rule.clip_norm;
        let update = Update { layout, reduced, state, moments, step, lr, correction, clip_norm };
        let report = apply_on(&team, &rule.optimizer, update);
        // As the worker does: a step that moved nothing does not move the average either.
        if let (Some(average), Some(decay), None) = (&mut self.average, rule.ema, report.not_finite) {
            ema::follow(&team, decay, &self.state[..average.len()], average);
        }
        report
    }

    fn vectors(&self) -> Vec<&[f32]> {
        let moments = self.moments.iter().map(Vec::as_slice);
        std::iter::once(&self.state[..]).chain(moments).chain(self.average.as_deref()).collect()
    }
}

/// Bytes before and behind each vector, which nobody may touch.
const MARGIN: usize = 256;

/// The same on the GPU, each vector in memory of its own with poison around it.
struct OnGpu {
    stream: Stream,
    step: OptimizerStep,
    reduced: Arc<Arena>,
    vectors: Vec<(Arc<Arena>, usize)>,
}

impl OnGpu {
    fn new(layout: &StateLayout, rule: Rule, start: &Training) -> OnGpu {
        let stream = Stream::new(DEVICE.loaded.context()).expect("a stream");
        let vectors: Vec<_> = start.vectors().into_iter().map(|x| (upload(&stream, x), x.len())).collect();
        let reduced = upload(&stream, &vec![f32::NAN; layout.reduced_floats()]);
        let at = |arena: &Arc<Arena>| arena.whole().address() + MARGIN as u64;
        let moments = &vectors[1..1 + start.moments.len()];
        let places = Vectors {
            state: at(&vectors[0].0),
            moments: moments.iter().map(|(arena, _)| at(arena)).collect(),
            average: start.average.as_ref().map(|_| at(&vectors[vectors.len() - 1].0)),
            reduced: at(&reduced),
        };
        let step = OptimizerStep::new(&DEVICE.loaded, &stream, layout, rule, &places).expect("tables");
        OnGpu { stream, step, reduced, vectors }
    }

    /// Says what the next step is, and what was reduced.
    fn set(&mut self, now: Now, reduced: &[f32]) {
        self.step.set(now);
        self.stream.copy_in(&inner(&self.reduced, reduced.len()), &bytes(reduced)).expect("a copy");
    }

    fn step(&mut self, now: Now, reduced: &[f32]) -> UpdateReport {
        self.set(now, reduced);
        // SAFETY: the vectors are as long as the layout says, all of it lives on, and the next line waits.
        unsafe { self.step.start(&self.stream) }.expect("launches");
        self.stream.wait().expect("no kernel failed");
        self.step.report()
    }

    fn read(&self) -> Vec<Vec<f32>> {
        let read = |(arena, len): &(Arc<Arena>, usize)| {
            let mut out = vec![0; 4 * len + 2 * MARGIN];
            self.stream.copy_out(&mut out, &arena.whole()).expect("a copy");
            let (before, rest) = out.split_at(MARGIN);
            let (inner, behind) = rest.split_at(4 * len);
            assert!(before.iter().chain(behind).all(|byte| *byte == 0xff), "nothing is written beside a vector");
            inner.chunks_exact(4).map(|bytes| f32::from_ne_bytes(bytes.try_into().expect("four"))).collect()
        };
        self.vectors.iter().map(read).collect()
    }
}

fn bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

fn inner(arena: &Arc<Arena>, len: usize) -> Span {
    arena.span(MARGIN as u64, 4 * len as u64).expect("it has room")
}

fn upload(stream: &Stream, x: &[f32]) -> Arc<Arena> {
    let arena = Arena::new(DEVICE.loaded.context(), (4 * x.len() + 2 * MARGIN) as u64).expect("memory");
    // SAFETY: the arena lives, and the copy below waits.
    unsafe { stream.set_bytes(&arena.whole(), 0xff) }.expect("poison");
    stream.copy_in(&inner(&arena, x.len()), &bytes(x)).expect("a copy");
    arena
}

fn same(what: &str, wanted: &Training, got: &OnGpu) {
    for (number, (wanted, got)) in wanted.vectors().into_iter().zip(got.read()).enumerate() {
        let differs = |(wanted, got): (&f32, &f32)| wanted.to_bits() != got.to_bits();
        let at = wanted.iter().zip(&got).position(differs);
        assert!(
            wanted.len() == got.len() && at.is_none(),
            "{what}: vector {number} (state, moments, average) at {at:?}"
        );
    }
}

fn same_report(what: &str, wanted: UpdateReport, got: UpdateReport) {
    let bits = |report: UpdateReport| (report.grad_norm.to_bits(), report.not_finite);
    assert_eq!(bits(wanted), bits(got), "{what}: {wanted:?} and {got:?}");
}

/// What was reduced in a step: zeros of both signs, denormal and large numbers among others.
fn reduced(layout: &StateLayout, step: u64) -> Vec<f32> {
    let all = [0.0, -0.0, 1e-40, -3e-39, 3e4, -1e9, 1e-20];
    let numbers = random(&format!("reduced{step}"), layout.reduced_floats()).into_iter().enumerate();
    numbers.map(|(i, x)| if i % 29 == step as usize % 29 { all[i / 29 % all.len()] } else { x * 0.1 }).collect()
}

fn now(step: u64) -> Now {
    Now { step, lr: 0.01 / (step + 1) as f64, correction: 1.25 - step as f32 * 0.11 }
}

/// Steps one after the other, each with its reduced vector.
fn check(layout: &StateLayout, rule: Rule, steps: &[(Now, Vec<f32>)]) -> Vec<UpdateReport> {
    let mut wanted = Training::new(layout, &rule);
    let mut got = OnGpu::new(layout, rule, &wanted);
    let run = |(now, reduced): &(Now, Vec<f32>)| {
        let what = format!("{rule:?}, {now:?}");
        let report = wanted.step(layout, &rule, *now, reduced.clone());
        same_report(&what, report, got.step(*now, reduced));
        same(&what, &wanted, &got);
        report
    };
    steps.iter().map(run).collect()
}

#[test]
fn steps_of_every_optimizer_have_the_processors_bits() {
    let layout = mixed();
    let steps: Vec<_> = [0, 1, 2, 1000].map(|step| (now(step), reduced(&layout, step))).into();
    for optimizer in optimizers() {
        for (clip_norm, ema) in [(None, None), (Some(0.5), Some(0.99)), (Some(1e12), Some(0.5))] {
            let reports = check(&layout, Rule { optimizer, clip_norm, ema }, &steps);
            assert!(reports.iter().all(|report| report.grad_norm > 1e8 && report.not_finite.is_none()));
        }
    }
}

#[test]
fn lengths_around_chunks_and_pieces() {
    let adamw = optimizers()[4];
    for len in [0, 1, 2, 3, 4, 5, 31, 4095, 4096, 4097, BLOCK_FLOATS - 1, BLOCK_FLOATS, BLOCK_FLOATS + 1] {
        for (params, norms) in [(vec![len], vec![]), (vec![1, len], vec![1]), (vec![2, len, 3], vec![len / 2])] {
            let layout = layout(&params, &norms, |i, param| param.decay = i == 1);
            let steps: Vec<_> = [0, 1].map(|step| (now(step), reduced(&layout, step))).into();
            check(&layout, Rule { optimizer: adamw, clip_norm: Some(0.01), ema: Some(0.9) }, &steps);
        }
    }
}

/// Numbers of one size, so that each sum is rounded and its place in the order shows.
#[test]
fn norms_keep_the_order_of_sums() {
    for (number, len) in [15, 16, 17, 1000, 40_000, 70_001, 200_003].into_iter().enumerate() {
        let layout = layout(&[len], &[], |_, _| {});
        let gradient = |step: u64| random(&format!("gradient {number} {step}"), len);
        let steps: Vec<_> = (0..4).map(|step| (now(step), gradient(step))).collect();
        check(&layout, Rule { optimizer: optimizers()[0], clip_norm: Some(1.0), ema: None }, &steps);
    }
}

/// `find` by itself, with chunks of three numbers, since 1024 whole ones and more would be 268 MB.
#[test]
fn more_chunks_than_one_block_reads_at_once() {
    let (chunk, grads, stats) = (3, 2500, 1300);
    let (params, floats) = (3 * grads - 1, 3 * (grads + stats) - 2);
    for bad in [None, Some(0), Some(3 * 1030 + 1), Some(params - 1), Some(params), Some(floats - 1)] {
        let stream = Stream::new(DEVICE.loaded.context()).expect("a stream");
        let mut reduced = random("reduced", floats);
        let mut sums: Vec<f64> = random("sums", grads + stats).iter().map(|x| f64::from(x * x) * 1.1).collect();
        if let Some(at) = bad {
            reduced[at] = f32::NAN;
            // What lies behind the first is not asked for, by the same thread and by another.
            let first = if at < params { at / chunk } else { grads + (at - params) / chunk };
            let last = grads + stats - 1;
            [first, (first + 256).min(last), last].iter().for_each(|chunk| sums[*chunk] = f64::NAN);
        }
        let as_floats = |sums: &[f64]| -> Vec<f32> {
            let halves = sums.iter().flat_map(|x| [x.to_bits() as u32, (x.to_bits() >> 32) as u32]);
            halves.map(f32::from_bits).collect()
        };
        // Clipped to 0.5, corrected by 1, and samples count.
        let scalars = [as_floats(&[0.5]), vec![1.0, f32::from_bits(1)]].concat();
        let arenas = [&[0.0; 6][..], &as_floats(&sums), &reduced, &scalars].map(|x| upload(&stream, x));
        let address = |i: usize| Argument::Address(arenas[i].whole().address() + MARGIN as u64);
        let counts = [grads, grads + stats, chunk].map(|count| Argument::U32(count as u32));
        let sizes = [params, floats].map(|count| Argument::U64(count as u64));
        let arguments = [&[0, 1, 2, 3].map(address)[..], &sizes, &counts].concat();
        let find = DEVICE.loaded.function("norm", "find", 0).expect("a kernel");
        let shape = LaunchShape { grid: [1; 3], block: [256, 1, 1], shared_bytes: 0 };
        // SAFETY: the arguments are those of `find`, its memory lives, and the copy waits.
        unsafe { stream.launch(&find, shape, &arguments) }.expect("a launch");
        let mut out = [0; 24];
        stream.copy_out(&mut out, &inner(&arenas[0], 6)).expect("a copy");
        let eight = |at: usize| u64::from_ne_bytes(out[at..at + 8].try_into().expect("eight"));
        assert_eq!(u32::from_ne_bytes(out[16..20].try_into().expect("four")), u32::from(bad.is_some()));
        let norm = sums[..grads].iter().fold(0.0, |a, b| a + b).sqrt();
        match bad {
            Some(at) => assert_eq!(eight(8), at as u64),
            None => {
                assert_eq!(eight(0), norm.to_bits());
                assert_eq!(out[20..], ((0.5 / (norm + 1e-6)) as f32).to_ne_bytes());
            }
        }
    }
}

#[test]
fn what_is_not_finite_moves_nothing_and_its_first_place_is_told() {
    let layout = mixed();
    let params = layout.param_floats();
    let frozen = layout.params[3].offset;
    // The last is finite until it is corrected.
    for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
        let with = |step: u64, put: &[usize]| {
            let mut reduced = reduced(&layout, step);
            put.iter().for_each(|at| reduced[*at] = x);
            (Now { correction: 2.0, ..now(step) }, reduced)
        };
        let cases: [(&[usize], Option<usize>); 8] = [
            (&[], None),
            (&[0], Some(0)),
            (&[params - 1, 5000 + 77, BLOCK_FLOATS + 3], Some(5000 + 77)),
            (&[params - 1], Some(params - 1)),
            (&[frozen, frozen + 99], None),
            (&[params + 306, params + 7], Some(params + 7)),
            (&[layout.floats() - 1, frozen], Some(layout.floats() - 1)),
            (&[params, 2 * BLOCK_FLOATS], Some(2 * BLOCK_FLOATS)),
        ];
        let steps: Vec<_> = cases.iter().enumerate().map(|(step, (put, _))| with(step as u64, put)).collect();
        for optimizer in [optimizers()[0], optimizers()[2], optimizers()[4]] {
            let reports = check(&layout, Rule { optimizer, clip_norm: Some(1.0), ema: Some(0.9) }, &steps);
            let found: Vec<_> = reports.iter().map(|report| report.not_finite).collect();
            assert_eq!(found, cases.iter().map(|(_, first)| *first).collect::<Vec<_>>(), "{x}");
        }
    }
}

#[test]
fn a_step_in_which_no_sample_counts_has_a_gradient_of_zero_and_leaves_statistics() {
    let layout = mixed();
    let nothing = vec![f32::NAN; layout.reduced_floats()];
    for correction in [f32::INFINITY, f32::NAN] {
        let steps = [
            (now(0), reduced(&layout, 0)),
            (Now { correction, ..now(1) }, nothing.clone()),
            (now(2), reduced(&layout, 2)),
        ];
        for optimizer in optimizers() {
            let reports = check(&layout, Rule { optimizer, clip_norm: Some(1.0), ema: Some(0.9) }, &steps);
            assert_eq!(reports[1], UpdateReport { grad_norm: 0.0, not_finite: None });
        }
    }
}

#[test]
fn a_captured_step_takes_what_was_set_last() {
    let layout = mixed();
    let rule = Rule { optimizer: optimizers()[4], clip_norm: Some(1.0), ema: Some(0.99) };
    let mut wanted = Training::new(&layout, &rule);
    let mut got = OnGpu::new(&layout, rule, &wanted);
    let OnGpu { stream, step, .. } = &mut got;
    // SAFETY: the vectors and the step live on; each replay below is waited for.
    let graph = Graph::capture(stream, |stream| unsafe { step.start(stream) }).expect("a graph");
    same("nothing ran", &wanted, &got);
    for number in 0..4 {
        let mut reduced = reduced(&layout, number);
        if number == 2 {
            reduced[12_345] = f32::NAN;
        }
        got.set(now(number), &reduced);
        // SAFETY: as above.
        unsafe { got.stream.replay(&graph) }.expect("a replay");
        got.stream.wait().expect("no kernel failed");
        let what = format!("replay {number}");
        same_report(&what, wanted.step(&layout, &rule, now(number), reduced), got.step.report());
        same(&what, &wanted, &got);
    }
}
