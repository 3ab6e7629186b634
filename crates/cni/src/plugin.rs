//! One plugin of a list, built in or not.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::CniError;
use crate::builtin::{Attachment, Node, PluginInput, PodSide, bridge, loopback, portmap};
use crate::cache::Record;
use crate::conflist::{Conflist, Plugin};
use crate::exec::{Run, run};
use crate::ipam::{HostLocal, Owner};
use crate::result::CniResult;

/// What all plugins of one ADD, DEL or CHECK share.
pub(crate) struct Step<'a> {
    pub(crate) node: &'a Node,
    pub(crate) list: &'a Conflist,
    pub(crate) record: &'a Record,
}

impl Step<'_> {
    fn attachment(&self) -> Attachment<'_> {
        Attachment {
            sandbox_id: &self.record.sandbox_id,
            if_name: &self.record.if_name,
            network: &self.list.name,
        }
    }

    /// ADD of one plugin: its result, in our form.
    pub(crate) fn add(
        &self,
        plugin: &Plugin,
        prev: Option<CniResult>,
        pod: &mut PodSide<'_>,
    ) -> Result<Option<CniResult>, CniError> {
        if !plugin.is_built_in() {
            let answer = self.execute(&plugin.kind, plugin, "ADD", prev.as_ref())?;
            return self.read_result(&plugin.kind, &answer).map(Some);
        }
        let runtime = self.runtime(plugin);
        let input = PluginInput { config: &plugin.config, runtime: &runtime };
        match plugin.kind.as_str() {
            "loopback" => {
                let kernel = CniError::kernel(format!("bring up lo of sandbox {}", self.record.sandbox_id));
                let socket =
                    pod.socket.get().map_err(CniError::kernel("enter the pod's network namespace"))?;
                loopback::add(socket, &pod.sandbox, prev).map(Some).map_err(kernel)
            }
            "portmap" => {
                let prev = prev.ok_or_else(|| {
                    CniError::config(
                        &self.list.name,
                        "plugins",
                        "portmap must follow a plugin that makes a link",
                    )
                })?;
                portmap::add(self.node, &self.attachment(), &input, &prev)?;
                Ok(Some(prev))
            }
            _ => {
                let given = self.ipam_add(plugin, &input)?;
                bridge::add(self.node, &self.attachment(), &input, pod, given).map(Some)
            }
        }
    }

    /// Addresses for the built-in bridge.
    fn ipam_add(&self, plugin: &Plugin, input: &PluginInput<'_>) -> Result<CniResult, CniError> {
        let mut given = match plugin.ipam_kind() {
            None => CniResult::default(),
            Some("host-local") => {
                let ipam = HostLocal::parse(&self.list.name, input.config, input.runtime)?;
                let patience = self.node.config.plugin_timeout_add.min(bridge::LOCK_PATIENCE);
                let got = ipam.allocate(&self.node.queues, &self.owner(), patience)?;
                CniResult { ips: got.ips, routes: got.routes, dns: got.dns, ..CniResult::default() }
            }
            Some(kind) => {
                let answer = self.execute(kind, plugin, "ADD", None)?;
                self.read_result(kind, &answer)?
            }
        };
        // The configuration's own resolver settings come first, as in the official plugin.
        let own = crate::result::dns(input.config.get("dns"))
            .map_err(|problem| CniError::config(&self.list.name, "dns", problem))?;
        if own != Default::default() {
            given.dns = own;
        }
        Ok(given)
    }

    /// DEL of one plugin. `made` is the result of the whole list, if ADD came that far.
    pub(crate) fn del(&self, plugin: &Plugin, made: Option<&CniResult>) -> Result<(), CniError> {
        if !plugin.is_built_in() {
            return self.execute(&plugin.kind, plugin, "DEL", made).map(drop);
        }
        let runtime = self.runtime(plugin);
        let input = PluginInput { config: &plugin.config, runtime: &runtime };
        match plugin.kind.as_str() {
            "loopback" => Ok(()),
            "portmap" => portmap::del(self.node, &self.attachment(), &input, made),
            _ => match plugin.ipam_kind() {
                None | Some("host-local") => bridge::detach(self.node, &self.attachment()),
                Some(kind) => {
                    // Others release the address at once, so the link must be gone at once.
                    bridge::delete_now(self.node, &self.attachment())?;
                    self.execute(kind, plugin, "DEL", made).map(drop)
                }
            },
        }
    }

    /// CHECK of one plugin.
    pub(crate) fn check(
        &self,
        plugin: &Plugin,
        made: &CniResult,
        pod: &mut PodSide<'_>,
    ) -> Result<(), CniError> {
        if !plugin.is_built_in() {
            return self.execute(&plugin.kind, plugin, "CHECK", Some(made)).map(drop);
        }
        let runtime = self.runtime(plugin);
        let input = PluginInput { config: &plugin.config, runtime: &runtime };
        match plugin.kind.as_str() {
            "bridge" => bridge::check(self.node, &self.attachment(), &input, pod, made),
            "portmap" => portmap::check(self.node, &self.attachment(), &input, made),
            _ => Ok(()),
        }
    }

    /// Puts back what is missing in nftables of what ADD made.
    pub(crate) fn restore(&self, plugin: &Plugin, made: &CniResult) -> Result<(), CniError> {
        let runtime = self.runtime(plugin);
        let input = PluginInput { config: &plugin.config, runtime: &runtime };
        match plugin.kind.as_str() {
            "bridge" if plugin.is_built_in() => bridge::restore(self.node, &self.attachment(), &input, made),
            "portmap" if plugin.is_built_in() => {
                portmap::restore(self.node, &self.attachment(), &input, made)
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn owner(&self) -> Owner<'_> {
        Owner { sandbox_id: &self.record.sandbox_id, if_name: &self.record.if_name }
    }

    /// What the plugin's capabilities let it see of the request.
    fn runtime(&self, plugin: &Plugin) -> Map<String, Value> {
        let all = self.record.capability_args.iter();
        all.filter(|(name, _)| plugin.has_capability(name)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    fn execute(
        &self,
        program: &str,
        plugin: &Plugin,
        command: &'static str,
        prev: Option<&CniResult>,
    ) -> Result<Vec<u8>, CniError> {
        // Before 0.4.0 only ADD had a previous result.
        let prev = prev.filter(|_| command == "ADD" || self.list.at_least("0.4.0"));
        let runtime = self.runtime(plugin);
        let stdin = input(self.list, plugin, &runtime, prev);
        let config = &self.node.config;
        run(
            config,
            &Run {
                plugin: program,
                command,
                sandbox_id: &self.record.sandbox_id,
                if_name: &self.record.if_name,
                netns: self.record.netns_path.as_deref(),
                args: &self.record.args,
                stdin: &stdin,
                timeout: timeout(command, config.plugin_timeout_add, config.plugin_timeout_del),
            },
        )
    }

    fn read_result(&self, plugin: &str, answer: &[u8]) -> Result<CniResult, CniError> {
        let bad = |problem| CniError::PluginAnswer { plugin: plugin.to_owned(), command: "ADD", problem };
        let value: Value = serde_json::from_slice(answer).map_err(|e| bad(e.to_string()))?;
        CniResult::from_json(&value).map_err(bad)
    }
}

fn timeout(command: &str, add: Duration, del: Duration) -> Duration {
    if matches!(command, "DEL" | "GC") { del } else { add }
}

/// A plugin's standard input: its entry, with what the list and the request add.
pub(crate) fn input(
    list: &Conflist,
    plugin: &Plugin,
    runtime: &Map<String, Value>,
    prev: Option<&CniResult>,
) -> Value {
    let mut config = plugin.config.clone();
    config.insert("name".to_owned(), json!(list.name));
    config.insert("cniVersion".to_owned(), json!(list.version));
    if !runtime.is_empty() {
        config.insert("runtimeConfig".to_owned(), Value::Object(runtime.clone()));
    }
    if let Some(prev) = prev {
        config.insert("prevResult".to_owned(), prev.to_json(&list.version));
    }
    Value::Object(config)
}
