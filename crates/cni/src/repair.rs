//! Putting back what others take away.

use crate::add::{made, sandbox_id_origin};
use crate::cache::{Key, State};
use crate::conflist::Conflist;
use crate::plugin::Step;
use crate::{Cni, CniError};

impl Cni {
    /// Puts back the nftables rules and host ports of all attached pods, as far as they are missing: `nft flush
    /// ruleset`, or a firewall that starts anew, takes them away with its own. For the daemon's start and a timer.
    /// Tries all; the error is the first one.
    pub fn repair(&self) -> Result<(), CniError> {
        let mut first_error = None;
        for (key, indexed) in self.cache.all() {
            if indexed.state == State::Added
                && let Err(error) = self.repair_one(&key)
            {
                first_error = first_error.or(Some(error));
            }
        }
        // What was missing is there again; the next ADD need not look.
        self.node.nft.was_rebuilt();
        first_error.map_or(Ok(()), Err)
    }

    /// After an ADD that found our table gone.
    pub(crate) fn repair_if_rebuilt(&self) {
        if self.node.nft.was_rebuilt() {
            // The pod that was added is complete. What cannot be put back of others, `repair` on its timer will
            // try and tell.
            let _ = self.repair();
        }
    }

    fn repair_one(&self, key: &Key) -> Result<(), CniError> {
        let Some(record) = self.cache.read(key)? else { return Ok(()) };
        let Some(made) = made(&record) else { return Ok(()) };
        let list = Conflist::from_value(&record.conflist, &sandbox_id_origin(&record.sandbox_id))?;
        let step = Step { node: &self.node, list: &list, record: &record };
        list.plugins.iter().try_for_each(|plugin| step.restore(plugin, &made))
    }
}
