//! The daemon about itself, in the text format of Prometheus
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4).
//!
//! Everything but the histograms is looked at when somebody asks. Names and labels are in docs/operate/metrics.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bowline_model::container::Life;
use bowline_pods::{BOUNDS_MS, Pods, Timing};

use crate::admin::leftover_counts;
use crate::calls;

/// Looking for leftovers reads much of /proc; a look is good for so long.
const LEFTOVERS_AGE: Duration = Duration::from_secs(60);

/// Writes the metrics of one daemon.
pub struct Exporter {
    pods: Pods,
    version: String,
    leftovers: Mutex<Option<(Instant, BTreeMap<String, u64>)>>,
}

impl Exporter {
    /// For this daemon.
    pub fn new(pods: Pods, version: &str) -> Exporter {
        Exporter { pods, version: version.to_owned(), leftovers: Mutex::default() }
    }

    /// All metrics, now.
    pub async fn text(&self) -> String {
        let mut page = Page::default();
        page.head("bowline_build_info", "gauge", "The version, as a label.");
        page.row("bowline_build_info", &[("version", &self.version)], 1);
        calls(&mut page, &calls::counted());
        operations(&mut page, &self.pods);
        self.objects(&mut page);
        page.head(
            "bowline_leftovers",
            "gauge",
            "Objects with this daemon's mark that belong to no pod, at most a minute old.",
        );
        for (kind, count) in self.leftovers().await {
            page.row("bowline_leftovers", &[("kind", &kind)], count);
        }
        page.0
    }

    fn objects(&self, page: &mut Page) {
        let views = self.pods.views();
        let (pods, containers) = (views.pods(), views.containers());
        page.head("bowline_pods", "gauge", "Pods by state.");
        let ready = pods.iter().filter(|pod| pod.ready).count() as u64;
        page.row("bowline_pods", &[("state", "ready")], ready);
        page.row("bowline_pods", &[("state", "not_ready")], pods.len() as u64 - ready);
        page.head("bowline_containers", "gauge", "Containers by state.");
        let in_state =
            |wanted: fn(&Life) -> bool| containers.iter().filter(|one| wanted(&one.life)).count() as u64;
        let created = |life: &Life| matches!(life, Life::Created | Life::Starting { .. });
        page.row("bowline_containers", &[("state", "created")], in_state(created));
        page.row("bowline_containers", &[("state", "running")], in_state(|life| life.pid().is_some()));
        page.row(
            "bowline_containers",
            &[("state", "exited")],
            in_state(|life| matches!(life, Life::Exited { .. })),
        );
        page.head("bowline_monitors", "gauge", "Monitors that answer.");
        let monitors = pods.iter().filter(|pod| pod.monitor != 0).count() as u64;
        page.row("bowline_monitors", &[], monitors);
        page.head("bowline_images", "gauge", "Images.");
        page.row("bowline_images", &[], self.pods.images().list(None).len() as u64);
        page.head("bowline_pulls", "gauge", "Pulls under way.");
        page.row("bowline_pulls", &[], self.pods.images().pull_progress().len() as u64);
        let (events, readers) = self.pods.event_counts();
        page.head("bowline_events_total", "counter", "Events of pods and containers.");
        page.row("bowline_events_total", &[], events);
        let (plugins, dropped) = self.pods.plugins();
        page.head("bowline_nri_requests_total", "counter", "Requests to the NRI plugins that are connected.");
        for plugin in &plugins {
            page.row("bowline_nri_requests_total", &[("plugin", &plugin.name)], plugin.asked);
        }
        page.head("bowline_nri_failures_total", "counter", "Of these, the ones that failed.");
        for plugin in &plugins {
            page.row("bowline_nri_failures_total", &[("plugin", &plugin.name)], plugin.failed);
        }
        page.head(
            "bowline_nri_plugins_dropped_total",
            "counter",
            "NRI plugins that did not answer and were dropped.",
        );
        page.row("bowline_nri_plugins_dropped_total", &[], dropped);
        page.head("bowline_event_readers", "gauge", "Clients that listen to events.");
        page.row("bowline_event_readers", &[], readers as u64);
    }

