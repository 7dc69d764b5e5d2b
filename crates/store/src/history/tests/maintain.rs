//! Compaction, retention, clean-up.

use arrow::array::AsArray;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::super::sort::{strings, times};
use super::*;

const GRACE: i64 = 600 * Timestamp::SECOND;

fn file_counts(history: &DeltaHistory) -> [usize; TableId::COUNT] {
    TableId::ALL.map(|table| history.view.files(table).len())
}

#[tokio::test]
async fn merging_keeps_rows_and_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let history = open(folder.path()).await;
    for _ in 0..4 {
        log.push_some(25);
        log.feed(&history);
        history.flush().await.unwrap();
    }
    assert_eq!(file_counts(&history), [4; 4]);
    let states = query_one(&history, "SELECT count(*) FROM metric_rollups").await;
    history.maintain(Timestamp(NOON)).await.unwrap();
    assert_eq!(file_counts(&history), [1; 4]);
    assert_complete(&history, &log, "after a merge").await;
    // Ten devices in two minutes.
    let merged = query_one(&history, "SELECT count(*) FROM metric_rollups").await;
    assert!(states.parse::<u32>().unwrap() > 30 && merged == "20", "{states} {merged}");

    for table in TableId::ALL {
        let file = Arc::clone(&history.view.files(table)[0]);
        let path = folder.path().join(table.name()).join(&file.path);
        let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap();
        let plain: Vec<_> =
            reader.schema().fields().iter().map(|field| field.data_type().to_string()).collect();
        assert!(!plain.iter().any(|name| name.contains("View") || name.contains("Dictionary")), "{plain:?}");
        let stats = file.stats.clone().unwrap();
        let mut keys = Vec::new();
        for rows in reader.build().unwrap() {
            let rows = rows.unwrap();
            let devices = rows["device_id"].as_string::<i32>();
            keys.extend(devices.iter().flatten().map(str::to_owned).zip(times(table, &rows).iter().copied()));
        }
        assert!(keys.is_sorted(), "{table:?}");
        assert_eq!(stats.rows, keys.len() as u64);
        assert_eq!((stats.device_min, stats.device_max), (keys[0].0.clone(), keys[keys.len() - 1].0.clone()));
    }
    // Readers of the merged files have time to finish, then they go.
    assert_eq!(files_on_disk(folder.path()).len(), 5 * 4);
    history.maintain(Timestamp(Timestamp::now().as_micros() + 2 * GRACE)).await.unwrap();
    assert_complete(&history, &log, "after the clean-up").await;
    assert_eq!(files_on_disk(folder.path()).len(), 4);
    let history = open(folder.path()).await;
    assert_complete(&history, &log, "opened again").await;
    assert_eq!(file_counts(&history), [1; 4]);
}

#[tokio::test]
async fn late_rows_go_to_their_own_day_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let history = open(folder.path()).await;
    for (device, day, minute) in
        [("b", 0, 1), ("a", 0, 1), ("b", -1, 3), ("b", 0, 0), ("a", -40, 1), ("b", -1, 2)]
    {
        log.push(device, NOON + day * Timestamp::DAY + minute * Timestamp::MINUTE, 1);
    }
    log.feed(&history);
    history.flush().await.unwrap();
    assert_complete(&history, &log, "late rows").await;
    let periods =
        |table| history.view.files(table).iter().map(|file| file.period.clone()).collect::<Vec<_>>();
    assert_eq!(periods(TableId::RawMetrics), ["2026-10-14", "2026-11-22", "2026-11-23"]);
    assert_eq!(periods(TableId::MetricRollups), ["2026-10", "2026-11"]);
}

