//! Signals by number and name, as images (STOPSIGNAL) and CRI (`stop_signal`) write them.

use serde::{Deserialize, Serialize};

/// A signal number of Linux, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Signal(u8);

/// Names of signals 1 to 31, in order (`kill -l`; the same on x86-64, arm64, riscv64).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first real-time signal that programs may use: glibc keeps 32 and 33.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

impl Signal {
    /// SIGTERM, what a container gets when nobody says otherwise.
    pub const TERM: Signal = Signal(15);
    /// SIGKILL.
    pub const KILL: Signal = Signal(9);

    /// The signal of this number, if there is one.
    pub fn from_number(number: i32) -> Option<Signal> {
        (1..=64).contains(&number).then_some(Signal(number as u8))
    }

    /// Reads `15`, `TERM`, `SIGTERM`, `sigterm`, `RTMIN+3`, `SIGRTMAX-2`.
    pub fn parse(text: &str) -> Option<Signal> {
        let upper = text.trim().to_ascii_uppercase();
        if let Ok(number) = upper.parse::<i32>() {
            return Signal::from_number(number);
        }
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(rest) = name.strip_prefix("RTMIN") {
            return offset(RTMIN, rest.strip_prefix('+').or(rest.is_empty().then_some("0"))?, true);
        }
        if let Some(rest) = name.strip_prefix("RTMAX") {
            return offset(RTMAX, rest.strip_prefix('-').or(rest.is_empty().then_some("0"))?, false);
        }
        let name = match name {
            "CLD" => "CHLD",
            "POLL" => "IO",
            "IOT" => "ABRT",
            other => other,
        };
        NAMES.iter().position(|known| *known == name).map(|index| Signal(index as u8 + 1))
    }

    /// The number, as `kill(2)` takes it.
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }

    /// The name with `SIG` in front; real-time signals count from SIGRTMIN.
    pub fn name(self) -> String {
        match self.0 {
            n @ 1..=31 => format!("SIG{}", NAMES[usize::from(n) - 1]),
            RTMIN => "SIGRTMIN".into(),
            RTMAX => "SIGRTMAX".into(),
            n if n < RTMIN => format!("SIG{n}"),
            n if n <= RTMIN + 15 => format!("SIGRTMIN+{}", n - RTMIN),
            n => format!("SIGRTMAX-{}", RTMAX - n),
        }
    }
}

fn offset(base: u8, digits: &str, up: bool) -> Option<Signal> {
    let by: u8 = digits.parse().ok()?;
    let number = if up { base.checked_add(by)? } else { base.checked_sub(by)? };
    (RTMIN..=RTMAX).contains(&number).then_some(Signal(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_reads_back_from_its_name() {
        for number in (1..=31).chain(34..=64) {
            let signal = Signal::from_number(number).unwrap();
            assert_eq!(Signal::parse(&signal.name()), Some(signal), "{}", signal.name());
        }
    }

    #[test]
    fn the_forms_that_images_use() {
        for (text, number) in
            [("15", 15), ("SIGTERM", 15), ("term", 15), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("SIGPOLL", 29)]
        {
            assert_eq!(Signal::parse(text).map(Signal::number), Some(number), "{text}");
        }
        for bad in ["", "0", "65", "SIGFOO", "RTMIN+31", "RTMAX-40", "-9"] {
            assert_eq!(Signal::parse(bad), None, "{bad}");
        }
    }
}
