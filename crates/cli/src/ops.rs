//! `ops`: what is being done to pods and containers right now.

use std::io::IsTerminal as _;
use std::time::Duration;

use bowline_cri_proto::admin;
use serde_json::{Value, json};

use crate::args::{OpsArgs, Output};
use crate::client::Client;
use crate::failure::{Done, Failure, doing};
use crate::render::{Table, print, print_value, short};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) async fn ops(client: &Client, args: &OpsArgs) -> Done {
    loop {
        let operations = under_way(client).await.map_err(doing("ask for operations"))?;
        show(args, &operations)?;
        if !args.watch {
            return Ok(0);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The operations, the oldest first.
pub(crate) async fn under_way(client: &Client) -> Result<Vec<admin::Operation>, tonic::Status> {
    let request = client.request(admin::OperationsRequest {});
    Ok(client.admin().operations(request).await?.into_inner().operations)
}

fn show(args: &OpsArgs, operations: &[admin::Operation]) -> Result<(), Failure> {
    if args.output != Output::Table {
        let items: Vec<Value> = operations.iter().map(value).collect();
        return print_value(args.output, &json!({ "operations": items }));
    }
    let text = table(operations);
    match args.watch && std::io::stdout().is_terminal() {
        // Home, and clear what was below.
        true => print(&format!("\x1b[H\x1b[2J{text}")),
        false => print(&text),
    }
}

fn value(operation: &admin::Operation) -> Value {
    let stage = |stage: &admin::OperationStage| json!({ "name": stage.name, "ageMs": stage.age_ms });
    json!({
        "number": operation.number,
        "kind": operation.kind,
        "id": operation.id,
        "name": operation.name,
        "ageMs": operation.age_ms,
        "stages": operation.stages.iter().map(stage).collect::<Vec<_>>(),
    })
}

fn table(operations: &[admin::Operation]) -> String {
    let mut table = Table::new(&["AGE", "OPERATION", "ID", "NAME", "STAGE"]);
    for operation in operations {
        table.row([
            seconds(operation.age_ms),
            operation.kind.clone(),
            short(&operation.id, false).to_owned(),
            operation.name.clone(),
            stages(operation),
        ]);
    }
    table.text()
}

/// `attach to the network 1.2s, start the monitor 0.1s`
pub(crate) fn stages(operation: &admin::Operation) -> String {
    let named: Vec<String> =
        operation.stages.iter().map(|stage| format!("{} {}", stage.name, seconds(stage.age_ms))).collect();
    if named.is_empty() { "-".to_owned() } else { named.join(", ") }
}

/// A while in seconds, with a digit below where there are few.
pub(crate) fn seconds(millis: u64) -> String {
    match millis {
        0..10_000 => format!("{}.{}s", millis / 1000, millis % 1000 / 100),
        10_000..600_000 => format!("{}s", millis / 1000),
        _ => format!("{}m", millis / 60_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_run_side_by_side() {
        let stage = |name: &str, age_ms| admin::OperationStage { name: name.into(), age_ms };
        let operations = [
            admin::Operation {
                number: 1,
                kind: "RunPodSandbox".into(),
                id: "0123456789abcdef".into(),
                name: "web".into(),
                age_ms: 1_250,
                stages: vec![stage("attach to the network", 1_200), stage("start the monitor", 70)],
            },
            admin::Operation { kind: "StopContainer".into(), age_ms: 3_600_000, ..Default::default() },
        ];
        let expected = "\
AGE    OPERATION       ID              NAME   STAGE
1.2s   RunPodSandbox   0123456789abc   web    attach to the network 1.2s, start the monitor 0.0s
60m    StopContainer                          -
";
        assert_eq!(table(&operations), expected);
    }
}
