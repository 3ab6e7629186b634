//! `version` and `info`.

use bowline_cri_proto::v1;
use serde_json::Value;

use crate::args::{Output, OutputArgs};
use crate::client::Client;
use crate::failure::{Done, doing};
use crate::reflect::to_json;
use crate::render::{Table, print, print_value};

pub(crate) async fn version(client: &Client, args: &OutputArgs) -> Done {
    let request = client.request(v1::VersionRequest { version: "v1".into() });
    let answer = client.runtime().version(request).await.map_err(doing("ask for the version"))?.into_inner();
    if args.output != Output::Table {
        print_value(args.output, &to_json("VersionResponse", &answer)?)?;
        return Ok(0);
    }
    let mut table = Table::new(&["WHAT", "VERSION"]);
    table.row(["client", concat!("bowline ", env!("CARGO_PKG_VERSION"))]);
    table.row(["runtime", &format!("{} {}", answer.runtime_name, answer.runtime_version)]);
    table.row(["interface", &format!("CRI {}", answer.runtime_api_version)]);
    print(&table.text())?;
    Ok(0)
}

pub(crate) async fn info(client: &Client, args: &OutputArgs) -> Done {
    let request = client.request(v1::StatusRequest { verbose: true });
    let answer = client.runtime().status(request).await.map_err(doing("ask for the status"))?.into_inner();
    if args.output != Output::Table {
        let mut value = to_json("StatusResponse", &answer)?;
        lift_info(&mut value);
        print_value(args.output, &value)?;
        return Ok(0);
    }
    let mut table = Table::new(&["CONDITION", "STATE", "REASON", "MESSAGE"]);
    for condition in answer.status.iter().flat_map(|status| &status.conditions) {
        let state = if condition.status { "yes" } else { "no" };
        table.row([condition.r#type.as_str(), state, &condition.reason, &condition.message]);
    }
    print(&table.text())?;
    let mut table = Table::new(&["HANDLER", "READ-ONLY RECURSIVELY", "USER NAMESPACES"]);
    let yes = |on: bool| if on { "yes" } else { "no" };
    for handler in &answer.runtime_handlers {
        let name = if handler.name.is_empty() { "(default)" } else { &handler.name };
        let features = handler.features.unwrap_or_default();
        table.row([name, yes(features.recursive_read_only_mounts), yes(features.user_namespaces)]);
    }
    print(&format!("\n{}", table.text()))?;
    Ok(0)
}

/// Verbose information comes as text; what is JSON is shown as such, beside the message's other fields.
pub(crate) fn lift_info(value: &mut Value) {
    let Some(Value::Object(info)) = value.get_mut("info") else { return };
    for entry in info.values_mut() {
        if let Value::String(text) = entry
            && let Ok(parsed) = serde_json::from_str::<Value>(text)
        {
            *entry = parsed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_in_text_becomes_json() {
        let mut value = json!({"info": {"config": "{\"a\": [1]}", "word": "text"}});
        lift_info(&mut value);
        assert_eq!(value, json!({"info": {"config": {"a": [1]}, "word": "text"}}));
    }
}
