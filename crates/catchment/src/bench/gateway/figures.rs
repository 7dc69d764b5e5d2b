//! The figures of `bench gateway`, for people and for programs: a list of measurements, each a list of names and values.

use catchment_sim::swarm::Published;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::bench::report::{QUANTILES, machine, milliseconds, round, show};
use crate::table;

/// Everything that was measured.
pub(super) struct Figures {
    results: Vec<Result>,
}

/// One measurement.
pub(super) struct Result {
    scenario: &'static str,
    figures: Map<String, Value>,
}

impl Figures {
    pub(super) fn new() -> Self {
        Self { results: Vec::new() }
    }

    pub(super) fn add(&mut self, result: Result) {
        self.results.push(result);
    }

    fn json(&self) -> Value {
        let results: Vec<Value> = self
            .results
            .iter()
            .map(|result| {
                let mut figures = Map::new();
                figures.insert("scenario".into(), result.scenario.into());
                figures.extend(result.figures.clone());
                Value::Object(figures)
            })
            .collect();
        json!({ "machine": machine(), "payload_bytes": 1024, "results": results })
    }

    pub(super) fn print(&self, as_json: bool) -> anyhow::Result<()> {
        if as_json {
            println!("{}", serde_json::to_string_pretty(&self.json())?);
            return Ok(());
        }
        let mut rows = Vec::new();
        for (name, value) in machine().as_object().into_iter().flatten() {
            rows.push(vec![name.replace('_', " "), show(value)]);
        }
        for result in &self.results {
            rows.push(vec![String::new(), String::new()]);
            rows.push(vec![result.scenario.to_uppercase(), String::new()]);
            for (name, value) in &result.figures {
                rows.push(vec![name.replace('_', " "), show(value)]);
            }
        }
        print!("{}", table::render(&["figure", "value"], &rows));
        Ok(())
    }
}

impl Result {
    pub(super) fn new(scenario: &'static str) -> Self {
        Self { scenario, figures: Map::new() }
    }

    /// Adds a figure.
    pub(super) fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.figures.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a figure, to two decimals.
    pub(super) fn number(self, name: &str, value: f64) -> Self {
        self.set(name, round(value))
    }

    /// Adds p50, p99 and p99.9 in milliseconds.
    pub(super) fn latencies(self, name: &str, histogram: &Histogram<u64>) -> Self {
        let quantile =
            |&(name, at): &(&str, f64)| (name.to_owned(), round(milliseconds(histogram, at)).into());
        let quantiles: Map<String, Value> = QUANTILES.iter().map(quantile).collect();
        self.set(name, quantiles)
    }

    /// Adds what publishing did.
    pub(super) fn published(self, published: &Published) -> Self {
        let rate = published.published as f64 / published.elapsed.as_secs_f64();
        self.set("published", published.published)
            .set("acknowledged", published.acknowledged)
            .set("messages_per_second", rate.round())
    }
}

/// Seconds by what was done in them, in millionths: CPU-s of a million.
pub(super) fn per_million(seconds: f64, count: u64) -> f64 {
    seconds / (count.max(1) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_their_order() {
        let mut figures = Figures::new();
        let mut histogram = catchment_sim::swarm::new_histogram();
        histogram.record(1500).unwrap();
        figures.add(Result::new("x").number("b", 1.239).set("a", 2).latencies("l_ms", &histogram));
        let json = figures.json();
        assert_eq!(json["results"][0]["b"], 1.24);
        assert_eq!(json["results"][0]["a"], 2);
        assert_eq!(json["results"][0]["l_ms"]["p99"], 1.5);
        assert_eq!(per_million(3.0, 500_000), 6.0);
    }
}
