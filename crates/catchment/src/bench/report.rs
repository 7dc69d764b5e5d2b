//! The figures, for people and for programs.

use std::time::Duration;

use anyhow::bail;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::generator::Sent;
use super::probe::Latencies;
use super::process::Usage;
use crate::cli::IngestArgs;
use crate::table;

pub(super) const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
pub(super) const MEBIBYTE: f64 = 1_048_576.0;

/// A phase with the probe.
pub(super) struct Phase {
    pub(super) name: &'static str,
    pub(super) sent: Sent,
    pub(super) cpu_seconds: f64,
    pub(super) latencies: Latencies,
}

/// Everything that was measured.
pub(super) struct Report {
    machine: Value,
    load: Value,
    full: Value,
    phases: Vec<Phase>,
    acknowledged: u64,
    events: u64,
    readings: u64,
    end: Option<(Usage, Vec<(&'static str, u64)>)>,
}

impl Report {
    pub(super) fn new(args: &IngestArgs) -> Self {
        Self {
            machine: machine(),
            load: json!({
                "connections": args.connections,
                "devices": args.devices,
                "window": args.window,
                "duration_seconds": args.duration,
                "payload_bytes": 1024,
                "metrics_per_event": 5,
            }),
            full: Value::Null,
            phases: Vec::new(),
            acknowledged: 0,
            events: 0,
            readings: 0,
            end: None,
        }
    }

    /// The phase at full load without the probe.
    pub(super) fn full(
        &mut self,
        sent: &Sent,
        cpu_seconds: f64,
        beside: Vec<(String, f64)>,
        lag: Duration,
        rest: Option<Duration>,
        resident: Vec<u64>,
    ) {
        let millions = sent.acknowledged as f64 / 1e6;
        let beside: serde_json::Map<String, Value> =
            beside.into_iter().map(|(name, seconds)| (name, round(seconds / millions).into())).collect();
        self.full = json!({
            "events": sent.acknowledged,
            "seconds": round(sent.elapsed.as_secs_f64()),
            "events_per_second_acknowledged": (sent.acknowledged as f64 / sent.elapsed.as_secs_f64()).round(),
            "events_per_second_whole_way": (sent.acknowledged as f64 / (sent.elapsed + lag).as_secs_f64()).round(),
            "server_cpu_seconds": round(cpu_seconds),
            "server_cpu_seconds_per_million_events": round(cpu_seconds / millions),
            "beside_cpu_seconds_per_million_events": beside,
            "visible_in_sql_after_ms": lag.as_millis() as u64,
            "resident_mib": sampled(&resident),
        });
        if let Some(rest) = rest {
            let seconds = (sent.elapsed + lag + rest).as_secs_f64();
            self.full["merges_done_after_ms"] = (rest.as_millis() as u64).into();
            self.full["events_per_second_with_merges"] = (sent.acknowledged as f64 / seconds).round().into();
        }
    }

    /// A phase with the probe.
    pub(super) fn probed(&mut self, phase: Phase) {
        self.phases.push(phase);
    }

    /// What was acknowledged in all phases, and what SQL counts.
    pub(super) fn counted(&mut self, acknowledged: u64, events: u64, readings: u64) {
        (self.acknowledged, self.events, self.readings) = (acknowledged, events, readings);
    }

    /// What the server used in its whole life, and what its folders take after the last flush.
    pub(super) fn ended(&mut self, usage: Usage, folders: Vec<(&'static str, u64)>) {
        self.end = Some((usage, folders));
    }

    fn json(&self) -> Value {
        let phases: serde_json::Map<String, Value> =
            self.phases.iter().map(|phase| (phase.name.to_owned(), phase.json())).collect();
        let per_event = |bytes: u64| round(bytes as f64 / self.acknowledged.max(1) as f64);
        let end = self.end.as_ref().map(|(usage, folders)| {
            let bytes: serde_json::Map<String, Value> =
                folders.iter().map(|(name, bytes)| ((*name).to_owned(), per_event(*bytes).into())).collect();
            json!({
                "server_cpu_seconds": round(usage.cpu_seconds),
                "server_cpu_seconds_per_million_events": round(usage.cpu_seconds / (self.acknowledged as f64 / 1e6)),
                "resident_mib_max": round(usage.resident_bytes_max as f64 / MEBIBYTE),
                "stored_bytes_per_event": bytes,
            })
        });
        json!({
            "machine": self.machine,
            "load": self.load,
            "full": self.full,
            "probed": phases,
            "whole_run": end,
            "acknowledged": self.acknowledged,
            "counted_by_sql": self.events,
            "readings_counted_by_sql": self.readings,
        })
    }

    /// For programs.
    pub(super) fn print_json(&self) -> anyhow::Result<()> {
        println!("{}", serde_json::to_string_pretty(&self.json())?);
        Ok(())
    }

    /// For people.
    pub(super) fn print(&self) {
        let figures = self.json();
        let mut rows = Vec::new();
        for (section, title) in
            [("machine", ""), ("load", ""), ("full", "full load, "), ("whole_run", "whole run, ")]
        {
            let said = figures[section].as_object().into_iter().flatten();
            for (name, value) in said.filter(|(_, value)| value.as_object().is_none_or(|map| !map.is_empty()))
            {
                rows.push(vec![format!("{title}{}", name.replace('_', " ")), show(value)]);
            }
        }
        rows.push(vec!["acknowledged".into(), self.acknowledged.to_string()]);
        rows.push(vec!["counted by SQL".into(), self.events.to_string()]);
        rows.push(vec!["readings counted by SQL".into(), self.readings.to_string()]);
        println!("{}", table::render(&["figure", "value"], &rows));
        let mut rows = Vec::new();
        for phase in &self.phases {
            for (name, histogram) in phase.histograms() {
                let mut row = vec![format!("{} load ({:.0}/s)", phase.name, phase.rate()), name.to_owned()];
                row.extend(
                    QUANTILES
                        .iter()
                        .map(|(_, quantile)| format!("{:.2} ms", milliseconds(histogram, *quantile))),
                );
                rows.push(row);
            }
        }
        let head: Vec<&str> =
            ["at", "from publish to"].into_iter().chain(QUANTILES.map(|(name, _)| name)).collect();
        print!("{}", table::render(&head, &rows));
    }

    /// Whether every acknowledged event is there once, with its readings.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        if self.events != self.acknowledged {
            bail!("{} events were acknowledged, but SQL counts {}", self.acknowledged, self.events);
        }
        if self.readings != 5 * self.acknowledged {
            bail!(
                "{} events of 5 metrics were acknowledged, but SQL counts {} readings",
                self.acknowledged,
                self.readings
            );
        }
        Ok(())
    }
}

impl Phase {
    fn rate(&self) -> f64 {
        self.sent.acknowledged as f64 / self.sent.elapsed.as_secs_f64()
    }