#[tokio::test]
async fn whole_days_expire_and_rollups_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let history = open(folder.path()).await;
    for day in 0..10 {
        log.push("a", NOON - day * Timestamp::DAY, day);
        log.push_payload("a", NOON - day * Timestamp::DAY, "{".to_owned());
    }
    log.feed(&history);
    history.flush().await.unwrap();
    assert_eq!(file_counts(&history), [10, 10, 1, 10]);
    // Noon less seven days is within a day that is kept.
    history.maintain(Timestamp(NOON)).await.unwrap();
    assert_eq!(file_counts(&history), [8, 8, 1, 8]);
    assert_eq!(
        query_one(&history, "SELECT count(*), min(timestamp) FROM raw_metrics").await,
        "8,2026-11-16T12:00:00Z"
    );
    assert_eq!(query_one(&history, "SELECT sum(count) FROM aggregated_metrics").await, "10");
    assert_eq!(files_on_disk(folder.path()).len(), 31);
    history.maintain(Timestamp(NOON + 2 * GRACE)).await.unwrap();
    assert_eq!(files_on_disk(folder.path()).len(), 25);
    assert!(!folder.path().join("raw_events/date=2026-11-14").exists());
    // A year and two months later all are gone, but offsets stay.
    history.maintain(Timestamp(NOON + 430 * Timestamp::DAY)).await.unwrap();
    assert_eq!(file_counts(&history), [0; 4]);
    let history = open(folder.path()).await;
    assert_eq!(query_one(&history, "SELECT count(*) FROM raw_events").await, "0");
    assert_eq!(history.start_offset(0) + history.start_offset(1), 20);
}

#[tokio::test]
async fn many_commits_are_checkpointed() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let history = open(folder.path()).await;
    for _ in 0..120 {
        log.push_some(2);
        log.feed(&history);
        history.flush().await.unwrap();
        history.maintain(Timestamp(NOON)).await.unwrap();
    }
    let names: Vec<_> = std::fs::read_dir(folder.path().join("raw_events/_delta_log"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.iter().filter(|name| name.ends_with(".checkpoint.parquet")).count(), 2, "{names:?}");
    assert!(names.len() < 110, "{names:?}");
    assert!(history.view.files(TableId::RawEvents).len() < 10);
    let history = open(folder.path()).await;
    assert_complete(&history, &log, "after checkpoints").await;
}

#[tokio::test]
async fn the_background_flushes_by_size_and_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let config = HistoryConfig { flush_bytes: 1, ..HistoryConfig::default() };
    let history = open_with(folder.path(), config).await;
    let shutdown = tokio_util::sync::CancellationToken::new();
    let background = tokio::spawn(Arc::clone(&history).run(shutdown.clone()));
    log.push_some(40);
    log.feed(&history);
    let mut committed = history.subscribe_committed();
    committed.wait_for(|offsets| offsets.iter().sum::<u64>() == 40).await.unwrap();
    log.push_some(3);
    log.feed(&history);
    shutdown.cancel();
    background.await.unwrap();
    assert_eq!(committed.borrow().iter().sum::<u64>(), 43);
    assert_complete(&history, &log, "at the end").await;
}

#[test]
fn rows_are_split_by_day_and_sorted() {
    let shard = Shard::new(0);
    let mut decoders = catchment_decode::WorkerDecoders::new(Arc::default());
    let mut builder = EventBatch::builder();
    let mut seed = 7_u64;
    for number in 0..5000_i64 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let device = format!("device-{}", seed >> 55);
        let payload = format!(r#"{{"v":{number}}}"#);
        let received_at = Timestamp(NOON + (seed >> 40) as i64 % 3 * Timestamp::DAY + number % 100);
        let event = Event {
            realm: DEFAULT_REALM,
            device_id: &device,
            event_type: "t",
            topic: "",
            received_at,
            content_type: "",
            tags: "",
            mark: 0,
            payload: payload.as_bytes(),
        };
        builder.push(&event).unwrap();
    }
    shard.ingest(0, &builder.take(), 0.., &mut decoders, None);
    let table = TableId::RawMetrics;
    let rows = super::super::writer::join(table, &shard.rows(table)).unwrap();
    let periods = super::super::sort::by_period(table, &rows);
    assert_eq!(periods.keys().collect::<Vec<_>>(), ["2026-11-23", "2026-11-24", "2026-11-25"]);
    let mut all: Vec<u32> = periods.values().flatten().copied().collect();
    for (period, numbers) in &periods {
        let rows = super::super::writer::pick(table, &rows, numbers).unwrap();
        // Stable: equal times keep the order of arrival.
        let offsets = rows["log_offset"].as_primitive::<arrow::datatypes::Int64Type>().values();
        let devices = strings(&rows, "device_id");
        let keys: Vec<_> = (0..rows.num_rows())
            .map(|row| (devices.value(row).to_owned(), times(table, &rows)[row], offsets[row]))
            .collect();
        assert!(keys.is_sorted());
        assert!(keys.iter().all(|(_, time, _)| &table.period().of(*time).0 == period));
    }
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..5000));
}
