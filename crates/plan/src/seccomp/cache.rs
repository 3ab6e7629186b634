//! Filters that were compiled before: nearly all containers of a node have one of a few profiles.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bowline_launch_plan::Seccomp as Filter;
use bowline_model::runtime_spec::Seccomp;
use sha2::{Digest, Sha256};

use super::{Arch, SeccompError, compile};

/// More profiles than a node has; the one not asked for the longest goes.
const CAPACITY: usize = 32;

type Key = ([u8; 32], Arch);

/// A bounded memory of compiled filters, keyed by the SHA-256 of the profile.
#[derive(Debug, Default)]
pub struct SeccompCache(Mutex<VecDeque<(Key, Filter)>>);

impl SeccompCache {
    /// The filter of a profile, compiled if it is new. Compilation happens outside the lock: two callers may do the
    /// same work once, nobody waits.
    pub fn compile(&self, profile: &Seccomp, native: Arch) -> Result<Filter, SeccompError> {
        let Ok(json) = serde_json::to_vec(profile) else { return compile(profile, native) };
        let key = (Sha256::digest(&json).into(), native);
        if let Some(filter) = self.find(&key) {
            return Ok(filter);
        }
        let filter = compile(profile, native)?;
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.truncate(CAPACITY - 1);
        list.push_front((key, filter.clone()));
        Ok(filter)
    }

    fn find(&self, key: &Key) -> Option<Filter> {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = list.iter().position(|(there, _)| there == key)?;
        let entry = list.remove(at)?;
        let filter = entry.1.clone();
        list.push_front(entry);
        Some(filter)
    }

    /// How many filters it holds.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// It holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
