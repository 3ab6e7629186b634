//! What a case is.

use std::future::Future;
use std::pin::Pin;

use anyhow::Result;

use crate::node::Node;

/// A case being run. It stays on one thread.
pub(crate) type Work = Pin<Box<dyn Future<Output = Result<()>>>>;

/// One line of the table of cases.
pub(crate) struct Case {
    /// `group/case`.
    pub(crate) name: &'static str,
    /// Who asserts it: C critest, K the kubelet, T tools, P the CRI text, S we alone.
    pub(crate) tags: &'static str,
    /// Not beside others.
    pub(crate) serial: bool,
    /// Part of `--quick`.
    pub(crate) quick: bool,
    pub(crate) run: fn(Node) -> Work,
}

impl Case {
    /// A case that runs beside others.
    pub(crate) const fn new(name: &'static str, tags: &'static str, run: fn(Node) -> Work) -> Case {
        Case { name, tags, serial: false, quick: false, run }
    }

    /// Runs alone.
    pub(crate) const fn serial(mut self) -> Case {
        self.serial = true;
        self
    }

    /// Part of `--quick`.
    pub(crate) const fn quick(mut self) -> Case {
        self.quick = true;
        self
    }

    /// The part before the slash.
    pub(crate) fn group(&self) -> &'static str {
        self.name.split_once('/').map_or(self.name, |(group, _)| group)
    }

    /// Where it stands in the table.
    pub(crate) fn order(&self) -> usize {
        super::cases().iter().position(|case| case.name == self.name).unwrap_or(usize::MAX)
    }

    /// Whether part of it is a promise beyond what others ask for.
    pub(crate) fn goes_beyond(&self) -> bool {
        self.tags.contains('S')
    }
}

/// A row of a group's table: `case!("group/case", "CK", function)`.
macro_rules! case {
    ($name:literal, $tags:literal, $run:ident) => {
        $crate::check::case::Case::new($name, $tags, |node| Box::pin($run(node)))
    };
}

/// Two things must be equal; says both if they are not.
macro_rules! same {
    ($got:expr, $expected:expr, $($what:tt)+) => {
        match (&$got, &$expected) {
            (got, expected) => {
                anyhow::ensure!(got == expected, "{}: got {:?}, expected {:?}", format!($($what)+), got, expected);
            }
        }
    };
}

pub(crate) use {case, same};
