//! Conditions on arguments: 64 bits compared in two halves.

use bowline_model::runtime_spec::{SeccompArg, SeccompOp};

use super::SeccompError;
use super::assemble::{AND, Assembler, IF_AT_LEAST, IF_EQUAL, IF_GREATER, LOAD, Label};

/// A condition that makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Condition {
    pub(super) index: u32,
    pub(super) op: Op,
    pub(super) value: u64,
    /// For `Masked`: what the masked argument equals.
    pub(super) wanted: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Op {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    Masked,
}

impl Condition {
    pub(super) fn read(field: &str, arg: &SeccompArg) -> Result<Condition, SeccompError> {
        if arg.index > 5 {
            let (value, field) = (arg.index.into(), format!("{field}.index"));
            return Err(SeccompError::Range { field, value, max: 5 });
        }
        let op = match &arg.op {
            SeccompOp::NotEqual => Op::NotEqual,
            SeccompOp::Less => Op::Less,
            SeccompOp::LessOrEqual => Op::LessOrEqual,
            SeccompOp::Equal => Op::Equal,
            SeccompOp::GreaterOrEqual => Op::GreaterOrEqual,
            SeccompOp::Greater => Op::Greater,
            SeccompOp::MaskedEqual => Op::Masked,
            SeccompOp::Other(word) => {
                return Err(SeccompError::Unknown { field: format!("{field}.op"), word: word.clone() });
            }
        };
        Ok(Condition { index: arg.index, op, value: arg.value, wanted: arg.value_two })
    }

    /// The code of the condition; the accumulator is lost. `narrow`: only the lower half counts.
    pub(super) fn emit(&self, out: &mut Assembler, narrow: bool, then: Label, otherwise: Label) -> Label {
        match self.op {
            Op::Equal => self.equal(out, narrow, (u64::MAX, self.value), then, otherwise),
            Op::NotEqual => self.equal(out, narrow, (u64::MAX, self.value), otherwise, then),
            // Bits of the wanted value outside the mask are dropped, as libseccomp does.
            Op::Masked => self.equal(out, narrow, (self.value, self.wanted & self.value), then, otherwise),
            Op::Greater => self.above(out, narrow, IF_GREATER, then, otherwise),
            Op::GreaterOrEqual => self.above(out, narrow, IF_AT_LEAST, then, otherwise),
            Op::Less => self.above(out, narrow, IF_AT_LEAST, otherwise, then),
            Op::LessOrEqual => self.above(out, narrow, IF_GREATER, otherwise, then),
        }
    }

    fn equal(
        &self,
        out: &mut Assembler,
        narrow: bool,
        (mask, value): (u64, u64),
        yes: Label,
        no: Label,
    ) -> Label {
        let ((high_mask, low_mask), (high, low)) = (halves(mask), halves(value));
        let low = self.half_equal(out, low_offset(self.index), low_mask, low, yes, no);
        // A half that the mask hides needs no look.
        if narrow || high_mask == 0 {
            low
        } else {
            self.half_equal(out, high_offset(self.index), high_mask, high, low, no)
        }
    }

    fn half_equal(
        &self,
        out: &mut Assembler,
        offset: u32,
        mask: u32,
        value: u32,
        yes: Label,
        no: Label,
    ) -> Label {
        out.branch(IF_EQUAL, value, yes, no);
        if mask != u32::MAX {
            out.before(AND, mask);
        }
        out.before(LOAD, offset)
    }

    /// Unsigned: high > value's high, or equal and the lower half decides.
    fn above(&self, out: &mut Assembler, narrow: bool, low_code: u16, yes: Label, no: Label) -> Label {
        let (high, low) = halves(self.value);
        out.branch(low_code, low, yes, no);
        let lower = out.before(LOAD, low_offset(self.index));
        if narrow {
            return lower;
        }
        let equal = out.branch(IF_EQUAL, high, lower, no);
        out.branch(IF_GREATER, high, yes, equal);
        out.before(LOAD, high_offset(self.index))
    }
}

fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

/// `seccomp_data.args` starts at 16; which half comes first is the machine's byte order.
fn low_offset(index: u32) -> u32 {
    16 + 8 * index + if cfg!(target_endian = "big") { 4 } else { 0 }
}

fn high_offset(index: u32) -> u32 {
    16 + 8 * index + if cfg!(target_endian = "big") { 0 } else { 4 }
}
