//! The archive: every row once, wherever it is, whatever stops an export.

use super::*;

const DAYS: i64 = 10;

fn places(site: &Site) -> Places {
    Places { archive: Some(site.place("archive")), ..site.places("history") }
}

/// Ten days of two devices, flushed twice, and one row in memory; each day has an event that does not decode.
async fn filled(places: &Places) -> (Arc<DeltaHistory>, Log) {
    let mut log = Log::default();
    let history = open_at(places, HistoryConfig::default()).await.unwrap();
    for round in 0..2 {
        for day in 0..DAYS {
            for device in ["a", "b"] {
                log.push(device, NOON - day * Timestamp::DAY + round, day);
            }
            log.push_payload("a", NOON - day * Timestamp::DAY, "{".to_owned());
        }
        log.feed(&history);
        history.flush().await.unwrap();
    }
    log.push("b", NOON, 1);
    log.feed(&history);
    (history, log)
}

fn counts(history: &DeltaHistory, table: TableId) -> (usize, usize) {
    (history.view.files(table).len(), history.view.files_in(Part::Archived, table).len())
}

/// Rejects expire in the meantime, so they are not asked for.
async fn assert_all_raw(history: &DeltaHistory, log: &Log, when: &str) {
    let events = "SELECT count(*), count(DISTINCT log_partition * 1000000 + log_offset) FROM raw_events";
    let count = log.len();
    assert_eq!(query_one(history, events).await, format!("{count},{count}"), "{when}");
    let readings = log.events.iter().flatten().filter(|(_, _, payload)| payload != "{").count();
    let metrics = "SELECT count(*), count(DISTINCT log_partition * 1000000 + log_offset) FROM raw_metrics";
    assert_eq!(query_one(history, metrics).await, format!("{readings},{readings}"), "{when}");
    let days = "SELECT count(DISTINCT date_trunc('day', timestamp)) FROM raw_metrics WHERE device_id = 'a'";
    assert_eq!(query_one(history, days).await, DAYS.to_string(), "{when}");
}

async fn hot_days_stay_and_others_move(site: &Site) {
    let places = places(site);
    let (history, mut log) = filled(&places).await;
    assert_all_raw(&history, &log, "before").await;
    history.maintain(Timestamp(NOON)).await.unwrap();
    // Noon less seven days is within a day that is kept.
    for table in [TableId::RawEvents, TableId::RawMetrics] {
        assert_eq!(counts(&history, table), (16, 2), "{table:?}");
    }
    assert_all_raw(&history, &log, "after the export").await;
    let one_archived_day = "SELECT device_id, metric_value FROM raw_metrics \
        WHERE timestamp BETWEEN '2026-11-14' AND '2026-11-14T23:59:59Z' ORDER BY device_id";
    assert_eq!(query(&history, one_archived_day).await, ["a,9.0", "a,9.0", "b,9.0", "b,9.0"]);
    assert_eq!(query(&history, "SELECT 1 FROM raw_metrics LIMIT 3").await.len(), 3);

    // A row that comes late goes the same way.
    log.push("b", NOON - 9 * Timestamp::DAY, 5);
    log.feed(&history);
    history.flush().await.unwrap();
    assert_eq!(counts(&history, TableId::RawMetrics), (18, 2));
    history.maintain(Timestamp(NOON)).await.unwrap();
    assert_eq!(counts(&history, TableId::RawMetrics), (17, 3));
    assert_all_raw(&history, &log, "with a late row").await;

    let history = open_at(&places, HistoryConfig::default()).await.unwrap();
    assert_eq!(counts(&history, TableId::RawMetrics), (17, 3));
    log.feed(&history);
    assert_all_raw(&history, &log, "opened again").await;

    // What is archived goes after its own time alone.
    let config = HistoryConfig { archive_retention_days: 8, vacuum_grace_ms: 0, ..HistoryConfig::default() };
    let history = open_at(&places, config).await.unwrap();
    history.maintain(Timestamp(NOON)).await.unwrap();
    assert_eq!(counts(&history, TableId::RawMetrics), (17, 1));
    history.maintain(Timestamp(Timestamp::now().as_micros() + Timestamp::MINUTE)).await.unwrap();
    let archived = files_at(places.archive.as_ref().unwrap()).await;
    assert!(!archived.iter().any(|path| path.contains("date=2026-11-14")), "{archived:?}");
}

