//! Tables in S3: everything that they do in a folder, and that two processes do each other no harm.

use super::*;

/// Rounds of flushes and merges, vacuum, checkpoints, the saved snapshot, and a start from what is there.
async fn lives(site: &Site) {
    let places = site.places("lake");
    let config = HistoryConfig { compact_files_min: 3, vacuum_grace_ms: 0, ..HistoryConfig::default() };
    let mut log = Log::default();
    let history = open_at(&places, config.clone()).await.unwrap();
    for _ in 0..7 {
        log.push_some(20);
        log.feed(&history);
        history.flush().await.unwrap();
        history.maintain(Timestamp(Timestamp::now().as_micros() + Timestamp::SECOND)).await.unwrap();
        assert_complete(&history, &log, "between flushes").await;
    }
    for table in &history.tables {
        assert!(history.view.files(table.id).len() <= 3, "merged");
    }
    let known = history.tables.iter().map(|table| table.log.lock().files().count()).sum::<usize>();
    history.maintain(Timestamp(Timestamp::now().as_micros() + Timestamp::SECOND)).await.unwrap();
    assert_eq!(files_at(&places.history).await.len(), known, "what is merged is deleted");
    let pruned =
        "SELECT count(*) FROM raw_metrics WHERE device_id = 'device-3' AND timestamp >= '2026-11-23'";
    assert_eq!(query_one(&history, pruned).await, "14");
    history.save_snapshot().await.unwrap();

    let history = open_at(&places, config).await.unwrap();
    assert_complete(&history, &log, "opened again").await;
    assert!(history.restore_snapshot().await.unwrap() > 0);
    let tables = history.tables.clone();
    let checkpoint = move || tables.iter().for_each(|table| table.log.lock().checkpoint().unwrap());
    tokio::task::spawn_blocking(checkpoint).await.unwrap();
    let history = open_at(&places, HistoryConfig::default()).await.unwrap();
    assert_complete(&history, &log, "from checkpoints").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_live_in_s3() {
    if let Some(site) = Site::s3() {
        lives(&site).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_s3_does_no_harm() {
    let Some(site) = Site::s3() else { return };
    let places = site.places("lake");
    let mut log = Log::default();
    let first = open_at(&places, HistoryConfig::default()).await.unwrap();
    log.push_some(40);
    log.feed(&first);
    first.flush().await.unwrap();

    // Of another log it is refused, and the first does not notice.
    let other = Places { log: "another log".to_owned(), ..places.clone() };
    let error = open_at(&other, HistoryConfig::default()).await.err().unwrap().to_string();
    assert!(error.contains("belongs to another event log (a log, not another log)"), "{error}");
    log.push_some(40);
    log.feed(&first);
    first.flush().await.unwrap();

    // Of the same log it takes the tables over: the first writes no more, and says so.
    let second = open_at(&places, HistoryConfig::default()).await.unwrap();
    log.push_some(40);
    log.feed(&first);
    log.feed(&second);
    for attempt in 1..3 {
        let error = first.flush().await.unwrap_err().to_string();
        assert!(error.contains("another program committed version"), "{error}");
        assert!(
            matches!(first.health(), HistoryHealth::Failing { attempts, .. } if attempts == attempt),
            "{:?}",
            first.health()
        );
    }
    assert!(first.maintain(Timestamp(NOON + 400 * Timestamp::DAY)).await.is_err());
    assert!(first.save_snapshot().await.is_err());
    second.flush().await.unwrap();
    assert_complete(&second, &log, "of the second").await;
    let third = open_at(&places, HistoryConfig::default()).await.unwrap();
    assert_complete(&third, &log, "opened again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_another_process_that_were_not_committed_are_never() {
    let Some(site) = Site::s3() else { return };
    let places = site.places("lake");
    let mut log = Log::default();
    let first = open_at(&places, HistoryConfig::default()).await.unwrap();
    log.push_some(40);
    log.feed(&first);
    // Between its files and its commit another process opens the tables and deletes what no commit names.
    let second = Arc::new(parking_lot::Mutex::new(None));
    {
        let (places, second) = (places.clone(), Arc::clone(&second));
        first.hook.set(move |step| {
            if step == super::super::hook::Step::Written(TableId::RawEvents) {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                *second.lock() = Some(runtime.block_on(open_at(&places, HistoryConfig::default())).unwrap());
            }
            Ok(())
        });
    }
    assert!(first.flush().await.unwrap_err().to_string().contains("another program committed"));
    let second = second.lock().take().unwrap();
    log.feed(&second);
    second.flush().await.unwrap();
    assert_complete(&second, &log, "of the second").await;
}
