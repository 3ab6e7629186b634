//! What a thread of a checkpoint may do, beside what the request allows.

use std::io;

use super::{Allowed, Folder, Namespaces, Objection, damaged, not_allowed, within};
use crate::wire::{Malformed, Message};

/// The filters of all threads: code, and the one that was loaded before it.
pub(super) struct Filters {
    /// Which of them are the request's.
    wanted: Vec<bool>,
    before: Vec<Option<usize>>,
}

impl Filters {
    pub(super) fn read(folder: &Folder, wanted: Option<&[u8]>) -> Result<Filters, Objection> {
        let mut filters = Filters { wanted: Vec::new(), before: Vec::new() };
        let name = "seccomp.img";
        let entries = match folder.entries(name) {
            Ok(entries) => entries,
            Err(Objection::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(other) => return Err(other),
        };
        // Without any filter there is no message either.
        let Some(entry) = entries.first() else { return Ok(filters) };
        if entries.len() > 1 {
            return Err(damaged(name));
        }
        within(name, || {
            for filter in Message::parse(entry)?.messages(1)? {
                filters.wanted.push(filter.bytes(1)?.ok_or(Malformed)? == wanted.unwrap_or_default());
                let before = filter.number(2)?.map(usize::try_from).transpose().map_err(|_| Malformed)?;
                filters.before.push(before);
            }
            Ok(filters)
        })
    }

    /// Whether the request's filter holds where this one was loaded last.
    fn hold(&self, last: Option<u64>) -> bool {
        let mut at = last.and_then(|last| usize::try_from(last).ok());
        for _ in 0..=self.wanted.len() {
            let Some(filter) = at else { return false };
            if self.wanted.get(filter) == Some(&true) {
                return true;
            }
            at = self.before.get(filter).copied().flatten();
        }
        false
    }
}

/// What a thread may do.
pub(super) struct Thread {
    ids: Option<Namespaces>,
    users: Vec<u64>,
    groups: Vec<u64>,
    capabilities: u64,
    filtered: bool,
    filter: Option<u64>,
}

impl Thread {
    pub(super) fn of(core: &Message<'_>) -> Result<Thread, Malformed> {
        let thread = core.message(5)?.ok_or(Malformed)?;
        let creds = thread.message(10)?.ok_or(Malformed)?;
        let all = |fields: [u32; 4]| -> Result<Vec<u64>, Malformed> {
            fields.into_iter().map(|field| creds.number(field)?.ok_or(Malformed)).collect()
        };
        let mut capabilities = 0;
        for field in 9..=12 {
            let words = creds.numbers(field)?;
            if words.len() > 2 || words.iter().any(|word| *word > u64::from(u32::MAX)) {
                return Err(Malformed);
            }
            capabilities |= words.first().unwrap_or(&0) | words.get(1).unwrap_or(&0) << 32;
        }
        Ok(Thread {
            ids: core.message(4)?.map(|ids| Namespaces::of(&ids)).transpose()?,
            users: all([1, 3, 5, 7])?,
            groups: all([2, 4, 6, 8])?,
            capabilities,
            filtered: thread.number(11)? == Some(2),
            filter: thread.number(12)?,
        })
    }

    pub(super) fn check(
        &self,
        own: &Namespaces,
        allowed: &Allowed<'_>,
        filters: &Filters,
    ) -> Result<(), Objection> {
        // Of another criu; with numbers it must mean the same.
        if self.ids.is_some_and(|ids| ids.mount != 0 && ids != *own) {
            return not_allowed("has processes in namespaces of their own");
        }
        let more = self.capabilities & !allowed.capabilities;
        if more != 0 {
            return not_allowed(format_args!(
                "has processes with more capabilities than the request (bits {more:#x})"
            ));
        }
        if let Some((user, group)) = allowed.ids
            && (self.users.iter().any(|id| *id != u64::from(user))
                || self.groups.iter().any(|id| *id != u64::from(group)))
        {
            return not_allowed(format_args!("has processes of other users than {user}:{group}"));
        }
        if allowed.filter.is_some() && !(self.filtered && filters.hold(self.filter)) {
            return not_allowed("has processes without the seccomp filter of the request");
        }
        Ok(())
    }
}
