//! Files as people have them: packed, cut off, changed, missing.

use elastic_loader::{LoaderError, Plan, digest, open, shape};
use elastic_spec::batch::DataShape;
use elastic_spec::job::{JobSpec, ParseContext, parse};
use elastic_spec::{Digest, Shard, Step};
use std::io::Write;
use std::path::{Path, PathBuf};

fn spec(data: &str) -> JobSpec {
    let model = match data.contains("\"text\"") {
        true => "kind = \"gpt\"\nlayers = 1\nheads = 1\nwidth = 4\ncontext = 4",
        false => "kind = \"mlp\"\nhidden = []",
    };
    let text = format!("[model]\n{model}\n\n[data]\n{data}\n\n[train]\nglobal_batch = 8\nepochs = 1\nlr = 0.1\n");
    parse(&text, &ParseContext::default()).unwrap_or_else(|mistakes| panic!("{mistakes:?}")).spec
}

fn csv() -> JobSpec {
    spec("kind = \"csv\"\npath = \"a.csv\"\nclasses = 3\nvalidation = 0.5")
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// A folder with these files, and what the loader says to the spec there.
fn refused(spec: &JobSpec, files: &[(&str, &[u8])]) -> String {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let error = open(spec, &|path| folder.path().join(path)).expect_err("the input is malformed");
    error.to_string().replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn a_packed_file_gives_the_samples_of_the_plain_one() {
    let text = b"1,2,0\n3,4,1\n5,6,2\n7,8,0\n";
    let folder = tempfile::tempdir().unwrap();
    let batches = [text.to_vec(), packed(text)].map(|bytes| {
        std::fs::write(folder.path().join("a.csv"), bytes).unwrap();
        let data = open(&csv(), &|path| folder.path().join(path)).unwrap();
        assert_eq!(data.shape(), DataShape::Features { features: 2, classes: 3 });
        assert_eq!((data.train_samples(), data.validation_samples()), (2, 2));
        data.train_batch(&Plan { seed: 0, global_batch: 8, shards: 2 }, Step(0), Shard(0))
    });
    assert_eq!(batches[0], batches[1]);
}

#[test]
fn the_digest_of_one_file_is_its_sha256_and_a_changed_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let files = |path: &str| folder.path().join(path);
    std::fs::write(files("a.csv"), "1,2,0\n3,4,1\n").unwrap();
    let mut spec = csv();
    spec.data.sha256 = digest(&spec, &files).unwrap();
    assert_eq!(spec.data.sha256, Some(Digest::of(b"1,2,0\n3,4,1\n")));
    assert_eq!(open(&spec, &files).unwrap().sha256(), spec.data.sha256);
    std::fs::write(files("a.csv"), "1,2,0\n3,4,2\n").unwrap();
    let error = open(&spec, &files).unwrap_err();
    assert!(matches!(error, LoaderError::Changed { .. }), "{error}");
    assert!(error.to_string().contains("the data is not what was submitted"), "{error}");
}

#[test]
fn the_digest_of_several_files_covers_each() {
    let folder = tempfile::tempdir().unwrap();
    let files = |path: &str| folder.path().join(path);
    let spec = spec("kind = \"npy\"\nx = \"x.npy\"\ny = \"y.npy\"\nclasses = 3");
    std::fs::write(files("x.npy"), "x").unwrap();
    std::fs::write(files("y.npy"), "y").unwrap();
    let lines = format!("{}  x\n{}  y\n", Digest::of(b"x"), Digest::of(b"y"));
    assert_eq!(digest(&spec, &files).unwrap(), Some(Digest::of(lines.as_bytes())));
}

#[test]
fn every_refusal_names_the_file_the_place_and_the_cure() {
    assert!(refused(&csv(), &[]).starts_with("a.csv: No such file or directory"));
    assert_eq!(
        refused(&csv(), &[("a.csv", b"1,2,0\n\n3,x,0\n")]),
        "a.csv: line 3, column 1 (from 0): \"x\" is no number"
    );
    let torn = packed(&b"1,2,0\n".repeat(1000));
    let told = refused(&csv(), &[("a.csv", &torn[..torn.len() - 9])]);
    assert!(told.starts_with("a.csv: the gzip stream breaks off after"), "{told}");
    assert!(told.ends_with("pack or copy the file again"), "{told}");

    let npy = spec("kind = \"npy\"\nx = \"x.npy\"\ny = \"y.npy\"\nclasses = 3");
    let told = refused(&npy, &[("x.npy", b"PK"), ("y.npy", b"")]);
    assert!(told.starts_with("x.npy: byte 0: no .npy file"), "{told}");

    let text = spec("kind = \"text\"\npath = \"a.txt\"");
    assert_eq!(
        refused(&text, &[("a.txt", b"abcd")]),
        "a.txt: has 4 tokens; a sample of model.context = 4 needs 5: take a longer text or a smaller context"
    );
    let tokens = spec("kind = \"text\"\npath = \"a.txt\"\ntokenizer = \"t.json\"");
    assert!(refused(&tokens, &[("a.txt", b"abcd"), ("t.json", b"x")]).starts_with("t.json: no JSON"));
    let tokenizer = include_bytes!("../../../bundle/transform/tests/tokenizers/gpt2.json");
    let told = refused(&tokens, &[("a.txt", b"ab\xffd"), ("t.json", tokenizer)]);
    assert!(told.starts_with("a.txt: byte 2: no UTF-8"), "{told}");
}

#[test]
fn a_tokenized_text_has_the_tokenizers_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let files = |path: &str| folder.path().join(path);
    std::fs::write(files("a.txt"), "seven and five make twelve. ".repeat(20)).unwrap();
    std::fs::write(files("t.json"), include_bytes!("../../../bundle/transform/tests/tokenizers/gpt2.json")).unwrap();
    let spec = spec("kind = \"text\"\npath = \"a.txt\"\ntokenizer = \"t.json\"");
    let data = open(&spec, &files).unwrap();
    assert_eq!(data.shape(), DataShape::Tokens { vocab: 400, context: 4 });
}

