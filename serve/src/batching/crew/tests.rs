//! Real threads compute; callers come, wait, leave and are late.

use super::*;
use crate::testing::{Held, echo};

fn rows(numbers: &[f32]) -> Rows {
    Rows::Features { count: numbers.len() / 2, values: numbers.to_vec() }
}

fn policy() -> Policy {
    Policy { rows_max: 4, requests_max: 3, ..Policy::default() }
}

fn crew(held: &Held) -> (Crew, Arc<Stats>) {
    crew_of(held, By::Threads)
}

fn crew_of(held: &Held, by: By) -> (Crew, Arc<Stats>) {
    let stats = Arc::new(Stats::default());
    let model = echo(2, held);
    let predictors = vec![model.predictor(1).unwrap()];
    (Crew::start(model, predictors, policy(), by, stats.clone()).unwrap(), stats)
}

const LATER: u64 = u64::MAX / 2;

/// Waits until so many requests are queued behind the one that is held.
async fn until_waiting(crew: &Crew, count: usize) {
    for _ in 0..10_000 {
        if crew.shared.lock().queue.len() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{} requests wait, not {count}", crew.shared.lock().queue.len());
}

#[tokio::test]
async fn each_caller_gets_its_own_rows_though_they_are_computed_together() {
    let held = Held::new();
    let (crew, stats) = crew(&held);
    let gate = held.hold();
    let (a, b, c) = (rows(&[1.0, 2.0]), rows(&[3.0, 4.0, 5.0, 6.0]), rows(&[7.0, 8.0]));
    let open = async {
        held.until_entered(1).await;
        until_waiting(&crew, 2).await;
        drop(gate);
    };
    let first = async { crew.infer(a, LATER).await.unwrap().logits };
    let second = async {
        held.until_entered(1).await;
        crew.infer(b, LATER).await.unwrap().logits
    };
    let third = async {
        held.until_entered(1).await;
        until_waiting(&crew, 1).await;
        crew.infer(c, LATER).await.unwrap().logits
    };
    let (first, second, third, ()) = tokio::join!(first, second, third, open);
    assert_eq!((first, second, third), (vec![1.0, 2.0], vec![3.0, 4.0, 5.0, 6.0], vec![7.0, 8.0]));
    assert_eq!((stats.counts().rows, stats.counts().executions), (4, 2));
}

#[tokio::test]
async fn a_request_larger_than_a_batch_is_computed_in_pieces() {
    let (crew, stats) = crew(&Held::new());
    let numbers: Vec<f32> = (0..22).map(|i| i as f32).collect();
    assert_eq!(crew.infer(rows(&numbers), LATER).await.unwrap().logits, numbers);
    assert_eq!((stats.counts().rows, stats.counts().executions), (11, 1));
}

#[tokio::test]
async fn who_leaves_is_not_computed_and_who_is_late_is_told() {
    let held = Held::new();
    let (crew, stats) = crew(&held);
    let gate = held.hold();
    let busy = crew.infer(rows(&[0.0, 0.0]), LATER);
    let others = async {
        held.until_entered(1).await;
        drop(tokio::time::timeout(Duration::from_millis(1), crew.infer(rows(&[1.0, 1.0]), LATER)).await);
        let late = crew.infer(rows(&[2.0, 2.0]), now_us() + 1_000).await.unwrap_err();
        assert!(matches!(late, Refusal::Late(_)), "{late:?}");
        assert_eq!(crew.shared.lock().queue.len(), 0);
        drop(gate);
    };
    let (busy, ()) = tokio::join!(busy, others);
    assert_eq!(busy.unwrap().logits, [0.0, 0.0]);
    assert_eq!((stats.counts().rows, stats.counts().pending), (1, 0));
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let held = Held::new();
    let (crew, _) = crew(&held);
    let gate = held.hold();
    let row = || rows(&[1.0, 1.0]);
    let others = async {
        held.until_entered(1).await;
        let full = async {
            until_waiting(&crew, 3).await;
            let refusal = crew.infer(row(), LATER).await.unwrap_err();
            assert_eq!(refusal.status(), 429, "{refusal}");
            drop(gate);
        };
        tokio::join!(crew.infer(row(), LATER), crew.infer(row(), LATER), crew.infer(row(), LATER), full)
    };
    let (first, (a, b, c, ())) = tokio::join!(crew.infer(row(), LATER), others);
    assert!([first, a, b, c].iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_crew_that_is_dropped_answers_those_who_wait() {
    let held = Held::new();
    let (crew, _) = crew(&held);
    let shared = crew.shared.clone();
    let gate = held.hold();
    let (reply, answer) = oneshot::channel();
    let item = Waiting { rows: rows(&[1.0, 2.0]), reply };
    let new = New { rows: 1, length: 1, bytes: 8, now_us: 0, deadline_us: LATER, item };
    shared.lock().queue.admit(new).unwrap();
    drop((crew, gate));
    assert_eq!(answer.await.unwrap().unwrap().logits, [1.0, 2.0]);
}

#[tokio::test]
async fn a_model_that_panics_costs_its_callers_alone() {
    let held = Held::new();
    let (crew, _) = crew(&held);
    held.panic_once();
    let refusal = crew.infer(rows(&[1.0, 2.0]), LATER).await.unwrap_err();
    assert_eq!(refusal.status(), 500, "{refusal}");
    assert_eq!(crew.infer(rows(&[1.0, 2.0]), LATER).await.unwrap().logits, [1.0, 2.0]);
}

#[tokio::test]
async fn a_quick_model_is_computed_where_requests_are_read_those_together_that_are_there() {
    let (crew, stats) = crew_of(&Held::new(), By::Readers);
    let pairs = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]];
    let [a, b, c] = pairs.each_ref().map(|pair| crew.infer(rows(pair), LATER));
    let (a, b, c) = tokio::join!(a, b, c);
    assert_eq!([a, b, c].map(|done| done.unwrap().logits), pairs.map(|pair| pair.to_vec()));
    assert_eq!((stats.counts().rows, stats.counts().executions), (3, 1));
    assert_eq!(crew.shared.lock().lead, Lead::None);
}

#[tokio::test]
async fn a_request_larger_than_a_batch_is_the_threads_business() {
    let held = Held::new();
    let (crew, stats) = crew_of(&held, By::Readers);
    let gate = held.hold();
    let numbers: Vec<f32> = (0..22).map(|i| i as f32).collect();
    // This test's thread would be stuck in the call if it computed.
    let open = async {
        held.until_entered(1).await;
        drop(gate);
    };
    let (done, ()) = tokio::join!(crew.infer(rows(&numbers), LATER), open);
    assert_eq!(done.unwrap().logits, numbers);
    assert_eq!(crew.infer(rows(&[1.0, 2.0]), LATER).await.unwrap().logits, [1.0, 2.0]);
    assert_eq!(stats.counts().rows, 12);
}

#[tokio::test]
async fn small_requests_behind_a_large_one_are_answered_too() {
    let held = Held::new();
    let (crew, stats) = crew_of(&held, By::Readers);
    let gate = held.hold();
    let numbers: Vec<f32> = (0..22).map(|i| i as f32).collect();
    let small = async {
        held.until_entered(1).await;
        let both = async { tokio::join!(crew.infer(rows(&[1.0, 2.0]), LATER), crew.infer(rows(&[3.0, 4.0]), LATER)) };
        let open = async {
            until_waiting(&crew, 2).await;
            drop(gate);
        };
        tokio::join!(both, open).0
    };
    let (large, (a, b)) = tokio::join!(crew.infer(rows(&numbers), LATER), small);
    assert!(large.is_ok() && a.is_ok() && b.is_ok());
    assert_eq!(stats.counts().rows, 13);
}

#[tokio::test]
async fn a_quick_model_that_panics_costs_its_callers_alone() {
    let held = Held::new();
    let (crew, _) = crew_of(&held, By::Readers);
    held.panic_once();
    assert_eq!(crew.infer(rows(&[1.0, 2.0]), LATER).await.unwrap_err().status(), 500);
    assert_eq!(crew.infer(rows(&[1.0, 2.0]), LATER).await.unwrap().logits, [1.0, 2.0]);
}

#[test]
fn a_quick_model_whose_runtime_ends_is_computed_by_its_threads() {
    let (crew, _) = crew_of(&Held::new(), By::Readers);
    let shared = crew.shared.clone();
    let (reply, answer) = oneshot::channel();
    // A leader that never came.
    let mut state = shared.lock();
    state.lead = Lead::Coming;
    let item = Waiting { rows: rows(&[1.0, 2.0]), reply };
    let new = New { rows: 1, length: 1, bytes: 8, now_us: 0, deadline_us: LATER, item };
    state.queue.admit(new).unwrap();
    drop(state);
    drop(crew);
    assert_eq!(answer.blocking_recv().unwrap().unwrap().logits, [1.0, 2.0]);
}
