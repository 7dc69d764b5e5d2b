//! Latency as a user feels it: one device publishes a number now and then; another thread waits for it at the WebSocket,
//! another asks SQL for it. Each latency counts from before the publish to when the number has arrived here.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use hdrhistogram::Histogram;
use tokio::io::AsyncReadExt;
use tungstenite::Message;

use super::generator::new_histogram;
use super::mqtt;
use crate::client::{Client, is_timeout, open_websocket};

const DEVICE: &str = "bench-probe";
const INTERVAL: Duration = Duration::from_millis(50);
/// Between two questions to SQL: it adds at most this much to that latency.
const SQL_PAUSE: Duration = Duration::from_millis(10);
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Microseconds from publish to each place.
pub(super) struct Latencies {
    pub(super) puback_us: Histogram<u64>,
    pub(super) websocket_us: Histogram<u64>,
    pub(super) sql_us: Histogram<u64>,
    /// How many numbers were published.
    pub(super) published: u64,
}

/// When each number was published; what the observers look their latencies up in.
struct Board {
    published: Mutex<Vec<Instant>>,
    next: AtomicU64,
    stop: AtomicBool,
}

impl Board {
    fn published_at(&self, number: u64) -> Option<Instant> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).get(number as usize).copied()
    }

    fn count(&self) -> u64 {
        self.next.load(Relaxed)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

/// Probes for `duration`. The numbers of this run are told from those of others by `run`, which is part of the metric's
/// name.
pub(super) async fn probe(
    mqtt_address: SocketAddr,
    token: Option<String>,
    client: Client,
    run: &str,
    duration: Duration,
) -> anyhow::Result<Latencies> {
    let board = Arc::new(Board {
        published: Mutex::default(),
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let metric = format!("probe_{run}");
    let observer = |observe: fn(&Client, &str, &Board) -> anyhow::Result<Histogram<u64>>| {
        let (client, metric, board) = (client.clone(), metric.clone(), Arc::clone(&board));
        tokio::task::spawn_blocking(move || observe(&client, &metric, &board))
    };
    let websocket = observer(watch_websocket);
    let sql = observer(watch_sql);
    // Both are listening before the first number comes.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let published = publish(mqtt_address, token.as_deref(), &metric, &board, duration).await;
    // Observers end when they have seen the last number, or it does not come.
    board.stop.store(true, Relaxed);
    let latencies = Latencies {
        puback_us: published?,
        websocket_us: websocket.await??,
        sql_us: sql.await??,
        published: board.count(),
    };
    let missing = latencies.published - latencies.websocket_us.len().min(latencies.sql_us.len());
    if missing > 0 {
        return Err(anyhow!(
            "of {} numbers, {} came over the WebSocket and {} were seen in SQL within {WAIT_MAX:?}",
            latencies.published,
            latencies.websocket_us.len(),
            latencies.sql_us.len()
        ));
    }
    Ok(latencies)
}

async fn publish(
    target: SocketAddr,
    token: Option<&str>,
    metric: &str,
    board: &Board,
    duration: Duration,
) -> anyhow::Result<Histogram<u64>> {
    let mut stream = mqtt::connect(target, &format!("bench-probe-{}", std::process::id()), token).await?;
    let mut latencies = new_histogram()?;
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let started = Instant::now();
    let topic = format!("devices/{DEVICE}/probe");
    let mut packet = Vec::new();
    while started.elapsed() < duration {
        interval.tick().await;
        let number = board.count();
        packet.clear();
        let payload = format!(r#"{{"{metric}":{number}}}"#);
        mqtt::put_publish(&mut packet, &topic, (number % 65_535) as u16 + 1, payload.as_bytes())?;
        let since = Instant::now();
        board.published.lock().unwrap_or_else(PoisonError::into_inner).push(since);
        board.next.store(number + 1, Relaxed);
        tokio::io::AsyncWriteExt::write_all(&mut stream, &packet).await?;
        let mut answer = vec![0; 4];
        stream.read_exact(&mut answer).await?;
        mqtt::take_pubacks(&mut answer, |_| Ok(()))?;
        latencies.saturating_record(since.elapsed().as_micros() as u64);
    }
    Ok(latencies)
}

fn watch_websocket(client: &Client, metric: &str, board: &Board) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = new_histogram()?;
    let path = format!("/api/v1/live?device={DEVICE}&metric={metric}");
    let mut socket = open_websocket(client, &path, Some(Duration::from_millis(200)))?;
    let mut last_news = Instant::now();
    while !(board.stopped() && (latencies.len() >= board.count() || last_news.elapsed() > WAIT_MAX)) {
        let text = match socket.read() {
            Ok(Message::Text(text)) => text,
            Ok(_) => continue,
            Err(error) if is_timeout(&error) => continue,
            Err(error) => return Err(error).context("the live connection broke"),
        };
        let arrived = Instant::now();
        for number in numbers(&text, metric) {
            if let Some(since) = board.published_at(number) {
                latencies.saturating_record(arrived.duration_since(since).as_micros() as u64);
                last_news = arrived;
            }
        }
    }
    Ok(latencies)
}

fn watch_sql(client: &Client, metric: &str, board: &Board) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = new_histogram()?;
    let mut seen = 0;
    let mut last_news = Instant::now();
    while !(board.stopped() && (seen >= board.count() || last_news.elapsed() > WAIT_MAX)) {
        // The number after the newest: "nothing yet" is null, which reads as 0 and not as the number 0.
        let next = client.number(&format!(
            "SELECT max(metric_value) + 1 AS next FROM raw_metrics WHERE device_id = '{DEVICE}' \
             AND metric_name = '{metric}' AND timestamp > now() - INTERVAL '60 seconds' AND metric_value >= {seen}"
        ))?;
        let arrived = Instant::now();
        while seen < next as u64 {
            if let Some(since) = board.published_at(seen) {
                latencies.saturating_record(arrived.duration_since(since).as_micros() as u64);
            }
            seen += 1;
            last_news = arrived;
        }
        std::thread::sleep(SQL_PAUSE);
    }
    Ok(latencies)
}

/// The values of the metric in a live message, which is one reading or an array of them.
fn numbers(text: &str, metric: &str) -> Vec<u64> {
    let Ok(document) = serde_json::from_str::<serde_json::Value>(text) else { return Vec::new() };
    let mut found = Vec::new();
    collect(&document, metric, &mut found);
    found
}

fn collect(value: &serde_json::Value, metric: &str, found: &mut Vec<u64>) {
    match value {
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect(item, metric, found)),
        serde_json::Value::Object(map) => {
            let of_metric = map.get("metric").is_some_and(|name| name == metric);
            match map.get("value").and_then(serde_json::Value::as_f64).filter(|_| of_metric) {
                Some(number) => found.push(number as u64),
                None => map.values().for_each(|item| collect(item, metric, found)),
            }
        }
        _ => {}
    }
}
