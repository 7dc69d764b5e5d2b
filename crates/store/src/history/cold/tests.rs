//! Rows of an engine that is played: what is copied, what readers leave to the engine, and who may write.

use std::sync::Arc;

use arrow::array::RecordBatch;
use catchment_types::Timestamp;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::physical_plan::collect;
use datafusion::scalar::ScalarValue;
use tokio::sync::mpsc;

use super::*;
use crate::history::{HistoryConfig, StoreError};
use crate::shard::Shard;
use crate::storage::Storage;
use crate::storage::local::LocalFolder;

const DAY: &str = "2026-11-23";
const TABLE: TableId = TableId::RawMetrics;
/// 2026-11-23T12:00:00Z.
const NOON: i64 = 1_795_435_200_000_000;

/// Rows of one device, one a second from noon on.
fn rows(count: u32) -> RecordBatch {
    use catchment_decode::{Decoders, WorkerDecoders};
    use catchment_types::{DEFAULT_REALM, Event, EventBatch};
    let shard = Shard::new(0);
    let mut builder = EventBatch::builder();
    for number in 0..count {
        let time = Timestamp(NOON + i64::from(number) * Timestamp::SECOND);
        let payload = format!(r#"{{"v":{number}}}"#);
        let event = Event {
            realm: DEFAULT_REALM,
            device_id: "d",
            event_type: "state",
            topic: "devices/d/state",
            received_at: time,
            content_type: "application/json",
            tags: "",
            mark: 0,
            payload: payload.as_bytes(),
        };
        builder.push(&event).unwrap();
    }
    let mut decoders = WorkerDecoders::new(Arc::new(Decoders::default()));
    shard.ingest(0, &builder.take(), 0.., &mut decoders, None);
    shard.rows(TABLE).remove(0)
}

async fn put(to: &ColdWriter, before: u64, batches: Vec<RecordBatch>) -> Result<u64, StoreError> {
    let (send, receive) = mpsc::channel(8);
    for batch in batches {
        send.send(Ok(Some(batch))).await.unwrap();
    }
    send.send(Ok(None)).await.unwrap();
    to.put(DAY, &[(0, before), (1, 0)], u64::MAX, receive).await
}

async fn count(reader: &ColdReader, filter: Option<Expr>, limit: Option<usize>) -> usize {
    let context = SessionContext::new();
    let cold = reader.look().await.unwrap();
    let predicate = filter.map(|filter| {
        let columns = datafusion::common::DFSchema::try_from(TABLE.schema()).unwrap();
        context.create_physical_expr(filter, &columns).unwrap()
    });
    // One column that is not filtered by, and in another order than the table's.
    let projection = vec![3, 0];
    let state = context.state();
    let Some(plan) = reader.scan(&state, &cold, predicate.as_ref(), Some(&projection), limit).unwrap() else {
        return 0;
    };
    let names: Vec<_> = plan.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["metric_value", "device_id"]);
    collect(plan, context.task_ctx()).await.unwrap().iter().map(RecordBatch::num_rows).sum()
}

fn at(seconds: i64) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(NOON + seconds * Timestamp::SECOND), Some("UTC".into())))
}

