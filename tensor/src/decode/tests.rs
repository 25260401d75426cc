//! Sequences that are continued have the bits of the forward pass over all of their tokens, on every instruction set.

use super::*;
use crate::gemm::{FORCED, Isa};
use crate::nn::{Scope, Table};
use crate::predict::{Rows, compile_forward};
use crate::tensor::{Result, Tensor};
use crate::{Init, philox};

/// A decoder with odd sizes: 3 heads of 10 channels, places learned or turned, a bias at the end.
struct Net {
    rotary: bool,
}

const WIDTH: usize = 30;
const CONTEXT: usize = 37;
const VOCAB: usize = 45;
const DATA: DataShape = DataShape::Tokens { vocab: VOCAB, context: CONTEXT };

impl Module for Net {
    fn forward(&self, nn: &Scope, tokens: Tensor) -> Result<Tensor> {
        let init = Init::Normal { std: 0.5 };
        let (mut x, _) = nn.embedding("table", &tokens, Table { rows: VOCAB, width: WIDTH, init })?;
        if !self.rotary {
            x = x.add(&nn.enter("places").param("weight", &[CONTEXT, WIDTH], init)?)?;
        }
        for layer in ["a", "b"] {
            let at = nn.enter(layer);
            let y = at.linear("qkv", &at.layer_norm("norm", &x)?, 3 * WIDTH)?;
            let y = if self.rotary { y.rotary(3)? } else { y };
            x = x.add(&at.linear("out", &y.causal_attention(3)?, WIDTH)?)?;
            let y = at.linear("up", &at.rms_norm("norm_2", &x)?, 2 * WIDTH)?;
            let y = if self.rotary { y.gelu() } else { y.relu().scale(0.5) };
            x = x.add(&at.linear("down", &y, WIDTH)?)?;
        }
        nn.linear("scores", &x, VOCAB)
    }
}

/// A network with its weights, and the scores of whole sequences.
struct World {
    decode: Box<dyn Decode>,
    state: Vec<f32>,
    texts: Vec<Vec<i32>>,
    wanted: Vec<Vec<f32>>,
}

impl World {
    fn new(dtype: Dtype, net: &Net) -> World {
        let network = compile_forward(dtype, net, &DATA).unwrap();
        let mut state = vec![0.0; network.layout().floats()];
        let stream = philox::Stream::new(1, "weights");
        for (i, x) in state.iter_mut().enumerate() {
            *x = philox::unit(stream.words([i as u32, 0, 0, 0])[0]) - 0.5;
        }
        let shared = std::sync::Arc::new(state.clone());
        let text = |seed: usize| (0..CONTEXT).map(|i| ((i * 31 + seed * 7 + i * i * seed) % VOCAB) as i32).collect();
        let texts: Vec<Vec<i32>> = (0..5).map(text).collect();
        let scores = |text: &Vec<i32>| {
            let mut out = vec![0.0; CONTEXT * VOCAB];
            network.scores(&mut *network.new_scratch(&shared, 1).unwrap(), Rows::Tokens(text), &mut out);
            out
        };
        let wanted = texts.iter().map(scores).collect();
        World { decode: compile_decode(dtype, net, &DATA).unwrap(), state, texts, wanted }
    }

    fn start(&self, threads: usize, seats: usize) -> Box<dyn Decoding> {
        self.decode.start(&self.state, DecodeSize { threads, seats, rows: CONTEXT * seats })
    }

    /// One pass that asks for everything: each (seat, text, number of tokens) goes on with its text.
    fn check(&self, session: &mut dyn Decoding, pieces: &[(usize, usize, usize)]) {
        let begin: Vec<usize> = pieces.iter().map(|(seat, ..)| session.len(*seat)).collect();
        let piece = |(&(seat, text, count), begin): (&(usize, usize, usize), &usize)| Piece {
            seat,
            tokens: &self.texts[text][*begin..begin + count],
            asked: Asked::All,
        };
        let asked: Vec<Piece<'_>> = pieces.iter().zip(&begin).map(piece).collect();
        let mut scores = vec![f32::NAN; asked.iter().map(Piece::scores).sum::<usize>() * VOCAB];
        session.advance(&asked, &mut scores);
        let mut scores = &scores[..];
        for ((seat, text, count), begin) in pieces.iter().zip(&begin) {
            let (mine, rest) = scores.split_at(count * VOCAB);
            scores = rest;
            let wanted = &self.wanted[*text][begin * VOCAB..][..count * VOCAB];
            let is_same = mine.iter().zip(wanted).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(is_same && mine.len() == wanted.len(), "seat {seat}: text {text}, {count} tokens from {begin} on");
        }
    }
}

fn worlds() -> impl Iterator<Item = World> {
    let all = [Dtype::F32, Dtype::Bf16].into_iter().flat_map(|dtype| [false, true].map(|rotary| (dtype, rotary)));
    all.map(|(dtype, rotary)| World::new(dtype, &Net { rotary }))
}

#[test]
fn a_prompt_in_any_two_pieces_and_then_single_tokens_have_the_bits_of_the_whole_on_every_set() {
    for isa in Isa::here() {
        FORCED.set(Some(isa));
        for world in worlds() {
            let mut session = world.start(1, 1);
            for prompt in 1..=CONTEXT {
                for first in [1, prompt / 3 + 1, prompt - 1, prompt] {
                    session.clear(0);
                    world.check(&mut *session, &[(0, 1, first.clamp(1, prompt))]);
                    let left = prompt - session.len(0);
                    world.check(&mut *session, &[(0, 1, left)]);
                }
                while session.len(0) < CONTEXT && prompt % 5 == 1 {
                    world.check(&mut *session, &[(0, 1, 1)]);
                }
            }
        }
    }
    FORCED.set(None);
}

