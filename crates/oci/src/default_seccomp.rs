//! The seccomp profile of `RuntimeDefault`.
//!
//! It lets pass what containerd's and Docker's defaults let pass, so that what runs there runs here; the lists are
//! ordered by what the calls are for. What is missing is missing on purpose: kernel keyrings, io_uring (a source of
//! escapes that the kernel's own filters cannot see into), userfaultfd, mounts, modules, kexec, clocks, swap, NUMA
//! migration, and everything that a capability guards, unless the container has the capability.

use bowline_model::runtime_spec::{Seccomp, SeccompAction, SeccompArg, SeccompOp, SeccompSyscall};

/// The machine for which a profile is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeccompArch {
    /// x86-64, with i386 and x32 programs.
    X86_64,
    /// 64-bit ARM, with 32-bit programs.
    Aarch64,
    /// 64-bit RISC-V.
    Riscv64,
    /// IBM Z.
    S390x,
    /// 64-bit POWER, little-endian.
    Ppc64le,
    /// LoongArch.
    Loongarch64,
}

/// Processes and threads, scheduling, ids, limits.
const PROCESSES: &str = "arch_prctl capget capset execve execveat exit exit_group fork vfork getcpu getpgid getpgrp getpid \
    getppid getpriority getrusage getsid gettid get_robust_list get_thread_area ioprio_get ioprio_set kill membarrier \
    nice pause pidfd_open pidfd_send_signal prctl prlimit64 process_mrelease ptrace restart_syscall rseq \
    sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler \
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield seccomp setpgid setpriority setsid set_robust_list set_thread_area set_tid_address \
    sysinfo tgkill times tkill umask uname uretprobe wait4 waitid waitpid \
    getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid \
    getresuid32 getuid getuid32 getrlimit ugetrlimit setrlimit setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 \
    setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid \
    setuid32 landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr lsm_list_modules \
    lsm_set_self_attr";

/// Signals, timers, clocks that are only read, futexes.
const TIME: &str = "alarm adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time \
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 \
    futex futex_time64 futex_waitv futex_wait futex_wake futex_requeue \
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signal sigaction signalfd signalfd4 sigpending sigprocmask \
    sigreturn sigsuspend";

/// Memory.
const MEMORY: &str = "brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 \
    mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages";

/// Files by path and their metadata.
const PATHS: &str = "access chdir chmod chown chown32 creat faccessat faccessat2 fchdir fchmod fchmodat fchmodat2 fchown \
    fchown32 fchownat fgetxattr flistxattr fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 futimesat \
    getcwd getxattr getxattrat lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr lremovexattr \
    lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat oldfstat oldlstat oldolduname \
    oldstat olduname open openat openat2 readlink readlinkat removexattr removexattrat rename renameat renameat2 rmdir \
    setxattr setxattrat stat stat64 statfs statfs64 statx symlink symlinkat truncate truncate64 unlink unlinkat utime \
    utimensat utimensat_time64 utimes file_getattr file_setattr";

/// Open files, pipes, polling, asynchronous I/O.
const FILES: &str = "cachestat close close_range copy_file_range dup dup2 dup3 epoll_create epoll_create1 epoll_ctl \
    epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 fadvise64 fadvise64_64 fallocate \
    fanotify_mark fcntl fcntl64 fdatasync flock fsync ftruncate ftruncate64 getdents getdents64 getrandom \
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
    io_pgetevents_time64 io_setup io_submit ioctl _llseek lseek pipe pipe2 poll ppoll ppoll_time64 pread64 preadv \
    preadv2 pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readdir readv select _newselect sendfile \
    sendfile64 splice sync sync_file_range syncfs tee vmsplice write writev";

/// Sockets but for `socket` itself, System V IPC, message queues.
const IPC: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair \
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
    mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget";

/// What a capability opens.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount listns lookup_dcookie mount \
         mount_setattr move_mount open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns statmount syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// `CLONE_NEW*` of mount, cgroup, uts, ipc, user, pid and network namespaces.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const AF_VSOCK: u64 = 40;
const ENOSYS: u32 = 38;
/// Linux, UNAME26 with and without no randomisation, and "tell me": what programs ask for.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The default profile for a machine and a container's bounding set.
pub fn default_seccomp(arch: SeccompArch, bounding: &[String]) -> Seccomp {
    let has = |capability: &str| bounding.iter().any(|name| name == capability);
    let mut rules: Vec<SeccompSyscall> = [PROCESSES, TIME, MEMORY, PATHS, FILES, IPC]
        .into_iter()
        .map(|list| allow(list, Vec::new()))
        .collect();
    rules.push(allow(arch.own_calls(), Vec::new()));
    for value in PERSONALITIES {
        rules.push(allow("personality", vec![arg(0, SeccompOp::Equal, value, 0)]));
    }
    // The host answers on vsock, past every network policy.
    rules.push(allow("socket", vec![arg(0, SeccompOp::NotEqual, AF_VSOCK, 0)]));
    for (capability, list) in BY_CAPABILITY {
        if has(capability) {
            rules.push(allow(list, Vec::new()));
        }
    }
    if !has("CAP_SYS_ADMIN") {
        let flags = if arch == SeccompArch::S390x { 1 } else { 0 };
        rules.push(allow("clone", vec![arg(flags, SeccompOp::MaskedEqual, NEW_NAMESPACES, 0)]));
        // Its flags lie in memory, where a filter cannot look. "No such call" makes libc use clone.
        rules.push(SeccompSyscall {
            names: vec!["clone3".into()],
            action: SeccompAction::Errno,
            errno_ret: Some(ENOSYS),
            args: Vec::new(),
        });
    }
    rules.retain(|rule| !rule.names.is_empty());
    Seccomp {
        default_action: SeccompAction::Errno,
        default_errno_ret: Some(1),
        architectures: arch.names().iter().map(|name| (*name).to_owned()).collect(),
        syscalls: rules,
        ..Seccomp::default()
    }
}

impl SeccompArch {
    /// What programs of this machine may be.
    fn names(self) -> &'static [&'static str] {
        match self {
            SeccompArch::X86_64 => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            SeccompArch::Aarch64 => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
            SeccompArch::Riscv64 => &["SCMP_ARCH_RISCV64"],
            SeccompArch::S390x => &["SCMP_ARCH_S390X"],
            SeccompArch::Ppc64le => &["SCMP_ARCH_PPC64LE"],
            SeccompArch::Loongarch64 => &["SCMP_ARCH_LOONGARCH64"],
        }
    }

    /// Calls that only this machine has.
    fn own_calls(self) -> &'static str {
        match self {
            SeccompArch::X86_64 => "modify_ldt",
            SeccompArch::Aarch64 => {
                "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"
            }
            SeccompArch::Riscv64 => "riscv_flush_icache riscv_hwprobe",
            SeccompArch::S390x => "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
            SeccompArch::Ppc64le => "sync_file_range2 swapcontext",
            SeccompArch::Loongarch64 => "",
        }
    }
}

fn allow(list: &str, args: Vec<SeccompArg>) -> SeccompSyscall {
    let names = list.split_whitespace().map(str::to_owned).collect();
    SeccompSyscall { names, action: SeccompAction::Allow, errno_ret: None, args }
}

fn arg(index: u32, op: SeccompOp, value: u64, value_two: u64) -> SeccompArg {
    SeccompArg { index, value, value_two, op }
}
