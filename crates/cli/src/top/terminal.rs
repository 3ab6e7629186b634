//! The terminal, taken over for a screen and given back however the command ends.

use std::io;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::failure::Failure;
use crate::render::print;

pub(super) struct Terminal {
    before: Termios,
}

impl Terminal {
    /// The other screen, without a cursor; keys come one by one.
    pub fn take() -> io::Result<Terminal> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Line ends of what we print are still made whole.
        raw.output_modes = before.output_modes;
        tcsetattr(stdin, OptionalActions::Now, &raw)?;
        let terminal = Terminal { before };
        print("\x1b[?1049h\x1b[?25l").map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(terminal)
    }

    /// Rows and columns.
    pub fn size(&self) -> (usize, usize) {
        match tcgetwinsize(rustix::stdio::stdout()) {
            Ok(size) if size.ws_row > 0 => (usize::from(size.ws_row), usize::from(size.ws_col)),
            _ => (24, 80),
        }
    }

    /// Replaces what is shown, without a moment of nothing.
    pub fn show(&self, text: &str) -> Result<(), Failure> {
        let lines: Vec<String> = text.lines().map(|line| format!("{line}\x1b[K")).collect();
        print(&format!("\x1b[H{}\x1b[J", lines.join("\r\n")))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = print("\x1b[?25h\x1b[?1049l");
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}
