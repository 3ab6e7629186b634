//! Starting a program without copying ourselves: `clone3` with the memory shared until `execve`.
//!
//! What `posix_spawn` does, with one thing more: the new process is born in a cgroup v2 folder. A process that is moved
//! there later by its number takes the kernel's lock of all thread groups for writing, which waits for RCU: 9 to 12 ms
//! after 50 ms of idleness (measured on 6.18). Born there it takes the lock for reading only.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::clone::{CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP, CLONE_PIDFD, CloneArgs, Cloned};
use crate::exec::{self, StringArray};

/// A program to start, with everything that it gets. It inherits no other descriptor, also none that whoever started us left
/// open.
pub struct Program<'a> {
    /// The program, as an absolute path.
    pub path: &'a CStr,
    /// Its arguments, its name first.
    pub argv: &'a StringArray,
    /// Its environment.
    pub envp: &'a StringArray,
    /// What becomes standard input.
    pub stdin: BorrowedFd<'a>,
    /// What becomes standard output and standard error.
    pub output: BorrowedFd<'a>,
    /// cgroup v2 folder to be born in (Linux 5.7).
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Its working directory.
    pub folder: &'a CStr,
    /// It is killed when the thread that starts it ends, and begins a session of its own.
    pub tied: bool,
}

/// Stack of the child until its `execve`; it calls a handful of thin functions.
const STACK: usize = 64 << 10;

/// What the child reads and writes in the memory that it shares with its parent.
struct Shared<'a> {
    program: &'a Program<'a>,
    error: Option<io::Error>,
}

/// Starts the program with no signal blocked and none ignored. The calling thread waits until the
/// program runs or could not be run, which is an error.
///
/// The caller has to reap the process (its pidfd tells when).
pub fn spawn(program: &Program<'_>) -> io::Result<Cloned> {
    let mut pidfd: i32 = -1;
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
    let mut args = CloneArgs {
        flags: CLONE_PIDFD | CLONE_CLEAR_SIGHAND | (libc::CLONE_VM | libc::CLONE_VFORK) as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: STACK as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = program.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let mut shared = Shared { program, error: None };
    let blocked = block_signals();
    // SAFETY: `args` describes a stack of the size given, 16-aligned by its element type, that lives until this function
    // returns; CLONE_VFORK keeps us here until the child has left our memory by `execve` or its end. `child` reads
    // `shared`, alive as long, through the pointer that it is given, and nobody else touches it meanwhile.
    let ret = unsafe { clone_onto(&args, child, (&raw mut shared).cast()) };
    restore_signals(&blocked);
    if ret < 0 {
        return Err(io::Error::from_raw_os_error(-ret as i32));
    }
    // SAFETY: the call succeeded with CLONE_PIDFD, so `pidfd` is an open descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    drop(stack);
    match shared.error.take() {
        None => Ok(Cloned { pid: ret as i32, pidfd }),
        Some(error) => {
            // It has ended already, or is about to: this does not wait.
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
                rustix::process::WaitIdOptions::EXITED,
            );
            Err(error)
        }
    }
}

/// The child, on its own stack in its parent's memory: no allocation, no lock. The parent's thread-local `errno` is
/// shared too, which harms nobody: the parent's thread stands still.
extern "C" fn child(shared: *mut libc::c_void) -> ! {
    // SAFETY: `spawn` passes a pointer to its `Shared`, which is valid and ours alone until we are gone.
    let shared = unsafe { &mut *shared.cast::<Shared<'_>>() };
    let program = shared.program;
    let error = prepare(program).err().unwrap_or_else(|| {
        crate::process::reset_signals();
        exec::execve(program.path, program.argv, program.envp)
    });
    shared.error = Some(error);
    // SAFETY: `_exit` takes a number and does not return.
    unsafe { libc::_exit(127) }
}

fn prepare(program: &Program<'_>) -> io::Result<()> {
    crate::process::place(program.stdin, 0)?;
    crate::process::place(program.output, 1)?;
    crate::process::place(program.output, 2)?;
    crate::process::close_on_exec_from(3)?;
    if program.tied {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        rustix::process::setsid()?;
    }
    Ok(rustix::process::chdir(program.folder)?)
}

/// Blocks all signals of this thread: a handler of ours must not run in the child, on memory that is ours.
fn block_signals() -> libc::sigset_t {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises `all`; with a valid set and SIG_SETMASK the call cannot fail and fills `before`.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: `before` is a valid set; the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut()) };
}