    fn histograms(&self) -> [(&'static str, &Histogram<u64>); 4] {
        [
            ("PUBACK (load)", &self.sent.latencies_us),
            ("PUBACK (probe)", &self.latencies.puback_us),
            ("WebSocket", &self.latencies.websocket_us),
            ("SQL", &self.latencies.sql_us),
        ]
    }

    fn json(&self) -> Value {
        let mut latencies = serde_json::Map::new();
        for (name, histogram) in self.histograms() {
            let quantiles: serde_json::Map<String, Value> = QUANTILES
                .iter()
                .map(|(name, q)| ((*name).to_owned(), round(milliseconds(histogram, *q)).into()))
                .collect();
            latencies.insert(name.to_owned(), Value::Object(quantiles));
        }
        json!({
            "events_per_second": self.rate().round(),
            "server_cpu_seconds_per_million_events": round(self.cpu_seconds / (self.sent.acknowledged as f64 / 1e6)),
            "probes": self.latencies.published,
            "latencies_ms": latencies,
        })
    }
}

pub(super) fn milliseconds(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e3
}

/// Two decimals.
pub(super) fn round(value: f64) -> f64 {
    if value.is_finite() { (value * 100.0).round() / 100.0 } else { 0.0 }
}

/// Five samples, evenly spread, in MiB.
fn sampled(resident: &[u64]) -> Vec<f64> {
    let at = |part: usize| resident.get(part * resident.len().saturating_sub(1) / 4);
    (0..5).filter_map(at).map(|bytes| (*bytes as f64 / MEBIBYTE).round()).collect()
}

pub(super) fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(show).collect::<Vec<_>>().join(" → "),
        Value::Object(map) => {
            map.iter().map(|(name, value)| format!("{name} {}", show(value))).collect::<Vec<_>>().join(", ")
        }
        Value::Number(number) => match number.as_f64() {
            Some(number) if number.fract() == 0.0 => format!("{number:.0}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// What the figures were measured on.
pub(super) fn machine() -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
    json!({
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory_gib": (kib / MEBIBYTE).round(),
    })
}
