//! Network configurations: one network is a list of plugins that run one after the other.

use serde_json::{Map, Value, json};

use crate::CniError;
use crate::config::DefaultNetwork;
use crate::request::is_plain_name;

/// Versions that we speak, oldest first.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The version that has room for everything.
pub(crate) const NEWEST: &str = "1.1.0";
/// Most plugins of a list.
const MOST_PLUGINS: usize = 32;

/// A network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conflist {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<Plugin>,
}

/// One entry of a list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plugin {
    pub(crate) kind: String,
    /// The entry as it stands in the file.
    pub(crate) config: Map<String, Value>,
    /// Execute the binary although the type is built in.
    pub(crate) prefer_binary: bool,
}

impl Plugin {
    /// Whether the entry declares that it can use this capability.
    pub(crate) fn has_capability(&self, name: &str) -> bool {
        self.config.get("capabilities").and_then(|c| c.get(name)).and_then(Value::as_bool) == Some(true)
    }

    /// Whether we do this plugin's work ourselves.
    pub(crate) fn is_built_in(&self) -> bool {
        !self.prefer_binary && matches!(self.kind.as_str(), "loopback" | "bridge" | "portmap")
    }

    /// The plugin that hands out its addresses.
    pub(crate) fn ipam_kind(&self) -> Option<&str> {
        self.config.get("ipam").and_then(|i| i.get("type")).and_then(Value::as_str).filter(|t| !t.is_empty())
    }

    /// Whether executing it, or the plugin that gives it addresses, takes a binary.
    pub(crate) fn is_external(&self) -> bool {
        !self.is_built_in() || self.ipam_kind().is_some_and(|kind| kind != "host-local")
    }
}

impl Conflist {
    /// Reads a list (`plugins`) or a single configuration (`type`). `origin` is told in errors.
    pub(crate) fn parse(text: &[u8], origin: &str) -> Result<Conflist, CniError> {
        let value: Value = serde_json::from_slice(text)
            .map_err(|e| CniError::config(origin, "(file)", format!("is no JSON: {e}")))?;
        Conflist::from_value(&value, origin)
    }

    /// Reads what [`Conflist::to_value`] or a file holds.
    pub(crate) fn from_value(value: &Value, origin: &str) -> Result<Conflist, CniError> {
        let bad = |field: &str, problem: String| CniError::config(origin, field, problem);
        let object = value.as_object().ok_or_else(|| bad("(file)", "must hold an object".into()))?;
        let name = object.get("name").and_then(Value::as_str).unwrap_or_default();
        if !is_plain_name(name) {
            return Err(bad(
                "name",
                format!("`{name}` must start with a letter or digit and hold only those, `_.-`"),
            ));
        }
        let entries: Vec<Value> = match (object.get("plugins"), object.get("type")) {
            (Some(Value::Array(plugins)), _) => plugins.clone(),
            (Some(_), _) => return Err(bad("plugins", "must be a list".into())),
            (None, Some(_)) => vec![value.clone()],
            (None, None) => return Err(bad("plugins", "is missing".into())),
        };
        if entries.is_empty() || entries.len() > MOST_PLUGINS {
            return Err(bad("plugins", format!("must hold 1 to {MOST_PLUGINS} entries")));
        }
        let prefer_all = flag(object, "prefer_binaries", origin)?;
        let mut plugins = Vec::new();
        for (i, entry) in entries.into_iter().enumerate() {
            plugins.push(plugin(entry, &format!("plugins[{i}]"), prefer_all, origin)?);
        }
        Ok(Conflist {
            name: name.to_owned(),
            version: version(object, origin)?,
            disable_check: flag(object, "disableCheck", origin)?,
            disable_gc: flag(object, "disableGC", origin)?,
            plugins,
        })
    }

    /// The list as it is kept with an attachment.
    pub(crate) fn to_value(&self) -> Value {
        let plugins: Vec<Value> = self.plugins.iter().map(|p| Value::Object(p.config.clone())).collect();
        json!({
            "name": self.name, "cniVersion": self.version, "disableCheck": self.disable_check,
            "disableGC": self.disable_gc, "plugins": plugins
        })
    }

    /// Whether any binary must be executed.
    pub(crate) fn has_external(&self) -> bool {
        self.plugins.iter().any(Plugin::is_external)
    }

    /// Whether the list's version is at least this one of [`VERSIONS`].
    pub(crate) fn at_least(&self, version: &str) -> bool {
        rank(&self.version) >= rank(version)
    }

    /// The network of a machine that has no conflist.
    pub(crate) fn of_default(network: &DefaultNetwork) -> Conflist {
        let mut ranges = vec![json!([{ "subnet": network.subnet.to_string() }])];
        let mut routes = vec![json!({ "dst": "0.0.0.0/0" })];
        if let Some(v6) = network.subnet_v6 {
            ranges.push(json!([{ "subnet": v6.to_string() }]));
            routes.push(json!({ "dst": "::/0" }));
        }
        let bridge = json!({
            "type": "bridge", "bridge": network.bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": { "type": "host-local", "ranges": ranges, "routes": routes,
                      "dataDir": network.data_dir.to_string_lossy() }
        });
        let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
        let plugins = [("bridge", bridge), ("portmap", portmap)]
            .into_iter()
            .map(|(kind, config)| Plugin {
                kind: kind.to_owned(),
                config: config.as_object().cloned().unwrap_or_default(),
                prefer_binary: false,
            })
            .collect();
        Conflist {
            name: "bowline".to_owned(),
            version: "1.0.0".to_owned(),
            disable_check: false,
            disable_gc: false,
            plugins,
        }
    }
}