type Entry = extern "C" fn(*mut libc::c_void) -> !;

/// The raw call: in the parent the kernel's answer, a pid or a negative error number; the child calls `entry` with
/// `argument` on the stack of `args` and does not come back.
///
/// # Safety
/// `args` must hold a usable, 16-aligned stack, and CLONE_VFORK; `argument` must be what `entry` expects.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_onto(args: &CloneArgs, entry: Entry, argument: *mut libc::c_void) -> isize {
    let ret: isize;
    // SAFETY: the kernel's convention: number in rax, arguments in rdi and rsi, rcx and r11 overwritten. The child has the
    // parent's registers but for rax and rsp, so it finds `entry` and `argument` where the parent had them; it
    // calls with rsp 16-aligned, as the ABI wants, and never falls through to the parent's code. Both are in registers
    // named here: the compiler's choice may be rbp, which the child clears to end the chain of frames.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            in("r8") argument,
            in("r9") entry,
            inlateout("rax") libc::SYS_clone3 as isize => ret,
            in("rdi") args,
            in("rsi") size_of::<CloneArgs>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    ret
}

/// The same for 64-bit ARM.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone_onto(args: &CloneArgs, entry: Entry, argument: *mut libc::c_void) -> isize {
    let ret: isize;
    // SAFETY: the kernel's convention: number in x8, arguments from x0, answer in x0, no other register changed. The rest
    // as for x86-64.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x9",
            "blr x10",
            "brk 1",
            "2:",
            in("x9") argument,
            in("x10") entry,
            in("x8") libc::SYS_clone3,
            inlateout("x0") args as *const CloneArgs => ret,
            in("x1") size_of::<CloneArgs>(),
        );
    }
    ret
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use rustix::process::WaitIdStatus;

    fn run(path: &CStr, argv: &[&str]) -> io::Result<(WaitIdStatus, String)> {
        let strings =
            |list: &[&str]| StringArray::new(list.iter().map(|s| CString::new(*s).unwrap()).collect());
        let null = File::open("/dev/null").unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (argv, envp) = (strings(argv), strings(&["COLOUR=green"]));
        let program = Program {
            path,
            argv: &argv,
            envp: &envp,
            stdin: null.as_fd(),
            output: write.as_fd(),
            cgroup: None,
            folder: c"/",
            tied: false,
        };
        let started = spawn(&program)?;
        drop(write);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        let status = rustix::process::waitid(
            rustix::process::WaitId::PidFd(started.pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
        Ok((status.unwrap().unwrap(), text))
    }

    #[test]
    fn a_program_gets_arguments_environment_streams_and_an_open_mind_for_signals() {
        let script =
            "echo $0 $1 $COLOUR; pwd; readlink /proc/self/fd/0; grep SigBlk /proc/self/status; kill -PIPE $$";
        let (status, text) = run(c"/bin/sh", &["sh", "-c", script, "one", "two"]).unwrap();
        assert_eq!(text, "one two green\n/\n/dev/null\nSigBlk:\t0000000000000000\n");
        // Rust's runtime ignores it in us; the program must not.
        assert_eq!(status.terminating_signal(), Some(libc::SIGPIPE));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_and_no_process() {
        let error = run(c"/no/such/program", &["x"]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn many_at_once_from_many_threads() {
        let threads: Vec<_> = (0..8)
            .map(|number: u32| {
                std::thread::spawn(move || {
                    for round in 0..20 {
                        let text = format!("{number}-{round}");
                        let (status, said) = run(c"/bin/echo", &["echo", &text]).unwrap();
                        assert_eq!((status.exit_status(), said), (Some(0), format!("{text}\n")));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
