//! The engine as a whole: conformance, full and failing disks, retention, opening.
#![expect(clippy::single_range_in_vec_init, reason = "gaps are lists of ranges, often of one")]

mod damage;
mod model;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use tempfile::TempDir;

use super::device::{Device, System};
use super::format::{ALIGNMENT, HEADER_BYTES};
use super::*;
use crate::SyncPolicy;
use crate::conformance::{self, Site, append, batch, read_all};

/// One partition in small segments.
fn small() -> LogConfig {
    LogConfig { partitions: 1, segment_bytes: 64 << 10, ..LogConfig::default() }
}

fn open(dir: &Path, config: &LogConfig) -> Arc<EmbeddedLog> {
    EmbeddedLog::open(dir, config.clone()).unwrap()
}

/// The segment files of partition 0, in order.
fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir.join("p0000")).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    paths.sort();
    paths
}

/// A payload that does not compress.
fn noise(bytes: usize, seed: u64) -> String {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let letters = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b' ' + (state % 95) as u8)
    });
    letters.take(bytes).collect()
}

struct Folder {
    dir: TempDir,
    config: LogConfig,
}

#[async_trait]
impl Site for Folder {
    async fn open(&self) -> Arc<dyn EventLog> {
        open(self.dir.path(), &self.config)
    }
}

#[tokio::test]
async fn conforms() {
    let base = LogConfig { partitions: 3, segment_bytes: 256 << 10, ..LogConfig::default() };
    for config in [
        base.clone(),
        LogConfig { sync: SyncPolicy::IntervalMs(1), cache_bytes_max: 0, ..base.clone() },
        LogConfig { sync: SyncPolicy::Never, compression: Compression::None, ..base.clone() },
        LogConfig { linger_us: 200, queue_bytes_max: 64 << 10, cache_bytes_max: 5_000, ..base },
    ] {
        conformance::all(|| Box::new(Folder { dir: tempfile::tempdir().unwrap(), config: config.clone() }))
            .await;
    }
}

/// A disk with little room, that can also fail.
#[derive(Default)]
struct Disk {
    /// Bytes by which files may still grow.
    room: AtomicU64,
    /// Whether even overwriting needs room that is not there, as on file systems that copy on write.
    refuses_overwriting: AtomicBool,
    fails_to_sync: AtomicBool,
}

