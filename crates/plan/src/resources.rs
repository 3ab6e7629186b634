//! Limits: from the spec to files of the hierarchies. Formulas and their reasons: docs/design/cgroups.md.

mod convert;
mod v1;
mod v2;

use bowline_launch_plan::CgroupWrite;
use bowline_launch_plan::wire::Blob;
use bowline_model::cgroup::{CgroupLayout, Hierarchy};
use bowline_model::runtime_spec::LinuxResources;

use crate::PlanError;
use crate::bytes::c_string;

pub use convert::{cpu_weight, io_weight, linear_cpu_weight, swap_max};

/// A value for a file of one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The number of the hierarchy.
    pub hierarchy: u8,
    /// Name of the file.
    pub file: String,
    /// What is written.
    pub value: String,
    /// What undoes the limit, where the file has such a value.
    pub unset: Option<&'static str>,
    /// A missing file is fine.
    pub optional: bool,
}

/// All limits but devices, in the order in which a fresh cgroup takes them.
pub fn values(limits: &LinuxResources, layout: &CgroupLayout) -> Result<Vec<Value>, PlanError> {
    if layout.find("memory").is_none_or(|(_, hierarchy)| !hierarchy.unified)
        && layout.hierarchies.iter().any(|hierarchy| !hierarchy.unified)
        && let Some(key) = limits.unified.keys().next()
    {
        let reason = "is a file of cgroup v2, and this host has its controllers in v1";
        return Err(PlanError::invalid(format!("linux.resources.unified.{key}"), reason));
    }
    let mut out = Values { layout, list: Vec::new() };
    v1::add(limits, &mut out)?;
    v2::add(limits, &mut out)?;
    Ok(out.list)
}

/// The writes of one hierarchy.
pub(crate) fn writes(values: &[Value], hierarchy: u8) -> Result<Vec<CgroupWrite>, PlanError> {
    values.iter().filter(|value| value.hierarchy == hierarchy).map(Value::write).collect()
}

impl Value {
    pub(crate) fn write(&self) -> Result<CgroupWrite, PlanError> {
        Ok(CgroupWrite {
            file: c_string("linux.resources", self.file.as_str())?,
            value: Blob(self.value.clone().into_bytes()),
            optional: self.optional,
        })
    }
}

/// The list while it grows.
pub(crate) struct Values<'a> {
    layout: &'a CgroupLayout,
    list: Vec<Value>,
}

impl Values<'_> {
    /// The hierarchy of a controller, where it is of the wanted version. A controller that is nowhere is reported by
    /// `v2::add`, which runs last, as an error: a limit is never dropped in silence.
    fn find(&self, controller: &str, unified: bool) -> Option<(u8, &Hierarchy)> {
        self.layout.find(controller).filter(|(_, hierarchy)| hierarchy.unified == unified)
    }

    /// A controller that is asked for and is nowhere on this host.
    fn demand(&self, controller: &str, field: &str) -> Result<(), PlanError> {
        if self.layout.find(controller).is_some() {
            return Ok(());
        }
        Err(PlanError::invalid(field, format!("this host has no cgroup controller {controller}")))
    }

    fn add(
        &mut self,
        hierarchy: u8,
        file: impl Into<String>,
        value: impl ToString,
        unset: Option<&'static str>,
    ) {
        let (file, value) = (file.into(), value.to_string());
        self.list.push(Value { hierarchy, file, value, unset, optional: false });
    }

    /// A value that is lost without harm where the file is missing.
    fn add_optional(&mut self, hierarchy: u8, file: impl Into<String>, value: impl ToString) {
        let (file, value) = (file.into(), value.to_string());
        self.list.push(Value { hierarchy, file, value, unset: None, optional: true });
    }
}

/// `2MB`, `1GB`, `64KB`: part of a file's name, so nothing else may come through.
pub(crate) fn page_size(text: &str) -> Result<&str, PlanError> {
    let field = "linux.resources.hugepageLimits.pageSize";
    let digits = text.trim_end_matches(['K', 'M', 'G', 'B']);
    let unit = text.get(digits.len()..).unwrap_or_default();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) || !matches!(unit, "KB" | "MB" | "GB")
    {
        return Err(PlanError::invalid(field, format!("{text:?} is no page size such as 2MB")));
    }
    Ok(text)
}
