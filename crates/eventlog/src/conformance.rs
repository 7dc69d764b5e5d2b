//! The suite that every engine of the log must pass; that of consumer groups is in [`groups`].
//!
//! An engine's tests give a [`Site`] for each function, or one for each to [`all`]. The functions panic, with what
//! was expected, when the engine breaks what [`EventLog`] promises.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use catchment_eventlog::{EventLog, conformance::{self, Site}, embedded::{EmbeddedLog, LogConfig}};
//! struct Folder(tempfile::TempDir);
//!
//! #[async_trait::async_trait]
//! impl Site for Folder {
//!     async fn open(&self) -> Arc<dyn EventLog> {
//!         EmbeddedLog::open(self.0.path(), LogConfig::default()).unwrap()
//!     }
//! }
//!
//! # async fn test() {
//! conformance::all(|| Box::new(Folder(tempfile::tempdir().unwrap()))).await;
//! # }
//! ```

pub mod groups;

use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catchment_types::{Event, EventBatch, Offset, PartitionId, Timestamp};

use crate::{EventLog, LogError, Pending, ReadBatch};

/// How long something may take that must happen.
const SOON: Duration = Duration::from_secs(60);
/// How long to look whether something happens that must not.
const A_WHILE: Duration = Duration::from_millis(50);
const READ_BYTES: usize = 64 << 10;

/// A place for one log, empty at first.
#[async_trait]
pub trait Site: Send + Sync {
    /// Opens the log there, which has at least two partitions. Called again after the log was closed and dropped.
    async fn open(&self) -> Arc<dyn EventLog>;
}

/// Runs the whole suite, each part on a site of its own.
pub async fn all(new_site: impl Fn() -> Box<dyn Site>) {
    what_is_appended_is_read(&*new_site()).await;
    partitions_are_apart(&*new_site()).await;
    submitters_keep_their_order(&*new_site()).await;
    reads_are_bounded_and_begin_anywhere(&*new_site()).await;
    large_events_pass(&*new_site()).await;
    reads_wait_for_appends(&*new_site()).await;
    everything_is_there_after_reopening(&*new_site()).await;
    what_is_not_awaited_is_kept(&*new_site()).await;
    closing_refuses_and_wakes(&*new_site()).await;
    releasing_loses_nothing_newer(&*new_site()).await;
}

/// Events come back as they were, one offset each, in order.
pub async fn what_is_appended_is_read(site: &dyn Site) {
    let log = site.open().await;
    let start = log.range(0).start;
    assert_eq!(log.range(0), start..start, "a new log is empty");

    let first = log.submit(0, batch(["a", "b", "c"])).await.expect("submit");
    let second = log.submit(0, batch(["d"])).await.expect("submit");
    let (first, second) = (soon(first).await.expect("durable"), soon(second).await.expect("durable"));
    assert!(first >= start && second >= first + 3, "offsets {first}, {second} from {start} on");
    assert!(log.range(0).end > second, "what is acknowledged is in the range");

    let read = read_all(&*log, 0).await;
    assert_eq!(payloads(&read), ["a", "b", "c", "d"]);
    assert_eq!([read[0].0, read[3].0], [first, second]);

    // All parts of an event, at their limits.
    let long = "é".repeat(10_000);
    let event = Event {
        realm: "r",
        device_id: "",
        event_type: "t",
        topic: &long,
        received_at: Timestamp(-5),
        content_type: "",
        tags: "",
        mark: 0,
        payload: &[0, 255, 128],
    };
    let mut builder = EventBatch::builder();
    builder.push(&event).expect("fits");
    let offset = append(&*log, 0, builder.take()).await;
    let read = soon(log.read(0, offset, READ_BYTES)).await.expect("read");
    let block = read.blocks.first().expect("a block");
    assert_eq!(block.events.iter().nth((offset - block.first_offset) as usize), Some(event));

    let stats = log.stats();
    assert_eq!(stats.queued_bytes, 0);
    assert!(stats.appended_events == 5 && stats.commits > 0 && stats.corrupted_blocks == 0, "{stats:?}");
}

