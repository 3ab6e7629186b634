//! `state` and `list`.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::args::Format;
use crate::store::{State, Status, Store};

/// Prints the state of a container.
pub(crate) fn state(store: &Store, id: &str) -> Result<()> {
    let (_, record) = store.read(id)?;
    let (status, _) = record.look()?;
    print_json(&record.state(status))
}

/// Prints all containers.
pub(crate) fn list(store: &Store, format: Format, quiet: bool) -> Result<()> {
    let records = store.all()?;
    let mut states = Vec::new();
    for record in &records {
        let (status, _) = record.look()?;
        states.push(record.state(status));
    }
    match format {
        _ if quiet => print(&states.iter().map(|state| format!("{}\n", state.id)).collect::<String>()),
        Format::Json => print_json(&states),
        Format::Table => print(&table(&states)),
    }
}

fn table(states: &[State<'_>]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED"].map(str::to_owned)];
    rows.extend(states.iter().map(|state| {
        let pid = state.pid.filter(|_| state.status != Status::Stopped).unwrap_or_default();
        let bundle = state.bundle.display().to_string();
        [
            state.id.to_owned(),
            pid.to_string(),
            state.status.word().to_owned(),
            bundle,
            state.created.to_owned(),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths = [0, 1, 2, 3].map(width);
    let line = |row: &[String; 5]| {
        let padded =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  ")).collect::<String>();
        format!("{padded}{}\n", row[4])
    };
    rows.iter().map(line).collect()
}

/// Prints something for programs.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("write to stdout")
}