#[test]
fn sequences_that_join_and_leave_do_not_show_in_each_others_bits_on_any_number_of_threads() {
    for world in worlds() {
        for threads in 1..=3 {
            let mut session = world.start(threads, 4);
            world.check(&mut *session, &[(0, 0, 5)]);
            world.check(&mut *session, &[(2, 1, 17), (0, 0, 1)]);
            world.check(&mut *session, &[(0, 0, 1), (1, 2, 3), (2, 1, 1), (3, 3, 33)]);
            while session.len(3) < CONTEXT {
                world.check(&mut *session, &[(3, 3, 1), (1, 2, 2), (2, 1, 1), (0, 0, 1)]);
            }
            // The seat of a long sequence takes a short one: nothing of the old one is left.
            session.clear(3);
            world.check(&mut *session, &[(1, 2, 4), (3, 4, 2)]);
            world.check(&mut *session, &[(3, 4, 1), (2, 1, 9)]);
        }
    }
}

#[test]
fn what_is_not_finite_does_not_leave_its_sequence() {
    for mut world in worlds() {
        // Token 7 is infinite in one channel: NaN for whoever sees it, and for nobody before.
        let at = world.decode.layout().params.iter().find(|p| p.name == "table.weight").unwrap().offset;
        world.state[at + 7 * WIDTH + 3] = f32::INFINITY;
        let text = |i: usize| if i == 19 { 7 } else { (i % 5) as i32 };
        world.texts = vec![(0..CONTEXT).map(text).collect(), vec![1; CONTEXT]];
        let mut session = world.start(2, 2);
        let mut run = |begin: usize, count: usize| {
            let tokens = |at: usize| &world.texts[at][begin..begin + count];
            let pieces = [0, 1].map(|seat| Piece { seat, tokens: tokens(seat), asked: Asked::All });
            let mut scores = vec![0.0; 2 * count * VOCAB];
            session.advance(&pieces, &mut scores);
            let is_finite = |row: &[f32]| row.iter().all(|x| x.is_finite());
            scores.chunks_exact(VOCAB).map(is_finite).collect::<Vec<_>>()
        };
        let first = run(0, 18);
        assert!(first.iter().all(|is_finite| *is_finite));
        let second = run(18, 6);
        assert_eq!(second[..6], [true, false, false, false, false, false]);
        assert!(second[6..].iter().all(|is_finite| *is_finite));
        // The poisoned seat's next sequence knows nothing of it.
        session.clear(0);
        let tokens = [1; 30];
        let mut scores = vec![0.0; VOCAB];
        session.advance(&[Piece { seat: 0, tokens: &tokens, asked: Asked::Last }], &mut scores);
        assert!(scores.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn only_what_is_asked_for_is_given() {
    let world = World::new(Dtype::F32, &Net { rotary: true });
    let mut session = world.start(1, 3);
    let pieces = [(0, Asked::None), (1, Asked::Last), (2, Asked::All)].map(|(seat, asked)| Piece {
        seat,
        tokens: &world.texts[seat][..4],
        asked,
    });
    assert_eq!(pieces.map(|piece| piece.scores()), [0, 1, 4]);
    let mut scores = vec![0.0; 5 * VOCAB];
    session.advance(&pieces, &mut scores);
    assert_eq!(scores[..VOCAB], world.wanted[1][3 * VOCAB..4 * VOCAB]);
    assert_eq!(scores[VOCAB..], world.wanted[2][..4 * VOCAB]);
}

#[test]
fn a_network_that_looks_ahead_is_refused_by_name() {
    struct Ahead;
    impl Module for Ahead {
        fn forward(&self, nn: &Scope, tokens: Tensor) -> Result<Tensor> {
            let init = Init::Normal { std: 0.5 };
            let (x, _) = nn.embedding("table", &tokens, Table { rows: VOCAB, width: CONTEXT, init })?;
            nn.linear("scores", &x.reshape(&[1, CONTEXT, CONTEXT])?, VOCAB)
        }
    }
    let error = compile_decode(Dtype::F32, &Ahead, &DATA).err().expect("a new shape may mix tokens");
    assert!(error.contains("more than one token"), "{error}");
    let features = DataShape::Features { features: 3, classes: 2 };
    assert!(compile_decode(Dtype::F32, &Ahead, &features).is_err());
}

#[test]
fn the_memory_is_known_before_and_grows_with_the_seats() {
    let world = World::new(Dtype::Bf16, &Net { rotary: true });
    let memory = |seats| world.decode.memory(DecodeSize { threads: 1, seats, rows: 8 });
    // 2 layers, 3 heads, keys 5 pairs × 64 tokens, values 19 pairs × 16 channels, 4 bytes each.
    assert_eq!(memory(1).cache, 2 * 3 * (5 * 64 + 19 * 16) * 4);
    assert_eq!(memory(7).cache, 7 * memory(1).cache);
    assert_eq!(memory(7).weights, memory(1).weights);
    assert!(memory(1).total() > memory(1).cache + memory(1).weights);
}
