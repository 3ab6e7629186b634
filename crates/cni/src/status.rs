//! Whether the node has a network.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::config::CniConfig;
use crate::conflist::Conflist;
use crate::exec::{Run, run};
use crate::load::chain;
use crate::plugin::input;
use crate::{Cni, CniError};

/// How long a plugin's word on its own state is good for.
const FRESH: Duration = Duration::from_secs(10);

/// What the kubelet is told in `NetworkReady`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkStatus {
    /// Pods can be attached.
    Ready {
        /// The network's name.
        network: String,
        /// Configuration files that were passed over, and why.
        problems: Vec<String>,
    },
    /// They cannot.
    NotReady {
        /// One word, for machines.
        reason: &'static str,
        /// A sentence, for people.
        message: String,
    },
}

/// What plugins said of their own state.
#[derive(Default)]
pub(crate) struct Probe(Mutex<Option<Probed>>);

struct Probed {
    network: String,
    at: Instant,
    problem: Option<String>,
}

impl Cni {
    /// The state as of now, without executing anything.
    pub fn status(&self) -> NetworkStatus {
        let (loaded, _) = self.networks.current(&self.node.config);
        let Some(list) = loaded.network else {
            let message = if loaded.problems.is_empty() {
                no_config(&self.node.config)
            } else {
                format!("no valid network configuration: {}", loaded.problems.join("; "))
            };
            return NetworkStatus::NotReady { reason: "NetworkPluginNotReady", message };
        };
        let probed = self.probe.0.lock().unwrap_or_else(PoisonError::into_inner);
        match probed.as_ref().filter(|p| p.network == list.name).and_then(|p| p.problem.clone()) {
            Some(message) => NetworkStatus::NotReady { reason: "NetworkPluginNotReady", message },
            None => NetworkStatus::Ready { network: list.name.clone(), problems: loaded.problems },
        }
    }

    /// Looks at the configuration folders. True: something has changed.
    pub fn reload_if_changed(&self) -> bool {
        self.networks.current(&self.node.config).1
    }

    /// Whether a path to the pod's namespace must be given to [`Cni::add`]: a plugin has to be executed.
    pub fn needs_netns_path(&self) -> bool {
        self.network().is_ok_and(|list| list.has_external())
    }

    /// Asks plugins that are executed for their state (STATUS, CNI 1.1), if their last word is old. For a timer, as
    /// it may take as long as a plugin may take.
    pub fn probe_plugins(&self) {
        let Ok(list) = self.network() else { return };
        let fresh = |probed: &Probed| probed.network == list.name && probed.at.elapsed() < FRESH;
        if self.probe.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(fresh) {
            return;
        }
        let problem = self.ask_plugins(&list).err().map(|error| chain(&error));
        let probed = Probed { network: list.name.clone(), at: Instant::now(), problem };
        *self.probe.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(probed);
    }

    fn ask_plugins(&self, list: &Conflist) -> Result<(), CniError> {
        if !list.at_least("1.1.0") {
            return Ok(());
        }
        for plugin in list.plugins.iter().filter(|p| !p.is_built_in()) {
            self.execute_for_network(
                &plugin.kind,
                "STATUS",
                &input(list, plugin, &Default::default(), None),
            )?;
        }
        Ok(())
    }

    /// A command that is about no pod: STATUS or GC.
    pub(crate) fn execute_for_network(
        &self,
        plugin: &str,
        command: &'static str,
        stdin: &Value,
    ) -> Result<Vec<u8>, CniError> {
        let config = &self.node.config;
        let timeout = if command == "GC" { config.plugin_timeout_del } else { config.plugin_timeout_add };
        let (sandbox_id, if_name, args) = ("", "", "");
        run(config, &Run { plugin, command, sandbox_id, if_name, netns: None, args, stdin, timeout })
    }
}

pub(crate) fn no_config(config: &CniConfig) -> String {
    let dirs: Vec<_> = config.conf_dirs.iter().map(|d| d.display().to_string()).collect();
    format!("no network configuration in {}", dirs.join(", "))
}
