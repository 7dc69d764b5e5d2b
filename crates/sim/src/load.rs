//! Load: N devices, R events a second each, about 1 KB of JSON an event: metadata, five metrics, a timestamp.
//!
//! Paced: an event is due at its time, whether or not the last one was acknowledged. What cannot be sent within a second
//! of its time is left out and reported, so that a figure of this world is never a wish.

use std::fmt::Write as _;
use std::time::Duration;

use catchment_types::Timestamp;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::MqttTarget;
use crate::publisher::Publisher;
use crate::random::source;

const DEVICES_PER_CONNECTION: u32 = 100;
const CONNECTIONS_MAX: u32 = 32;
const TICK: Duration = Duration::from_millis(10);
const REPORT: Duration = Duration::from_secs(10);
const PAYLOAD_BYTES: usize = 1024;

/// The type of the events.
pub const EVENT_TYPE: &str = "telemetry";

/// How much load.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadConfig {
    /// Number of devices.
    pub devices: u32,
    /// Events a second of each device.
    pub rate: f64,
    /// Of the random numbers.
    pub seed: u64,
}

/// A device under load: writes its events.
#[derive(Debug, Clone)]
pub struct LoadDevice {
    id: String,
    metadata: String,
    sequence: u64,
    level: [f64; 5],
}

impl LoadDevice {
    /// The device of this number; its id is `load-` and the number in six digits.
    #[must_use]
    pub fn new(number: u32) -> Self {
        let id = format!("load-{number:06}");
        let metadata = format!(
            r#"{{"model":"CT-{}","firmware":"4.{}.{}","serial":"{:016x}","region":"{}","site":"plant-{:03}","line":"line-{:02}","operator":"shift-{}","tags":["telemetry","production","{}"],"#,
            100 + number % 7,
            number % 10,
            number % 4,
            u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            ["eu-west", "eu-north", "us-east", "ap-south"][number as usize % 4],
            number % 120,
            number % 16,
            number % 3,
            ["pump", "press", "mixer", "oven", "conveyor"][number as usize % 5],
        );
        Self { id, metadata, sequence: 0, level: [21.0, 0.55, 1013.0, 1.2, 87.0] }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How many events it wrote.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Appends the device's next event to `out`: 1 KiB, give or take a few bytes.
    pub fn write_event(&mut self, now: Timestamp, source: &mut StdRng, out: &mut String) {
        let start = out.len();
        for (level, step) in self.level.iter_mut().zip([0.05, 0.002, 0.1, 0.02, 0.01]) {
            *level += source.random_range(-step..step);
        }
        let [temperature, humidity, pressure, vibration, battery] = self.level;
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            r#"{{"device_id":"{}","timestamp":{},"metrics":{{"temperature":{temperature:.3},"humidity":{humidity:.4},"pressure":{pressure:.2},"vibration":{vibration:.3},"battery":{battery:.2}}},"sequence":{},"metadata":{}"note":""#,
            self.id,
            now.as_micros() / 1000,
            self.sequence,
            self.metadata,
        );
        // Text that compresses like text, not like noise and not like zeroes.
        const NOTE: &str =
            "nominal operation, no alarms pending; last calibration passed; next service due in ";
        while out.len() - start + 3 < PAYLOAD_BYTES {
            let room = PAYLOAD_BYTES - 3 - (out.len() - start);
            out.push_str(&NOTE[..NOTE.len().min(room)]);
        }
        out.push_str("\"}}");
        self.sequence += 1;
    }
}

/// Publishes load until `shutdown`.
pub(crate) async fn run(config: LoadConfig, target: &MqttTarget, shutdown: CancellationToken) {
    let connections = config.devices.div_ceil(DEVICES_PER_CONNECTION).clamp(1, CONNECTIONS_MAX);
    let per_second = f64::from(config.devices) * config.rate;
    tracing::info!("load: {} devices, {per_second:.0} events/s, {connections} connections", config.devices);
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..connections {
        let numbers = (connection..config.devices).step_by(connections as usize);
        let devices: Vec<_> = numbers.map(LoadDevice::new).collect();
        let publisher = Publisher::start(&format!("load-{connection}"), target);
        let source = source(config.seed, 200 + u64::from(connection));
        tasks.spawn(run_connection(devices, config.rate, publisher, source, shutdown.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

async fn run_connection(
    mut devices: Vec<LoadDevice>,
    rate: f64,
    publisher: Publisher,
    mut source: StdRng,
    shutdown: CancellationToken,
) {
    let per_second = devices.len() as f64 * rate;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let started = Instant::now();
    let (mut done, mut left_out, mut turn) = (0u64, 0u64, 0usize);
    let mut reported = (Instant::now(), 0u64);
    'run: loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = tick.tick() => {}
        }
        let due = (started.elapsed().as_secs_f64() * per_second) as u64;
        let late = due.saturating_sub(done).saturating_sub(per_second.ceil() as u64);
        left_out += late;
        done += late;
        while done < due {
            let count = devices.len();
            let device = &mut devices[turn];
            turn = (turn + 1) % count;
            let mut payload = String::with_capacity(PAYLOAD_BYTES + 64);
            device.write_event(Timestamp::now(), &mut source, &mut payload);
            let topic = format!("devices/{}/{EVENT_TYPE}", device.id());
            let sent = tokio::select! {
                () = shutdown.cancelled() => break 'run,
                sent = publisher.publish(topic, payload.into_bytes()) => sent,
            };
            if !sent {
                break 'run;
            }
            done += 1;
        }
        if reported.0.elapsed() >= REPORT {
            if left_out > reported.1 {
                let acknowledged = publisher.acknowledged() as f64 / started.elapsed().as_secs_f64();
                tracing::warn!(
                    "load falls behind: {} events were left out in {} s on one connection ({acknowledged:.0} of {per_second:.0} events/s are acknowledged)",
                    left_out - reported.1,
                    REPORT.as_secs(),
                );
            }
            reported = (Instant::now(), left_out);
        }
    }
    publisher.stop().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_a_kilobyte_of_json_with_five_metrics() {
        let mut device = LoadDevice::new(123_456);
        let mut source = source(1, 1);
        for sequence in 0..3 {
            let mut text = String::new();
            device.write_event(Timestamp(1_700_000_000_123_456), &mut source, &mut text);
            assert_eq!(text.len(), PAYLOAD_BYTES);
            let document: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(document["metrics"].as_object().unwrap().len(), 5);
            assert_eq!(document["sequence"], sequence);
            assert_eq!(document["timestamp"], 1_700_000_000_123_i64);
        }
        assert_eq!(device.id(), "load-123456");
    }
}