/// Each partition has its own events and offsets; others do not exist.
pub async fn partitions_are_apart(site: &dyn Site) {
    let log = site.open().await;
    let last = log.partitions() - 1;
    assert!(last > 0, "the suite needs two partitions");
    append(&*log, 0, batch(["zero"])).await;
    append(&*log, last, batch(["last"])).await;
    assert_eq!(payloads(&read_all(&*log, 0).await), ["zero"]);
    assert_eq!(payloads(&read_all(&*log, last).await), ["last"]);

    let unknown = log.submit(last + 1, batch(["x"])).await;
    assert!(matches!(unknown, Err(LogError::NoSuchPartition { partition, .. }) if partition == last + 1));
    let unknown = log.read(last + 1, 0, READ_BYTES).await;
    assert!(matches!(unknown, Err(LogError::NoSuchPartition { .. })));
}

/// With many submitters at once, each finds its own events in its order, at the offsets it was told.
pub async fn submitters_keep_their_order(site: &dyn Site) {
    const SUBMITTERS: usize = 16;
    const BATCHES: usize = 40;
    let log = site.open().await;
    let mut tasks = Vec::new();
    for submitter in 0..SUBMITTERS {
        let log = log.clone();
        tasks.push(tokio::spawn(async move {
            let mut pending = Vec::new();
            for number in 0..BATCHES {
                let texts = (0..=number % 3).map(|part| format!("{submitter}/{number}/{part}"));
                let texts: Vec<String> = texts.collect();
                let accepted = log.submit(0, batch(&texts)).await.expect("submit");
                pending.push((accepted, texts));
            }
            let mut told = Vec::new();
            for (pending, texts) in pending {
                let offset = soon(pending).await.expect("durable");
                told.extend((offset..).zip(texts));
            }
            told
        }));
    }
    let mut told = Vec::new();
    for task in tasks {
        let own = task.await.expect("no panic");
        assert!(own.is_sorted_by_key(|&(offset, _)| offset), "a submitter's events keep their order");
        told.extend(own);
    }
    told.sort();
    assert_eq!(read_all(&*log, 0).await, told);
}

/// A read gives about what was asked for but at least a block, from any offset on, and tells where to go on.
pub async fn reads_are_bounded_and_begin_anywhere(site: &dyn Site) {
    let log = site.open().await;
    let payload = "x".repeat(1000);
    for _ in 0..50 {
        append(&*log, 0, batch([&payload, &payload, &payload, &payload])).await;
    }
    let range = log.range(0);
    for from in range.clone() {
        let read = soon(log.read(0, from, 1)).await.expect("read");
        let first = read.blocks.first().expect("at least one block");
        assert!(
            first.first_offset <= from && from < first.end_offset(),
            "the first block has the offset asked for"
        );
        assert_eq!(Some(read.next), read.blocks.last().map(|block| block.end_offset()));
        assert_eq!(read.skipped, Vec::<Range<Offset>>::new());
    }
    let some = soon(log.read(0, range.start, 20_000)).await.expect("read");
    let bytes: usize = some.blocks.iter().map(|block| block.events.as_bytes().len()).sum();
    assert!((1..100_000).contains(&bytes), "asked for 20,000 bytes, got {bytes}");
}

/// An event larger than blocks and reads usually are.
pub async fn large_events_pass(site: &dyn Site) {
    let log = site.open().await;
    let large: String = (0..300_000).map(|number| format!("{number:08}")).collect();
    append(&*log, 0, batch(["before"])).await;
    append(&*log, 0, batch([&large])).await;
    append(&*log, 0, batch(["after"])).await;
    assert!(payloads(&read_all(&*log, 0).await) == ["before", &large, "after"]);
}

/// A read at the end waits, and gets what comes; reads can be given up at any time.
pub async fn reads_wait_for_appends(site: &dyn Site) {
    let log = site.open().await;
    append(&*log, 0, batch(["old"])).await;
    let end = log.range(0).end;
    for _ in 0..3 {
        let given_up = tokio::time::timeout(A_WHILE / 10, log.read(0, end, READ_BYTES)).await;
        assert!(given_up.is_err(), "nothing is there to read");
    }
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { log.read(0, end, READ_BYTES).await }
    });
    tokio::time::sleep(A_WHILE).await;
    assert!(!waiting.is_finished(), "a read at the end waits");
    append(&*log, 0, batch(["new"])).await;
    let read = soon(waiting).await.expect("no panic").expect("read");
    assert_eq!(payloads(&events_from(&read, end)), ["new"]);
}

