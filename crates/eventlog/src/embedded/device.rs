//! The few calls that change a segment file, behind a trait so that tests can fill or break the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where segment files are written.
pub(super) trait Device: Send + Sync {
    /// Writes all of `bytes` at `position`.
    fn write(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()>;
    /// Makes what was written durable, with the size needed to read it back.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The operating system.
pub(super) struct System;

impl Device for System {
    fn write(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        file.write_all_at(bytes, position)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}
