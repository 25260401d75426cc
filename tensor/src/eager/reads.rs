//! Which numbers an operation's gradient reads. The tape keeps no others, so that a sum does not hold its terms.

use super::tape::What;
use crate::ops::{Each, Op, ReduceKind};

/// Of the inputs, and of the outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reads {
    pub inputs: bool,
    pub outputs: bool,
}

impl Reads {
    const NOTHING: Reads = Reads { inputs: false, outputs: false };
    const INPUTS: Reads = Reads { inputs: true, outputs: false };
    const OUTPUTS: Reads = Reads { inputs: false, outputs: true };
    const ALL: Reads = Reads { inputs: true, outputs: true };

    /// What is not listed keeps all.
    pub fn of(what: &What) -> Reads {
        match what {
            What::Cast => Reads::NOTHING,
            What::Block(_) => Reads::INPUTS,
            What::Op(Op::Each(f)) => Reads::of_each(*f),
            What::Op(op) => match op {
                Op::Reshape(_) | Op::Permute(_) | Op::BroadcastTo(_) | Op::Slice(_) | Op::Concat(_) => Reads::NOTHING,
                Op::Reduce(op) if matches!(op.kind, ReduceKind::Sum | ReduceKind::Mean) => Reads::NOTHING,
                Op::MatMul(_) | Op::BatchMatMul(_) | Op::Linear(_) | Op::Gelu(_) => Reads::INPUTS,
                Op::Take(_) | Op::Gather(_) => Reads::INPUTS,
                Op::Softmax(_) => Reads::OUTPUTS,
                _ => Reads::ALL,
            },
        }
    }

    fn of_each(f: Each) -> Reads {
        use Each::*;
        match f {
            Neg | Scale(_) | Shift(_) | Add | Sub | Round(_) | Detach => Reads::NOTHING,
            Exp | Sqrt | Tanh | Sigmoid | Relu => Reads::OUTPUTS,
            Ln | Abs | Silu | Pow(_) | Clamp(..) | Mul | Max | Min | Where => Reads::INPUTS,
            _ => Reads::ALL,
        }
    }
}