#[tokio::test]
async fn hot_days_stay_and_others_move_to_a_folder() {
    hot_days_stay_and_others_move(&Site::local()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hot_days_stay_and_others_move_to_s3() {
    if let Some(site) = Site::s3() {
        hot_days_stay_and_others_move(&site).await;
    }
}

/// Both logs as a crash leaves them after the archive's commit: history's without the removal.
#[tokio::test]
async fn a_crash_between_export_and_removal_doubles_nothing() {
    let site = Site::local();
    let with_archive = places(&site);
    let (history, log) = filled(&with_archive).await;
    drop(history);
    let before = site.place("before");
    copy_place(&with_archive.history, &before);
    let history = open_at(&with_archive, HistoryConfig::default()).await.unwrap();
    history.maintain(Timestamp(NOON)).await.unwrap();
    assert_eq!(counts(&history, TableId::RawEvents), (16, 2));
    drop(history);

    let crashed = Places { history: before, ..with_archive };
    for when in ["after the crash", "opened again"] {
        let history = open_at(&crashed, HistoryConfig::default()).await.unwrap();
        assert_eq!(counts(&history, TableId::RawEvents), (16, 2), "{when}");
        log.feed(&history);
        assert_all_raw(&history, &log, when).await;
        history.maintain(Timestamp(NOON)).await.unwrap();
        assert_all_raw(&history, &log, when).await;
    }
}

/// History's log is another's by the time that the archive has committed.
#[tokio::test]
async fn an_export_that_history_does_not_hear_of_is_gone_on_with() {
    let site = Site::local();
    let places = places(&site);
    let (history, log) = filled(&places).await;
    let table = Arc::clone(&history.tables[TableId::RawMetrics.index()]);
    let archive = Arc::clone(history.archive.as_ref().unwrap().table(TableId::RawMetrics).unwrap());
    // A name that history's next commit needs is taken by a folder.
    let Place::Folder(folder) = &places.history else { unreachable!("a local site") };
    let next =
        folder.join(format!("raw_metrics/_delta_log/.{:020}.json.tmp", table.log.lock().version() + 1));
    std::fs::create_dir(&next).unwrap();
    history.export(&table, &archive, 7, Timestamp(NOON)).await.unwrap_err();
    assert_eq!(counts(&history, TableId::RawMetrics), (20, 0), "queries still take history's");
    assert_all_raw(&history, &log, "while history does not know").await;
    let exporting = history.view.files(TableId::RawMetrics);
    assert_eq!(exporting.iter().filter(|file| table.is_exporting(file)).count(), 2);
    std::fs::remove_dir(&next).unwrap();
    history.export(&table, &archive, 7, Timestamp(NOON)).await.unwrap();
    assert_eq!(counts(&history, TableId::RawMetrics), (16, 2));
    assert_all_raw(&history, &log, "in the end").await;
}

#[tokio::test]
async fn an_archive_is_of_one_log() {
    let site = Site::local();
    let places = places(&site);
    drop(filled(&places).await);
    let other = Places { history: site.place("other"), log: "another log".to_owned(), ..places };
    let error = open_at(&other, HistoryConfig::default()).await.err().unwrap();
    assert!(matches!(error, StoreError::OtherLog { .. }), "{error}");
}

#[tokio::test]
async fn without_the_archive_history_goes_on() {
    let site = Site::local();
    let places = places(&site);
    let (history, log) = filled(&places).await;
    let Some(Place::Folder(archive)) = &places.archive else { unreachable!("a local site") };
    // Whatever the archive does not take stays where it is, and the rest is looked after.
    let moved = archive.with_file_name("away");
    std::fs::rename(archive, &moved).unwrap();
    std::fs::write(archive, "no folder").unwrap();
    history.maintain(Timestamp(NOON)).await.unwrap_err();
    assert_eq!(counts(&history, TableId::RawMetrics), (20, 0));
    assert_eq!(history.view.files(TableId::Rejects).len(), 16, "rejects expire");
    assert_all_raw(&history, &log, "without it").await;
    std::fs::remove_file(archive).unwrap();
    std::fs::rename(&moved, archive).unwrap();
    history.maintain(Timestamp(NOON)).await.unwrap();
    assert_eq!(counts(&history, TableId::RawMetrics), (16, 2));
    assert_all_raw(&history, &log, "with it again").await;
}