fn plugin(entry: Value, field: &str, prefer_all: bool, origin: &str) -> Result<Plugin, CniError> {
    let Value::Object(mut config) = entry else {
        return Err(CniError::config(origin, field, "must be an object"));
    };
    let kind = config.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    check_type(&kind, &format!("{field}.type"), origin)?;
    if let Some(ipam) = config.get("ipam").and_then(|i| i.get("type")).and_then(Value::as_str)
        && !ipam.is_empty()
    {
        check_type(ipam, &format!("{field}.ipam.type"), origin)?;
    }
    let prefer_binary = prefer_all || flag(&config, "prefer_binaries", origin)?;
    if prefer_binary {
        // The list's own flag is kept with each entry.
        config.insert("prefer_binaries".to_owned(), json!(true));
    }
    Ok(Plugin { kind, config, prefer_binary })
}

/// A plugin's type becomes a file name below a folder of programs that run as root (CVE-2021-20206).
fn check_type(kind: &str, field: &str, origin: &str) -> Result<(), CniError> {
    if is_plain_name(kind) {
        return Ok(());
    }
    Err(CniError::config(origin, field, format!("`{kind}` must be a plain file name")))
}

/// The highest version of `cniVersion` and `cniVersions` that we speak.
fn version(object: &Map<String, Value>, origin: &str) -> Result<String, CniError> {
    let mut named: Vec<&str> = Vec::new();
    match object.get("cniVersion") {
        None | Some(Value::Null) => {}
        Some(Value::String(v)) if v.is_empty() => {}
        Some(Value::String(v)) => named.push(v),
        Some(_) => return Err(CniError::config(origin, "cniVersion", "must be a string")),
    }
    if let Some(all) = object.get("cniVersions").and_then(Value::as_array) {
        named.extend(all.iter().filter_map(Value::as_str));
    }
    if named.is_empty() {
        return Ok("0.1.0".to_owned());
    }
    named.iter().filter(|v| rank(v).is_some()).max_by_key(|v| rank(v)).map(|v| (*v).to_owned()).ok_or_else(
        || {
            CniError::config(
                origin,
                "cniVersion",
                format!("`{}` is not one of {}", named.join(", "), VERSIONS.join(", ")),
            )
        },
    )
}

fn rank(version: &str) -> Option<usize> {
    VERSIONS.iter().position(|v| *v == version)
}

/// Files in the wild hold `true` and `"true"`.
fn flag(object: &Map<String, Value>, field: &str, origin: &str) -> Result<bool, CniError> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        Some(Value::String(s)) if s == "true" => Ok(true),
        Some(Value::String(s)) if s == "false" => Ok(false),
        Some(_) => Err(CniError::config(origin, field, "must be true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Conflist::parse(text.as_bytes(), "10-x.conflist").unwrap_err().to_string()
    }

    #[test]
    fn errors_name_file_and_field() {
        for (text, field) in [
            ("{", "(file)"),
            ("[]", "(file)"),
            (r#"{"plugins":[{"type":"bridge"}]}"#, "`name`"),
            (r#"{"name":"../x","plugins":[{"type":"bridge"}]}"#, "`name`"),
            (r#"{"name":"x"}"#, "`plugins`"),
            (r#"{"name":"x","plugins":[]}"#, "`plugins`"),
            (r#"{"name":"x","plugins":[{"type":"../sh"}]}"#, "`plugins[0].type`"),
            (
                r#"{"name":"x","plugins":[{"type":"a"},{"type":"b","ipam":{"type":"/x"}}]}"#,
                "`plugins[1].ipam.type`",
            ),
            (r#"{"name":"x","cniVersion":"9.9.9","plugins":[{"type":"a"}]}"#, "`cniVersion`"),
            (r#"{"name":"x","disableCheck":3,"plugins":[{"type":"a"}]}"#, "`disableCheck`"),
        ] {
            let said = error(text);
            assert!(said.contains("10-x.conflist") && said.contains(field), "{text}: {said}");
        }
    }

    #[test]
    fn a_single_configuration_is_a_list_of_one() {
        let list = Conflist::parse(br#"{"name":"x","cniVersion":"0.3.1","type":"ptp"}"#, "f").unwrap();
        assert_eq!((list.plugins.len(), list.plugins[0].kind.as_str()), (1, "ptp"));
        assert!(list.has_external());
    }

    #[test]
    fn the_highest_version_we_speak_is_taken() {
        let text =
            br#"{"name":"x","cniVersion":"0.4.0","cniVersions":["0.4.0","1.1.0","7.0.0"],"type":"bridge"}"#;
        assert_eq!(Conflist::parse(text, "f").unwrap().version, "1.1.0");
    }

    #[test]
    fn what_is_kept_reads_back() {
        let text =
            br#"{"name":"x","cniVersion":"1.0.0","prefer_binaries":true,"plugins":[{"type":"bridge"}]}"#;
        let list = Conflist::parse(text, "f").unwrap();
        assert_eq!(Conflist::from_value(&list.to_value(), "f").unwrap(), list);
        assert!(list.has_external(), "binaries are preferred");
    }

    #[test]
    fn the_default_network_needs_no_binary() {
        let network = DefaultNetwork {
            subnet: "10.88.0.0/16".parse().unwrap(),
            subnet_v6: Some("fd00:88::/64".parse().unwrap()),
            bridge: "bowline0".into(),
            data_dir: "/d".into(),
        };
        let list = Conflist::of_default(&network);
        assert!(!list.has_external());
        assert_eq!(Conflist::from_value(&list.to_value(), "f").unwrap(), list);
    }
}
