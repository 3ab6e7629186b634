//! Runs a program against a daemon of its own: `with-daemon [--registry-config DIR] -- PROGRAM ARGS`, where
//! `{endpoint}` in the arguments becomes the daemon's socket, and `{nri}` the path of its socket for NRI plugins.

use std::process::{Command, ExitCode};

use bowline_tests::Daemon;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(border) = args.iter().position(|arg| arg == "--") else {
        eprintln!("with-daemon [--registry-config DIR] -- PROGRAM ARGS");
        return ExitCode::from(2);
    };
    let (own, rest) = (&args[..border], &args[border + 1..]);
    let more = match own {
        [flag, folder] if flag == "--registry-config" => {
            format!("[images]\nregistry_config_dirs = [\"{folder}\"]\n")
        }
        _ => String::new(),
    };
    let Some((program, rest)) = rest.split_first() else { return ExitCode::from(2) };
    let mut daemon = Daemon::start_with(&more).without_limit();
    let (endpoint, nri) = (daemon.endpoint(), daemon.nri_socket().display().to_string());
    let filled = |arg: &String| arg.replace("{endpoint}", &endpoint).replace("{nri}", &nri);
    let status = Command::new(program).args(rest.iter().map(filled)).status();
    daemon.stop();
    match status {
        Ok(status) => ExitCode::from(status.code().map_or(1, |code| code.clamp(0, 255) as u8)),
        Err(error) => {
            eprintln!("could not run {program}: {error}");
            ExitCode::from(2)
        }
    }
}
