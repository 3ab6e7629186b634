//! The chores of the house: `cargo xtask demo|test|tidy|critest|vm|build`.

mod build;
mod critest;
mod install;
mod limit;
mod run;
mod tidy;
mod vm;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  demo              install what is missing, build, and show a pod's whole life with the real daemon
  test [--quick]    install what is missing, then run everything: tidy, unit and kernel tests, `bowline check`
  tidy              check the rules of the house: ranks, unsafe, file sizes, paths
  critest [ARGS]    run the official critest, taken from PATH, against a daemon of ours
  vm [OPTIONS] CMD  run CMD in a guest with a stock kernel and cgroup v2; `vm --help`
  build [--release] build `bowline`, the static monitor and the check helper into target/
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match command.as_str() {
        "demo" => run::demo(&rest),
        "test" => run::test(&rest),
        "tidy" => tidy::tidy(),
        "critest" => critest::critest(&rest),
        "vm" => match vm::vm(&rest) {
            Ok(code) => return ExitCode::from(code),
            Err(error) => Err(error),
        },
        "build" => build::build(rest.iter().any(|arg| arg == "--release")).map(drop),
        _ => {
            eprint!("{HELP}");
            return if command.is_empty() || command == "help" || command == "--help" {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(2)
            };
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
