//! Messages as JSON and back, after their own description: every field of every message, as protobuf's mapping to
//! JSON has it and crictl prints it (camelCase, enums by name, 64-bit numbers as strings).

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value;

use crate::failure::Failure;

fn descriptor(message: &str) -> Result<MessageDescriptor, Failure> {
    static POOL: OnceLock<Result<DescriptorPool, String>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        DescriptorPool::decode(bowline_cri_proto::DESCRIPTORS).map_err(|error| error.to_string())
    });
    let pool = pool.as_ref().map_err(|error| Failure::new(format!("the description of CRI: {error}")))?;
    let name = format!("runtime.v1.{message}");
    pool.get_message_by_name(&name).ok_or_else(|| Failure::new(format!("CRI has no message {name}")))
}

/// A message as JSON. `kind` is its name without the package.
pub(crate) fn to_json<M: Message>(kind: &str, message: &M) -> Result<Value, Failure> {
    let broken = |error: String| Failure::new(format!("could not print a {kind}: {error}"));
    let bytes = message.encode_to_vec();
    let dynamic = DynamicMessage::decode(descriptor(kind)?, bytes.as_slice());
    let dynamic = dynamic.map_err(|error| broken(error.to_string()))?;
    let options = SerializeOptions::new().skip_default_fields(false);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| broken(error.to_string()))
}

/// A message from JSON with camelCase or snake_case keys. An unknown key is an error that names it.
pub(crate) fn from_json<M: Message + Default>(kind: &str, mut value: Value) -> Result<M, Failure> {
    encode_environment(&mut value);
    let dynamic = DynamicMessage::deserialize(descriptor(kind)?, value)
        .map_err(|error| Failure::new(format!("this is no {kind}: {error}")))?;
    dynamic.transcode_to().map_err(|error| Failure::new(format!("this is no {kind}: {error}")))
}

/// Values of the environment are bytes on our side of the wire and plain text in files.
fn encode_environment(config: &mut Value) {
    let Some(Value::Array(entries)) = config.get_mut("envs") else { return };
    for entry in entries {
        if let Some(Value::String(text)) = entry.get_mut("value") {
            *text = STANDARD.encode(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bowline_cri_proto::v1;
    use serde_json::json;

    #[test]
    fn messages_print_as_crictl_prints_them() {
        let container = v1::Container {
            id: "abc".into(),
            metadata: Some(v1::ContainerMetadata { name: "web".into(), attempt: 2 }),
            state: v1::ContainerState::ContainerRunning as i32,
            created_at: 17,
            ..Default::default()
        };
        let value = to_json("Container", &container).unwrap();
        assert_eq!(value["state"], "CONTAINER_RUNNING");
        assert_eq!(value["createdAt"], "17");
        assert_eq!(value["metadata"], json!({"name": "web", "attempt": 2}));
        assert_eq!(value["podSandboxId"], "");
    }

    #[test]
    fn configs_take_both_kinds_of_keys() {
        for key in ["log_path", "logPath"] {
            let value = json!({
                "metadata": {"name": "x"}, key: "x.log", "envs": [{"key": "A", "value": "b c"}],
                "linux": {"security_context": {"namespace_options": {"network": 2}}},
            });
            let config: v1::ContainerConfig = from_json("ContainerConfig", value).unwrap();
            assert_eq!(config.log_path, "x.log");
            assert_eq!(config.envs[0].value, b"b c");
            let security = config.linux.unwrap().security_context.unwrap();
            assert_eq!(security.namespace_options.unwrap().network(), v1::NamespaceMode::Node);
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let wrong: Result<v1::ContainerConfig, _> = from_json("ContainerConfig", json!({"imaeg": {}}));
        let text = wrong.unwrap_err().text().unwrap();
        assert!(text.contains("imaeg"), "{text}");
    }
}
