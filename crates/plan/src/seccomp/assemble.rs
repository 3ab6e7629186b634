//! An assembler for classic BPF that writes from the end to the start.
//!
//! All jumps go forward, so writing backwards means that every target is already there and its distance known. A
//! conditional jump reaches 255 instructions (8-bit offsets); one that is further away goes through an unconditional
//! jump (32-bit offset) right behind it. That cannot fail, whatever the size of the filter.

/// One instruction: `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many to skip if the condition holds.
    pub jt: u8,
    /// How many to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

impl Instruction {
    /// In the kernel's layout and the machine's byte order.
    pub fn bytes(&self) -> [u8; 8] {
        let [c0, c1] = self.code.to_ne_bytes();
        let [k0, k1, k2, k3] = self.k.to_ne_bytes();
        [c0, c1, self.jt, self.jf, k0, k1, k2, k3]
    }
}

/// Loads a word of `struct seccomp_data`.
pub const LOAD: u16 = 0x20;
/// A and k.
pub const AND: u16 = 0x54;
/// Jumps.
pub const JUMP: u16 = 0x05;
/// If A == k.
pub const IF_EQUAL: u16 = 0x15;
/// If A > k.
pub const IF_GREATER: u16 = 0x25;
/// If A >= k.
pub const IF_AT_LEAST: u16 = 0x35;
/// Ends with k.
pub const RETURN: u16 = 0x06;

/// A place in the program: how many instructions stand from it to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program, last instruction first.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    reversed: Vec<Instruction>,
    /// Where a return with this value stands, so that near jumps can share it.
    returns: Vec<(u32, Label)>,
}

/// Beyond this a new return is made, which is shorter than two jumps.
const NEAR: usize = 200;

impl Assembler {
    fn push(&mut self, instruction: Instruction) -> Label {
        self.reversed.push(instruction);
        Label(self.reversed.len())
    }

    /// How many instructions lie between the next one written and a label.
    fn distance(&self, to: Label) -> usize {
        self.reversed.len().saturating_sub(to.0)
    }

    /// A place that ends with this value. Must be asked for between blocks, never inside one.
    pub(super) fn ret(&mut self, value: u32) -> Label {
        let known = self.returns.iter().find(|(there, _)| *there == value).map(|(_, label)| *label);
        if let Some(label) = known.filter(|label| self.distance(*label) < NEAR) {
            return label;
        }
        let label = self.push(Instruction { code: RETURN, jt: 0, jf: 0, k: value });
        self.returns.retain(|(there, _)| *there != value);
        self.returns.push((value, label));
        label
    }

    /// A conditional jump; the start of its block.
    pub(super) fn branch(&mut self, code: u16, k: u32, then: Label, otherwise: Label) -> Label {
        if then == otherwise {
            return self.go(then);
        }
        let (mut then, mut otherwise) = (then, otherwise);
        // One far jump pushes the other target away by one more.
        if self.distance(otherwise) >= usize::from(u8::MAX) {
            otherwise = self.jump(otherwise);
        }
        if self.distance(then) >= usize::from(u8::MAX) {
            then = self.jump(then);
        }
        let offset = |label| u8::try_from(self.distance(label)).unwrap_or(u8::MAX);
        let (jt, jf) = (offset(then), offset(otherwise));
        self.push(Instruction { code, jt, jf, k })
    }

    /// The place itself if it comes next, else a jump to it.
    pub(super) fn go(&mut self, to: Label) -> Label {
        if self.distance(to) == 0 { to } else { self.jump(to) }
    }

    fn jump(&mut self, to: Label) -> Label {
        let k = u32::try_from(self.distance(to)).unwrap_or(u32::MAX);
        self.push(Instruction { code: JUMP, jt: 0, jf: 0, k })
    }

    /// An instruction before a block that starts at the place written last.
    pub(super) fn before(&mut self, code: u16, k: u32) -> Label {
        self.push(Instruction { code, jt: 0, jf: 0, k })
    }

    /// The program, first instruction first.
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }
}
