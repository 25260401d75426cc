//! A model for tests: it answers with its input. The real ones are tested beside it, in `tests/`.
//!
//! A test can hold it in the middle of a call, and let it panic.

use crate::model::{Face, Model, Predict, Takes};
use crate::tensor::Rows;
use crate::text::{Continue, Writer};
use elastic_bundle::{Found, GeneratorSize, Seat, Wanted};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The test's hold on a model's calls.
#[derive(Clone, Default)]
pub struct Held {
    /// How many calls may pass.
    gate: Arc<(Mutex<Option<usize>>, Condvar)>,
    entered: Arc<AtomicUsize>,
    panics: Arc<AtomicBool>,
}

impl Held {
    pub fn new() -> Held {
        Held::default()
    }

    /// Calls wait until what is returned is dropped.
    pub fn hold(&self) -> Hold {
        self.hold_after(0)
    }

    /// So many calls pass first.
    pub fn hold_after(&self, calls: usize) -> Hold {
        *self.left() = Some(calls);
        Hold(self.clone())
    }

    /// None: any number.
    fn left(&self) -> MutexGuard<'_, Option<usize>> {
        self.gate.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self) {
        let left = self.gate.1.wait_while(self.left(), |left| *left == Some(0));
        let mut left = left.unwrap_or_else(PoisonError::into_inner);
        *left = left.map(|calls| calls - 1);
    }

    pub fn panic_once(&self) {
        self.panics.store(true, SeqCst);
    }

    /// Waits until so many calls have begun.
    pub async fn until_entered(&self, calls: usize) {
        for _ in 0..10_000 {
            if self.entered.load(SeqCst) >= calls {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{} calls have begun, not {calls}", self.entered.load(SeqCst));
    }
}

/// Opens the gate when it is dropped.
pub struct Hold(Held);

impl Drop for Hold {
    fn drop(&mut self) {
        *self.0.left() = None;
        self.0.gate.1.notify_all();
    }
}

/// As many classes as features; the logits are the features.
pub fn echo(features: usize, held: &Held) -> Arc<dyn Model> {
    let takes = Takes::Features { shape: vec![features], classes: features };
    let labels = (0..features).map(|i| format!("class {i}")).collect();
    Arc::new(Echo { face: Face { takes, labels, content: String::new(), created_s: 0 }, held: held.clone() })
}

struct Echo {
    face: Face,
    held: Held,
}

impl Model for Echo {
    fn face(&self) -> &Face {
        &self.face
    }

    fn check(&self, rows: &Rows) -> Result<(), String> {
        let Rows::Features { values, .. } = rows else { return Ok(()) };
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(format!("number {at} is not finite")),
            None => Ok(()),
        }
    }

    fn predictor(&self, _: usize) -> Result<Box<dyn Predict>, String> {
        Ok(Box::new(Echoes(self.held.clone())))
    }
}

struct Echoes(Held);

impl Predict for Echoes {
    fn logits(&mut self, rows: &Rows) -> Result<Vec<f32>, String> {
        self.0.entered.fetch_add(1, SeqCst);
        assert!(!self.0.panics.swap(false, SeqCst), "the test wanted a panic");
        self.0.pass();
        match rows {
            Rows::Features { values, .. } => Ok(values.clone()),
            Rows::Tokens { .. } => Err("an echo takes features".into()),
        }
    }
}

/// A real model whose texts a test can hold between two steps, and whose steps can panic. Calls for rows pass.
pub fn held_texts(model: Arc<dyn Model>, held: &Held) -> Arc<dyn Model> {
    Arc::new(HeldTexts { model, held: held.clone() })
}

struct HeldTexts {
    model: Arc<dyn Model>,
    held: Held,
}

impl Model for HeldTexts {
    fn face(&self) -> &Face {
        self.model.face()
    }

    fn check(&self, rows: &Rows) -> Result<(), String> {
        self.model.check(rows)
    }

    fn predictor(&self, threads: usize) -> Result<Box<dyn Predict>, String> {
        self.model.predictor(threads)
    }

    fn writer(&self, size: GeneratorSize) -> Result<Option<Writer>, String> {
        let held = self.held.clone();
        let hold =
            |writer: Writer| Writer { generator: Box::new(HeldSteps { inner: writer.generator, held }), ..writer };
        Ok(self.model.writer(size)?.map(hold))
    }
}

struct HeldSteps {
    inner: Box<dyn Continue>,
    held: Held,
}

impl Continue for HeldSteps {
    fn free(&self) -> usize {
        self.inner.free()
    }

    fn add(&mut self, tokens: &[i32], wanted: Wanted) -> Seat {
        self.inner.add(tokens, wanted)
    }

    fn go_on(&mut self, seat: Seat, token: i32) -> bool {
        self.inner.go_on(seat, token)
    }

    fn remove(&mut self, seat: Seat) {
        self.inner.remove(seat);
    }

    fn step(&mut self) -> Vec<Found> {
        self.held.entered.fetch_add(1, SeqCst);
        assert!(!self.held.panics.swap(false, SeqCst), "the test wanted a panic");
        self.held.pass();
        self.inner.step()
    }

    fn logits(&self, found: &Found) -> &[f32] {
        self.inner.logits(found)
    }
}
