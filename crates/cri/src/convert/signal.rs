//! Signals: CRI numbers them in the order of their names.

use bowline_cri_proto::v1;
use bowline_model::Signal;

use super::{Refused, check};

/// The signal that is asked for; `None`: the image's or the default one.
pub(crate) fn signal(field: &str, value: i32) -> Result<Option<Signal>, Refused> {
    let value: v1::Signal = check::known(field, value)?;
    // `SIGNAL_SIGRTMINPLUS3` is written `SIGRTMIN+3` elsewhere.
    let name = value.as_str_name().replace("PLUS", "+").replace("MINUS", "-");
    Ok(Signal::parse(name.strip_prefix("SIGNAL_").unwrap_or(&name)))
}

/// The number that CRI has for a signal. glibc's own two (32 and 33) have none.
pub(crate) fn to_cri(signal: Signal) -> i32 {
    let name = format!("SIGNAL_{}", signal.name().replace('+', "PLUS").replace('-', "MINUS"));
    v1::Signal::from_str_name(&name).unwrap_or(v1::Signal::RuntimeDefault).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_66_values_there_and_back() {
        for value in 1..=65 {
            let parsed =
                signal("stop_signal", value).unwrap().unwrap_or_else(|| panic!("{value} has no signal"));
            let name = v1::Signal::try_from(value).unwrap().as_str_name();
            // Three are second names of other signals.
            let expected = match name {
                "SIGNAL_SIGCLD" => v1::Signal::Sigchld.into(),
                "SIGNAL_SIGIOT" => v1::Signal::Sigabrt.into(),
                "SIGNAL_SIGPOLL" => v1::Signal::Sigio.into(),
                _ => value,
            };
            assert_eq!(to_cri(parsed), expected, "{name} became {}", parsed.name());
        }
        assert_eq!(signal("stop_signal", 0), Ok(None));
        assert!(signal("stop_signal", 66).is_err());
        assert!(signal("stop_signal", -1).is_err());
    }

    #[test]
    fn numbers_are_the_kernels() {
        for (value, number) in [
            (v1::Signal::Sighup, 1),
            (v1::Signal::Sigkill, 9),
            (v1::Signal::Sigterm, 15),
            (v1::Signal::Sigsys, 31),
            (v1::Signal::Sigrtmin, 34),
            (v1::Signal::Sigrtminplus15, 49),
            (v1::Signal::Sigrtmaxminus14, 50),
            (v1::Signal::Sigrtmax, 64),
        ] {
            assert_eq!(signal("stop_signal", value.into()).unwrap().unwrap().number(), number, "{value:?}");
        }
    }

    #[test]
    fn a_signal_without_a_name_is_the_default() {
        assert_eq!(to_cri(Signal::from_number(33).unwrap()), 0);
    }
}
