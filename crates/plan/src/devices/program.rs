//! The device filter of cgroup v2: a BPF program of type CGROUP_DEVICE.

use super::{ANY, MKNOD, READ, WRITE};

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Allows; else denies.
    pub allow: bool,
    /// `c` or `b`; `None`: both.
    pub kind: Option<char>,
    /// Major number; `None`: any.
    pub major: Option<u32>,
    /// Minor number; `None`: any.
    pub minor: Option<u32>,
    /// Bits of `BPF_DEVCG_ACC_*`: mknod 1, read 2, write 4.
    pub access: u32,
}

impl Rule {
    /// It says the same of every device and every access.
    pub fn is_blanket(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ANY
    }

    /// As `devices.allow` and `devices.deny` take it.
    pub(super) fn line(&self, kind: char) -> String {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let mut access = String::new();
        for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
            if self.access & bit != 0 {
                access.push(letter);
            }
        }
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

/// `BPF_DEVCG_DEV_*`.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

/// One instruction of 8 bytes: code, registers, offset, immediate.
fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    // The two registers share a byte, whose halves follow the machine's byte order.
    let registers = if cfg!(target_endian = "little") { dst | src << 4 } else { dst << 4 | src };
    [code, registers, o0, o1, i0, i1, i2, i3]
}

const LDX_W: u8 = 0x61;
const MOV32_REG: u8 = 0xbc;
const MOV32_IMM: u8 = 0xb4;
const MOV64_IMM: u8 = 0xb7;
const AND32_IMM: u8 = 0x54;
const RSH32_IMM: u8 = 0x74;
const JNE32_IMM: u8 = 0x56;
const JEQ32_IMM: u8 = 0x16;
const EXIT: u8 = 0x95;

/// r2: kind, r3: accesses not yet allowed, r4: major, r5: minor, r6: scratch.
const PROLOGUE: [(u8, u8, u8, i16, i32); 6] = [
    (LDX_W, 2, 1, 0, 0),
    (MOV32_REG, 3, 2, 0, 0),
    (AND32_IMM, 2, 0, 0, 0xffff),
    (RSH32_IMM, 3, 0, 0, 16),
    (LDX_W, 4, 1, 4, 0),
    (LDX_W, 5, 1, 8, 0),
];

/// The program. Rules are tried from the last to the first: one that allows takes its accesses off what is asked
/// for, one that denies any of the rest ends it. So every access is decided by the last rule that speaks of it.
pub fn program(rules: &[Rule]) -> Vec<u8> {
    let mut code: Vec<[u8; 8]> = PROLOGUE
        .iter()
        .map(|(code, dst, src, offset, imm)| instruction(*code, *dst, *src, *offset, *imm))
        .collect();
    for rule in rules.iter().rev() {
        code.extend(rule_code(rule));
        if rule.is_blanket() {
            break;
        }
    }
    code.push(instruction(MOV64_IMM, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code.concat()
}

fn rule_code(rule: &Rule) -> Vec<[u8; 8]> {
    let body = if rule.allow {
        vec![
            instruction(AND32_IMM, 3, 0, 0, bits(!rule.access & ANY)),
            instruction(JNE32_IMM, 3, 0, 2, 0),
            instruction(MOV64_IMM, 0, 0, 0, 1),
            instruction(EXIT, 0, 0, 0, 0),
        ]
    } else {
        vec![
            instruction(MOV32_REG, 6, 3, 0, 0),
            instruction(AND32_IMM, 6, 0, 0, bits(rule.access)),
            instruction(JEQ32_IMM, 6, 0, 2, 0),
            instruction(MOV32_IMM, 0, 0, 0, 0),
            instruction(EXIT, 0, 0, 0, 0),
        ]
    };
    let kind = rule.kind.map(|kind| (2, if kind == 'b' { BLOCK } else { CHAR }));
    let tests: Vec<(u8, i32)> =
        [kind, rule.major.map(|number| (4, bits(number))), rule.minor.map(|number| (5, bits(number)))]
            .into_iter()
            .flatten()
            .collect();
    let mut code = Vec::new();
    for (index, (register, value)) in tests.iter().enumerate() {
        // Past the tests that remain and the body; at most seven.
        let skip = i16::try_from(tests.len() - index - 1 + body.len()).unwrap_or(i16::MAX);
        code.push(instruction(JNE32_IMM, *register, 0, skip, *value));
    }
    code.extend(body);
    code
}

/// The same 32 bits, as the immediate field has them.
fn bits(value: u32) -> i32 {
    i32::from_ne_bytes(value.to_ne_bytes())
}
