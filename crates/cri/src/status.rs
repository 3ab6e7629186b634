//! Status. The kubelet asks every five seconds, so nothing here waits.

use std::collections::BTreeMap;

use bowline_cni::NetworkStatus;
use bowline_cri_proto::v1;
use bowline_pods::{Ability, ApparmorState, NRI_VERSION, PluginState, Pods, SelinuxState};
use serde_json::json;

use crate::ServerInfo;

/// The state of the daemon and what it can do.
pub(crate) fn status(pods: &Pods, server: &ServerInfo, verbose: bool) -> v1::StatusResponse {
    // The socket opens only once everything is recovered, so who can ask finds us ready.
    let runtime = v1::RuntimeCondition { r#type: "RuntimeReady".into(), status: true, ..Default::default() };
    let conditions = vec![runtime, network(pods.cni().status())];
    let features = v1::RuntimeHandlerFeatures {
        recursive_read_only_mounts: pods.host().facts.recursive_read_only,
        user_namespaces: pods.user_namespaces(),
    };
    v1::StatusResponse {
        status: Some(v1::RuntimeStatus { conditions }),
        info: match verbose {
            true => {
                let abilities = (&pods.checkpoint_ability(), pods.apparmor());
                let mut info = info(server, &pods.cni().status(), abilities, &pods.plugins().0);
                let driver = pods.cgroup_driver();
                info.insert("selinux".to_owned(), selinux_status(&pods.selinux()));
                info.insert("cgroupDriver".to_owned(), format!("{}: {}", driver.driver, driver.why));
                info
            }
            false => BTreeMap::new(),
        },
        // The empty name is the default handler.
        runtime_handlers: vec![v1::RuntimeHandler { name: String::new(), features: Some(features) }],
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: true,
        }),
    }
}

fn network(status: NetworkStatus) -> v1::RuntimeCondition {
    let (status, reason, message) = match status {
        NetworkStatus::Ready { problems, .. } => (true, String::new(), problems.join("; ")),
        NetworkStatus::NotReady { reason, message } => (false, reason.to_owned(), message),
    };
    v1::RuntimeCondition { r#type: "NetworkReady".into(), status, reason, message }
}

/// For `crictl info`. A value that starts with a brace is a JSON object; crictl counts on it.
fn info(
    server: &ServerInfo,
    network: &NetworkStatus,
    (checkpoint, apparmor): (&Ability, &ApparmorState),
    plugins: &[PluginState],
) -> BTreeMap<String, String> {
    let plugin = |plugin: &PluginState| {
        json!({
            "name": plugin.name,
            "launched": plugin.launched,
            "requests": plugin.asked,
            "failed": plugin.failed,
        })
    };
    let plugins: Vec<_> = plugins.iter().map(plugin).collect();
    let config = json!({
        "stateDir": server.state,
        "rootDir": server.root,
        "settings": server.settings,
    });
    BTreeMap::from([
        ("config".to_owned(), config.to_string()),
        ("version".to_owned(), server.version.clone()),
        ("nri".to_owned(), json!({ "version": NRI_VERSION, "plugins": plugins }).to_string()),
        // What tools for containerd look at: "OK", or why there is no network.
        ("lastCNILoadStatus".to_owned(), load_status(network)),
        ("checkpoint".to_owned(), checkpoint_status(checkpoint)),
        ("apparmor".to_owned(), apparmor_status(apparmor)),
    ])
}

fn checkpoint_status(ability: &Ability) -> String {
    match ability {
        Ability::Unknown => "criu is still being asked".to_owned(),
        Ability::None(why) => format!("no: {why}"),
        Ability::Checkpoint(criu) => {
            format!("checkpoint by criu {}; restoring is off ([checkpoint] restore)", criu.version)
        }
        Ability::Restore(criu) => format!("checkpoint and restore by criu {}", criu.version),
    }
}

fn apparmor_status(state: &ApparmorState) -> String {
    match state {
        ApparmorState::Off(why) => format!("off: {why}"),
        ApparmorState::NoDefault(why) => format!("no default profile: {why}"),
        ApparmorState::Default(profile) => format!("default profile {profile}"),
    }
}

fn selinux_status(state: &SelinuxState) -> String {
    match state {
        SelinuxState::Off(why) => format!("off: {why}"),
        SelinuxState::NoDefaults(why) => format!("no labels: {why}"),
        SelinuxState::On { enforcing: true } => "enforcing".to_owned(),
        SelinuxState::On { enforcing: false } => "permissive".to_owned(),
    }
}

fn load_status(network: &NetworkStatus) -> String {
    match network {
        NetworkStatus::Ready { .. } => "OK".to_owned(),
        // A value that begins with a brace would be taken for JSON.
        NetworkStatus::NotReady { reason, message } => format!("{reason}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_a_network_says_why() {
        let message = "no network configuration in /etc/cni/net.d".to_owned();
        let condition = network(NetworkStatus::NotReady { reason: "NetworkPluginNotReady", message });
        assert_eq!((condition.r#type.as_str(), condition.status), ("NetworkReady", false));
        assert_eq!(condition.reason, "NetworkPluginNotReady");
        assert!(network(NetworkStatus::Ready { network: "n".into(), problems: Vec::new() }).status);
    }

    #[test]
    fn tools_find_the_folders() {
        let server = ServerInfo {
            version: "0.1.0".into(),
            state: "/run/x".into(),
            root: "/var/x".into(),
            settings: json!({}),
        };
        let network = NetworkStatus::NotReady { reason: "NetworkPluginNotReady", message: "none".into() };
        let abilities = (&Ability::None("there is no criu".into()), &ApparmorState::Default("p".into()));
        let info = info(&server, &network, abilities, &[]);
        let config: serde_json::Value = serde_json::from_str(&info["config"]).unwrap();
        assert_eq!(info["lastCNILoadStatus"], "NetworkPluginNotReady: none");
        assert_eq!(info["checkpoint"], "no: there is no criu");
        assert_eq!(info["apparmor"], "default profile p");
        assert_eq!((&config["stateDir"], &config["rootDir"]), (&json!("/run/x"), &json!("/var/x")));
    }
}