impl Device for Disk {
    fn write(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        let growth = (position + bytes.len() as u64).saturating_sub(file.metadata()?.len());
        let all_zero = bytes.iter().all(|&byte| byte == 0);
        let refused = self.refuses_overwriting.load(Ordering::Relaxed) && !all_zero;
        if refused || growth > self.room.load(Ordering::Relaxed) {
            // Half of it gets there, as it may.
            let half = if refused { bytes.len() - 1 } else { bytes.len() - growth as usize };
            System.write(file, &bytes[..half], position)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room.fetch_sub(growth, Ordering::Relaxed);
        System.write(file, bytes, position)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        if self.fails_to_sync.load(Ordering::Relaxed) {
            return Err(io::Error::other("injected"));
        }
        System.sync(file)
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk { room: AtomicU64::new(128 << 10), ..Disk::default() });
    let log = EmbeddedLog::open_on(dir.path(), small(), disk.clone()).unwrap();
    let (mut kept, mut refused) = (Vec::new(), 0);
    for number in 0..60 {
        if number == 45 {
            disk.room.store(128 << 10, Ordering::Relaxed);
        }
        let text = noise(5_000, number);
        match log.submit(0, batch([&text])).await.unwrap().await {
            Ok(offset) => kept.push((offset, text)),
            Err(LogError::Full { path }) => {
                assert_eq!(path, dir.path().join("p0000"));
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 10 && kept.len() > 30, "{refused} refused, {} kept", kept.len());
    assert!(kept.iter().map(|&(offset, _)| offset).eq(0..kept.len() as u64), "no offset is lost");
    assert_eq!(log.stats().queued_bytes, 0);
    assert_eq!(read_all(&*log, 0).await, kept);
    drop(log);
    assert_eq!(read_all(&*open(dir.path(), &small()), 0).await, kept);
}

#[tokio::test]
async fn a_write_that_runs_out_of_room_half_way_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk { room: AtomicU64::new(1 << 20), ..Disk::default() });
    let config = LogConfig { compression: Compression::None, ..small() };
    let log = EmbeddedLog::open_on(dir.path(), config, disk.clone()).unwrap();
    append(&*log, 0, batch(["kept"])).await;
    disk.refuses_overwriting.store(true, Ordering::Relaxed);
    let refused = batch(["stored whole but for a byte of the padding"]);
    assert_ne!((HEADER_BYTES + refused.as_bytes().len()) % ALIGNMENT, 0, "there is padding");
    let refused = log.submit(0, refused).await.unwrap().await;
    assert!(matches!(refused, Err(LogError::Full { .. })));
    drop(log);
    let log = open(dir.path(), &small());
    assert_eq!(read_all(&*log, 0).await, [(0, "kept".to_owned())]);
    assert_eq!(append(&*log, 0, batch(["next"])).await, 1);
}

#[tokio::test]
async fn a_failing_sync_stops_the_partition_until_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk { room: AtomicU64::new(1 << 20), ..Disk::default() });
    let log = EmbeddedLog::open_on(dir.path(), small(), disk.clone()).unwrap();
    append(&*log, 0, batch(["kept"])).await;
    disk.fails_to_sync.store(true, Ordering::Relaxed);
    let failed = log.submit(0, batch(["unknown"])).await.unwrap().await;
    assert!(matches!(failed, Err(LogError::Failed { .. })), "{failed:?}");
    disk.fails_to_sync.store(false, Ordering::Relaxed);
    // The failure is told before the queue knows it: the next may still get in, to be refused then.
    let refused = match log.submit(0, batch(["refused"])).await {
        Ok(pending) => pending.await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(matches!(refused, Err(LogError::Failed { .. })), "{refused:?}");
    assert_eq!(log.range(0), 0..1, "what is not known to be durable is not shown");
    log.close().await;
    drop(log);
    let log = open(dir.path(), &small());
    let read = read_all(&*log, 0).await;
    assert!(read.iter().map(|(_, text)| text).eq(["kept", "unknown"]), "{read:?}");
}