    async fn leftovers(&self) -> BTreeMap<String, u64> {
        let known = self.leftovers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, counts)) = known
            && at.elapsed() < LEFTOVERS_AGE
        {
            return counts;
        }
        // What cannot be looked at is no leftover.
        let counts = leftover_counts(&self.pods).await.unwrap_or_default();
        *self.leftovers.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), counts.clone()));
        counts
    }
}

fn calls(page: &mut Page, counted: &[(&'static str, tonic::Code, Timing)]) {
    page.head("bowline_rpc_seconds", "histogram", "Calls by method and code.");
    for (call, code, timing) in counted {
        page.histogram("bowline_rpc_seconds", &[("method", call), ("code", &format!("{code:?}"))], timing);
    }
}

fn operations(page: &mut Page, pods: &Pods) {
    let timings = pods.timings();
    page.head("bowline_operation_seconds", "histogram", "Operations on pods and containers.");
    for (kind, _, timing) in timings.iter().filter(|(_, stage, _)| stage.is_empty()) {
        page.histogram("bowline_operation_seconds", &[("operation", kind)], timing);
    }
    page.head("bowline_operation_stage_seconds", "histogram", "Stages of operations.");
    for (kind, stage, timing) in timings.iter().filter(|(_, stage, _)| !stage.is_empty()) {
        page.histogram("bowline_operation_stage_seconds", &[("operation", kind), ("stage", stage)], timing);
    }
    let mut running: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for operation in pods.operations() {
        let (count, oldest) = running.entry(operation.kind).or_default();
        (*count, *oldest) = (*count + 1, (*oldest).max(operation.age.as_secs()));
    }
    page.head("bowline_operations", "gauge", "Operations under way.");
    for (kind, (count, _)) in &running {
        page.row("bowline_operations", &[("operation", kind)], *count);
    }
    page.head("bowline_operation_oldest_seconds", "gauge", "Age of the oldest operation under way.");
    for (kind, (_, oldest)) in &running {
        page.row("bowline_operation_oldest_seconds", &[("operation", kind)], *oldest);
    }
}

/// The text while it grows.
#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn row(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (index, (key, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{key}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], timing: &Timing) {
        let mut sum = 0;
        let bounds = BOUNDS_MS.iter().map(|bound| format!("{}", *bound as f64 / 1000.0));
        for (count, bound) in timing.counts.iter().zip(bounds.chain(["+Inf".to_owned()])) {
            sum += count;
            let with_bound: Vec<(&str, &str)> =
                labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.row(&format!("{name}_bucket"), &with_bound, sum);
        }
        self.row(&format!("{name}_sum"), labels, timing.total.as_secs_f64());
        self.row(&format!("{name}_count"), labels, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_add_up() {
        let mut timing = Timing::default();
        timing.add(Duration::from_millis(1));
        timing.add(Duration::from_secs(60));
        let mut page = Page::default();
        page.head("x_seconds", "histogram", "X.");
        page.histogram("x_seconds", &[("a", "q\"\n")], &timing);
        let expected = [
            "# HELP x_seconds X.",
            "# TYPE x_seconds histogram",
            "x_seconds_bucket{a=\"q\\\"\\n\",le=\"0.001\"} 1",
            "x_seconds_bucket{a=\"q\\\"\\n\",le=\"0.002\"} 1",
        ];
        assert_eq!(page.0.lines().take(4).collect::<Vec<_>>(), expected);
        assert!(page.0.contains("le=\"30\"} 1\n") && page.0.contains("le=\"+Inf\"} 2\n"), "{}", page.0);
        assert!(
            page.0.ends_with("x_seconds_sum{a=\"q\\\"\\n\"} 60.001\nx_seconds_count{a=\"q\\\"\\n\"} 2\n")
        );
        let mut bare = Page::default();
        bare.row("x", &[], 3);
        assert_eq!(bare.0, "x 3\n");
    }
}
