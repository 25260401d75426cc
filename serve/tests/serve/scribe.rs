//! The thread that continues texts, without a server around it: listeners that are slow, late or gone, and their seats.

use crate::models::{put, writer};
use elastic_bundle::{Asking, Finish, Penalties, Sampling};
use elastic_serve::bundled;
use elastic_serve::refusal::Refusal;
use elastic_serve::serving::Hands;
use elastic_serve::text::scribe::{Hearing, Scribe};
use elastic_serve::text::{Ask, Policy, Word};
use std::time::{Duration, Instant};

const CONTEXT: usize = 200;

fn scribe(policy: Policy) -> Scribe {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("text"), &writer(CONTEXT, 0));
    Scribe::start(
        bundled::open(&dir.path().join("text")).unwrap(),
        policy,
        Hands { instances: 1, threads: 1, behind: true },
    )
    .unwrap()
}

fn ask(max_tokens: usize, n: usize) -> Ask {
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, seed: 3 };
    let penalties = Penalties::default();
    let asking = Asking { sampling, penalties, max_tokens, stops: Vec::new(), likely: None, choice: 0 };
    Ask {
        prompts: vec![vec![72, 105].into()],
        begun: Vec::new(),
        n,
        asking,
        of_prompt: false,
        deadline_us: u64::MAX / 2,
    }
}

/// All words up to the end or a refusal.
fn heard(mut hearing: Hearing) -> (Vec<Word>, Option<Refusal>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut words = Vec::new();
        while let Some(heard) = hearing.next().await {
            match heard {
                Ok(word) => words.push(word),
                Err(refusal) => return (words, Some(refusal)),
            }
        }
        (words, None)
    })
}

#[test]
fn a_listener_that_takes_nothing_holds_nobody_up_and_loses_its_seat_after_a_while() {
    let scribe = scribe(Policy { sequences: 2, silence: Duration::from_millis(300), ..Policy::default() });
    let silent = scribe.ask(ask(150, 1)).unwrap();
    // It has its seat by now or soon; others go on beside it, and more than there are seats.
    let others: Vec<Hearing> = (0..3).map(|_| scribe.ask(ask(40, 1)).unwrap()).collect();
    for other in others {
        let (words, refusal) = heard(other);
        assert_eq!((words.len(), refusal), (40, None));
    }
    let begin = Instant::now();
    let (both, refusal) = heard(scribe.ask(ask(60, 2)).unwrap());
    assert_eq!((both.len(), refusal), (120, None), "two at once need the silent one's seat, or wait for each other");
    assert!(begin.elapsed() < Duration::from_secs(20));
    std::thread::sleep(Duration::from_millis(400));
    let _ = heard(scribe.ask(ask(1, 1)).unwrap());
    let (words, refusal) = heard(silent);
    assert!(words.len() < 150, "no more is kept than a bound: {}", words.len());
    assert!(matches!(refusal, Some(Refusal::Slow(_))), "{refusal:?}");
}

#[test]
fn who_takes_nothing_of_many_texts_loses_all_their_seats_soon_where_others_need_them() {
    let scribe = scribe(Policy { sequences: 2, silence_needed: Duration::from_millis(200), ..Policy::default() });
    // 20 texts for two seats: each that is dismissed would be followed by the next.
    let silent = scribe.ask(ask(150, 20)).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    let begin = Instant::now();
    let (words, refusal) = heard(scribe.ask(ask(5, 1)).unwrap());
    assert_eq!((words.len(), refusal), (5, None));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}: silence is 20 s where nobody waits", begin.elapsed());
    let (words, refusal) = heard(silent);
    assert!(words.len() < 200, "{}", words.len());
    assert!(matches!(refusal, Some(Refusal::Slow(_))), "{refusal:?}");
}

#[test]
fn who_takes_nothing_keeps_its_seats_while_only_its_own_texts_wait() {
    let scribe = scribe(Policy { sequences: 2, silence_needed: Duration::from_millis(50), ..Policy::default() });
    let slow = scribe.ask(ask(40, 6)).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    let (words, refusal) = heard(slow);
    assert_eq!((words.len(), refusal), (240, None));
}

#[test]
fn a_slow_listener_gets_every_word() {
    let scribe = scribe(Policy::default());
    let slow = scribe.ask(ask(150, 1)).unwrap();
    let quick = scribe.ask(ask(150, 1)).unwrap();
    let (expected, _) = heard(quick);
    std::thread::sleep(Duration::from_millis(50));
    let (words, refusal) = heard(slow);
    assert_eq!(refusal, None);
    assert!(words == expected && words.len() == 150);
}

#[test]
fn what_is_to_say_nothing_says_so_at_once() {
    let scribe = scribe(Policy::default());
    let (words, refusal) = heard(scribe.ask(ask(0, 3)).unwrap());
    assert_eq!((words, refusal), ((0..3).map(|text| Word::Nothing { text }).collect(), None));
}

#[test]
fn a_deadline_ends_a_text_and_the_seat_is_free() {
    let scribe = scribe(Policy { sequences: 1, ..Policy::default() });
    let (words, refusal) = heard(scribe.ask(Ask { deadline_us: 1, ..ask(150, 1) }).unwrap());
    assert!(words.len() < 150 && matches!(refusal, Some(Refusal::Late(_))), "{refusal:?}");
    let (words, _) = heard(scribe.ask(ask(5, 1)).unwrap());
    assert!(matches!(&words[4], Word::Said { said, .. } if said.finish == Some(Finish::Length)));
}
