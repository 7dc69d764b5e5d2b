//! What all tests of history share: a log of events in memory, and a history that is fed from it.

mod archive;
mod crash;
mod maintain;
mod query;
mod shared;

use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use catchment_decode::{Decoders, WorkerDecoders};
use catchment_types::{DEFAULT_REALM, Event, EventBatch, Offset, Timestamp, partition_of};
use datafusion::execution::context::SessionContext;
use datafusion::prelude::SessionConfig;

use super::*;

pub(super) const PARTITIONS: usize = 2;
/// 2026-11-23T12:00:00Z.
pub(super) const NOON: i64 = 1_795_435_200_000_000;

/// The log: all events of each partition, from offset 0 on.
#[derive(Default)]
pub(super) struct Log {
    events: [Vec<(String, i64, String)>; PARTITIONS],
}

impl Log {
    /// Appends an event of a device with one metric `v`, measured and received at `time`.
    pub(super) fn push(&mut self, device: &str, time: i64, value: i64) {
        let payload = format!(r#"{{"v":{value},"timestamp":{}}}"#, time / 1000);
        self.push_payload(device, time, payload);
    }

    pub(super) fn push_payload(&mut self, device: &str, time: i64, payload: String) {
        let partition = partition_of(DEFAULT_REALM, device, PARTITIONS as u32) as usize;
        self.events[partition].push((device.to_owned(), time, payload));
    }

    /// Appends `count` events of ten devices, one a second; each twentieth does not decode.
    pub(super) fn push_some(&mut self, count: i64) {
        let begin = self.len() as i64;
        for number in begin..begin + count {
            let (device, time) = (format!("device-{}", number % 10), NOON + number * Timestamp::SECOND);
            if number % 20 == 7 {
                self.push_payload(&device, time, "{".to_owned());
            } else {
                self.push(&device, time, number);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.events.iter().map(Vec::len).sum()
    }

    /// Has each shard ingest what it does not have yet.
    pub(super) fn feed(&self, history: &DeltaHistory) {
        for (partition, shard) in history.view.shards().iter().enumerate() {
            let next = shard.stats().next_offset;
            self.feed_up_to(history, partition, next, self.events[partition].len());
        }
    }

    /// Has a shard ingest events from offset `from` up to `end`.
    pub(super) fn feed_up_to(&self, history: &DeltaHistory, partition: usize, from: Offset, end: usize) {
        let mut decoders = WorkerDecoders::new(Arc::new(Decoders::default()));
        let mut builder = EventBatch::builder();
        for (device_id, time, payload) in &self.events[partition][from as usize..end] {
            let event = Event {
                realm: DEFAULT_REALM,
                device_id,
                event_type: "state",
                topic: "devices/x/state",
                received_at: Timestamp(*time),
                content_type: "application/json",
                tags: "",
                mark: 0,
                payload: payload.as_bytes(),
            };
            builder.push(&event).unwrap();
        }
        history.view.shards()[partition].ingest(from, &builder.take(), from.., &mut decoders, None);
    }
}

pub(super) async fn open(folder: &Path) -> Arc<DeltaHistory> {
    open_with(folder, HistoryConfig { compact_files_min: 4, ..HistoryConfig::default() }).await
}

pub(super) async fn open_with(folder: &Path, config: HistoryConfig) -> Arc<DeltaHistory> {
    open_at(&Places::in_folder(folder), config).await.unwrap()
}

pub(super) async fn open_at(places: &Places, config: HistoryConfig) -> Result<Arc<DeltaHistory>, StoreError> {
    let shards = (0..PARTITIONS as u32).map(Shard::new).collect();
    DeltaHistory::open(places, config, shards).await
}

/// Places for tables that end with the test: folders, or prefixes of a bucket.
pub(super) enum Site {
    Local(tempfile::TempDir),
    S3(crate::storage::s3::S3Place),
}

impl Site {
    pub(super) fn local() -> Self {
        Self::Local(tempfile::tempdir().unwrap())
    }

    /// In the S3 that `CATCHMENT_TEST_S3` names; none when it names none.
    pub(super) fn s3() -> Option<Self> {
        let place = crate::storage::s3::test_place("history");
        if place.is_none() {
            println!("not run: CATCHMENT_TEST_S3 names no S3");
        }
        place.map(Self::S3)
    }

    pub(super) fn place(&self, name: &str) -> Place {
        match self {
            Self::Local(folder) => Place::Folder(folder.path().join(name)),
            Self::S3(place) => Place::S3(crate::storage::s3::S3Place {
                prefix: format!("{}/{name}", place.prefix),
                ..place.clone()
            }),
        }
    }

    pub(super) fn places(&self, name: &str) -> Places {
        Places { history: self.place(name), archive: None, log: "a log".to_owned() }
    }
}

/// What a test does with a storage, off the runtime's threads: storages block.
pub(super) async fn with_storage<T: Send + 'static>(
    place: &Place,
    work: impl FnOnce(&dyn crate::storage::Storage) -> T + Send + 'static,
) -> T {
    let place = place.clone();
    tokio::task::spawn_blocking(move || work(&*place.open().unwrap())).await.unwrap()
}

/// All that is in one place, put into another.
pub(super) fn copy_place(from: &Place, to: &Place) {
    let (from, to) = (from.open().unwrap(), to.open().unwrap());
    for path in from.list("").unwrap() {
        if let Some((folder, _)) = path.rsplit_once('/') {
            to.make_folder(folder).unwrap();
        }
        to.replace(&path, from.read(&path).unwrap().unwrap()).unwrap();
    }
}

/// Paths of all Parquet files of a place, without checkpoints.
pub(super) async fn files_at(place: &Place) -> Vec<String> {
    let mut files = with_storage(place, |storage| storage.list("").unwrap()).await;
    files.retain(|path| path.ends_with(".parquet") && path.contains('='));
    files.sort();
    files
}

pub(super) fn context(history: &DeltaHistory) -> SessionContext {
    let config = SessionConfig::new()
        .with_target_partitions(2)
        .with_default_catalog_and_schema(CATALOG, DEFAULT_REALM)
        .with_create_default_catalog_and_schema(false);
    let context = SessionContext::new_with_config(config);
    history.register_tables(&context).unwrap();
    context
}

pub(super) async fn rows(history: &DeltaHistory, sql: &str) -> Vec<RecordBatch> {
    context(history).sql(sql).await.unwrap().collect().await.unwrap()
}

/// The answer, one line a row, columns by commas.
pub(super) async fn query(history: &DeltaHistory, sql: &str) -> Vec<String> {
    let mut csv = arrow::csv::WriterBuilder::new().with_header(false).build(Vec::new());
    for batch in rows(history, sql).await {
        csv.write(&batch).unwrap();
    }
    String::from_utf8(csv.into_inner()).unwrap().lines().map(str::to_owned).collect()
}

pub(super) async fn query_one(history: &DeltaHistory, sql: &str) -> String {
    query(history, sql).await.join("\n")
}

/// Whether every event of the log is in every table exactly once, as far as queries tell.
pub(super) async fn assert_complete(history: &DeltaHistory, log: &Log, when: &str) {
    let mut events = Vec::new();
    let mut rejects = Vec::new();
    let mut readings = Vec::new();
    for (partition, list) in log.events.iter().enumerate() {
        for (offset, (device, _, payload)) in list.iter().enumerate() {
            events.push(format!("{partition},{offset},{device}"));
            if payload == "{" {
                rejects.push(format!("{partition},{offset}"));
            } else {
                readings.push(format!("{partition},{offset},v"));
            }
        }
    }
    let seen = query(
        history,
        "SELECT log_partition, log_offset, device_id FROM raw_events ORDER BY log_partition, log_offset",
    );
    assert_eq!(seen.await, events, "raw_events {when}");
    let seen = query(
        history,
        "SELECT log_partition, log_offset, metric_name FROM raw_metrics ORDER BY log_partition, log_offset",
    );
    assert_eq!(seen.await, readings, "raw_metrics {when}");
    let seen =
        query(history, "SELECT log_partition, log_offset FROM rejects ORDER BY log_partition, log_offset");
    assert_eq!(seen.await, rejects, "rejects {when}");
    let rollups = "SELECT device_id, date_bin(INTERVAL '1 minute', timestamp) AS time_bucket, metric_name, \
        avg(metric_value) AS avg_value, min(metric_value) AS min_value, max(metric_value) AS max_value, count(*) AS count \
        FROM raw_metrics GROUP BY 1, 2, 3 ORDER BY 1, 2, 3";
    let seen = query(history, "SELECT * FROM aggregated_metrics ORDER BY 1, 2, 3").await;
    assert_eq!(seen, query(history, rollups).await, "aggregated_metrics {when}");
}

/// Paths of all Parquet files on disk, relative to `folder`.
pub(super) fn files_on_disk(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "parquet") {
                files.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

#[tokio::test]
async fn rows_are_seen_once_before_and_after_a_flush_and_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let history = open(folder.path()).await;
    assert_complete(&history, &log, "when empty").await;
    log.push_some(100);
    log.feed(&history);
    assert_complete(&history, &log, "in memory").await;

    let committed = history.subscribe_committed();
    let report = history.flush().await.unwrap();
    assert_eq!((report.files, report.rows > 200), (4, true), "{report:?}");
    assert_eq!(*committed.borrow(), log.events.each_ref().map(|events| events.len() as u64));
    assert_complete(&history, &log, "in files").await;
    assert_eq!(history.flush().await.unwrap().files, 0);

    log.push_some(50);
    log.feed(&history);
    assert_complete(&history, &log, "in both").await;

    let history = open(folder.path()).await;
    assert_eq!(history.start_offset(0) + history.start_offset(1), 100);
    log.feed(&history);
    assert_complete(&history, &log, "after a restart").await;
    assert_eq!(history.health(), HistoryHealth::Healthy);
}

#[tokio::test]
async fn the_snapshot_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let history = open(folder.path()).await;
    log.push("a", NOON - Timestamp::DAY, 1);
    log.push("b", NOON - Timestamp::DAY, 2);
    log.push("a", NOON, 3);
    log.feed(&history);
    history.flush().await.unwrap();
    log.push_payload("a", NOON - 5, r#"{"v":4,"on":true,"s":"x"}"#.to_owned());
    log.feed(&history);
    history.flush().await.unwrap();
    log.push("b", NOON, 5);

    let history = open(folder.path()).await;
    assert_eq!(history.restore_snapshot().await.unwrap(), 4);
    let latest = |device: &str| {
        let partition = partition_of(DEFAULT_REALM, device, PARTITIONS as u32) as usize;
        let snapshot = history.view.shards()[partition].snapshot(device).unwrap();
        let metrics = snapshot.metrics.iter();
        metrics.map(|metric| format!("{} {:?}", metric.metric, metric.value)).collect::<Vec<_>>()
    };
    let before_replay = (latest("a"), latest("b"));
    assert_eq!(before_replay.0.len(), 3);
    assert!(before_replay.0.contains(&"v Number(3.0)".to_owned()), "{before_replay:?}");
    assert_eq!(before_replay.1, ["v Number(2.0)"]);
    let device = history.view.shards().iter().find_map(|shard| shard.device("a")).unwrap();
    assert_eq!((device.events, device.first_seen), (3, Timestamp(NOON - Timestamp::DAY)));
    log.feed(&history);
    assert_eq!(latest("b"), ["v Number(5.0)"]);
    assert_eq!(
        query_one(&history, "SELECT count(*), count(DISTINCT log_offset) FROM raw_events").await,
        "5,3"
    );
}

/// Events and latest value of `v` of every device.
fn known(history: &DeltaHistory) -> Vec<String> {
    let mut known = Vec::new();
    for shard in history.view.shards() {
        for device in shard.devices(None, 100) {
            let metrics = shard.snapshot(&device.device_id).unwrap().metrics;
            let values: Vec<_> = metrics.iter().map(|metric| &metric.value).collect();
            known.push(format!("{} {} {values:?}", device.device_id, device.events));
        }
    }
    known.sort();
    known
}

/// What a start knows, from whatever there is.
async fn restarted(folder: &Path, log: &Log) -> Vec<String> {
    let history = open(folder).await;
    history.restore_snapshot().await.unwrap();
    log.feed(&history);
    known(&history)
}

#[tokio::test]
async fn a_saved_snapshot_spares_the_files_that_it_covers() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let history = open(folder.path()).await;
    log.push_some(100);
    log.feed(&history);
    history.flush().await.unwrap();
    log.push_some(20);
    log.feed(&history);
    history.save_snapshot().await.unwrap();
    assert_eq!(restarted(folder.path(), &log).await, known(&history), "rows that are in the log only");

    // Files that came after it, and merged ones that hold rows from before and after.
    for round in 0..4 {
        log.push_some(30);
        log.feed(&history);
        history.flush().await.unwrap();
        assert_eq!(restarted(folder.path(), &log).await, known(&history), "round {round}");
    }
    let metrics = folder.path().join("raw_metrics");
    assert_eq!(history.view.files(TableId::RawMetrics).len(), 5);
    history.maintain(Timestamp(NOON + Timestamp::DAY)).await.unwrap();
    assert_eq!(history.view.files(TableId::RawMetrics).len(), 1, "{metrics:?}");
    assert_eq!(restarted(folder.path(), &log).await, known(&history), "after a merge");

    // With all of it covered, no file is opened: what stands there does not matter.
    history.save_snapshot().await.unwrap();
    let path = metrics.join(&history.view.files(TableId::RawMetrics)[0].path);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, b"not Parquet").unwrap();
    assert_eq!(restarted(folder.path(), &log).await, known(&history), "from the snapshot file alone");
    std::fs::write(&path, bytes).unwrap();

    // A damaged one is told of, and costs time only.
    let saved = folder.path().join("snapshot.parquet");
    let mut bytes = std::fs::read(&saved).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle..middle + 8].fill(0xff);
    for damaged in [&bytes[..], &bytes[..20], b""] {
        std::fs::write(&saved, damaged).unwrap();
        assert_eq!(restarted(folder.path(), &log).await, known(&history), "{} bytes", damaged.len());
    }
    std::fs::remove_file(&saved).unwrap();
    assert_eq!(restarted(folder.path(), &log).await, known(&history), "without it");
}

#[tokio::test]
async fn fewer_partitions_than_before_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let history = open(folder.path()).await;
    log.push_some(20);
    log.feed(&history);
    history.flush().await.unwrap();
    let error =
        DeltaHistory::open(&Places::in_folder(folder.path()), HistoryConfig::default(), vec![Shard::new(0)])
            .await;
    let error = error.err().unwrap();
    assert!(matches!(error, StoreError::Partitions { partition: 1, partitions: 1, .. }), "{error}");
}