#[test]
fn the_shape_is_known_from_the_begin_of_a_file_and_is_the_one_that_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let files = |path: &str| folder.path().join(path);
    let npy = |shape: &str, bytes: usize| {
        let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n");
        [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &vec![1; bytes]].concat()
    };
    let long = format!("\n\n{}", "1,2,3,0\n".repeat(50_000));
    std::fs::write(files("a.csv"), &long).unwrap();
    std::fs::write(files("packed.csv"), packed(long.as_bytes())).unwrap();
    std::fs::write(files("head.csv"), format!("a,b,c,class\n{long}")).unwrap();
    std::fs::write(files("x.npy"), npy("(4, 2, 3)", 24)).unwrap();
    std::fs::write(files("y.npy"), npy("(4,)", 4)).unwrap();
    std::fs::write(files("a.txt"), "seven and five make twelve. ".repeat(20)).unwrap();
    std::fs::write(files("t.json"), include_bytes!("../../../bundle/transform/tests/tokenizers/gpt2.json")).unwrap();
    for data in [
        "kind = \"csv\"\npath = \"a.csv\"\nclasses = 3",
        "kind = \"csv\"\npath = \"packed.csv\"\nclasses = 3",
        "kind = \"csv\"\npath = \"head.csv\"\nheader = true\nclasses = 3",
        "kind = \"npy\"\nx = \"x.npy\"\ny = \"y.npy\"\nclasses = 3",
        "kind = \"text\"\npath = \"a.txt\"",
        "kind = \"text\"\npath = \"a.txt\"\ntokenizer = \"t.json\"",
        "kind = \"synthetic\"\nsamples = 9\nfeatures = 5\nclasses = 4",
    ] {
        let spec = spec(data);
        assert_eq!(shape(&spec, &files).unwrap(), open(&spec, &files).unwrap().shape(), "{data}");
    }
    std::fs::write(files("a.csv"), "").unwrap();
    let told = shape(&csv(), &files).unwrap_err().to_string();
    assert!(told.ends_with("a.csv: has no line of at least two columns"), "{told}");
    std::fs::remove_file(files("a.csv")).unwrap();
    assert!(matches!(shape(&csv(), &files), Err(LoaderError::Unreadable { .. })));
}

#[test]
fn the_examples_have_data_that_can_be_read() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    for (name, samples) in [("digits", 1797), ("cnn", 1797), ("gpt", 676)] {
        let folder = examples.join(name);
        let text = std::fs::read_to_string(folder.join("job.toml")).unwrap();
        let context = ParseContext { base_dir: folder.display().to_string(), ..ParseContext::default() };
        let spec = parse(&text, &context).unwrap_or_else(|mistakes| panic!("{mistakes:?}")).spec;
        let data = open(&spec, &|path| PathBuf::from(path)).unwrap();
        assert_eq!(data.train_samples() + data.validation_samples(), samples, "{name}");
    }
}
