//! A gpt that is continued token by token: the forward pass's bits, and so its tokens.

use elastic_models::{build_decode, build_forward, build_in};
use elastic_spec::batch::DataShape;
use elastic_spec::job::{Activation, Dtype, ModelKind, Norm, Positions};
use elastic_tensor::{Asked, DecodeSize, Piece, Rows};
use std::sync::Arc;

const CONTEXT: usize = 70;
const VOCAB: usize = 99;
const DATA: DataShape = DataShape::Tokens { vocab: VOCAB, context: CONTEXT };

fn gpt(norm: Norm, positions: Positions) -> ModelKind {
    ModelKind::Gpt { layers: 2, heads: 4, width: 48, context: CONTEXT as u32, dropout: 0.1, norm, positions }
}

fn first_largest(scores: &[f32]) -> i32 {
    (0..scores.len()).rev().fold(0, |best, at| if scores[at] >= scores[best] { at } else { best }) as i32
}

#[test]
fn greedy_tokens_and_their_scores_are_those_of_the_forward_pass() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for norm in [Norm::Layer, Norm::Rms] {
            for positions in [Positions::Learned, Positions::Rotary] {
                let kind = gpt(norm, positions);
                // Weights twenty times as large as at the start of a training: greedy tokens that differ.
                let mut state = build_in(dtype, &kind, &DATA, 1).unwrap().init(3);
                state.iter_mut().for_each(|x| *x *= 20.0);
                let whole = build_forward(dtype, &kind, &DATA).unwrap();
                let decode = build_decode(dtype, &kind, &DATA).unwrap();
                assert_eq!(whole.layout().params, decode.layout().params);
                let mut scratch = whole.new_scratch(&Arc::new(state.clone()), 2).unwrap();
                let mut session = decode.start(&state, DecodeSize { threads: 2, seats: 1, rows: 16 });
                let mut tokens = vec![5, 17, 2];
                let (mut next, mut all) = (vec![0.0; VOCAB], vec![0.0; CONTEXT * VOCAB]);
                let mut known = 0;
                while tokens.len() < CONTEXT {
                    session.advance(&[Piece { seat: 0, tokens: &tokens[known..], asked: Asked::Last }], &mut next);
                    known = tokens.len();
                    let mut row = tokens.clone();
                    row.resize(CONTEXT, 0);
                    whole.scores(&mut *scratch, Rows::Tokens(&row), &mut all);
                    let wanted = &all[(known - 1) * VOCAB..][..VOCAB];
                    let is_same = wanted.iter().zip(&next).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(is_same, "{dtype:?} {norm:?} {positions:?}: token {known}");
                    tokens.push(first_largest(&next));
                }
                let different = tokens.iter().collect::<std::collections::BTreeSet<_>>().len();
                assert!(different > 4, "{tokens:?}");
            }
        }
    }
}

#[test]
fn a_model_of_features_has_nothing_to_continue() {
    let kind = ModelKind::Mlp { hidden: vec![8], activation: Activation::Relu };
    let error = build_decode(Dtype::F32, &kind, &DataShape::Features { features: 4, classes: 2 }).err().unwrap();
    assert!(error.contains("no sequence"), "{error}");
}
