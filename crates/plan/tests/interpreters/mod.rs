//! Tiny interpreters for the two kinds of BPF that we emit.

/// Runs a classic filter over `struct seccomp_data`. Panics on what the kernel would refuse to load.
#[allow(dead_code)]
pub fn seccomp(filter: &[u8], nr: u32, arch: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(nr.to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    for arg in args {
        data.extend(arg.to_ne_bytes());
    }
    let code: Vec<&[u8]> = filter.chunks(8).collect();
    let (mut pc, mut a) = (0usize, 0u32);
    loop {
        let insn = code[pc];
        let op = u16::from_ne_bytes([insn[0], insn[1]]);
        let (jt, jf) = (usize::from(insn[2]), usize::from(insn[3]));
        let k = u32::from_ne_bytes([insn[4], insn[5], insn[6], insn[7]]);
        pc += 1;
        match op {
            0x20 => {
                let at = k as usize;
                assert_eq!(at % 4, 0);
                a = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
            }
            0x54 => a &= k,
            0x05 => pc += k as usize,
            0x15 => pc += if a == k { jt } else { jf },
            0x25 => pc += if a > k { jt } else { jf },
            0x35 => pc += if a >= k { jt } else { jf },
            0x06 => return k,
            other => panic!("opcode {other:#x}"),
        }
    }
}

/// Runs a device program over `struct bpf_cgroup_dev_ctx`.
#[allow(dead_code)]
pub fn device(program: &[u8], kind: u32, access: u32, major: u32, minor: u32) -> bool {
    let context = [access << 16 | kind, major, minor];
    let code: Vec<&[u8]> = program.chunks(8).collect();
    let mut r = [0u64; 11];
    let mut pc = 0usize;
    loop {
        let insn = code[pc];
        let (dst, src) = (usize::from(insn[1] & 15), usize::from(insn[1] >> 4));
        let offset = i16::from_ne_bytes([insn[2], insn[3]]);
        let imm = u32::from_ne_bytes([insn[4], insn[5], insn[6], insn[7]]);
        let jump = usize::try_from(offset).unwrap_or(0);
        let low = (r[dst] & 0xffff_ffff) as u32;
        pc += 1;
        match insn[0] {
            0x61 => {
                assert_eq!(src, 1, "only the context is readable");
                r[dst] = u64::from(context[jump / 4]);
            }
            0xbc => r[dst] = r[src] & 0xffff_ffff,
            0xb4 | 0xb7 => r[dst] = u64::from(imm),
            0x54 => r[dst] = u64::from(low & imm),
            0x74 => r[dst] = u64::from(low >> imm),
            0x56 => pc += if low != imm { jump } else { 0 },
            0x16 => pc += if low == imm { jump } else { 0 },
            0x95 => return r[0] != 0,
            other => panic!("opcode {other:#x}"),
        }
    }
}