/// A reader that has not looked before.
fn reader(storage: &Arc<dyn Storage>) -> ColdReader {
    ColdReader::open(storage, TABLE, Some(7)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_leaves_in_steps() {
    let folder = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(LocalFolder::open(folder.path()).unwrap());
    let writer = ColdWriter::take_over(&storage, TABLE, 2).await.unwrap();
    assert_eq!(put(&writer, 5, vec![]).await.unwrap(), 0);
    assert_eq!(writer.leaving().await.unwrap(), []);
    assert_eq!(put(&writer, 20, vec![rows(20)]).await.unwrap(), 20);

    let seen = reader(&storage);
    let leaving = seen.look().await.unwrap().leaving().to_vec();
    assert_eq!(leaving, writer.leaving().await.unwrap());
    let [of_day] = &leaving[..] else { panic!("{leaving:?}") };
    assert_eq!((of_day.day.as_str(), of_day.rows), (DAY, 20));
    assert_eq!(of_day.before, [(0, 20), (1, 0)]);
    assert!(of_day.times.contains(&NOON) && !of_day.times.contains(&(NOON + Timestamp::DAY)));
    // Filters hold exactly, and a limit without one, too.
    assert_eq!(count(&seen, None, None).await, 20);
    assert_eq!(count(&seen, Some(col("timestamp").lt(at(7))), None).await, 7);
    assert_eq!(count(&seen, Some(col("log_offset").gt_eq(lit(15_i64))), None).await, 5);
    assert_eq!(count(&seen, Some(col("device_id").eq(lit("other"))), None).await, 0);
    assert!(count(&seen, None, Some(3)).await >= 3);

    // Others may go by what they knew for a while.
    let config = HistoryConfig { vacuum_grace_ms: 1000, ..HistoryConfig::default() };
    let later = |seconds: i64| Timestamp(Timestamp::now().as_micros() + seconds * Timestamp::SECOND);
    assert!(!writer.is_known(of_day, &config, later(10)));
    assert!(writer.is_known(of_day, &config, later(17)));
    writer.left(DAY).await.unwrap();
    assert_eq!(writer.leaving().await.unwrap(), []);
    // What came late follows, and may be taken back.
    assert_eq!(put(&writer, 30, vec![rows(3)]).await.unwrap(), 3);
    writer.take_back(DAY).await.unwrap();
    let now = reader(&storage);
    assert_eq!((now.look().await.unwrap().leaving(), count(&now, None, None).await), (&[][..], 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_ends_what_the_one_before_was_about_to_commit() {
    let folder = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(LocalFolder::open(folder.path()).unwrap());
    let first = ColdWriter::take_over(&storage, TABLE, 2).await.unwrap();
    put(&first, 20, vec![rows(20)]).await.unwrap();
    let second = ColdWriter::take_over(&storage, TABLE, 2).await.unwrap();
    assert!(put(&first, 40, vec![rows(5)]).await.is_err());
    assert!(first.is_lost() && !second.is_lost());
    assert!(first.left(DAY).await.is_err());
    // The second knows what is leaving; and since when it counts, only from its own time on.
    let leaving = second.leaving().await.unwrap();
    assert_eq!(leaving.len(), 1);
    assert!(!second.is_known(&leaving[0], &HistoryConfig::default(), Timestamp::now()));
    assert_eq!(count(&reader(&storage), None, None).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_early_is_not_taken_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(LocalFolder::open(folder.path()).unwrap());
    let writer = ColdWriter::take_over(&storage, TABLE, 2).await.unwrap();
    let (send, receive) = mpsc::channel(8);
    send.send(Ok(Some(rows(4)))).await.unwrap();
    drop(send);
    let error = writer.put(DAY, &[(0, 4)], u64::MAX, receive).await.unwrap_err();
    assert!(error.to_string().contains("no more rows come"), "{error}");
    assert_eq!(count(&reader(&storage), None, None).await, 0);
    let files = storage.list(TABLE.name()).unwrap();
    assert!(!files.iter().any(|file| file.ends_with(".parquet")), "{files:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_files_of_a_day_become_one_and_go_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(LocalFolder::open(folder.path()).unwrap());
    let writer = ColdWriter::take_over(&storage, TABLE, 2).await.unwrap();
    let config =
        HistoryConfig { compact_files_min: 3, archive_retention_days: 30, ..HistoryConfig::default() };
    let context = SessionContext::new();
    let files = || reader(&storage).known_files();
    for round in 1..=4 {
        put(&writer, round * 10, vec![rows(10)]).await.unwrap();
        writer.maintain(&context, &config, Timestamp(NOON)).await.unwrap();
        assert_eq!(files(), usize::try_from(round).unwrap().min(if round == 4 { 2 } else { 3 }), "{round}");
        writer.left(DAY).await.unwrap();
    }
    assert_eq!(count(&reader(&storage), None, None).await, 40);
    writer.maintain(&context, &config, Timestamp(NOON + 32 * Timestamp::DAY)).await.unwrap();
    assert_eq!(files(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_hot_days_need_no_archive() {
    let folder = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(LocalFolder::open(folder.path()).unwrap());
    let context = SessionContext::new();
    let predicate = |filter: Expr| {
        let columns = datafusion::common::DFSchema::try_from(TABLE.schema()).unwrap();
        context.create_physical_expr(filter, &columns).unwrap()
    };
    let now = Timestamp::now().as_micros();
    let since = |days: i64| {
        let time = now - days * Timestamp::DAY;
        predicate(col("timestamp").gt(lit(ScalarValue::TimestampMicrosecond(Some(time), Some("UTC".into())))))
    };
    let seven = ColdReader::open(&storage, TABLE, Some(7)).unwrap();
    assert!(!seven.may_have(Some(&since(6))) && seven.may_have(Some(&since(8))) && seven.may_have(None));
    assert!(seven.may_have(Some(&predicate(col("device_id").eq(lit("d"))))));
    // With nothing there and nothing to come, no query does.
    let never = ColdReader::open(&storage, TABLE, None).unwrap();
    assert!(!never.may_have(None) && !never.may_have(Some(&since(8))));
}
