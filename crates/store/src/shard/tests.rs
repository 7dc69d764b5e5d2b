use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::Array;
use arrow::array::cast::AsArray;
use arrow::array::types::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::compute::concat_batches;
use catchment_decode::{Decoders, WorkerDecoders};
use catchment_types::{Event, EventBatch};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::live::{LiveConfig, LiveFilter, LiveHub, LiveMessage};

const ARRIVAL: i64 = 1_700_000_000_000_000;
/// 2022-02-19T11:33:00Z in seconds: the start of a minute.
const MINUTE: i64 = 1_645_270_380;

fn batch_of<D: AsRef<str>, P: AsRef<[u8]>>(events: impl IntoIterator<Item = (D, P)>) -> EventBatch {
    let mut builder = EventBatch::builder();
    for (at, (device, payload)) in events.into_iter().enumerate() {
        let device_id = device.as_ref();
        builder
            .push(&Event {
                realm: "main",
                device_id,
                event_type: "state",
                topic: &format!("devices/{device_id}/state"),
                received_at: Timestamp(ARRIVAL + at as i64),
                content_type: "application/json",
                tags: "",
                mark: 0,
                payload: payload.as_ref(),
            })
            .unwrap();
    }
    builder.take()
}

fn worker() -> WorkerDecoders {
    WorkerDecoders::new(Arc::new(Decoders::default()))
}

/// Ingests one block at the shard's present end.
fn ingest<D: AsRef<str>, P: AsRef<[u8]>>(
    shard: &Shard,
    events: impl IntoIterator<Item = (D, P)>,
) -> IngestReport {
    let next = shard.stats().next_offset;
    shard.ingest(next, &batch_of(events), .., &mut worker(), None)
}

fn one(table: TableId, batches: &[RecordBatch]) -> RecordBatch {
    concat_batches(&table.schema(), batches).unwrap()
}

fn texts(batch: &RecordBatch, column: &str) -> Vec<String> {
    let array = batch.column_by_name(column).unwrap().as_string_view();
    array.iter().map(|text| text.unwrap_or("∅").to_owned()).collect()
}

fn times(batch: &RecordBatch, column: &str) -> Vec<i64> {
    batch.column_by_name(column).unwrap().as_primitive::<TimestampMicrosecondType>().values().to_vec()
}

fn integers(batch: &RecordBatch, column: &str) -> Vec<i64> {
    batch.column_by_name(column).unwrap().as_primitive::<Int64Type>().values().to_vec()
}

fn numbers(batch: &RecordBatch, column: &str) -> Vec<Option<f64>> {
    batch.column_by_name(column).unwrap().as_primitive::<Float64Type>().iter().collect()
}

/// (device, bucket in seconds, metric) → (sum, min, max, count).
type Rollups = BTreeMap<(String, i64, String), (f64, f64, f64, i64)>;

/// The rollups, merged as the view does.
fn merged(batches: &[RecordBatch]) -> Rollups {
    let mut groups = BTreeMap::new();
    for batch in batches {
        let (ids, names) = (texts(batch, "device_id"), texts(batch, "metric_name"));
        let (buckets, counts) = (times(batch, "time_bucket"), integers(batch, "count"));
        let [sums, mins, maxs] = ["sum_value", "min_value", "max_value"].map(|name| numbers(batch, name));
        for row in 0..batch.num_rows() {
            let key = (ids[row].clone(), buckets[row] / Timestamp::SECOND, names[row].clone());
            let group = groups.entry(key).or_insert((0.0, f64::INFINITY, f64::NEG_INFINITY, 0));
            group.0 += sums[row].unwrap();
            group.1 = mins[row].unwrap().min(group.1);
            group.2 = maxs[row].unwrap().max(group.2);
            group.3 += counts[row];
        }
    }
    groups
}

fn rollup_key(device: &str, seconds: i64, metric: &str) -> (String, i64, String) {
    (device.to_owned(), seconds, metric.to_owned())
}

