//! What was measured, and how it is shown.

use serde_json::{Value, json};

use crate::output::table;

/// All values of one measure at one endpoint.
struct Row {
    measure: String,
    unit: &'static str,
    endpoint: String,
    values: Vec<f64>,
}

/// Everything measured, in the order in which it first came.
#[derive(Default)]
pub(crate) struct Figures {
    rows: Vec<Row>,
}

impl Figures {
    /// Adds one value.
    pub(crate) fn add(&mut self, measure: &str, unit: &'static str, endpoint: &str, value: f64) {
        let found = self.rows.iter_mut().find(|row| row.measure == measure && row.endpoint == endpoint);
        match found {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row {
                measure: measure.to_owned(),
                unit,
                endpoint: endpoint.to_owned(),
                values: vec![value],
            }),
        }
    }

    /// Adds a span, in milliseconds.
    pub(crate) fn span(&mut self, measure: &str, endpoint: &str, span: std::time::Duration) {
        self.add(measure, "ms", endpoint, span.as_secs_f64() * 1000.0);
    }

    /// For people: the endpoints of one measure stand together.
    pub(crate) fn table(&self) -> String {
        let head = ["MEASURE", "ENDPOINT", "N", "P50", "P90", "MIN", "MAX", "UNIT"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        let mut names: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !names.contains(&row.measure.as_str()) {
                names.push(&row.measure);
            }
        }
        for name in names {
            for row in self.rows.iter().filter(|row| row.measure == name) {
                let mut cells = vec![row.measure.clone(), row.endpoint.clone(), row.values.len().to_string()];
                cells.extend(row.quantiles().map(|value| format!("{value:.2}")));
                cells.push(row.unit.to_owned());
                rows.push(cells);
            }
        }
        table(&rows)
    }

    /// For machines.
    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let [p50, p90, min, max] = row.quantiles();
                json!({
                    "measure": row.measure, "unit": row.unit, "endpoint": row.endpoint, "n": row.values.len(),
                    "p50": p50, "p90": p90, "min": min, "max": max,
                })
            })
            .collect();
        json!({"figures": rows})
    }
}

impl Row {
    /// p50, p90, min, max; by the nearest rank.
    fn quantiles(&self) -> [f64; 4] {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: usize| {
            let rank = (sorted.len() * share).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
        };
        [at(50), at(90), at(1), at(100)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let mut figures = Figures::default();
        for value in [5.0, 1.0, 4.0, 2.0, 3.0] {
            figures.add("up", "ms", "a", value);
        }
        assert_eq!(figures.rows[0].quantiles(), [3.0, 5.0, 1.0, 5.0]);
    }

    #[test]
    fn endpoints_of_a_measure_stand_together() {
        let mut figures = Figures::default();
        for (measure, endpoint) in [("up", "a"), ("down", "a"), ("up", "b"), ("down", "b")] {
            figures.add(measure, "ms", endpoint, 1.0);
        }
        let lines: Vec<String> = figures.table().lines().map(str::to_owned).collect();
        assert!(lines[1].starts_with("up") && lines[2].starts_with("up"));
    }
}
