//! The byte form of frames: what is written reads back, and nothing else is let in.

use bytes::Bytes;
use elastic_collectives::codec::{BODY_BYTES_MAX, HEADER_BYTES, Header, Wire, decode, encode};
use elastic_collectives::{EncodeError, Identity};
use elastic_spec::frame::{Body, Frame, Need};
use elastic_spec::tree::TreeNode;
use elastic_spec::{Digest, Epoch, JobId, Round};
use proptest::prelude::*;

fn ours() -> Identity {
    Identity::new(&JobId::parse("digits-7").unwrap(), Digest::of(b"config"))
}

fn bytes_of(wire: &Wire) -> Vec<u8> {
    let encoded = encode(ours(), wire).unwrap();
    [&encoded.head[..], &encoded.payload[..]].concat()
}

fn node() -> impl Strategy<Value = TreeNode> {
    (0u8..=10).prop_flat_map(|level| (0..1024u16 >> level).prop_map(move |index| TreeNode { level, index }))
}

fn payload() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn need() -> impl Strategy<Value = Need> {
    let nodes = (0u32..64, proptest::collection::vec(node(), 0..9));
    (proptest::collection::vec(0u32..64, 0..9), proptest::collection::vec(nodes, 0..5))
        .prop_map(|(reduced, nodes)| Need { reduced, nodes })
}

fn body() -> impl Strategy<Value = Body> {
    let round = || any::<u64>().prop_map(Round);
    let part = || (1u16..=u16::MAX).prop_flat_map(|parts| (0..parts, Just(parts)));
    prop_oneof![
        (round(), 0u32..64, node(), payload()).prop_map(|(round, chunk, node, payload)| Body::Contribution {
            round,
            chunk,
            node,
            payload
        }),
        (round(), 0u32..64, payload()).prop_map(|(round, chunk, payload)| Body::Reduced { round, chunk, payload }),
        (round(), round(), need()).prop_map(|(round, published, need)| Body::At { round, published, need }),
        (round(), part()).prop_map(|(round, (part, parts))| Body::StateWanted { round, part, parts }),
        (round(), part(), 0u64..1 << 40, payload(), any::<[u8; 32]>(), any::<bool>()).prop_map(
            |(round, (part, parts), offset, payload, sha256_of_part, last)| {
                let total = offset + payload.len() as u64 + u64::from(part);
                Body::State { round, part, parts, total, offset, payload, sha256_of_part, last }
            }
        ),
        (round(), round()).prop_map(|(wanted, at)| Body::Gone { wanted, at }),
    ]
}

