//! Runs a program as a kernel would that does not know a system call: `without-syscall NUMBER PROGRAM ARGS`. The filter
//! answers ENOSYS, and everything that the program starts inherits it.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

// linux/bpf_common.h and linux/seccomp.h
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const ENOSYS: u32 = 0x0005_0000 | 38;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let number = args.next().and_then(|number| number.parse::<u32>().ok());
    let (Some(number), Some(program)) = (number, args.next()) else {
        eprintln!("without-syscall NUMBER PROGRAM ARGS");
        return ExitCode::from(2);
    };
    let mut filter = Vec::new();
    // `struct seccomp_data` begins with the number.
    for (code, if_so, if_not, value) in
        [(LOAD_WORD, 0, 0, 0), (JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ENOSYS), (RETURN, 0, 0, ALLOW)]
    {
        filter.extend(u16::to_ne_bytes(code));
        filter.extend([if_so, if_not]);
        filter.extend(u32::to_ne_bytes(value));
    }
    if let Err(error) = bowline_linux::seccomp::load(&filter, 0) {
        eprintln!("could not load the filter: {error}");
        return ExitCode::from(2);
    }
    let error = Command::new(&program).args(args).exec();
    eprintln!("could not run {program}: {error}");
    ExitCode::from(127)
}
