//! Dropout: the key of its random numbers is hashed on the GPU, because the seed comes with the call.

use super::{At, LaunchShape, Launches, Site, Words, given, numbers};
use elastic_tensor::ops::Dropout;
use elastic_tensor::philox::STREAM_HEAD;

pub(super) fn dropout(op: &Dropout, site: &Site<'_>, to: &mut Launches) {
    let samples = site.types[0].shape[0];
    let width = site.y_len(0) / samples.max(1);
    let count = samples * width.div_ceil(4);
    if count == 0 {
        return;
    }
    let key = key(site, to);
    let keep = 1.0 / (1.0 - op.p as f64) as f32;
    let arguments = given![site.y[0], site.x[0], key, site.slots, site.call, samples, width, op.p, keep];
    to.push("dropout", "dropout", numbers(count), arguments);
}

/// Words of a block that the hash takes at once.
const WORDS: usize = 16;
/// Blocks that a launch is given: 256 bytes, so that few paths need a second.
const BLOCKS: usize = 4;

/// Launches that put the key of the stream (seed, path) into the room, of which the first two words are read.
fn key(site: &Site<'_>, to: &mut Launches) -> At {
    const ONE_THREAD: LaunchShape = LaunchShape { grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 0 };
    let key = to.room(8);
    for (part, words) in padded(site.path).chunks(BLOCKS * WORDS).enumerate() {
        let mut message = Words::default();
        (0..BLOCKS * WORDS).for_each(|at| _ = message.u32(words.get(at).copied().unwrap_or(0)));
        message.u32((words.len() / WORDS) as u32).u32(u32::from(part == 0));
        to.push("dropout", "key", ONE_THREAD, given![key, site.call, message]);
    }
    key
}

/// What `Stream::new` hashes, with zeros for the seed and padded as SHA-256 wants it: a bit, zeros, and the length in bits.
fn padded(path: &str) -> Vec<u32> {
    let mut bytes = [STREAM_HEAD, &[0; 8], path.as_bytes()].concat();
    let bits = 8 * bytes.len() as u64;
    bytes.push(0x80);
    bytes.resize((bytes.len() + 8).next_multiple_of(4 * WORDS) - 8, 0);
    bytes.extend(bits.to_be_bytes());
    bytes.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word)).collect()
}

// The kernel puts the seed there.
const _: () = assert!(STREAM_HEAD.len() == 17);
