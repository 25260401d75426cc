//! Texts that are continued: the forward pass's bits, whoever else is served, and the text that was asked for.

mod models;

use elastic_bundle::{
    AddError, Asking, Completion, Finish, Found, Generator, GeneratorSize, Model, Penalties, Predictor, Sampling, Seat,
    Wanted, class_of,
};
use elastic_spec::job::{Dtype, ModelKind, Norm, Positions};
use elastic_transform::Text;
use models::{mlp, tokens};

const CONTEXT: usize = 48;

fn gpt(norm: Norm, positions: Positions, dtype: Dtype) -> Model {
    let kind =
        ModelKind::Gpt { layers: 2, heads: 2, width: 32, context: CONTEXT as u32, dropout: 0.1, norm, positions };
    tokens(kind, dtype, CONTEXT)
}

fn some() -> Model {
    gpt(Norm::Rms, Positions::Rotary, Dtype::F32)
}

fn all() -> [Model; 3] {
    [some(), gpt(Norm::Layer, Positions::Learned, Dtype::F32), gpt(Norm::Rms, Positions::Rotary, Dtype::Bf16)]
}

const SIZE: GeneratorSize = GeneratorSize { threads: 2, sequences: 3, prompt_tokens: 7, memory_max: 1 << 30 };

fn prompt(seed: usize, len: usize) -> Vec<i32> {
    (0..len).map(|i| ((i * 131 + seed * 17 + i * i) % 256) as i32).collect()
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn logits_have_the_bits_of_the_whole_sequence_whoever_comes_and_goes() {
    for model in all() {
        let mut generator = Generator::new(&model, SIZE).unwrap();
        let mut whole = Predictor::new(&model, 1).unwrap();
        let mut coming: Vec<Vec<i32>> =
            [(1, 30), (2, 1), (3, 7), (4, 15), (5, 40), (6, 3), (7, 22)].map(|(seed, len)| prompt(seed, len)).to_vec();
        let mut here: Vec<(Seat, Vec<i32>, usize)> = Vec::new();
        let mut seen = 0;
        while !coming.is_empty() || !here.is_empty() {
            while let Some(tokens) = coming.last() {
                let wanted = if tokens.len() == 15 { Wanted::All } else { Wanted::Next };
                match generator.add(tokens, wanted) {
                    Ok(seat) => here.push((seat, coming.pop().unwrap(), 5 + seen % 4)),
                    Err(error) => {
                        assert_eq!(error, AddError::Full(3));
                        break;
                    }
                }
            }
            for found in generator.step() {
                let at = here.iter().position(|(seat, ..)| *seat == found.seat).unwrap();
                let (seat, tokens, left) = &mut here[at];
                let logits = generator.logits(&found).to_vec();
                let wanted = whole.sequence_logits(tokens);
                assert!(same(&logits, &wanted[found.place * 256..][..logits.len()]), "{tokens:?}");
                seen += logits.len() / 256;
                if !found.is_next {
                    continue;
                }
                let next = class_of(&logits[logits.len() - 256..]) as i32;
                *left -= 1;
                if *left == 0 || !generator.go_on(*seat, next) {
                    generator.remove(*seat);
                    here.remove(at);
                } else {
                    tokens.push(next);
                }
            }
        }
        assert!(seen > 40 && generator.free() == 3 && generator.cached() == 0, "{seen}");
    }
}

#[test]
fn a_long_prompt_does_not_hold_up_who_is_in_the_middle_of_a_text() {
    let mut generator = Generator::new(&some(), SIZE).unwrap();
    let talking = generator.add(&prompt(1, 3), Wanted::Next).unwrap();
    assert!(generator.step()[0].is_next && generator.go_on(talking, 65));
    let long = generator.add(&prompt(2, 40), Wanted::Next).unwrap();
    let second = generator.add(&prompt(3, 4), Wanted::Next).unwrap();
    let seats = |found: &[Found]| found.iter().map(|found| found.seat).collect::<Vec<_>>();
    for piece in 0..5 {
        let found = generator.step();
        assert_eq!(seats(&found), [talking], "piece {piece} of the prompt");
        assert!(generator.go_on(talking, 66));
    }
    // Five tokens of the long prompt are left, and two of the second fit beside them.
    assert_eq!(seats(&generator.step()), [talking, long]);
    assert_eq!(seats(&generator.step()), [second], "nobody else was told to go on");
}

/// All that one text says, alone in a generator.
fn alone(model: &Model, prompt: &[i32], asking: &Asking) -> (String, Option<Finish>, usize) {
    let mut generator = Generator::new(model, SIZE).unwrap();
    let mut completion = Completion::new(asking.clone(), prompt.len(), CONTEXT, None);
    let seat = generator.add(prompt, Wanted::Next).unwrap();
    let mut text = String::new();
    loop {
        for found in generator.step() {
            let said = completion.next(generator.logits(&found), &Text::Bytes);
            text += &said.text;
            if said.finish.is_some() {
                return (text, said.finish, completion.made());
            }
            assert!(generator.go_on(seat, said.token));
        }
    }
}

fn asking(max_tokens: usize) -> Asking {
    let sampling = Sampling { temperature: 0.9, top_p: 0.95, top_k: 0, seed: 7 };
    let penalties = Penalties::default();
    Asking { sampling, penalties, max_tokens, stops: Vec::new(), likely: None, choice: 0 }
}

#[test]
fn a_text_ends_at_its_stop_its_length_or_the_context() {
    let (model, begin) = (some(), prompt(4, 9));
    let (text, finish, made) = alone(&model, &begin, &asking(20));
    assert_eq!((finish, made), (Some(Finish::Length), 20));
    assert_eq!(alone(&model, &begin, &asking(20)).0, text, "a seed says the same again");
    let (_, finish, made) = alone(&model, &begin, &asking(1_000));
    assert_eq!((finish, made), (Some(Finish::Length), CONTEXT - 9 + 1));
    let third: String = text.chars().skip(2).take(1).collect();
    let stopped = Asking { stops: vec![third.clone()], ..asking(20) };
    if third != "\u{fffd}" {
        let (short, finish, _) = alone(&model, &begin, &stopped);
        assert_eq!((Some(&short[..]), finish), (text.split(&third).next(), Some(Finish::Stop)));
    }
    let mut logits = vec![0.0; 256];
    logits[65] = 9.0;
    let greedy = Asking { sampling: Sampling::GREEDY, likely: Some(2), ..asking(20) };
    let said = Completion::new(greedy, 1, CONTEXT, Some(65)).next(&logits, &Text::Bytes);
    assert_eq!((said.token, &said.text[..], said.finish), (65, "", Some(Finish::Stop)));
    assert_eq!(said.likelihood.unwrap().top[0].0, 65);
}

#[test]
fn what_cannot_be_continued_is_refused_with_the_cause() {
    let mut generator = Generator::new(&some(), SIZE).unwrap();
    assert_eq!(generator.add(&[], Wanted::Next), Err(AddError::Empty));
    assert_eq!(generator.add(&[1; 49], Wanted::Next), Err(AddError::TooLong { tokens: 49, context: 48 }));
    let unknown = AddError::Unknown { place: 1, token: 256, vocab: 256 };
    assert_eq!(generator.add(&[0, 256], Wanted::Next), Err(unknown));
    let full = generator.add(&[1; 48], Wanted::Next).unwrap();
    while generator.step().is_empty() {}
    assert!(!generator.go_on(full, 1), "the context is full");
    let refused = |model: &Model, size| Generator::new(model, size).err().unwrap();
    assert!(refused(&mlp(), SIZE).contains("reads features, not text"));
    let planned = generator.memory();
    let error = refused(&some(), GeneratorSize { memory_max: planned.total() - 1, ..SIZE });
    assert!(error.contains("at most 2 sequences"), "{error}");
    assert!(Generator::new(&some(), GeneratorSize { memory_max: planned.total(), ..SIZE }).is_ok());
    let mut lost = some();
    let name = lost.weights.pop().unwrap().name;
    assert!(refused(&lost, SIZE).contains(&name));
}

#[test]
fn a_penalty_makes_what_was_said_less_likely_and_none_changes_no_bit() {
    let greedy = Asking { sampling: Sampling::GREEDY, ..asking(30) };
    let said = |penalties, logits: &[f32]| {
        let mut completion = Completion::new(Asking { penalties, ..greedy.clone() }, 1, CONTEXT, None);
        (0..6).map(|_| completion.next(logits, &Text::Bytes).token).collect::<Vec<_>>()
    };
    let logits = [1.0, 2.5, 2.0, 0.0];
    assert_eq!(said(Penalties::default(), &logits), [1; 6]);
    assert_eq!(said(Penalties { presence: 0.7, frequency: 0.0 }, &logits), [1, 2, 1, 1, 1, 1]);
    // 2.5 2.0, 2.1 2.0, 1.7 2.0, 1.7 1.6, 1.3 1.6, 1.3 1.2
    assert_eq!(said(Penalties { presence: 0.0, frequency: 0.4 }, &logits), [1, 1, 2, 1, 2, 1]);
}

#[test]
fn a_predictors_generator_has_the_bits_of_one_made_of_the_model() {
    for model in all() {
        let predictor = Predictor::new(&model, 1).unwrap();
        let logits = |mut generator: Generator| {
            generator.add(&prompt(3, 6), Wanted::All).unwrap();
            let found = generator.step();
            generator.logits(&found[0]).to_vec()
        };
        let own = logits(Generator::new(&model, SIZE).unwrap());
        assert!(same(&own, &logits(predictor.generator(SIZE).unwrap())));
    }
    assert!(Predictor::new(&mlp(), 1).unwrap().generator(SIZE).err().unwrap().contains("reads features, not text"));
}
