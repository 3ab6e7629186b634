//! fstab-style mount options, as the runtime spec lists them.

use std::ffi::CString;

use crate::PlanError;
use crate::bytes::c_string;

/// `MOUNT_ATTR_*` of linux/mount.h, which only `linux` may take from libc.
pub(crate) mod attr {
    pub(crate) const RDONLY: u64 = 0x1;
    pub(crate) const NOSUID: u64 = 0x2;
    pub(crate) const NODEV: u64 = 0x4;
    pub(crate) const NOEXEC: u64 = 0x8;
    pub(crate) const ATIME: u64 = 0x70;
    pub(crate) const NOATIME: u64 = 0x10;
    pub(crate) const STRICTATIME: u64 = 0x20;
    pub(crate) const NODIRATIME: u64 = 0x80;
    pub(crate) const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// `MS_*` of propagation.
pub(crate) mod ms {
    pub(crate) const REC: u64 = 1 << 14;
    pub(crate) const UNBINDABLE: u64 = 1 << 17;
    pub(crate) const PRIVATE: u64 = 1 << 18;
    pub(crate) const SLAVE: u64 = 1 << 19;
    pub(crate) const SHARED: u64 = 1 << 20;
}

/// Attributes to set and to clear; the last word about a bit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

impl Attributes {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Set(bits) => {
                self.set |= bits;
                self.clear &= !bits;
            }
            Change::Clear(bits) => {
                self.clear |= bits;
                self.set &= !bits;
            }
            // The access time modes are one field of several bits: it is cleared, then set.
            Change::Atime(mode) => {
                self.set = self.set & !attr::ATIME | mode;
                self.clear |= attr::ATIME;
            }
        }
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Attributes::default()
    }
}

#[derive(Clone, Copy)]
enum Change {
    Set(u64),
    Clear(u64),
    Atime(u64),
}

/// The owners of an idmapped mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Idmap {
    /// As the mappings say: not recursive where there are some.
    #[default]
    Unsaid,
    /// `idmap`.
    Top,
    /// `ridmap`.
    Recursive,
}

/// The options of one mount, sorted by what they are for.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// `bind`: false, `rbind`: true.
    pub(crate) bind: Option<bool>,
    pub(crate) top: Attributes,
    pub(crate) recursive: Attributes,
    /// `MS_*`; 0: nothing said.
    pub(crate) propagation: u64,
    pub(crate) idmap: Idmap,
    /// Options of the file system itself.
    pub(crate) data: Vec<(CString, Option<CString>)>,
}

impl Options {
    pub(crate) fn parse(field: &str, words: &[String]) -> Result<Options, PlanError> {
        let mut options = Options::default();
        for word in words {
            options.add(field, word)?;
        }
        Ok(options)
    }

    fn add(&mut self, field: &str, word: &str) -> Result<(), PlanError> {
        match word {
            "" | "defaults" | "async" | "silent" | "loud" | "nomand" | "noiversion" => {}
            "bind" => self.bind = Some(false),
            "rbind" => self.bind = Some(true),
            "idmap" => self.idmap = Idmap::Top,
            "ridmap" => self.idmap = Idmap::Recursive,
            "remount" | "tmpcopyup" | "copy-symlink" => {
                return Err(PlanError::unsupported(format!("{field}: option {word:?}")));
            }
            word => {
                if let Some(change) = attribute(word) {
                    self.top.apply(change);
                } else if let Some(change) = word.strip_prefix('r').and_then(attribute) {
                    self.recursive.apply(change);
                } else if let Some(flag) = propagation(word) {
                    self.propagation = flag;
                } else {
                    let (key, value) = match word.split_once('=') {
                        Some((key, value)) => (key, Some(c_string(field, value)?)),
                        None => (word, None),
                    };
                    self.data.push((c_string(field, key)?, value));
                }
            }
        }
        Ok(())
    }
}

fn attribute(word: &str) -> Option<Change> {
    use Change::{Atime, Clear, Set};
    Some(match word {
        "ro" => Set(attr::RDONLY),
        "rw" => Clear(attr::RDONLY),
        "nosuid" => Set(attr::NOSUID),
        "suid" => Clear(attr::NOSUID),
        "nodev" => Set(attr::NODEV),
        "dev" => Clear(attr::NODEV),
        "noexec" => Set(attr::NOEXEC),
        "exec" => Clear(attr::NOEXEC),
        "nodiratime" => Set(attr::NODIRATIME),
        "diratime" => Clear(attr::NODIRATIME),
        "nosymfollow" => Set(attr::NOSYMFOLLOW),
        "symfollow" => Clear(attr::NOSYMFOLLOW),
        "noatime" => Atime(attr::NOATIME),
        "strictatime" => Atime(attr::STRICTATIME),
        // The kernel's own default is relatime.
        "relatime" | "atime" | "norelatime" | "nostrictatime" => Atime(0),
        _ => return None,
    })
}

/// `MS_*` for `private`, `rprivate`, ..
pub(crate) fn propagation(word: &str) -> Option<u64> {
    let flag = |word| match word {
        "private" => Some(ms::PRIVATE),
        "slave" => Some(ms::SLAVE),
        "shared" => Some(ms::SHARED),
        "unbindable" => Some(ms::UNBINDABLE),
        _ => None,
    };
    flag(word).or_else(|| word.strip_prefix('r').and_then(flag).map(|flag| flag | ms::REC))
}
