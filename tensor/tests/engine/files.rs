//! Files of tensors: NumPy's own (golden/numpy_files.py made them) are read and written to the byte, safetensors come
//! back, and what is damaged gives an error that names file, place and cure, never a panic.

use elastic_tensor::eager::io::*;
use elastic_tensor::eager::{DType, Result, Storage, Tensor};
use proptest::prelude::*;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/files").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap()
}

const KINDS: [DType; 7] = [DType::Bool, DType::U8, DType::I32, DType::I64, DType::F16, DType::F32, DType::F64];

/// The six numbers of the files.
fn six(dtype: DType) -> Tensor {
    let sign = if dtype == DType::U8 { 1.0 } else { -1.0 };
    Tensor::from_vec(vec![0.0, 1.0, 2.5, sign * 3.0, 200.0, 0.0], &[2, 3]).unwrap().to_dtype(dtype).unwrap()
}

fn is_same(a: &Tensor, b: &Tensor) -> bool {
    a.shape() == b.shape() && a.to_storage().unwrap() == b.to_storage().unwrap()
}

#[test]
fn npy_files_of_every_type_are_read_and_written_to_the_byte() {
    for dtype in KINDS {
        let name = format!("{dtype}.npy");
        let x = read_npy(path(&name)).unwrap();
        assert!(is_same(&x, &six(dtype)), "{x:?}");
        assert_eq!(npy_bytes(&x).unwrap(), bytes(&name), "{dtype}");
    }
    for (name, shape) in [("scalar", &[][..]), ("empty", &[0, 3]), ("line", &[10])] {
        let name = format!("{name}.npy");
        let x = read_npy(path(&name)).unwrap();
        assert_eq!(x.shape(), shape);
        assert_eq!(npy_bytes(&x).unwrap(), bytes(&name), "{name}");
    }
}

#[test]
fn fortran_order_and_the_longer_headers_are_read() {
    assert!(is_same(&read_npy(path("fortran.npy")).unwrap(), &six(DType::F32)));
    assert!(is_same(&read_npy(path("version2.npy")).unwrap(), &six(DType::F64)));
    assert!(is_same(&read_npy(path("version3.npy")).unwrap(), &six(DType::F64)));
}

#[test]
fn archives_stored_and_deflated_are_read() {
    let stored = read_npz(path("stored.npz")).unwrap();
    assert_eq!(stored.len(), 7);
    KINDS.iter().for_each(|dtype| assert!(is_same(&stored[dtype.name()], &six(*dtype))));
    let deflated = read_npz(path("deflated.npz")).unwrap();
    assert!(
        is_same(&deflated["a"], &Tensor::zeros(&[40, 50], DType::F32)) && is_same(&deflated["b"], &six(DType::I64))
    );
}

fn told(error: Result<impl Sized>, parts: &[&str]) {
    let error = error.err().expect("it is refused").to_string();
    parts.iter().for_each(|part| assert!(error.contains(part), "{error} lacks {part}"));
}

#[test]
fn what_tensors_cannot_hold_is_refused_with_a_cure() {
    told(read_npy(path("big_endian.npy")), &["big_endian.npy, byte ", "`>f4`", "newbyteorder"]);
    told(read_npy(path("records.npy")), &["records.npy, byte ", "save their fields one by one"]);
    told(read_npy(path("void.npy")), &["`|V2`", "bfloat16", "safetensors"]);
    told(read_npy(path("none.npy")), &["none.npy, the file: read: "]);
    told(npy_bytes(&six(DType::F32).to_dtype(DType::Bf16).unwrap()), &["no bf16", "convert to f32"]);
}