/// Closed and opened again, the log has everything and goes on after it.
pub async fn everything_is_there_after_reopening(site: &dyn Site) {
    let mut expected = Vec::new();
    for round in 0..4 {
        let log = site.open().await;
        assert_eq!(read_all(&*log, 1).await, expected, "at reopening {round}");
        for number in 0..10 {
            let text = format!("{round}/{number}");
            let offset = append(&*log, 1, batch([&text])).await;
            assert!(expected.last().is_none_or(|&(last, _)| offset > last), "offsets only grow");
            expected.push((offset, text));
        }
        log.close().await;
    }
}

/// A submitter that goes away, or that closes before it was told, loses nothing.
pub async fn what_is_not_awaited_is_kept(site: &dyn Site) {
    let log = site.open().await;
    drop(log.submit(0, batch(["forgotten"])).await.expect("submit"));
    let last = log.submit(0, batch(["last"])).await.expect("submit");
    log.close().await;
    soon(last).await.expect("closing makes durable what was submitted");
    drop(log);
    let log = site.open().await;
    assert_eq!(payloads(&read_all(&*log, 0).await), ["forgotten", "last"]);
}

/// Closing ends the waiting of readers, refuses appends, and can be repeated.
pub async fn closing_refuses_and_wakes(site: &dyn Site) {
    let log = site.open().await;
    let end = log.range(0).end;
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { log.read(0, end, READ_BYTES).await }
    });
    tokio::time::sleep(A_WHILE).await;
    soon(log.close()).await;
    soon(log.close()).await;
    assert!(matches!(soon(waiting).await.expect("no panic"), Err(LogError::Closed)));
    assert!(matches!(log.submit(0, batch(["late"])).await, Err(LogError::Closed)));
    assert!(matches!(soon(log.read(0, end, READ_BYTES)).await, Err(LogError::Closed)));
}

/// Releasing allows to drop what is before, and touches nothing after.
pub async fn releasing_loses_nothing_newer(site: &dyn Site) {
    let log = site.open().await;
    for text in ["a", "b", "c", "d"] {
        append(&*log, 0, batch([text])).await;
    }
    let offset = read_all(&*log, 0).await[2].0;
    log.release(0, offset);
    log.release(0, 0);
    append(&*log, 0, batch(["e"])).await;
    let mut read = read_all(&*log, 0).await;
    read.retain(|&(at, _)| at >= offset);
    assert_eq!(payloads(&read), ["c", "d", "e"]);
}

/// Events with these payloads.
pub fn batch<T: AsRef<str>>(payloads: impl IntoIterator<Item = T>) -> EventBatch {
    let mut builder = EventBatch::builder();
    for payload in payloads {
        let event = Event {
            realm: "main",
            device_id: "device-1",
            event_type: "test",
            topic: "devices/device-1/test",
            received_at: Timestamp::now(),
            content_type: "text/plain",
            tags: "",
            mark: 0,
            payload: payload.as_ref().as_bytes(),
        };
        builder.push(&event).expect("a payload of less than 4 GiB");
    }
    builder.take()
}

/// Submits a batch and waits until it is durable.
pub async fn append(log: &dyn EventLog, partition: PartitionId, batch: EventBatch) -> Offset {
    let pending: Pending = soon(log.submit(partition, batch)).await.expect("submit");
    soon(pending).await.expect("durable")
}

/// Offsets and payloads of everything in a partition.
pub async fn read_all(log: &dyn EventLog, partition: PartitionId) -> Vec<(Offset, String)> {
    let range = log.range(partition);
    let (mut next, mut events) = (range.start, Vec::new());
    while next < range.end {
        let read = soon(log.read(partition, next, READ_BYTES)).await.expect("read");
        events.extend(events_from(&read, next));
        assert!(read.next > next, "reading goes on");
        next = read.next;
    }
    events
}

/// Offsets and payloads of what a read gave, from the offset on that was asked for.
pub fn events_from(read: &ReadBatch, from: Offset) -> Vec<(Offset, String)> {
    let mut events = Vec::new();
    for block in &read.blocks {
        assert_eq!(block.events.iter().count(), block.events.len() as usize, "a block has what it says");
        let texts = block.events.iter().map(|event| String::from_utf8_lossy(event.payload).into_owned());
        events.extend((block.first_offset..).zip(texts));
    }
    events.retain(|&(offset, _)| offset >= from);
    events
}

fn payloads(events: &[(Offset, String)]) -> Vec<&str> {
    events.iter().map(|(_, payload)| payload.as_str()).collect()
}

async fn soon<F: Future>(future: F) -> F::Output {
    let future = pin!(future);
    tokio::time::timeout(SOON, future).await.expect("in time")
}
