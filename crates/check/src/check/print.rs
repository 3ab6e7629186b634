//! Results, for people and for machines.

use std::time::Duration;

use serde_json::json;

use super::Format;
use super::case::Case;
use super::judge::{Outcome, Verdict};
use crate::output::table;

/// The cases by name.
pub(crate) fn list(cases: &[&Case]) -> String {
    let mut rows = vec![["CASE", "TAGS", "QUICK", "SERIAL"].map(str::to_owned).to_vec()];
    let mark = |on: bool| if on { "yes" } else { "" }.to_owned();
    rows.extend(
        cases.iter().map(|case| {
            vec![case.name.to_owned(), case.tags.to_owned(), mark(case.quick), mark(case.serial)]
        }),
    );
    table(&rows)
}

/// One line as soon as a case has ended.
pub(crate) fn progress(format: Format, outcome: &Outcome) {
    if format != Format::Table {
        return;
    }
    let (word, name, seconds) = (outcome.verdict.word(), outcome.case.name, outcome.took.as_secs_f64());
    match outcome.verdict.reason() {
        "" => println!("{word:<8} {name} ({seconds:.1}s)"),
        reason => println!("{word:<8} {name} ({seconds:.1}s): {}", reason.replace('\n', " ")),
    }
}

/// Everything at the end.
pub(crate) fn summary(format: Format, endpoint: &str, outcomes: &[Outcome], took: Duration) {
    let count = |wanted: &str| outcomes.iter().filter(|outcome| outcome.verdict.word() == wanted).count();
    let (passed, failed) = (count("passed"), count("FAILED"));
    let (differs, skipped) = (count("differs"), count("skipped"));
    let closing = format!("{passed} passed, {failed} failed, {skipped} skipped");
    match format {
        Format::Table => {
            println!("\n{}", groups(outcomes));
            if differs > 0 {
                println!(
                    "{differs} differ from what Bowline promises beyond CRI (--strict counts them as failed)"
                );
            }
            println!("took {:.1}s\n{closing}", took.as_secs_f64());
        }
        Format::Json => {
            println!("{}", document(endpoint, outcomes, took));
            eprintln!("{closing}");
        }
        Format::Junit => {
            println!("{}", junit(outcomes, took));
            eprintln!("{closing}");
        }
    }
}

fn groups(outcomes: &[Outcome]) -> String {
    let mut rows = vec![["GROUP", "PASSED", "FAILED", "DIFFERS", "SKIPPED"].map(str::to_owned).to_vec()];
    let mut names: Vec<&str> = outcomes.iter().map(|outcome| outcome.case.group()).collect();
    names.dedup();
    for name in names {
        let own = || outcomes.iter().filter(|outcome| outcome.case.group() == name);
        let count = |word: &str| own().filter(|outcome| outcome.verdict.word() == word).count().to_string();
        rows.push(vec![
            name.to_owned(),
            count("passed"),
            count("FAILED"),
            count("differs"),
            count("skipped"),
        ]);
    }
    table(&rows)
}

fn document(endpoint: &str, outcomes: &[Outcome], took: Duration) -> serde_json::Value {
    let cases: Vec<_> = outcomes
        .iter()
        .map(|outcome| {
            json!({
                "name": outcome.case.name,
                "tags": outcome.case.tags,
                "verdict": outcome.verdict.word().to_lowercase(),
                "reason": outcome.verdict.reason(),
                "seconds": outcome.took.as_secs_f64(),
            })
        })
        .collect();
    json!({"endpoint": endpoint, "seconds": took.as_secs_f64(), "cases": cases})
}

fn junit(outcomes: &[Outcome], took: Duration) -> String {
    let escape = |text: &str| {
        let text: String = text.chars().filter(|letter| *letter == '\n' || !letter.is_control()).collect();
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
    };
    let failures = outcomes.iter().filter(|outcome| outcome.verdict.is_failure()).count();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"bowline check\" tests=\"{}\" failures=\"{failures}\" time=\"{:.3}\">\n",
        outcomes.len(),
        took.as_secs_f64()
    );
    for outcome in outcomes {
        let (group, name) = outcome.case.name.split_once('/').unwrap_or(("", outcome.case.name));
        let seconds = outcome.took.as_secs_f64();
        text.push_str(&format!("  <testcase classname=\"{group}\" name=\"{name}\" time=\"{seconds:.3}\">"));
        let reason = escape(outcome.verdict.reason());
        match outcome.verdict {
            Verdict::Passed => {}
            Verdict::Failed(_) => text.push_str(&format!("<failure message=\"{reason}\"/>")),
            Verdict::Differs(_) => text.push_str(&format!("<system-out>differs: {reason}</system-out>")),
            Verdict::Skipped(_) => text.push_str(&format!("<skipped message=\"{reason}\"/>")),
        }
        text.push_str("</testcase>\n");
    }
    text.push_str("</testsuite>");
    text
}