#[test]
fn a_damaged_npy_says_where() {
    let good = bytes("f32.npy");
    let cut = |len: usize| parse_npy(&good[..len], "x.npy");
    told(cut(3), &["x.npy, byte 0", "numpy.save"]);
    told(cut(9), &["x.npy, byte 9", "cut off"]);
    told(cut(100), &["x.npy, byte 100", "cut off"]);
    told(cut(good.len() - 1), &["x.npy, byte 128", "takes 24 bytes, but 23 follow"]);
    let with = |from: &str, to: &str| {
        let text = String::from_utf8_lossy(&good[10..128]).replace(from, to);
        let text = &format!("{text:118}")[..118];
        parse_npy(&[&good[..10], text.as_bytes(), &good[128..]].concat(), "x.npy")
    };
    assert!(with("descr", "descr").is_ok());
    told(with("(2, 3)", "(2, 4)"), &["takes 32 bytes, but 24 follow"]);
    told(with("(2, 3)", "(6)"), &["(n,)"]);
    told(with("(2, 3)", "(-2, 3)"), &["length of an axis"]);
    told(with("(2, 3)", "(99999999999999999999, )"), &["too large"]);
    told(with("(2, 3)", "(4611686018427387904, 4)"), &["x.npy, the header", "more places than can be counted"]);
    told(with("(2, 3)", "(4611686018427387904,)"), &["more bytes than can be counted"]);
    told(with("(2, 3)", "(1,1,1,1,1,1,1,2,3)"), &["8 axes"]);
    told(with("(2, 3)", "(0, 12, 8)"), &["takes 0 bytes, but 24"]);
    told(with("False", "Maybe"), &["True or False"]);
    told(with("'shape'", "'descr'"), &["each once"]);
    told(with("'fortran_order': False, ", ""), &["the keys are"]);
    told(with("}", "} 7"), &["nothing follows"]);
    let mut version = good.clone();
    version[6] = 4;
    told(parse_npy(&version, "x.npy"), &["byte 6", "version 4.0"]);
    // No elements, but places that cannot be counted.
    let header = "{'descr': '<f4', 'fortran_order': True, 'shape': (0, 4611686018427387904, 8)}";
    let empty = [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes()].concat();
    told(parse_npy(&empty, "x.npy"), &["x.npy, the header", "places"]);
}

#[test]
fn a_damaged_archive_says_which_member() {
    let x = six(DType::F32);
    let good = npz_bytes(&[("x", &x), ("y", &x)], Packing::Stored).unwrap();
    told(parse_npz(&good[..good.len() - 30], "x.npz"), &["x.npz, the archive", "numpy.savez"]);
    let mut flipped = good.clone();
    let at = flipped.windows(4).position(|w| w == 2.5f32.to_le_bytes()).unwrap();
    flipped[at] ^= 1;
    told(parse_npz(&flipped, "x.npz"), &["x.npz, member `x.npy`"]);
    told(npz_bytes(&[("x", &x), ("x", &x)], Packing::Stored), &["tensor `x`"]);
}

#[test]
fn everything_comes_back_from_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let tensors: Vec<(String, Tensor)> = KINDS.iter().map(|dtype| (dtype.to_string(), six(*dtype))).collect();
    let given: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, x)| (&name[..], x)).collect();
    for packing in [Packing::Stored, Packing::Deflated] {
        let file = dir.path().join("all.npz");
        write_npz(&file, &given, packing).unwrap();
        let back = read_npz(&file).unwrap();
        tensors.iter().for_each(|(name, x)| assert!(is_same(&back[name], x), "{name} {packing:?}"));
        let again = npz_bytes(&given, packing).unwrap();
        assert_eq!(again, std::fs::read(&file).unwrap(), "no time of writing is in it");
    }
    let half = six(DType::F32).to_dtype(DType::Bf16).unwrap();
    let file = dir.path().join("all.safetensors");
    let with_half = [&given[..], &[("half", &half)]].concat();
    write_safetensors(&file, &with_half).unwrap();
    let back = read_safetensors(&file).unwrap();
    with_half.iter().for_each(|(name, x)| assert!(is_same(&back[*name], x), "{name}"));
    let file = dir.path().join("one.npy");
    write_npy(&file, &tensors[5].1).unwrap();
    assert!(is_same(&read_npy(&file).unwrap(), &tensors[5].1));
    told(write_npy(dir.path(), &half), &["no bf16"]);
    told(write_npy(dir.path(), &tensors[5].1), &["the file: write: "]);
    told(safetensors_bytes(&[("x", &half), ("x", &half)]), &["tensor `x`", "twice"]);
}

