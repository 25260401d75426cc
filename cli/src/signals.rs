//! Ctrl-C and SIGTERM, awaited.

use tokio::signal::unix::{SignalKind, signal};

/// Returns at the next of them. From the first call on neither ends the process by itself.
pub async fn interrupted() {
    let streams = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
    let Ok((mut interrupt, mut terminate)) = streams else {
        // Without a handler the signal ends the process, which is what it asks for.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