#[tokio::test]
async fn who_appends_waits_while_sinks_are_far_behind() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { backlog_bytes_max: 128 << 10, ..small() };
    let log = open(dir.path(), &config);
    let again = Arc::clone(&log);
    let appended = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&appended);
    let appending = tokio::spawn(async move {
        for seed in 0..100 {
            append(&*again, 0, batch([noise(8 << 10, seed)])).await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let settled = async || {
        let mut last = u64::MAX;
        while last != appended.load(Ordering::Relaxed) {
            last = appended.load(Ordering::Relaxed);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        last
    };
    let first = settled().await;
    // Two whole segments fit; the third that is closed is one too many.
    assert!((16..32).contains(&first), "{first} appended");
    log.release(0, first - 8);
    let second = settled().await;
    assert!(second > first && second < 100, "{second} appended");
    // Closing ends the waiting.
    log.close().await;
    assert!(appending.await.is_err(), "an append after closing is refused");
    assert_eq!(appended.load(Ordering::Relaxed), second);
}

#[tokio::test]
async fn retention_never_passes_what_is_released() {
    let dir = tempfile::tempdir().unwrap();
    // Everything is too old at once, and there is room for two segments only.
    let config = LogConfig { retention_hours: 0, retention_bytes: 128 << 10, ..small() };
    let log = open(dir.path(), &config);
    for number in 0..40 {
        append(&*log, 0, batch([noise(10_000, number)])).await;
    }
    assert_eq!(log.range(0), 0..40, "nothing was released");
    assert!(log.stats().disk_bytes > config.retention_bytes);

    log.release(0, 20);
    for number in 40..60 {
        append(&*log, 0, batch([noise(10_000, number)])).await;
    }
    let start = log.range(0).start;
    assert!((10..=20).contains(&start), "{start}");
    let read = log.read(0, 3, 1).await.unwrap();
    assert_eq!(read.skipped, [3..start]);
    assert_eq!(read.blocks[0].first_offset, start);
    drop(log);

    let log = open(dir.path(), &config);
    assert_eq!(log.range(0), start..60);
    log.release(0, 1_000);
    append(&*log, 0, batch(["after what the sinks have"])).await;
    assert_eq!(log.range(0).end, 1_001);
    let read = log.read(0, 59, 100_000).await.unwrap();
    assert_eq!((read.skipped.as_slice(), read.next), ([60..1_000].as_slice(), 1_001));
    assert_eq!(log.stats().corrupted_blocks, 0);
}

#[tokio::test]
async fn dropped_segments_are_written_anew() {
    use std::os::unix::fs::MetadataExt;

    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { retention_bytes: 256 << 10, ..small() };
    let log = open(dir.path(), &config);
    let (mut inodes, mut expected) = (BTreeSet::new(), Vec::new());
    for number in 0..200 {
        let text = noise(9_000, number);
        let offset = append(&*log, 0, batch([&text])).await;
        expected.push((offset, text));
        log.release(0, offset);
        inodes.extend(segment_files(dir.path()).iter().map(|path| fs::metadata(path).unwrap().ino()));
    }
    assert!(inodes.len() <= 5, "{} files for about 33 segments", inodes.len());
    assert!(log.stats().disk_bytes <= config.retention_bytes);
    let expect_tail = |read: Vec<(Offset, String)>| {
        assert!(read.len() > 10);
        assert_eq!(read, expected[expected.len() - read.len()..]);
    };
    expect_tail(read_all(&*log, 0).await);
    drop(log);
    let log = open(dir.path(), &config);
    assert_eq!(log.range(0).end, 200, "blocks of an earlier life do not pass");
    expect_tail(read_all(&*log, 0).await);
    assert_eq!(log.stats().corrupted_blocks, 0);
}

#[tokio::test]
async fn a_full_queue_holds_submitters_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { queue_bytes_max: 64 << 10, ..small() };
    let log = open(dir.path(), &config);
    let text = noise(20_000, 1);
    let mut tasks = Vec::new();
    for _ in 0..50 {
        let (log, text) = (log.clone(), text.clone());
        tasks.push(tokio::spawn(async move { append(&*log, 0, batch([text])).await }));
    }
    while log.range(0).end < 50 {
        assert!(log.stats().queued_bytes <= 64 << 10);
        tokio::task::yield_now().await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    // Larger than the whole queue, and than a segment.
    append(&*log, 0, batch([noise(200_000, 2)])).await;
    assert_eq!(read_all(&*log, 0).await.len(), 51);
}

#[tokio::test]
async fn old_events_are_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    // Segments with several entries in their index.
    let config = LogConfig { cache_bytes_max: 20_000, segment_bytes: 256 << 10, ..small() };
    let mut log = open(dir.path(), &config);
    let mut expected = Vec::new();
    for number in 0..2_000_u64 {
        let text = format!("{number} {}", noise(100, number));
        expected.push((append(&*log, 0, batch([&text])).await, text));
    }
    assert!(segment_files(dir.path()).len() > 1);
    for reopened in [false, true] {
        if reopened {
            drop(log);
            log = open(dir.path(), &config);
        }
        for from in 0..2_000 {
            let read = log.read(0, from, 3_000).await.unwrap();
            let events = conformance::events_from(&read, from);
            assert_eq!(events, expected[from as usize..read.next as usize]);
        }
        assert_eq!(read_all(&*log, 0).await, expected);
    }
}

#[test]
fn opening_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data").join("log");
    let error = |config: LogConfig| EmbeddedLog::open(&path, config).unwrap_err();
    let log = open(&path, &small());
    assert!(matches!(error(small()), OpenError::InUse { .. }));
    drop(log);

    let other = error(LogConfig { partitions: 2, ..small() });
    assert!(matches!(other, OpenError::Partitions { existing: 1, configured: 2, .. }));
    assert!(other.to_string().contains("set log.partitions = 1"), "{other}");
    assert!(matches!(error(LogConfig { segment_bytes: 1, ..small() }), OpenError::Setting { .. }));

    fs::write(path.join("log.toml"), "format = 2\npartitions = 1\n").unwrap();
    assert!(matches!(error(small()), OpenError::Format { found: 2, supported: 1, .. }));
    fs::write(path.join("log.toml"), "format = 1\n").unwrap();
    assert!(matches!(error(small()), OpenError::Description { .. }));
    fs::remove_file(path.join("log.toml")).unwrap();
    fs::create_dir(path.join("log.toml")).unwrap();
    assert!(matches!(error(small()), OpenError::Io { .. }));
}
