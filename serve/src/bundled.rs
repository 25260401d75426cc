//! A bundle as the server's model: the only file that knows bundles.

use crate::model::{Face, Model, Predict, Takes};
use crate::tensor::Rows;
use crate::text::{Continue, Writer};
use elastic_bundle::{Bundle, Found, Generator, GeneratorSize, Manifest, Predictor, Seat, Shape, Wanted};
use elastic_spec::Digest;
use elastic_transform::{Text, Transform, scaled};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

struct Bundled {
    face: Face,
    scale: f32,
    /// How text becomes tokens, where it does.
    text: Option<Arc<Text>>,
    /// The one that others are made of: they share its weights.
    first: Mutex<Predictor>,
}

/// Reads, verifies every digest, and builds the network.
pub fn open(dir: &Path) -> Result<Arc<dyn Model>, String> {
    let bundle = Bundle::open(dir).map_err(|error| error.to_string())?;
    let description = &bundle.model.description;
    let takes = match description.data {
        Shape::Features { classes, .. } => Takes::Features { shape: description.sample_shape(), classes },
        Shape::Tokens { vocab, context } => Takes::Tokens { vocab, context },
    };
    let scale = match description.transform {
        Transform::Scale { scale } => scale,
        Transform::Bytes | Transform::Tokenizer => 1.0,
    };
    let face = Face {
        takes,
        labels: description.labels.clone(),
        content: bundle.manifest.content_sha256.to_string(),
        created_s: modified_s(dir),
    };
    let text = bundle.model.text().map_err(|why| format!("tokenizer.json: {why}"))?.map(Arc::new);
    let first = Predictor::new(&bundle.model, 1)?;
    Ok(Arc::new(Bundled { face, scale, text, first: Mutex::new(first) }))
}

/// Of a manifest: each file's name, length and digest. The names are those that a bundle may have, and no others.
pub(crate) fn files(manifest: &[u8]) -> Result<Vec<(String, u64, Digest)>, String> {
    let manifest = Manifest::parse(manifest)?;
    Ok(manifest.files.into_iter().map(|file| (file.name, file.bytes, file.sha256)).collect())
}

/// Does every digest agree?
pub(crate) fn is_whole(dir: &Path) -> bool {
    Bundle::open(dir).is_ok()
}

/// When the bundle's manifest was written, in unix seconds.
fn modified_s(dir: &Path) -> u64 {
    let modified = std::fs::metadata(dir.join("manifest.json")).and_then(|meta| meta.modified());
    modified.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}

impl Model for Bundled {
    fn face(&self) -> &Face {
        &self.face
    }

    fn check(&self, rows: &Rows) -> Result<(), String> {
        // Tokens were compared with the vocabulary where they were read.
        let Rows::Features { count, values } = rows else { return Ok(()) };
        let Some(at) = values.iter().position(|number| scaled(*number, self.scale).is_none()) else { return Ok(()) };
        let width = values.len() / count;
        let (row, feature, number) = (at / width, at % width, values[at]);
        Err(format!("input 'input': number {number} in row {row}, place {feature} is not finite once scaled"))
    }

    fn predictor(&self, threads: usize) -> Result<Box<dyn Predict>, String> {
        let another = self.first.lock().unwrap_or_else(PoisonError::into_inner).another(threads)?;
        Ok(Box::new(Bundles { predictor: another, takes: self.face.takes.clone() }))
    }

    fn writer(&self, size: GeneratorSize) -> Result<Option<Writer>, String> {
        let Some(text) = &self.text else { return Ok(None) };
        let generator = self.first.lock().unwrap_or_else(PoisonError::into_inner).generator(size)?;
        Ok(Some(Writer { generator: Box::new(generator), text: text.clone() }))
    }
}

impl Continue for Generator {
    fn free(&self) -> usize {
        Generator::free(self)
    }

    fn add(&mut self, tokens: &[i32], wanted: Wanted) -> Seat {
        Generator::add(self, tokens, wanted).expect("the tokens were checked, and a seat is free")
    }

    fn go_on(&mut self, seat: Seat, token: i32) -> bool {
        Generator::go_on(self, seat, token)
    }

    fn remove(&mut self, seat: Seat) {
        Generator::remove(self, seat);
    }

    fn step(&mut self) -> Vec<Found> {
        Generator::step(self)
    }

    fn logits(&self, found: &Found) -> &[f32] {
        Generator::logits(self, found)
    }
}

struct Bundles {
    predictor: Predictor,
    takes: Takes,
}

impl Predict for Bundles {
    fn logits(&mut self, rows: &Rows) -> Result<Vec<f32>, String> {
        match (rows, &self.takes) {
            (Rows::Features { count, values }, Takes::Features { classes, .. }) => {
                let mut out = vec![0.0; count * classes];
                self.predictor.logits(elastic_bundle::Rows::Features(values), &mut out);
                Ok(out)
            }
            (Rows::Tokens { length, ids, .. }, Takes::Tokens { .. }) => {
                // A row is computed over the whole context; one at a time keeps memory within one row's logits.
                let rows = ids.chunks_exact(*length);
                Ok(rows.flat_map(|row| self.predictor.sequence_logits(row)).collect())
            }
            _ => Err("rows are not of the model's kind".into()),
        }
    }
}
