//! What all requests for texts need: who continues them, and a prompt's tokens.

use crate::limits::BODY_BYTES_SMALL;
use crate::refusal::Refusal;
use crate::serving::Loaded;
use crate::text::scribe::Scribe;

/// Who continues the model's texts; the refusal says why nobody does.
pub fn scribe(loaded: &Loaded) -> Result<&Scribe, Refusal> {
    let name = &loaded.name;
    loaded.text().map_err(|why| Refusal::Invalid(format!("model '{name}' continues no texts: {why}")))
}

pub fn encode(scribe: &Scribe, text: &str) -> Result<Vec<i32>, Refusal> {
    scribe.text().encode(text.as_bytes()).map_err(|why| Refusal::Invalid(format!("the prompt: {why}")))
}

/// Work on a request of so many bytes: on a thread of its own where that is much.
pub async fn apart<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    if bytes <= BODY_BYTES_SMALL {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| Refusal::Internal(format!("read a request: {error}")))?
}
