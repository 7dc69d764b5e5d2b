//! A file system that is really full. Needs the right to mount one, and says so where it is missing.

use std::fs;
use std::path::Path;
use std::process::Command;

use catchment_eventlog::conformance::{append, batch, read_all};
use catchment_eventlog::embedded::{Compression, EmbeddedLog, LogConfig};
use catchment_eventlog::{EventLog, LogError};

/// Mounted until dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(at))
    }

    fn grow(&self) {
        let grown = Command::new("mount").args(["-o", "remount,size=2m"]).arg(self.0).status();
        assert!(grown.is_ok_and(|status| status.success()));
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0).status().ok();
    }
}

#[tokio::test]
async fn a_full_file_system_refuses_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path()) else {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    };
    let config = LogConfig {
        partitions: 2,
        segment_bytes: 128 << 10,
        compression: Compression::None,
        ..LogConfig::default()
    };
    let open = || EmbeddedLog::open(&disk.0.join("log"), config.clone()).unwrap();
    let others = disk.0.join("others");
    fs::write(&others, vec![1; 500 << 10]).unwrap();

    let log = open();
    let text = "no two blocks alike".repeat(50);
    let (mut kept, mut refused) = (Vec::new(), 0);
    for number in 0..2_000 {
        if number == 1_500 {
            fs::remove_file(&others).unwrap();
        }
        let text = format!("{number} {text}");
        match log.submit(1, batch([&text])).await.unwrap().await {
            Ok(offset) => kept.push((offset, text)),
            Err(LogError::Full { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 100, "{refused}");
    let last = kept.last().and_then(|(_, text)| text.split_once(' ')).unwrap().0;
    assert!(last.parse::<u32>().unwrap() >= 1_500, "goes on once there is room");
    assert_eq!(read_all(&*log, 1).await, kept);
    drop(log);
    let log = open();
    assert_eq!(read_all(&*log, 1).await, kept);
    assert_eq!(log.stats().corrupted_blocks, 0);
    drop(log);
    // There is no room for even the first block of the other partition.
    let log = open();
    assert!(matches!(log.submit(0, batch(["x"])).await.unwrap().await, Err(LogError::Full { .. })));
    disk.grow();
    append(&*log, 0, batch(["x"])).await;
}
