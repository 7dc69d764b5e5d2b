//! How long one event takes from the log's block to slots and rows, on one core:
//! `cargo run --release -p catchment-distribute --example ingest_speed`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use catchment_decode::{Decoders, WorkerDecoders};
use catchment_store::live::{LiveConfig, LiveFilter, LiveHub};
use catchment_store::shard::Shard;
use catchment_store::tables::TableId;
use catchment_types::{Event, EventBatch, EventTooLarge, Timestamp};

const EVENTS_PER_BLOCK: usize = 1_000;
const BLOCKS: usize = 500;
/// As a flush would: about 50 MB of events.
const BLOCKS_PER_FLUSH: usize = 50;

fn block(at: usize, devices: usize) -> Result<EventBatch, EventTooLarge> {
    let now = 1_700_000_000_000_000 + (at as i64) * 100_000;
    let mut builder = EventBatch::builder();
    for event in 0..EVENTS_PER_BLOCK {
        let device_id = format!("load-device-{:06}", (at * EVENTS_PER_BLOCK + event) % devices);
        let payload = format!(
            r#"{{"timestamp":{},"metrics":{{"temperature":{}.5,"humidity":48.25,"pressure":1013.25,"voltage":3.71}},"note":"{}"}}"#,
            now / 1_000,
            event % 40,
            "x".repeat(880)
        );
        builder.push(&Event {
            realm: "main",
            device_id: &device_id,
            event_type: "telemetry",
            topic: &format!("devices/{device_id}/telemetry"),
            received_at: Timestamp(now),
            content_type: "",
            tags: "",
            mark: 0,
            payload: payload.as_bytes(),
        })?;
    }
    Ok(builder.take())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (name, devices, filter) in [
        ("1,000 devices", 1_000, None),
        ("100,000 devices", 100_000, None),
        ("1,000 devices, one subscriber to everything", 1_000, Some(LiveFilter::default())),
        (
            "1,000 devices, one subscriber to one device",
            1_000,
            Some(LiveFilter { devices: vec!["load-device-000007".into()], ..LiveFilter::default() }),
        ),
    ] {
        let shard = Shard::new(0);
        let hub = LiveHub::new(LiveConfig::default());
        let _subscription = filter.map(|filter| hub.subscribe(filter)).transpose()?;
        let mut decoders = WorkerDecoders::new(Arc::new(Decoders::default()));
        let (mut busy, mut longest, mut queries) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let (mut next, mut buffered) = (0, 0);
        for at in 0..BLOCKS {
            let events = block(at, devices)?;
            let start = Instant::now();
            let mut live = hub.batch();
            shard.ingest(next, &events, next.., &mut decoders, live.as_mut());
            if let Some(batch) = live {
                hub.publish(batch);
            }
            let took = start.elapsed();
            busy += took;
            longest = longest.max(took);
            next += EVENTS_PER_BLOCK as u64;
            if at % BLOCKS_PER_FLUSH == BLOCKS_PER_FLUSH - 1 {
                buffered = buffered.max(shard.buffered_bytes());
                let start = Instant::now();
                for table in TableId::ALL {
                    std::hint::black_box(shard.rows(table));
                }
                queries = queries.max(start.elapsed());
                drop(shard.take_rows());
            }
        }
        println!(
            "{name}: {} ns an event, longest block of {EVENTS_PER_BLOCK} {longest:?}, {} MB buffered, copy of all tables {queries:?}, snapshot {} KB",
            busy.as_nanos() / (BLOCKS * EVENTS_PER_BLOCK) as u128,
            buffered / 1_000_000,
            shard.stats().snapshot_bytes / 1_000,
        );
    }
    Ok(())
}
