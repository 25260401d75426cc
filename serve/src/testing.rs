//! A model for tests: it answers with its input. The real ones are tested beside it, in `tests/`.
//!
//! A test can hold it in the middle of a call, and let it panic.

use crate::model::{Face, Model, Predict, Takes};
use crate::tensor::Rows;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The test's hold on a model's calls.
#[derive(Clone, Default)]
pub struct Held {
    gate: Arc<(Mutex<bool>, Condvar)>,
    entered: Arc<AtomicUsize>,
    panics: Arc<AtomicBool>,
}

impl Held {
    pub fn new() -> Held {
        Held::default()
    }

    /// Calls wait until what is returned is dropped.
    pub fn hold(&self) -> Hold {
        *self.shut() = true;
        Hold(self.clone())
    }

    fn shut(&self) -> MutexGuard<'_, bool> {
        self.gate.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self) {
        drop(self.gate.1.wait_while(self.shut(), |shut| *shut).unwrap_or_else(PoisonError::into_inner));
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
        *self.0.shut() = false;
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