#[test]
fn events_become_rows_of_all_tables() {
    // Once as a small block, which is copied, and once as a large one, which is shared.
    for padding in [10, 40_000] {
        let shard = Shard::new(7);
        let long = "p".repeat(padding);
        let report = ingest(
            &shard,
            [
                (
                    "a-device-with-a-long-name",
                    format!(r#"{{"ts":{MINUTE},"a":1.5,"on":true,"note":"{long}"}}"#),
                ),
                ("b", format!("{{{long}")),
            ],
        );
        assert_eq!((report.events, report.readings, report.rejects), (2, 3, 1));
        assert_eq!(report.last_received_at, Some(Timestamp(ARRIVAL + 1)));

        let events = one(TableId::RawEvents, &shard.rows(TableId::RawEvents));
        assert_eq!(texts(&events, "device_id"), ["a-device-with-a-long-name", "b"]);
        assert_eq!(texts(&events, "topic"), ["devices/a-device-with-a-long-name/state", "devices/b/state"]);
        assert_eq!(texts(&events, "content_type"), ["application/json"; 2]);
        assert_eq!(times(&events, "received_at"), [ARRIVAL, ARRIVAL + 1]);
        assert_eq!(times(&events, "event_time"), [MINUTE * Timestamp::SECOND, ARRIVAL + 1]);
        assert_eq!(integers(&events, "log_offset"), [0, 1]);
        assert_eq!(
            events.column_by_name("log_partition").unwrap().as_primitive::<Int32Type>().values()[..],
            [7, 7]
        );
        let payloads = events.column_by_name("payload").unwrap().as_binary_view();
        assert_eq!(payloads.value(1), format!("{{{long}").as_bytes());

        let readings = one(TableId::RawMetrics, &shard.rows(TableId::RawMetrics));
        assert_eq!(texts(&readings, "metric_name"), ["a", "on", "note"]);
        assert_eq!(texts(&readings, "device_id"), ["a-device-with-a-long-name"; 3]);
        assert_eq!(numbers(&readings, "metric_value"), [Some(1.5), Some(1.0), None]);
        assert_eq!(texts(&readings, "text_value"), ["∅", "true", &long]);
        assert_eq!(times(&readings, "timestamp"), [MINUTE * Timestamp::SECOND; 3]);
        assert_eq!(integers(&readings, "log_offset"), [0; 3]);
        assert_eq!(readings.column_by_name("metadata").unwrap().null_count(), 3);

        let rejects = one(TableId::Rejects, &shard.rows(TableId::Rejects));
        assert_eq!(
            (texts(&rejects, "device_id"), texts(&rejects, "reason")),
            (vec!["b".into()], vec!["syntax".into()])
        );
        assert_eq!(integers(&rejects, "log_offset"), [1]);

        let rollups = merged(&shard.rows(TableId::MetricRollups));
        assert_eq!(rollups.len(), 2);
        assert_eq!(rollups[&rollup_key("a-device-with-a-long-name", MINUTE, "a")], (1.5, 1.5, 1.5, 1));

        // A query leaves everything, taking leaves nothing.
        let taken = shard.take_rows();
        assert_eq!(taken.next_offset, 2);
        for table in TableId::ALL {
            assert!(taken.tables[table.index()].iter().all(|batch| batch.schema() == table.schema()));
            assert_eq!(shard.rows(table), []);
        }
        assert_eq!(one(TableId::RawEvents, &taken.tables[0]), events);
        assert_eq!(one(TableId::RawMetrics, &taken.tables[1]), readings);
        assert_eq!(merged(&taken.tables[2]), rollups);
        assert_eq!(one(TableId::Rejects, &taken.tables[3]), rejects);
        assert_eq!(shard.take_rows().tables.iter().map(Vec::len).sum::<usize>(), 0);
    }
}

#[test]
fn late_readings_merge_into_their_minute() {
    let shard = Shard::new(0);
    let at = |seconds: i64, value: f64| ("d", format!(r#"{{"ts":{},"v":{value}}}"#, MINUTE + seconds));
    ingest(&shard, [at(0, 1.0), at(59, 3.0), at(60, 10.0), at(30, -5.0), at(61, 20.0)]);
    let expected = BTreeMap::from([
        (rollup_key("d", MINUTE, "v"), (-1.0, -5.0, 3.0, 3)),
        (rollup_key("d", MINUTE + 60, "v"), (30.0, 10.0, 20.0, 2)),
    ]);
    assert_eq!(merged(&shard.rows(TableId::MetricRollups)), expected);
    let mut batches = shard.take_rows().tables[TableId::MetricRollups.index()].clone();
    assert_eq!(merged(&batches), expected);
    // Later than its rows were taken.
    ingest(&shard, [at(59, 2.0)]);
    batches.extend(shard.rows(TableId::MetricRollups));
    assert_eq!(merged(&batches)[&rollup_key("d", MINUTE, "v")], (1.0, -5.0, 3.0, 4));
}

#[test]
fn rollups_agree_with_the_readings_whatever_the_order() {
    for seed in 0..50 {
        let mut random = StdRng::seed_from_u64(seed);
        let shard = Shard::new(0);
        let (mut batches, mut expected) = (Vec::new(), BTreeMap::new());
        for _ in 0..random.random_range(1..200) {
            if random.random_bool(0.05) {
                batches.extend(shard.take_rows().tables[TableId::MetricRollups.index()].clone());
            }
            let device = format!("device-number-{}", random.random_range(0..3));
            let metric = format!("m{}", random.random_range(0..25));
            let (seconds, value) = (random.random_range(0..300), f64::from(random.random_range(-100..100)));
            let payload = format!(r#"{{"ts":{},"{metric}":{value}}}"#, MINUTE + seconds);
            ingest(&shard, [(&device, payload)]);
            let group = expected.entry((device, MINUTE + seconds / 60 * 60, metric)).or_insert((
                0.0,
                f64::INFINITY,
                f64::NEG_INFINITY,
                0,
            ));
            *group = (group.0 + value, value.min(group.1), value.max(group.2), group.3 + 1);
        }
        batches.extend(shard.rows(TableId::MetricRollups));
        assert_eq!(merged(&batches), expected, "seed {seed}");
    }
}

#[test]
fn each_table_takes_only_what_it_still_needs() {
    let shard = Shard::new(0);
    // In the order of the tables: events, metrics, rollups, rejects.
    shard.set_start_offsets([12, 10, 13, 11]);
    assert_eq!(shard.take_rows().next_offset, 10);
    let events = batch_of((0..5).map(|at| ("d", format!(r#"{{"ts":"never","v":{at}}}"#))));
    let report = shard.ingest(9, &events, 10.., &mut worker(), None);
    assert_eq!(report.events, 4);
    let offsets = |table: TableId| integers(&one(table, &shard.rows(table)), "log_offset");
    assert_eq!(offsets(TableId::RawEvents), [12, 13]);
    assert_eq!(offsets(TableId::RawMetrics), [10, 11, 12, 13]);
    assert_eq!(offsets(TableId::Rejects), [11, 12, 13]);
    let rollups = shard.rows(TableId::MetricRollups);
    assert_eq!(merged(&rollups).into_values().collect::<Vec<_>>(), [(4.0, 4.0, 4.0, 1)]);
    assert_eq!(shard.device("d").unwrap().events, 2);
    // The same block again changes nothing.
    assert_eq!(shard.ingest(9, &events, 9.., &mut worker(), None), IngestReport::default());
    assert_eq!(shard.take_rows().next_offset, 14);
    // A part of a block, and then the rest.
    let events = batch_of((0..4).map(|at| ("d", format!(r#"{{"v":{at}}}"#))));
    assert_eq!(shard.ingest(14, &events, 14..16, &mut worker(), None).events, 2);
    assert_eq!(shard.take_rows().next_offset, 16);
    assert_eq!(shard.ingest(14, &events, 16.., &mut worker(), None).events, 2);
    assert_eq!(shard.take_rows().next_offset, 18);
    // A gap in the log.
    shard.skip_to(20);
    shard.skip_to(18);
    assert_eq!(shard.take_rows().next_offset, 20);
}

#[test]
fn the_newest_time_wins() {
    let shard = Shard::new(0);
    let latest = |shard: &Shard| {
        let snapshot = shard.snapshot("d").unwrap();
        let values = snapshot.metrics.into_iter();
        values.map(|m| (m.metric.to_string(), m.timestamp.0 / Timestamp::SECOND, m.value)).collect::<Vec<_>>()
    };
    let number = |value| LiveValue::Number(value);
    ingest(&shard, [("d", format!(r#"{{"ts":{MINUTE},"b":1,"a":2}}"#))]);
    assert_eq!(latest(&shard), [("a".into(), MINUTE, number(2.0)), ("b".into(), MINUTE, number(1.0))]);
    // Older: kept as a row, but not the latest. Equal: the later one. Newer, and a text now.
    ingest(&shard, [("d", format!(r#"{{"ts":{},"b":3}}"#, MINUTE - 1))]);
    ingest(&shard, [("d", format!(r#"{{"ts":{MINUTE},"a":4}}"#))]);
    assert_eq!(latest(&shard), [("a".into(), MINUTE, number(4.0)), ("b".into(), MINUTE, number(1.0))]);
    ingest(&shard, [("d", format!(r#"{{"ts":{},"a":"on","b":false}}"#, MINUTE + 1))]);
    assert_eq!(
        latest(&shard),
        [
            ("a".into(), MINUTE + 1, LiveValue::Text("on".into())),
            ("b".into(), MINUTE + 1, LiveValue::Bool(false)),
        ]
    );
    let batch = shard.snapshot_batch();
    assert_eq!(batch.schema(), snapshot_schema());
    assert_eq!(texts(&batch, "metric_name"), ["b", "a"]);
    assert_eq!(texts(&batch, "text_value"), ["false", "on"]);
    assert_eq!(numbers(&batch, "metric_value"), [Some(0.0), None]);
    assert_eq!(shard.snapshot("other"), None);
    assert_eq!(Shard::new(1).snapshot_batch().num_rows(), 0);
}

#[test]
fn the_latest_values_are_restored_from_rows() {
    let before = Shard::new(0);
    let many: String = (0..40).map(|at| format!(r#","metric-{at}":{at}"#)).collect();
    ingest(
        &before,
        [
            ("d", format!(r#"{{"ts":{MINUTE},"text":"x","bool":true{many}}}"#)),
            ("d", format!(r#"{{"ts":{},"text":"newer"}}"#, MINUTE + 5)),
        ],
    );
    let after = Shard::new(0);
    for batch in before.rows(TableId::RawMetrics).iter().rev() {
        after.restore_latest(batch);
    }
    let values = |shard: &Shard| {
        let metrics = shard.snapshot("d").unwrap().metrics.into_iter();
        metrics.map(|m| (m.metric, m.timestamp, m.value)).collect::<Vec<_>>()
    };
    assert_eq!(values(&after), values(&before));
    before.rows(TableId::RawEvents).iter().for_each(|batch| after.restore_events(batch));
    assert_eq!(after.device("d").unwrap().events, 2);
    assert_eq!(after.device("d").unwrap().last_seen, Timestamp(ARRIVAL + 1));
    // The log's tail again: nothing changes, an older value does not come back.
    after.set_start_offsets([2; TableId::COUNT]);
    assert_eq!(ingest(&after, [("d", format!(r#"{{"ts":{MINUTE},"text":"old"}}"#))]).readings, 1);
    assert_eq!(values(&after), values(&before));
}

#[test]
fn what_is_saved_comes_back_and_no_event_is_counted_twice() {
    let before = Shard::new(0);
    ingest(
        &before,
        [
            ("d", format!(r#"{{"ts":{MINUTE},"n":1.5,"t":"x","b":true}}"#)),
            ("silent", "[]".to_owned()),
            ("d", format!(r#"{{"ts":{},"n":2}}"#, MINUTE + 5)),
        ],
    );
    let events = before.rows(TableId::RawEvents);
    let saved: Vec<_> = before.saved_rows().collect();
    assert_eq!(saved.iter().map(RecordBatch::num_rows).sum::<usize>(), 4);
    let after = Shard::new(0);
    saved.iter().for_each(|rows| after.restore_saved(rows));
    assert_eq!(after.snapshot("d"), before.snapshot("d"));
    assert_eq!(after.devices(None, 9), before.devices(None, 9));
    // Rows of merged files, and the log from further back, have events again that are counted.
    events.iter().for_each(|rows| after.restore_events(rows));
    assert_eq!(after.devices(None, 9), before.devices(None, 9));
    after.set_start_offsets([2; TableId::COUNT]);
    ingest(&after, [("d", format!(r#"{{"ts":{},"n":2}}"#, MINUTE + 5)), ("d", r#"{"n":3}"#.to_owned())]);
    assert_eq!(after.device("d").unwrap().events, 3);
    // And are saved as counted.
    let again = Shard::new(0);
    after.saved_rows().for_each(|rows| again.restore_saved(&rows));
    events.iter().for_each(|rows| again.restore_events(rows));
    assert_eq!(again.device("d").unwrap().events, 3);
}

#[test]
fn a_query_of_one_device_gets_its_open_rollups_only() {
    let shard = Shard::new(0);
    ingest(&shard, [("a", r#"{"v":1}"#), ("b", r#"{"v":2,"w":3}"#)]);
    let rollups = |device: Option<&str>| {
        let rows = shard.rows_for(TableId::MetricRollups, device);
        rows.iter().flat_map(|rows| texts(rows, "device_id")).collect::<Vec<_>>()
    };
    assert_eq!(rollups(Some("b")), ["b", "b"]);
    assert_eq!(rollups(Some("a")), ["a"]);
    assert!(rollups(Some("c")).is_empty());
    assert_eq!(rollups(None), ["a", "b", "b"]);
}

#[test]
fn a_flood_of_metrics_harms_only_its_device() {
    let shard = Shard::with_config(0, ShardConfig { metrics_per_device_max: 100, ..ShardConfig::default() });
    for round in 0..20 {
        let fields: Vec<_> = (0..50).map(|at| format!(r#""metric-{}":{at}"#, round * 50 + at)).collect();
        let report =
            ingest(&shard, [("flood", format!("{{{}}}", fields.join(","))), ("calm", r#"{"v":1}"#.into())]);
        let expected = if round < 2 { (51, 0) } else { (1, 50) };
        assert_eq!((report.readings, report.rejects), expected);
    }
    assert_eq!((shard.device("flood").unwrap().metrics, shard.device("calm").unwrap().metrics), (100, 1));
    let rejects = one(TableId::Rejects, &shard.rows(TableId::Rejects));
    assert_eq!(rejects.num_rows(), 18);
    assert_eq!(texts(&rejects, "reason"), ["too_many_metrics"; 18]);
    let detail = &texts(&rejects, "detail")[0];
    assert!(detail.contains("metric-100") && detail.contains("and 49 more"), "{detail}");
    // Its events are all kept, known metrics go on.
    assert_eq!(shard.device("flood").unwrap().events, 20);
    assert_eq!(ingest(&shard, [("flood", r#"{"metric-99":1}"#)]).readings, 1);
}

#[test]
fn a_flood_of_devices_and_memory_is_bounded() {
    let shard = Shard::with_config(0, ShardConfig { devices_max: 10, ..ShardConfig::default() });
    let report = ingest(&shard, (0..30).map(|at| (format!("device-{at}"), r#"{"v":1}"#)));
    assert_eq!((report.events, report.readings, report.rejects), (30, 10, 20));
    assert_eq!(one(TableId::RawEvents, &shard.rows(TableId::RawEvents)).num_rows(), 30);

    let shard = Shard::with_config(0, ShardConfig { snapshot_bytes_max: 20_000, ..ShardConfig::default() });
    let text = "t".repeat(9_000);
    let events =
        |text: &str| (0..5).map(|at| (format!("d{at}"), format!(r#"{{"v":"{text}"}}"#))).collect::<Vec<_>>();
    assert_eq!(ingest(&shard, events("small")).readings, 5);
    assert_eq!(ingest(&shard, events(&text)).readings, 2);
    assert!(shard.stats().snapshot_bytes <= 20_000);
    // Shorter texts give memory back.
    assert_eq!(ingest(&shard, events("small")).readings, 5);
    assert!(shard.stats().snapshot_bytes < 5_000);
}

#[test]
fn memory_is_counted_and_given_back() {
    let shard = Shard::new(0);
    assert_eq!(shard.buffered_bytes(), 0);
    let payload = format!(r#"{{"v":1,"text":"{}"}}"#, "x".repeat(1_000));
    ingest(&shard, [("d", &payload)]);
    let small = shard.buffered_bytes();
    assert!((2_000..4_000).contains(&small), "{small}");
    // A shared block counts whole, and once.
    ingest(&shard, vec![("d", &payload); 100]);
    let large = shard.buffered_bytes() - small;
    assert!((200_000..300_000).contains(&large), "{large}");
    assert_eq!(shard.stats().buffered_bytes, shard.buffered_bytes());
    // Taken rows are somebody's memory until they are written.
    let held = shard.held_bytes();
    let _ = shard.take_rows();
    assert_eq!(shard.buffered_bytes(), 0);
    assert!(shard.held_bytes() >= held, "{}", shard.held_bytes());
    // Each table's on its own: most is in the events, whose payloads are in blocks of the log.
    shard.rows_written(TableId::RawEvents);
    let readings = shard.held_bytes();
    assert!((1_000..held * 2 / 3).contains(&readings), "{readings} of {held}");
    shard.all_rows_written();
    assert_eq!(shard.held_bytes(), 0);
}

#[tokio::test]
async fn room_is_told_to_all_who_wait() {
    let shard = Shard::new(0);
    let (first, second) = (shard.room_notify().notified(), shard.room_notify().notified());
    let _ = shard.take_rows();
    shard.all_rows_written();
    first.await;
    second.await;
}

#[test]
fn devices_are_listed_in_order() {
    let shard = Shard::new(0);
    ingest(&shard, ["c", "a", "e", "b", "d", "a"].map(|id| (id, r#"{"v":1}"#)));
    let page = |after, limit| {
        shard.devices(after, limit).iter().map(|device| device.device_id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 2), ["a", "b"]);
    assert_eq!(page(Some("b"), 2), ["c", "d"]);
    assert_eq!(page(Some("cc"), 9), ["d", "e"]);
    assert_eq!(
        shard.device("a").unwrap(),
        DeviceSeen {
            device_id: "a".into(),
            first_seen: Timestamp(ARRIVAL + 1),
            last_seen: Timestamp(ARRIVAL + 5),
            events: 2,
            metrics: 1,
        }
    );
    let batch = shard.devices_batch();
    assert_eq!(batch.schema(), devices_schema());
    assert_eq!(texts(&batch, "device_id"), ["c", "a", "e", "b", "d"]);
    assert_eq!(integers(&batch, "events"), [1, 2, 1, 1, 1]);
}

#[test]
fn many_devices_come_in_chunks() {
    let shard = Shard::new(0);
    ingest(&shard, (0..2_500).map(|at| (format!("device-{at}"), r#"{"v":1,"w":2}"#)));
    assert_eq!(shard.devices_batch().num_rows(), 2_500);
    assert_eq!(shard.snapshot_batch().num_rows(), 5_000);
}

#[test]
fn readers_see_a_prefix_while_the_worker_writes_and_flushes_lose_nothing() {
    const BLOCKS: usize = 40;
    const EVENTS: usize = 500;
    let shard = Shard::new(0);
    let done = AtomicBool::new(false);
    let taken = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..BLOCKS {
                ingest(
                    &shard,
                    (0..EVENTS)
                        .map(|at| (format!("device-{at}"), r#"{"v":1,"long text":"0123456789abcdef"}"#)),
                );
            }
            done.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                taken.lock().unwrap().push(shard.take_rows());
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let offsets =
                    integers(&one(TableId::RawEvents, &shard.rows(TableId::RawEvents)), "log_offset");
                assert!(offsets.is_sorted_by(|a, b| a + 1 == *b));
            }
        });
    });
    let mut taken = taken.into_inner().unwrap();
    taken.push(shard.take_rows());
    let table = |table: TableId| {
        let batches: Vec<_> = taken.iter().flat_map(|taken| taken.tables[table.index()].clone()).collect();
        one(table, &batches)
    };
    let expected: Vec<_> = (0..(BLOCKS * EVENTS) as i64).collect();
    assert_eq!(integers(&table(TableId::RawEvents), "log_offset"), expected);
    assert_eq!(texts(&table(TableId::RawEvents), "device_id")[EVENTS], "device-0");
    assert_eq!(table(TableId::RawMetrics).num_rows(), 2 * expected.len());
    assert_eq!(integers(&table(TableId::MetricRollups), "count").iter().sum::<i64>(), expected.len() as i64);
    // Each take is complete up to the offset that it names.
    let mut rows = 0;
    for taken in &taken {
        rows += taken.tables[0].iter().map(RecordBatch::num_rows).sum::<usize>() as u64;
        assert_eq!(rows, taken.next_offset);
    }
}

#[tokio::test]
async fn live_readings_come_from_ingest() {
    let (shard, hub) = (Shard::new(0), LiveHub::new(LiveConfig::default()));
    let filter = LiveFilter { metrics: vec!["v".into()], ..LiveFilter::default() };
    let mut subscription = hub.subscribe(filter).unwrap();
    let mut live = hub.batch();
    let events = batch_of([("a", r#"{"v":1,"w":2}"#), ("b", r#"{"v":"x"}"#)]);
    shard.ingest(0, &events, .., &mut worker(), live.as_mut());
    hub.publish(live.unwrap());
    let Some(LiveMessage::Readings(readings)) = subscription.recv().await else { panic!("no readings") };
    let seen: Vec<_> = readings.iter().map(|r| (&*r.device_id, &*r.metric, &r.value)).collect();
    assert_eq!(seen, [("a", "v", &LiveValue::Number(1.0)), ("b", "v", &LiveValue::Text("x".into()))]);
    assert_eq!((&*readings[0].event_type, readings[1].received_at), ("state", Timestamp(ARRIVAL + 1)));
}
