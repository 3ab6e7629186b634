//! `bridge`'s configuration.

use serde_json::{Map, Value};

use super::PluginInput;
use crate::CniError;
use crate::netlink::link::{BridgePort, Mac, parse_mac};

const NAME_MAX: usize = 15;

/// What the `bridge` entry of a conflist says.
pub(crate) struct BridgeConfig {
    pub(crate) bridge: String,
    pub(crate) is_gateway: bool,
    pub(crate) is_default_gateway: bool,
    pub(crate) force_address: bool,
    pub(crate) ip_masq: bool,
    pub(crate) mtu: Option<u32>,
    pub(crate) promisc: bool,
    pub(crate) detect_duplicates: bool,
    pub(crate) pod_link_up: bool,
    pub(crate) port: BridgePort,
    pub(crate) mac: Option<Mac>,
}

impl BridgeConfig {
    pub(crate) fn parse(network: &str, input: &PluginInput<'_>) -> Result<BridgeConfig, CniError> {
        let config = input.config;
        let bad = |field: &str, problem: String| CniError::config(network, field, problem);
        let flag = |field: &str| match config.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(_) => Err(bad(field, "must be true or false".into())),
        };
        refuse_unsupported(network, config)?;
        let bridge = config.get("bridge").and_then(Value::as_str).filter(|b| !b.is_empty()).unwrap_or("cni0");
        let fits = bridge.len() <= NAME_MAX
            && !matches!(bridge, "." | "..")
            && bridge.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
        if !fits {
            return Err(bad("bridge", format!("`{bridge}` is no name for a link")));
        }
        let mtu = match config.get("mtu").filter(|v| !v.is_null()) {
            None => None,
            Some(v) => {
                let mtu = v.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= 65_535);
                Some(mtu.ok_or_else(|| bad("mtu", "must be a number up to 65535".into()))?)
            }
        };
        let is_default_gateway = flag("isDefaultGateway")?;
        let hairpin = flag("hairpinMode")?;
        let promisc = flag("promiscMode")?;
        if hairpin && promisc {
            return Err(bad("hairpinMode", "cannot be set together with promiscMode".into()));
        }
        let pod_link_up = !flag("disableContainerInterface")?;
        if !pod_link_up && config.get("ipam").and_then(|i| i.get("type")).is_some() {
            return Err(bad("disableContainerInterface", "cannot be set together with ipam".into()));
        }
        Ok(BridgeConfig {
            bridge: bridge.to_owned(),
            is_gateway: flag("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: flag("forceAddress")?,
            ip_masq: flag("ipMasq")?,
            mtu: mtu.filter(|mtu| *mtu > 0),
            promisc,
            detect_duplicates: flag("enabledad")?,
            pod_link_up,
            port: BridgePort { hairpin, isolated: flag("portIsolation")? },
            mac: mac(input).map_err(|problem| bad("mac", problem))?,
        })
    }
}

/// Options that would be ignored silently are refused.
fn refuse_unsupported(network: &str, config: &Map<String, Value>) -> Result<(), CniError> {
    let set = |field: &str| match config.get(field) {
        None | Some(Value::Null) | Some(Value::Bool(false)) => false,
        Some(Value::Number(n)) => n.as_u64() != Some(0),
        Some(Value::Array(all)) => !all.is_empty(),
        Some(_) => true,
    };
    for field in ["vlan", "vlanTrunk", "macspoofchk"] {
        if set(field) {
            return Err(CniError::config(
                network,
                field,
                "is not supported by the built-in bridge; `\"prefer_binaries\": true` beside it executes the \
                 installed plugin instead",
            ));
        }
    }
    Ok(())
}

/// `runtimeConfig.mac`, else `args.cni.mac`, else `mac`.
fn mac(input: &PluginInput<'_>) -> Result<Option<Mac>, String> {
    let args = input.config.get("args").and_then(|a| a.get("cni")).and_then(|c| c.get("mac"));
    let wanted = [input.runtime.get("mac"), args, input.config.get("mac")];
    match wanted.into_iter().flatten().filter_map(Value::as_str).find(|t| !t.is_empty()) {
        None => Ok(None),
        Some(text) => parse_mac(text).map(Some).ok_or_else(|| format!("`{text}` is no hardware address")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(config: Value) -> Result<BridgeConfig, CniError> {
        let runtime = Map::new();
        BridgeConfig::parse("n", &PluginInput { config: config.as_object().unwrap(), runtime: &runtime })
    }

    #[test]
    fn a_default_gateway_is_a_gateway() {
        let config = parse(json!({"isDefaultGateway": true})).unwrap();
        assert!(config.is_gateway && config.is_default_gateway);
        assert_eq!(config.bridge, "cni0");
    }

    #[test]
    fn what_we_cannot_do_is_refused_by_name() {
        for (config, field) in [
            (json!({"vlan": 7}), "vlan"),
            (json!({"vlanTrunk": [{"id": 3}]}), "vlanTrunk"),
            (json!({"macspoofchk": true}), "macspoofchk"),
            (json!({"bridge": "a/b"}), "bridge"),
            (json!({"bridge": "sixteen-letters-"}), "bridge"),
            (json!({"mtu": "big"}), "mtu"),
            (json!({"mac": "zz"}), "mac"),
            (json!({"hairpinMode": true, "promiscMode": true}), "hairpinMode"),
            (json!({"ipMasq": 1}), "ipMasq"),
        ] {
            let said = parse(config.clone()).err().unwrap().to_string();
            assert!(said.contains(&format!("`{field}`")), "{config}: {said}");
        }
        parse(json!({"vlan": 0, "vlanTrunk": [], "macspoofchk": false})).unwrap();
    }
}
