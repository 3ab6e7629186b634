//! Pairs of categories: which pod has which.
//!
//! A pod's level is in its record, so the table is made anew at every start, before the first pod can ask. A pair is in it from
//! before the record's first write until after its removal.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bowline_model::SandboxId;

use crate::PodError;

type Pair = (u16, u16);

pub(super) struct Categories {
    range: u16,
    taken: Mutex<HashMap<SandboxId, Pair>>,
}

impl Categories {
    /// Categories below `range`, of which there must be two.
    pub(super) fn new(range: u16) -> Categories {
        Categories { range: range.max(2), taken: Mutex::default() }
    }

    /// A pair that no pod has, for this one.
    pub(super) fn allocate(&self, pod: &SandboxId) -> Result<Pair, PodError> {
        let bytes = crate::shared::random_id();
        let start = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let mut taken = self.taken();
        let used: HashSet<Pair> = taken.values().copied().collect();
        let pair = free(&used, self.range, start).ok_or_else(|| {
            PodError::Full(format!(
                "all pairs of SELinux categories below {} have a pod; raise selinux.category_range, or remove pods",
                self.range
            ))
        })?;
        taken.insert(pod.clone(), pair);
        Ok(pair)
    }

    /// The pod has this level, whoever else has it: its client said so. One that is no pair is in nobody's way.
    pub(super) fn reserve(&self, pod: &SandboxId, level: &str) {
        if let Some(pair) = bowline_oci::category_pair(level) {
            self.taken().insert(pod.clone(), pair);
        }
    }

    pub(super) fn release(&self, pod: &SandboxId) {
        self.taken().remove(pod);
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<SandboxId, Pair>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first pair from a place on that is not used; `None` if all are.
fn free(used: &HashSet<Pair>, range: u16, start: u32) -> Option<Pair> {
    let count = u32::from(range) * (u32::from(range) - 1) / 2;
    let numbers = (0..count).map(|step| (start % count + step) % count);
    numbers.map(|number| pair(number, range)).find(|pair| !used.contains(pair))
}

/// Pairs in order: (0, 1), (0, 2), .., (1, 2), ..
fn pair(number: u32, range: u16) -> Pair {
    let (mut first, mut rest) = (0u16, number);
    // As many pairs begin with a category as there are higher ones.
    while rest >= u32::from(range - 1 - first) {
        rest -= u32::from(range - 1 - first);
        first += 1;
    }
    (first, first + 1 + rest as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bowline_model::SandboxId;
    use proptest::prelude::*;

    fn pod(number: u32) -> SandboxId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_ne_bytes());
        SandboxId::from_bytes(bytes)
    }

    #[test]
    fn every_number_is_another_pair() {
        for range in [2, 3, 10, 64] {
            let count = u32::from(range) * u32::from(range - 1) / 2;
            let all: HashSet<Pair> = (0..count).map(|number| pair(number, range)).collect();
            assert_eq!(all.len(), count as usize);
            assert!(all.iter().all(|(first, second)| first < second && *second < range));
        }
        assert_eq!(pair(1024 * 1023 / 2 - 1, 1024), (1022, 1023));
    }

    proptest! {
        #[test]
        fn no_two_pods_have_one_pair(range in 2u16..12, steps in prop::collection::vec((0u32..80, 0u8..4), 0..200)) {
            let categories = Categories::new(range);
            let count = usize::from(range) * usize::from(range - 1) / 2;
            let mut model: HashMap<u32, Pair> = HashMap::new();
            for (number, action) in steps {
                if action == 0 {
                    categories.release(&pod(number));
                    model.remove(&number);
                } else if !model.contains_key(&number) {
                    match categories.allocate(&pod(number)) {
                        Ok(pair) => {
                            prop_assert!(pair.0 < pair.1 && pair.1 < range);
                            prop_assert!(model.values().all(|other| *other != pair), "{pair:?} twice");
                            model.insert(number, pair);
                        }
                        Err(PodError::Full(_)) => prop_assert_eq!(model.len(), count),
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
            }
            // A daemon that starts anew learns them from the records.
            let again = Categories::new(range);
            for (number, (first, second)) in &model {
                again.reserve(&pod(*number), &format!("s0:c{first},c{second}"));
            }
            if let Ok(pair) = again.allocate(&pod(1000)) {
                prop_assert!(model.values().all(|other| *other != pair));
            }
        }
    }
}
