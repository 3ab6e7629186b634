//! OCI seccomp profiles to BPF: our own compiler.
//!
//! What a profile means is what runc with libseccomp makes of it:
//!
//! - A call without a rule gets the default action. Among the rules of a call, one without conditions counts before
//!   those with; of several of either sort, the first. The conditions of a rule must all hold, but a rule that names
//!   one argument twice is as many rules as it has conditions. A rule that says what the default says is no rule.
//! - A name that the tables do not know (a call of another machine, or a newer kernel) is skipped.
//! - A call newer than every call that the profile names fails with ENOSYS, unless the default action lets calls
//!   pass or is ENOSYS already: the profile's author did not know the call, and programs fall back on ENOSYS only.
//! - A call of a machine type that the profile does not list ends the process. The machine's own type is always in.
//!   On x86-64, calls with the x32 bit are a machine type of their own.
//!
//! Differences, on purpose: there is no `socketcall` or `ipc` multiplexing on i386 (a rule for `socket` with
//! conditions does not reach `socketcall`, as its arguments lie in memory), and a foreign machine type ends the process
//! where libseccomp ends the thread.

mod arch;
mod assemble;
mod cache;
mod conditions;
mod rules;

use bowline_launch_plan::Seccomp as Filter;
use bowline_launch_plan::wire::Blob;
use bowline_model::runtime_spec::Seccomp;

pub use arch::Arch;
pub use assemble::Instruction;
pub use cache::SeccompCache;

use assemble::Assembler;
use rules::Profile;

/// The kernel's limit (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

const FLAG_LOG: u32 = 2;
const FLAG_SPEC_ALLOW: u32 = 4;

/// Why a profile cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// Notification agents.
    #[error(
        "{field}: SCMP_ACT_NOTIFY is not supported; there is no agent to answer. Use SCMP_ACT_ERRNO or SCMP_ACT_LOG"
    )]
    Notify {
        /// The field.
        field: String,
    },
    /// A word that we do not know.
    #[error("{field}: {word:?} is not known")]
    Unknown {
        /// The field.
        field: String,
        /// The word.
        word: String,
    },
    /// A machine type without a table here.
    #[error("architectures: {0:?} is not supported; leave it out")]
    Arch(String),
    /// A number out of range.
    #[error("{field}: {value} is above {max}")]
    Range {
        /// The field.
        field: String,
        /// The number.
        value: u64,
        /// The largest possible.
        max: u64,
    },
    /// More instructions than the kernel takes.
    #[error(
        "the filter has {0} instructions, the kernel takes {MAX_INSTRUCTIONS}; use fewer rules with conditions, or fewer architectures"
    )]
    TooLong(usize),
}

/// Compiles a profile for programs on this machine.
pub fn compile(profile: &Seccomp, native: Arch) -> Result<Filter, SeccompError> {
    let code = instructions(profile, native)?;
    let filter = Blob(code.iter().flat_map(|instruction| instruction.bytes()).collect());
    Ok(Filter { filter, flags: flags(profile)? })
}

/// The instructions of a profile.
pub fn instructions(profile: &Seccomp, native: Arch) -> Result<Vec<Instruction>, SeccompError> {
    let profile = Profile::read(profile, native)?;
    let mut assembler = Assembler::default();
    profile.emit(&mut assembler);
    let code = assembler.finish();
    if code.len() > MAX_INSTRUCTIONS { Err(SeccompError::TooLong(code.len())) } else { Ok(code) }
}

/// Without a word about flags, speculation is left alone, as runc does: the mitigation costs more than it gives
/// since 5.16 changed the kernel's own default.
fn flags(profile: &Seccomp) -> Result<u32, SeccompError> {
    let Some(words) = &profile.flags else { return Ok(FLAG_SPEC_ALLOW) };
    words.iter().try_fold(0, |flags, word| {
        Ok(flags
            | match word.as_str() {
                // The launcher has one thread, so there is nothing to synchronise; and nobody to be notified.
                "SECCOMP_FILTER_FLAG_TSYNC" | "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => 0,
                "SECCOMP_FILTER_FLAG_LOG" => FLAG_LOG,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => FLAG_SPEC_ALLOW,
                other => return Err(SeccompError::Unknown { field: "flags".into(), word: other.to_owned() }),
            })
    })
}
