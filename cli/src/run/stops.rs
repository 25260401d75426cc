//! The signals that `elastic run` hears, and the code that it ends with for each.

use crate::exit::Exit;
use anyhow::{Context, Result, bail};
use rustix::process::Signal as Number;
use std::future::poll_fn;
use std::task::Poll;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Those that torchrun hears.
pub const USUAL: &str = "SIGTERM,SIGINT,SIGHUP,SIGQUIT";

const NAMES: [(&str, Number); 6] = [
    ("SIGTERM", Number::TERM),
    ("SIGINT", Number::INT),
    ("SIGHUP", Number::HUP),
    ("SIGQUIT", Number::QUIT),
    ("SIGUSR1", Number::USR1),
    ("SIGUSR2", Number::USR2),
];

pub struct Stops(Vec<(Number, Signal)>);

/// From names with commas between.
pub fn parse(names: &str) -> Result<Vec<Number>> {
    let number = |name: &str| match NAMES.iter().find(|(known, _)| *known == name.trim()) {
        Some((_, number)) => Ok(*number),
        None => bail!("--signals-to-handle {name}: allowed are {}", NAMES.map(|(name, _)| name).join(", ")),
    };
    names.split(',').map(number).collect()
}

impl Stops {
    pub fn listen(names: &str) -> Result<Stops> {
        let ignored = ignored();
        // `nohup elastic run …` shall outlive its terminal.
        let is_heard = |number: &Number| !matches!(*number, Number::HUP | Number::QUIT) || !ignored(*number);
        let listen = |number: Number| {
            let heard = signal(SignalKind::from_raw(number.as_raw())).context("listen for signals")?;
            Ok((number, heard))
        };
        Ok(Stops(parse(names)?.into_iter().filter(is_heard).map(listen).collect::<Result<_>>()?))
    }

    /// The next of them, and what to end with.
    pub async fn next(&mut self) -> Exit {
        let next = poll_fn(|context| {
            let heard =
                self.0.iter_mut().find_map(|(number, signal)| signal.poll_recv(context).is_ready().then_some(*number));
            heard.map_or(Poll::Pending, Poll::Ready)
        });
        match next.await {
            Number::INT => Exit::Interrupted,
            number => Exit::Of(128 + number.as_raw() as u8),
        }
    }
}

/// Which signals whoever started this process wanted it to ignore.
fn ignored() -> impl Fn(Number) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    move |number| (mask >> (number.as_raw() - 1)) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_their_names() {
        assert_eq!(parse(USUAL).unwrap(), [Number::TERM, Number::INT, Number::HUP, Number::QUIT]);
        assert_eq!(parse("SIGUSR1, SIGUSR2").unwrap(), [Number::USR1, Number::USR2]);
        assert!(parse("SIGTERM,SIGKILL").unwrap_err().to_string().contains("--signals-to-handle SIGKILL: allowed are"));
    }
}
