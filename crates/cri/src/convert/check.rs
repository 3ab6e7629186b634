//! Checks that many fields share.

use std::collections::BTreeMap;

use super::{Refused, invalid};

/// Longer names serve nobody: they are part of every answer and record.
const MAX_NAME: usize = 4 << 10;
/// The kubelet's own objects have a few dozen.
const MAX_PAIRS: usize = 10_000;

/// A name: there, not endless, no NUL. Names are no DNS labels.
pub(crate) fn name(field: &str, text: &str) -> Result<(), Refused> {
    if text.is_empty() {
        return Err(invalid(field, "must not be empty"));
    }
    if text.len() > MAX_NAME {
        return Err(invalid(field, format!("is {} bytes long; {MAX_NAME} are the limit", text.len())));
    }
    no_nul(field, text)
}

/// Anything but NUL, which ends a string in the kernel.
pub(crate) fn no_nul(field: &str, text: impl AsRef<[u8]>) -> Result<(), Refused> {
    match text.as_ref().contains(&0) {
        true => Err(invalid(field, "must not contain a NUL byte")),
        false => Ok(()),
    }
}

/// Text that becomes part of a line in a file.
pub(crate) fn one_line(field: &str, text: &str) -> Result<(), Refused> {
    match text.contains(char::is_control) {
        true => Err(invalid(field, "must not contain control characters")),
        false => Ok(()),
    }
}

/// An absolute path.
pub(crate) fn absolute(field: &str, path: &str) -> Result<(), Refused> {
    if !path.starts_with('/') {
        return Err(invalid(field, format!("must be an absolute path, not `{}`", brief(path))));
    }
    no_nul(field, path)
}

/// A path that stays below wherever it is put.
pub(crate) fn below(field: &str, path: &str) -> Result<(), Refused> {
    if path.starts_with('/') {
        return Err(invalid(field, format!("must be a relative path, not `{}`", brief(path))));
    }
    no_parent(field, path)
}

/// A path without `..`.
pub(crate) fn no_parent(field: &str, path: &str) -> Result<(), Refused> {
    if path.split('/').any(|part| part == "..") {
        return Err(invalid(field, format!("must not contain `..`, as `{}` does", brief(path))));
    }
    no_nul(field, path)
}

/// Labels or annotations.
pub(crate) fn pairs(field: &str, pairs: &BTreeMap<String, String>) -> Result<(), Refused> {
    match pairs.len() > MAX_PAIRS {
        true => Err(invalid(field, format!("has {} entries; {MAX_PAIRS} are the limit", pairs.len()))),
        false => Ok(()),
    }
}

/// A uid or gid. The largest number means "no change" to the kernel and is no id.
pub(crate) fn id(field: &str, id: i64) -> Result<u32, Refused> {
    match u32::try_from(id) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(invalid(field, format!("{id} is no user or group id: they go from 0 to {}", u32::MAX - 1))),
    }
}

/// A list of gids.
pub(crate) fn ids(field: &str, ids: &[i64]) -> Result<Vec<u32>, Refused> {
    ids.iter().map(|id| self::id(field, *id)).collect()
}

/// An enumeration's value.
pub(crate) fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, Refused> {
    E::try_from(value).map_err(|_| invalid(field, format!("{value} is no value of this enumeration")))
}

/// Enough of a text to recognise it.
pub(crate) fn brief(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}
