//! Completion scripts.

use std::io::Write as _;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::ClientArgs;
use crate::failure::Done;

/// The script for the client commands alone.
pub(crate) fn completion(shell: Shell) -> Done {
    let mut script = Vec::new();
    write_completion(shell, &mut ClientArgs::command(), &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(0)
}

/// Writes a completion script for `command`: the whole of `bowline`, where the client commands are a part of it.
pub fn write_completion(shell: Shell, command: &mut clap::Command, to: &mut Vec<u8>) {
    clap_complete::generate(shell, command, "bowline", to);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            write_completion(shell, &mut ClientArgs::command(), &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("inspectp"), "{shell}: {script}");
        }
    }

    #[test]
    fn the_arguments_contradict_each_other_nowhere() {
        ClientArgs::command().debug_assert();
    }
}
