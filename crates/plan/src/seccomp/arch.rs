//! Machine types: their audit numbers and tables of calls.

use std::str::FromStr;

use super::SeccompError;

/// A machine type that a program may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// x86-64.
    X86_64,
    /// i386.
    X86,
    /// x86-64 with 32-bit pointers.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM.
    Arm,
    /// 64-bit RISC-V.
    Riscv64,
    /// IBM Z.
    S390x,
    /// 64-bit POWER, little-endian.
    Ppc64le,
    /// LoongArch.
    Loongarch64,
}

/// Calls of x32 carry this bit.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Calls that have a number of their own on x32, because their arguments hold pointers.
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

impl Arch {
    /// The machine that this program was built for; the types it can run besides are the profile's to list.
    pub const NATIVE: Arch = if cfg!(target_arch = "aarch64") {
        Arch::Aarch64
    } else if cfg!(target_arch = "riscv64") {
        Arch::Riscv64
    } else if cfg!(target_arch = "s390x") {
        Arch::S390x
    } else if cfg!(target_arch = "powerpc64") {
        Arch::Ppc64le
    } else if cfg!(target_arch = "loongarch64") {
        Arch::Loongarch64
    } else {
        Arch::X86_64
    };

    /// From `SCMP_ARCH_*`.
    pub fn parse(word: &str) -> Result<Arch, SeccompError> {
        Ok(match word {
            "SCMP_ARCH_X86_64" => Arch::X86_64,
            "SCMP_ARCH_X86" => Arch::X86,
            "SCMP_ARCH_X32" => Arch::X32,
            "SCMP_ARCH_AARCH64" => Arch::Aarch64,
            "SCMP_ARCH_ARM" => Arch::Arm,
            "SCMP_ARCH_RISCV64" => Arch::Riscv64,
            "SCMP_ARCH_S390X" => Arch::S390x,
            "SCMP_ARCH_PPC64LE" => Arch::Ppc64le,
            "SCMP_ARCH_LOONGARCH64" => Arch::Loongarch64,
            other => return Err(SeccompError::Arch(other.to_owned())),
        })
    }

    /// `AUDIT_ARCH_*`: what the kernel tells a filter. x32 has that of x86-64.
    pub fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
            Arch::Riscv64 => 0xc000_00f3,
            Arch::S390x => 0x8000_0016,
            Arch::Ppc64le => 0xc000_0015,
            Arch::Loongarch64 => 0xc000_0102,
        }
    }

    /// Arguments have 32 bits: the upper halves of constants mean nothing.
    pub(super) fn narrow(self) -> bool {
        matches!(self, Arch::X86 | Arch::Arm)
    }

    /// The number of a call; `None`: there is none of this name.
    pub fn number(self, name: &str) -> Option<u32> {
        /// The variants of the crate's enums are the numbers.
        macro_rules! table {
            ($module:ident) => {
                syscalls::$module::Sysno::from_str(name).ok().and_then(|call| u32::try_from(call.id()).ok())
            };
        }
        match self {
            Arch::X86_64 => table!(x86_64),
            Arch::X86 => table!(x86),
            Arch::X32 => match X32_OWN.iter().find(|(own, _)| *own == name) {
                Some((_, number)) => Some(*number),
                None => table!(x86_64),
            }
            .map(|number| number | X32_BIT),
            Arch::Aarch64 => table!(aarch64),
            Arch::Arm => match name {
                // Calls of the ARM architecture itself, above the table.
                "breakpoint" => Some(0xf_0001),
                "cacheflush" => Some(0xf_0002),
                "usr26" => Some(0xf_0003),
                "usr32" => Some(0xf_0004),
                "set_tls" => Some(0xf_0005),
                _ => table!(arm),
            },
            Arch::Riscv64 => table!(riscv64),
            Arch::S390x => table!(s390x),
            Arch::Ppc64le => table!(powerpc64),
            Arch::Loongarch64 => table!(loongarch64),
        }
    }
}