#[test]
fn a_safetensors_file_with_another_type_says_so() {
    let header = r#"{"w":{"dtype":"I16","shape":[2],"data_offsets":[0,4]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    told(parse_safetensors(&file, "m.safetensors"), &["m.safetensors, tensor `w`", "I16", "BF16"]);
    told(parse_safetensors(&file[..20], "m.safetensors"), &["the header"]);
    let header = r#"{"w":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    told(parse_safetensors(&file, "m.safetensors"), &["tensor `w`", "axes"]);
}

fn storage() -> impl Strategy<Value = Tensor> {
    let shape = prop::collection::vec(0usize..5, 0..4);
    (shape, 0usize..8, any::<u64>()).prop_map(|(shape, kind, seed)| {
        let x = Tensor::randn(seed, "x", &shape).mul_scalar(40.0).unwrap();
        let dtypes = [KINDS.as_slice(), &[DType::Bf16]].concat();
        x.abs().unwrap().to_dtype(dtypes[kind]).unwrap()
    })
}

/// Valid bytes of each format, then some of them changed, cut or doubled.
fn damage(mut bytes: Vec<u8>, changes: &[(usize, u8)], cut: usize) -> Vec<u8> {
    for (at, byte) in changes {
        let at = at % bytes.len().max(1);
        bytes[at] = *byte;
    }
    bytes.truncate(bytes.len().max(1) * 2 - cut % (bytes.len().max(1) * 2));
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    // Headers are at the front: most changes go there.
    let at = prop_oneof![3 => 0usize..140, 1 => any::<usize>()];
    prop::collection::vec((at, any::<u8>()), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tensor_comes_back(x in storage()) {
        let back = parse_safetensors(&safetensors_bytes(&[("x", &x)]).unwrap(), "f").unwrap();
        prop_assert!(is_same(&back["x"], &x));
        if x.dtype() != DType::Bf16 {
            prop_assert!(is_same(&parse_npy(&npy_bytes(&x).unwrap(), "f").unwrap(), &x));
            let npz = npz_bytes(&[("x", &x)], Packing::Deflated).unwrap();
            prop_assert!(is_same(&parse_npz(&npz, "f").unwrap()["x"], &x));
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_npy(&bytes, "f");
        let _ = parse_npy(&[b"\x93NUMPY\x01\x00", &bytes[..]].concat(), "f");
        let _ = parse_npz(&bytes, "f");
        let _ = parse_safetensors(&bytes, "f");
    }

    #[test]
    fn any_header_is_parsed_or_refused(header in "[{}()' :,0-9a-zTF<|]{0,60}", order in any::<bool>(), shape in "[(),0-9 ]{0,12}") {
        for text in [header, format!("{{'descr': '<f4', 'fortran_order': {}, 'shape': {shape}}}", if order { "True" } else { "False" })] {
            let len = (text.len() as u16).to_le_bytes();
            let file = [b"\x93NUMPY\x01\x00", &len[..], text.as_bytes(), &[0; 24]].concat();
            let _ = parse_npy(&file, "f");
        }
    }

    #[test]
    fn damaged_files_are_parsed_or_refused(x in storage(), changes in changes(), cut in any::<usize>()) {
        let whole = safetensors_bytes(&[("x", &x), ("yy", &x)]).unwrap();
        let _ = parse_safetensors(&damage(whole, &changes, cut), "f");
        if x.dtype() != DType::Bf16 {
            let _ = parse_npy(&damage(npy_bytes(&x).unwrap(), &changes, cut), "f");
            for packing in [Packing::Stored, Packing::Deflated] {
                let npz = npz_bytes(&[("x", &x), ("y", &x)], packing).unwrap();
                let _ = parse_npz(&damage(npz, &changes, cut), "f");
            }
        }
    }
}

#[test]
fn a_member_that_claims_to_be_huge_does_not_take_the_memory() {
    // 64 MiB of zeros pack to 64 KiB: within what deflate can do, and the header says how many there are.
    let zeros = Tensor::from_storage(Storage::U8(vec![0; 64 << 20]), &[64 << 20]).unwrap();
    let packed = npz_bytes(&[("zeros", &zeros)], Packing::Deflated).unwrap();
    assert!(packed.len() < 128 << 10, "{} bytes", packed.len());
    assert_eq!(parse_npz(&packed, "f").unwrap()["zeros"].len(), 64 << 20);
}
