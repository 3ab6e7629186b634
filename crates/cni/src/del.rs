//! DEL and GC.

use crate::add::{made, sandbox_id_origin};
use crate::builtin::{Attachment, bridge};
use crate::cache::{Key, Record, State};
use crate::conflist::Conflist;
use crate::plugin::{Step, input};
use crate::{Cni, CniError, PodRef};

impl Cni {
    /// Detaches the pod. Right when it was never attached, when it is detached already, and when its namespace is
    /// gone: everything is taken from the record.
    ///
    /// Afterwards the pod has no network and its host ports are free. Its link and its addresses are free after
    /// the next [`Cni::reap`].
    pub fn del(&self, pod: &PodRef<'_>) -> Result<(), CniError> {
        crate::request::validate_id(pod.sandbox_id)?;
        self.del_sandbox(pod.sandbox_id)
    }

    fn del_sandbox(&self, sandbox_id: &str) -> Result<(), CniError> {
        for key in self.cache.of_sandbox(sandbox_id) {
            self.del_one(&key)?;
        }
        Ok(())
    }

    /// DEL of one attachment, as far as it goes without waiting for the kernel.
    pub(crate) fn del_one(&self, key: &Key) -> Result<(), CniError> {
        let Some(state) = self.cache.get(key) else { return Ok(()) };
        if state.state == State::Dying {
            return Ok(());
        }
        let Some(record) = self.record(key)? else { return self.cache.remove(key) };
        let list = Conflist::from_value(&record.conflist, &sandbox_id_origin(&record.sandbox_id))?;
        let made = made(&record);
        let step = Step { node: &self.node, list: &list, record: &record };
        for plugin in list.plugins.iter().rev() {
            step.del(plugin, made.as_ref())?;
        }
        self.cache.advance(key, State::Dying)
    }

    /// The record of an attachment. One that cannot be read was lost by a crash of the machine: its name says whose
    /// it was, and that is enough to clear up after the built-in plugins of the network as it is now.
    pub(crate) fn record(&self, key: &Key) -> Result<Option<Record>, CniError> {
        let error = match self.cache.read(key) {
            Ok(record) => return Ok(record),
            Err(error) => error,
        };
        let (Ok(list), Some(indexed)) = (self.network(), self.cache.get(key)) else { return Err(error) };
        let record = Record {
            sandbox_id: key.sandbox_id.clone(),
            if_name: key.if_name.clone(),
            netns_path: None,
            args: String::new(),
            capability_args: Default::default(),
            conflist: list.to_value(),
            result: None,
        };
        // The network may be another one by the time the address is released.
        self.cache.write(&record, indexed.state)?;
        Ok(Some(record))
    }

    /// Ends an attachment at once, waiting for the kernel: before the same sandbox is attached again.
    pub(crate) fn finish_now(&self, key: &Key) -> Result<(), CniError> {
        let _ending = self.ending();
        let Some(record) = self.record(key)? else { return self.cache.remove(key) };
        let list = Conflist::from_value(&record.conflist, &sandbox_id_origin(&record.sandbox_id))?;
        let at = Attachment { sandbox_id: &key.sandbox_id, if_name: &key.if_name, network: &list.name };
        bridge::delete_now(&self.node, &at)?;
        self.release(&record)?;
        self.cache.remove(key)
    }

    /// Detaches every sandbox that is not in `valid`, takes away rules of networks that nobody uses any more, and
    /// tells plugins that understand it (CNI 1.1) which attachments are valid. Gives the ids that were detached;
    /// the first error, after trying all, otherwise.
    pub fn gc(&self, valid: &[&str]) -> Result<Vec<String>, CniError> {
        let mut first_error = self.cache.sweep_drafts(valid).err();
        let mut done = Vec::new();
        for (key, indexed) in self.cache.all() {
            if valid.contains(&key.sandbox_id.as_str()) || indexed.state == State::Dying {
                continue;
            }
            match self.del_one(&key) {
                Ok(()) => done.push(key.sandbox_id),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        let current = self.network().ok();
        if let Some(list) = &current {
            first_error = first_error.or(self.gc_plugins(list).err());
        }
        let used = self.cache.all();
        let in_use = |network: &str| {
            current.as_ref().is_some_and(|list| list.name == network)
                || used.iter().any(|(_, indexed)| indexed.network == network)
        };
        if let Err(error) = self.node.nft.retain_networks(in_use) {
            first_error = first_error.or(Some(error));
        }
        first_error.map_or(Ok(done), Err)
    }

    fn gc_plugins(&self, list: &Conflist) -> Result<(), CniError> {
        if list.disable_gc || !list.at_least("1.1.0") {
            return Ok(());
        }
        let attachments: Vec<serde_json::Value> = self
            .cache
            .all()
            .into_iter()
            .filter(|(_, indexed)| indexed.network == list.name && indexed.state != State::Dying)
            .map(|(key, _)| serde_json::json!({ "containerID": key.sandbox_id, "ifname": key.if_name }))
            .collect();
        let mut first_error = None;
        for plugin in list.plugins.iter().filter(|p| p.is_external()) {
            let mut stdin = input(list, plugin, &Default::default(), None);
            if let Some(object) = stdin.as_object_mut() {
                object.insert("cni.dev/valid-attachments".to_owned(), attachments.clone().into());
            }
            // Of a built-in bridge only the address plugin is external.
            let program = if plugin.is_built_in() { plugin.ipam_kind() } else { Some(plugin.kind.as_str()) };
            let Some(program) = program else { continue };
            if let Err(error) = self.execute_for_network(program, "GC", &stdin) {
                first_error = first_error.or(Some(error));
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}
