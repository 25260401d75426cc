//! Why a worker ends before its work is done, and with which exit code.

use elastic_spec::view::exit;
use elastic_tensor::backend::DeviceLost;
use std::any::Any;
use std::fmt;
use tokio::sync::mpsc;

/// The end of a worker that nobody asked for.
#[derive(Debug)]
pub enum Fault {
    /// Job file, data or checkpoint are wrong in a way that no restart cures.
    User(anyhow::Error),
    /// The job has come to an end that every worker comes to by itself.
    Job(String),
    /// The agent cannot be reached.
    Orphaned(anyhow::Error),
    /// Something on this node (a port, a file) is not as it must be; a restart may help.
    Node(anyhow::Error),
    /// A broken promise of our own: the words of a panic.
    Internal(String),
}

impl Fault {
    /// What a thread unwound with: a device that was lost, or a promise of ours that was broken.
    pub fn of_panic(panic: &(dyn Any + Send)) -> Fault {
        match panic.downcast_ref::<DeviceLost>() {
            Some(DeviceLost(why)) => Fault::Node(anyhow::anyhow!("{why}")),
            None => Fault::Internal(words_of(panic)),
        }
    }

    pub fn exit_code(&self) -> i32 {
        match self {
            Fault::User(_) => exit::USER_ERROR,
            Fault::Job(_) => exit::JOB_ERROR,
            Fault::Orphaned(_) => exit::ORPHANED,
            Fault::Node(_) => 1,
            Fault::Internal(_) => exit::INTERNAL,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::User(error) | Fault::Orphaned(error) | Fault::Node(error) => write!(f, "{error:#}"),
            Fault::Job(what) => f.write_str(what),
            Fault::Internal(what) => write!(f, "a fault of elastic itself: {what}"),
        }
    }
}

/// Tells the member's loop that a thread has ended this worker, mostly by a panic; one word is enough.
#[derive(Clone)]
pub struct Alarm(mpsc::Sender<Fault>);

impl Alarm {
    pub fn new() -> (Alarm, mpsc::Receiver<Fault>) {
        let (alarm, heard) = mpsc::channel(1);
        (Alarm(alarm), heard)
    }

    pub fn raise(&self, what: Fault) {
        // A full channel holds an earlier alarm, which ends this process just as well.
        let _ = self.0.try_send(what);
    }

    /// Starts a thread whose panic is heard.
    pub fn thread(&self, name: &str, run: impl FnOnce() + Send + 'static) {
        let alarm = self.clone();
        let guarded = move || {
            if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
                alarm.raise(Fault::of_panic(&*panic));
            }
        };
        std::thread::Builder::new().name(name.into()).spawn(guarded).expect("the system starts a thread");
    }
}

/// What a panic said.
fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".into())
}
