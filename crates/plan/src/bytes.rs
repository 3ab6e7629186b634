//! C strings and clean paths, with the field that they come from in the error.

use std::ffi::CString;

use crate::PlanError;

/// A C string.
pub(crate) fn c_string(field: &str, bytes: impl Into<Vec<u8>>) -> Result<CString, PlanError> {
    CString::new(bytes).map_err(|_| PlanError::invalid(field, "contains a NUL byte"))
}

/// An absolute path in its shortest form, `..` resolved as text: the launcher resolves symlinks inside the root.
pub(crate) fn absolute(field: &str, path: &str) -> Result<String, PlanError> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(PlanError::invalid(field, format!("{path:?} is not an absolute path")));
    }
    Ok(format!("/{}", parts(path).join("/")))
}

/// The parts of a path that mean something.
pub(crate) fn parts(path: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts
}
