//! Queries: once, pruned, and through the view.

use std::time::Duration;

use datafusion::physical_plan::displayable;

use super::*;

async fn plan(history: &DeltaHistory, sql: &str) -> String {
    let plan = context(history).sql(sql).await.unwrap().create_physical_plan().await.unwrap();
    displayable(plan.as_ref()).indent(true).to_string()
}

/// Three days of ten devices, a file a day and table.
async fn three_days(folder: &Path) -> (Arc<DeltaHistory>, Log) {
    let mut log = Log::default();
    let history = open(folder).await;
    for day in -2..=0 {
        for number in 0..10 {
            log.push(&format!("device-{number}"), NOON + day * Timestamp::DAY, number);
        }
    }
    log.feed(&history);
    history.flush().await.unwrap();
    (history, log)
}

#[tokio::test]
async fn files_that_cannot_have_rows_are_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let (history, log) = three_days(folder.path()).await;
    assert_complete(&history, &log, "over three days").await;
    let files = |plan: &str| plan.matches(".parquet").count();
    for (filter, expected) in [
        ("true", 3),
        ("timestamp >= '2026-11-23'", 1),
        ("timestamp < '2026-11-22T00:00:00Z'", 1),
        ("timestamp BETWEEN '2026-11-22' AND '2026-11-22T23:00:00Z'", 1),
        ("device_id = 'device-5'", 3),
        ("device_id = 'device-5' AND timestamp > '2026-11-23'", 1),
        ("device_id IN ('a', 'b')", 0),
        ("device_id > 'device-9'", 0),
        ("metric_value > 100", 3),
        ("timestamp > '2026-11-25' OR device_id = 'x'", 0),
    ] {
        let plan = plan(&history, &format!("SELECT * FROM raw_metrics WHERE {filter}")).await;
        assert_eq!(files(&plan), expected, "{filter}\n{plan}");
    }
}

#[tokio::test]
async fn filters_reach_the_files_with_and_without_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (history, mut log) = three_days(folder.path()).await;
    for _ in 0..2 {
        for (sql, predicate) in [
            ("SELECT * FROM raw_metrics WHERE device_id = 'device-5'", "predicate=device_id"),
            (
                "SELECT avg_value FROM aggregated_metrics WHERE device_id = 'device-5' AND time_bucket > '2026-11-01'",
                "predicate=device_id",
            ),
        ] {
            let plan = plan(&history, sql).await;
            assert!(plan.contains(predicate), "{plan}");
            assert_eq!(rows(&history, sql).await.iter().map(RecordBatch::num_rows).sum::<usize>() % 3, 0);
        }
        assert_eq!(
            query_one(&history, "SELECT count(*) FROM raw_metrics WHERE device_id = 'device-5'").await,
            query_one(&history, "SELECT count(*) FROM raw_metrics WHERE device_id LIKE '%5'").await
        );
        for day in 0..3 {
            log.push("device-5", NOON + day, 1);
        }
        log.feed(&history);
    }
}

#[tokio::test]
async fn counting_rows_opens_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (history, mut log) = three_days(folder.path()).await;
    log.push_some(10);
    log.feed(&history);
    let plan = plan(&history, "SELECT count(*) FROM raw_events").await;
    assert!(!plan.contains("parquet"), "{plan}");
    assert_eq!(query_one(&history, "SELECT count(*) FROM raw_events").await, "40");
}

#[tokio::test]
async fn columns_come_in_any_order_and_limits_hold() {
    let folder = tempfile::tempdir().unwrap();
    let (history, mut log) = three_days(folder.path()).await;
    log.push("late", NOON, 1);
    log.feed(&history);
    assert_eq!(query(&history, "SELECT log_offset, device_id FROM raw_events LIMIT 4").await.len(), 4);
    assert_eq!(
        query(&history, "SELECT device_id FROM raw_events WHERE device_id = 'late' LIMIT 4").await,
        ["late"]
    );
    let newest =
        "SELECT metric_value, device_id FROM raw_metrics ORDER BY timestamp DESC, device_id DESC LIMIT 2";
    assert_eq!(query(&history, newest).await, ["1.0,late", "9.0,device-9"]);
    let payload = "SELECT payload, type, topic, content_type FROM raw_events WHERE device_id = 'late'";
    let rows = rows(&history, payload).await;
    let schema = rows.iter().find(|rows| rows.num_rows() > 0).unwrap().schema();
    assert_eq!(schema.fields()[0].as_ref(), TableId::RawEvents.schema().field(6));
}

/// Events come, flushes and merges go on, and every answer is consistent in itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_queries_see_every_row_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = HistoryConfig { compact_files_min: 2, ..HistoryConfig::default() };
    let history = open_with(folder.path(), config).await;
    let done = tokio_util::sync::CancellationToken::new();

    let feeding = tokio::task::spawn_blocking({
        let (history, done) = (Arc::clone(&history), done.clone());
        move || {
            let mut log = Log::default();
            while !done.is_cancelled() {
                log.push_some(50);
                log.feed(&history);
                std::thread::sleep(Duration::from_millis(1));
            }
            log
        }
    });
    let flushing = tokio::spawn({
        let (history, done) = (Arc::clone(&history), done.clone());
        async move {
            while !done.is_cancelled() {
                history.flush().await.unwrap();
            }
        }
    });
    let maintaining = tokio::spawn({
        let (history, done) = (Arc::clone(&history), done.clone());
        async move {
            while !done.is_cancelled() {
                history.maintain(Timestamp(NOON)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let started = std::time::Instant::now();
    let mut answers = 0;
    while started.elapsed() < Duration::from_secs(3) {
        let sql = "SELECT log_partition, count(*) AS n, count(DISTINCT log_offset), max(log_offset) + 1 \
            FROM raw_events GROUP BY log_partition";
        for line in query(&history, sql).await {
            let numbers: Vec<_> = line.split(',').skip(1).collect();
            assert!(numbers.iter().all(|number| *number == numbers[0]), "{line}");
        }
        let sums = query_one(&history, "SELECT sum(count), sum(sum_value) FROM metric_rollups").await;
        if let Some((count, _)) = sums.split_once(',').filter(|(count, _)| !count.is_empty()) {
            // What came between the two queries can only add.
            let later: i64 = query_one(&history, "SELECT count(*) FROM raw_metrics").await.parse().unwrap();
            assert!(count.parse::<i64>().unwrap() <= later);
        }
        answers += 1;
    }
    done.cancel();
    let log = feeding.await.unwrap();
    flushing.await.unwrap();
    maintaining.await.unwrap();
    assert!(answers > 3);
    assert_complete(&history, &log, "at the end").await;
    history.flush().await.unwrap();
    assert_complete(&history, &log, "at the end, flushed").await;
    let history = open(folder.path()).await;
    assert_complete(&history, &log, "opened again").await;
}