fn frame() -> impl Strategy<Value = Wire> {
    let epoch = (any::<u64>(), any::<u64>()).prop_map(|(term, gen_)| Epoch::new(term, gen_));
    prop_oneof![
        1 => Just(Wire::Beat),
        20 => (epoch, body()).prop_map(|(epoch, body)| Wire::Frame(Frame { epoch, body })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_reads_back_as_written(wire in frame()) {
        prop_assert_eq!(decode(ours(), Bytes::from(bytes_of(&wire))), Ok(wire));
    }

    #[test]
    fn no_flipped_bit_goes_unseen(wire in frame(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = bytes_of(&wire);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(decode(ours(), Bytes::from(bytes)).is_err());
    }

    #[test]
    fn no_cut_frame_is_taken(wire in frame(), at in any::<prop::sample::Index>()) {
        let bytes = bytes_of(&wire);
        let cut = at.index(bytes.len());
        prop_assert!(decode(ours(), Bytes::copy_from_slice(&bytes[..cut])).is_err());
    }

    #[test]
    fn no_bytes_at_all_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(ours(), Bytes::from(bytes));
    }

    /// With a valid checksum over nonsense, so that the body's own checks are reached.
    #[test]
    fn no_signed_nonsense_makes_it_panic(kind in 0u8..8, node in any::<u8>(), chunk in any::<u32>(), body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(ours(), forged(|head| { head[6] = kind; head[7] = node; head[48..52].copy_from_slice(&chunk.to_le_bytes()); }, &body));
    }
}

/// A beat's header, changed by `change`, around `body`, with the checksum that belongs to it.
fn forged(change: impl FnOnce(&mut [u8]), body: &[u8]) -> Bytes {
    let mut bytes = bytes_of(&Wire::Beat);
    bytes[56..60].copy_from_slice(&(body.len() as u32).to_le_bytes());
    change(&mut bytes[..60]);
    let crc = crc32fast::hash(&[&bytes[..60], body].concat());
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(body);
    Bytes::from(bytes)
}

const AT: u8 = 3;
const STATE: u8 = 5;

fn check(bytes: Bytes, expected: &str) {
    let error = decode(ours(), bytes).expect_err(expected).to_string();
    assert!(error.contains(expected), "{error:?} does not say {expected:?}");
}

fn check_body(kind: u8, body: &[u8], expected: &str) {
    check(forged(|head| head[6] = kind, body), expected);
}

#[test]
fn nothing_is_no_frame() {
    check(Bytes::new(), "ends inside the header");
}

#[test]
fn half_a_header_is_no_frame() {
    check(forged(|_| (), &[]).slice(..HEADER_BYTES - 1), "ends inside the header");
}

#[test]
fn another_protocol_is_named() {
    check(Bytes::from(vec![b'G'; 64]), "not a frame");
}

#[test]
fn another_version_is_named() {
    check(forged(|head| head[4] = 9, &[]), "frame version 9");
}

#[test]
fn another_job_is_named() {
    check(forged(|head| head[8] ^= 1, &[]), "a frame of job");
}

#[test]
fn another_config_is_named() {
    check(forged(|head| head[16] ^= 1, &[]), "a frame of config");
}

#[test]
fn an_unknown_kind_is_named() {
    check(forged(|head| head[6] = 7, &[]), "unknown kind of frame 7");
}

#[test]
fn a_length_above_the_limit_is_refused_before_anything_is_read() {
    let bytes = forged(|head| head[56..60].copy_from_slice(&u32::MAX.to_le_bytes()), &[]);
    check(bytes.clone(), "above the limit");
    assert!(Header::decode(ours(), bytes.first_chunk().unwrap()).is_err());
}

#[test]
fn a_wrong_checksum_is_named() {
    let mut bytes = forged(|_| (), &[]).to_vec();
    bytes[60] ^= 1;
    check(Bytes::from(bytes), "the checksum does not match");
}

#[test]
fn padding_in_use_is_refused() {
    check(forged(|head| head[54] = 1, &[]), "padding is not zero");
}

#[test]
fn a_tree_node_where_none_belongs_is_refused() {
    check(forged(|head| head[7] = 1, &[]), "the tree node is not zero");
}

#[test]
fn a_chunk_where_none_belongs_is_refused() {
    check(forged(|head| head[48] = 1, &[]), "the chunk is not zero");
}

#[test]
fn a_chunk_beyond_the_grid_is_named() {
    check(forged(|head| (head[6], head[48]) = (2, 64), &[]), "chunk 64");
}

#[test]
fn a_node_outside_any_tree_is_named() {
    check(forged(|head| (head[6], head[7]) = (1, 11), &[]), "level 11, index 0");
    check(forged(|head| (head[6], head[7]) = (1, 255), &[]), "level 255, index 0");
    check(forged(|head| (head[6], head[7], head[53]) = (1, 0, 4), &[]), "level 0, index 1024");
}

#[test]
fn a_beat_with_a_body_is_refused() {
    check(forged(|_| (), &[0]), "1 bytes follow");
}

#[test]
fn a_body_that_ends_early_says_where() {
    check_body(AT, &[0; 4], "ends inside published");
    check_body(AT, &[0; 9], "ends inside lacked chunks");
    check_body(AT, &[&[0; 8][..], &[2, 0, 1, 0, 0, 0]].concat(), "ends inside lacked chunks");
    check_body(STATE, &[0; 52], "ends inside a state's head");
}

#[test]
fn a_count_above_the_limit_is_named_before_anything_is_allocated() {
    check_body(AT, &[&[0; 8][..], &[0xff, 0xff]].concat(), "65535 lacked chunks: at most 64");
    check_body(
        AT,
        &[&[0; 8][..], &[0, 0, 1, 0, 0, 0, 0, 0, 0xff, 0xff]].concat(),
        "65535 missing subtrees: at most 1024",
    );
}

#[test]
fn a_list_of_nonsense_is_refused() {
    check_body(AT, &[&[0; 8][..], &[1, 0, 64, 0, 0, 0, 0, 0]].concat(), "chunk 64");
    check_body(AT, &[&[0; 8][..], &[0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 11, 0, 0]].concat(), "level 11");
}

#[test]
fn a_part_beyond_its_parts_is_named() {
    check_body(4, &[3, 0, 3, 0], "part 3 of 3");
}

#[test]
fn a_flag_that_is_none_is_named() {
    check_body(STATE, &[&[0, 0, 1, 0, 2][..], &[0; 48]].concat(), "2 is neither 0 nor 1");
}

#[test]
fn state_beyond_its_total_is_named() {
    let body = |offset: u64| [&[0, 0, 1, 0, 1][..], &[0; 8], &offset.to_le_bytes(), &[0; 32], &[7]].concat();
    check_body(STATE, &body(0), "1 bytes of state at offset 0 of 0");
    check_body(STATE, &body(u64::MAX), "1 bytes of state at offset");
}

#[test]
fn what_does_not_fit_a_frame_is_not_written() {
    let at = |need| {
        Wire::Frame(Frame { epoch: Epoch::default(), body: Body::At { round: Round(0), published: Round(0), need } })
    };
    let need = Need { reduced: vec![0; 65], nodes: vec![] };
    assert_eq!(encode(ours(), &at(need)), Err(EncodeError::TooMany(65)));
    let payload = Bytes::from(vec![0; BODY_BYTES_MAX + 1]);
    let body = Body::Reduced { round: Round(0), chunk: 0, payload };
    let error = encode(ours(), &Wire::Frame(Frame { epoch: Epoch::default(), body }));
    assert_eq!(error, Err(EncodeError::TooLarge(BODY_BYTES_MAX + 1)));
}
