//! Measures the embedded log: events per second and CPU-seconds per million events.
//!
//! ```text
//! cargo run --release -p catchment-eventlog --example append -- [FOLDER] [EVENTS] [BATCH] [SUBMITTERS] [PARTITIONS] [SYNC]
//! ```
//! SYNC is `fsync`, `never` or a number of milliseconds; each submitter waits for a batch to be durable before the next.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use catchment_eventlog::EventLog;
use catchment_eventlog::SyncPolicy;
use catchment_eventlog::embedded::{EmbeddedLog, LogConfig};
use catchment_types::{Event, EventBatch, Timestamp};

#[derive(Clone, Copy)]
struct Load {
    events: u64,
    batch: u64,
    submitters: u64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args = std::env::args().skip(1);
    let scratch = std::env::temp_dir().join(format!("catchment-append-{}", std::process::id()));
    let given = args.next().filter(|folder| folder != "-");
    let folder = given.as_ref().map_or(scratch, PathBuf::from);
    let mut number = |default| args.next().map_or(Ok(default), |text| text.parse::<u64>());
    let load = Load { events: number(1_000_000)?, batch: number(50)?.max(1), submitters: number(64)?.max(1) };
    let partitions = u32::try_from(number(4)?)?;
    let sync = match args.next().as_deref() {
        None | Some("fsync") => SyncPolicy::Fsync,
        Some("never") => SyncPolicy::Never,
        Some(text) => SyncPolicy::IntervalMs(text.parse()?),
    };
    let config = LogConfig { partitions, sync, ..LogConfig::default() };
    let log = EmbeddedLog::open(&folder, config)?;

    // The batches are made outside of what is measured: that is the gateway's work.
    let batches: Arc<Vec<EventBatch>> = Arc::new((0..64).map(|seed| batch(seed, load.batch)).collect());
    println!("batch of {} events, {} bytes", load.batch, batches[0].as_bytes().len());
    let (cpu_before, started) = (cpu_time()?, Instant::now());
    let mut tasks = Vec::new();
    for submitter in 0..load.submitters {
        tasks.push(tokio::spawn(submit(log.clone(), batches.clone(), submitter, load)));
    }
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let (elapsed, cpu) = (started.elapsed(), cpu_time()?.saturating_sub(cpu_before));
    latencies.sort_unstable();
    let at =
        |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();

    let stats = log.stats();
    let millions = stats.appended_events as f64 / 1e6;
    println!(
        "{:.0} events/s, {:.2} CPU-s per million",
        millions * 1e6 / elapsed.as_secs_f64(),
        cpu.as_secs_f64() / millions
    );
    println!(
        "submit to durable: p50 {:?}, p99 {:?}, max {:?}",
        at(0.5),
        at(0.99),
        latencies.last().copied().unwrap_or_default()
    );
    println!(
        "{} commits, {:.0} events each; {:.0} bytes stored an event of {:.0}",
        stats.commits,
        stats.appended_events as f64 / stats.commits.max(1) as f64,
        stats.stored_bytes as f64 / stats.appended_events.max(1) as f64,
        stats.appended_bytes as f64 / stats.appended_events.max(1) as f64,
    );
    log.close().await;
    drop(log);

    let log = EmbeddedLog::open(&folder, LogConfig { partitions, ..LogConfig::default() })?;
    let (cpu_before, started) = (cpu_time()?, Instant::now());
    let mut events = 0_u64;
    for partition in 0..partitions {
        let range = log.range(partition);
        let mut next = range.start;
        while next < range.end {
            let read = log.read(partition, next, 1 << 20).await?;
            next = read.next;
            events += read.blocks.iter().map(|block| u64::from(block.events.len())).sum::<u64>();
        }
    }
    let (elapsed, cpu) = (started.elapsed(), cpu_time()?.saturating_sub(cpu_before));
    println!(
        "read back from disk: {:.0} events/s, {:.2} CPU-s per million",
        events as f64 / elapsed.as_secs_f64(),
        cpu.as_secs_f64() / (events as f64 / 1e6)
    );
    drop(log);
    if given.is_none() {
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}

async fn submit(
    log: Arc<EmbeddedLog>,
    batches: Arc<Vec<EventBatch>>,
    submitter: u64,
    load: Load,
) -> Result<Vec<Duration>, catchment_eventlog::LogError> {
    let rounds = load.events / load.batch / load.submitters;
    let partition = (submitter % u64::from(log.partitions())) as u32;
    let mut latencies = Vec::new();
    for round in 0..rounds {
        let started = Instant::now();
        let batch = batches[((submitter + round) % batches.len() as u64) as usize].clone();
        log.submit(partition, batch).await?.await?;
        latencies.push(started.elapsed());
    }
    Ok(latencies)
}

/// Events of about 1 KB, as a telematics unit sends them: repeated names, changing numbers, a signature.
fn batch(seed: u64, events: u64) -> EventBatch {
    let mut random = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut builder = EventBatch::builder();
    for _ in 0..events {
        let device = next() % 10_000;
        let mut payload = format!("{{\"timestamp\":{}", 1_700_000_000_000_u64 + next() % 1_000_000);
        for metric in
            ["engine.rpm", "engine.temperature", "position.latitude", "position.longitude", "fuel.level"]
        {
            payload.push_str(&format!(",\"{metric}\":{:.6}", (next() % 1_000_000) as f64 / 977.0));
        }
        payload.push_str(",\"vendor\":\"acme\",\"firmware\":\"4.11.2-rc1\",\"signature\":\"");
        while payload.len() < 900 {
            payload.push_str(&format!("{:016x}", next()));
        }
        payload.push_str("\"}");
        let device_id = format!("truck-{device:05}");
        let topic = format!("devices/{device_id}/telemetry");
        let event = Event {
            realm: "main",
            device_id: &device_id,
            event_type: "telemetry",
            topic: &topic,
            received_at: Timestamp::now(),
            content_type: "application/json",
            tags: "",
            mark: 0,
            payload: payload.as_bytes(),
        };
        builder.push(&event).ok();
    }
    builder.take()
}

/// User and system time of this process: fields 14 and 15 of `/proc/self/stat`, in ticks of 10 ms.
fn cpu_time() -> Result<Duration, Box<dyn Error + Send + Sync>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(Duration::from_millis(10 * ticks.sum::<Result<u64, _>>()?))
}
