//! Rotary positions.

use crate::case::{check, floats, special};
use elastic_tensor::ops::*;

#[test]
fn queries_and_keys_are_turned_there_and_back() {
    for (samples, tokens, heads, width) in [(1, 1, 1, 2), (2, 5, 3, 6), (0, 3, 1, 4), (3, 7, 2, 70), (1, 4, 9, 64)] {
        let op = Rotary::new(heads, width, tokens, 1e4);
        let back = Rotary { back: true, ..op.clone() };
        let shape = [samples, tokens, 3 * heads * width];
        for op in [op, back] {
            check(Op::Rotary(op.clone()), &[floats(&shape)]);
            check(Op::Rotary(op), &[special(&shape)]);
        }
    }
}
