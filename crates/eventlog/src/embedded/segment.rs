//! One segment file: blocks from its start on, then room that was prepared but not written yet.
//!
//! The name tells the offset of the first event and the nonce of this life of the file, so that a segment comes to be
//! by one atomic rename: `00000000000000012345-89abcdef.log`. Readers share the file with the one writer; they see
//! whole blocks only, those below [`Segment::written`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use catchment_types::{Offset, Timestamp};
use parking_lot::Mutex;

use super::format::{HEADER_BYTES, Header};
use super::scan::{Found, Scanner};
use crate::EventBlock;

const SUFFIX: &str = ".log";
/// Bytes of file from one entry of the index to the next, at least: what a read may have to pass over.
const INDEX_STEP_BYTES: u64 = 64 << 10;

/// A segment file, open.
#[derive(Debug)]
pub(super) struct Segment {
    base: Offset,
    nonce: u32,
    path: PathBuf,
    file: File,
    allocated: AtomicU64,
    written: AtomicU64,
    started_at: OnceLock<Timestamp>,
    /// Where some blocks start. Grows as blocks are written or passed by a reader; never more than a block in
    /// [`INDEX_STEP_BYTES`].
    index: Mutex<BTreeMap<Offset, u64>>,
    /// Positions of damage that was told already.
    damage: Mutex<BTreeSet<u64>>,
}

/// What a read found in one segment.
#[derive(Debug, Default)]
pub(super) struct SegmentRead {
    /// Blocks in order, from the one that holds the offset asked for.
    pub(super) blocks: Vec<EventBlock>,
    /// Whether the segment's last block was reached.
    pub(super) exhausted: bool,
    /// Damage that was not seen before.
    pub(super) damage: u64,
}

impl Segment {
    /// The name of the file of such a segment.
    pub(super) fn file_name(base: Offset, nonce: u32) -> String {
        format!("{base:020}-{nonce:08x}{SUFFIX}")
    }

    /// Base offset and nonce out of a file's name.
    pub(super) fn parse_name(name: &str) -> Option<(Offset, u32)> {
        let (base, nonce) = name.strip_suffix(SUFFIX)?.split_once('-')?;
        let parsed = (base.parse().ok()?, u32::from_str_radix(nonce, 16).ok()?);
        (Self::file_name(parsed.0, parsed.1) == name).then_some(parsed)
    }

    /// A segment over an open file of this size, of which nothing is shown to readers yet.
    pub(super) fn new(base: Offset, nonce: u32, path: PathBuf, file: File, allocated: u64) -> Self {
        Self {
            base,
            nonce,
            path,
            file,
            allocated: AtomicU64::new(allocated),
            written: AtomicU64::new(0),
            started_at: OnceLock::new(),
            index: Mutex::default(),
            damage: Mutex::default(),
        }
    }

    /// Offset of the first event, whether it is still readable or not.
    pub(super) fn base(&self) -> Offset {
        self.base
    }

    pub(super) fn nonce(&self) -> u32 {
        self.nonce
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Size of the file, in bytes.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Tells that the file has this size now.
    pub(super) fn set_allocated(&self, bytes: u64) {
        self.allocated.store(bytes, Ordering::Relaxed);
    }

    /// Bytes from the start that hold durable blocks.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Shows blocks up to this position to readers.
    pub(super) fn set_written(&self, position: u64) {
        self.written.store(position, Ordering::Release);
    }

    /// When the first block was written: everything in the segments before is older.
    pub(super) fn started_at(&self) -> Option<Timestamp> {
        self.started_at.get().copied()
    }

    /// Remembers a block that was written or passed.
    pub(super) fn note(&self, header: &Header, position: u64) {
        if position == 0 {
            self.started_at.get_or_init(|| header.written_at);
        }
        let mut index = self.index.lock();
        let before = index.range(..=header.first_offset).next_back().map_or(0, |(_, &at)| at);
        if position >= before + INDEX_STEP_BYTES {
            index.insert(header.first_offset, position);
        }
    }

    /// Finds out when the segment was begun, from its first block or else from the file's own time.
    pub(super) fn load_started_at(&self) -> io::Result<()> {
        let mut bytes = [0; HEADER_BYTES];
        let header = match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Header::parse(&bytes, self.nonce),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(error),
        };
        let started_at = match header {
            Some(header) => header.written_at,
            None => {
                let since = self.file.metadata()?.modified()?.duration_since(std::time::UNIX_EPOCH);
                Timestamp(i64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(i64::MAX))
            }
        };
        self.started_at.get_or_init(|| started_at);
        Ok(())
    }

    /// Reads blocks that end after `from` and begin before `end`, until `bytes_max` of encoded events are reached.
    /// Blocks; for a thread that may.
    pub(super) fn read(&self, from: Offset, end: Offset, bytes_max: usize) -> io::Result<SegmentRead> {
        let start = self.index.lock().range(..=from).next_back().map_or(0, |(_, &at)| at);
        let mut scanner = Scanner::new(self, start, self.written());
        let mut read = SegmentRead::default();
        let (mut bytes, mut next) = (0, from);
        while next < end && bytes < bytes_max {
            match scanner.next(from)? {
                Some(Found::Block { position, header, stored }) => match header.open(stored) {
                    Some(block) => {
                        next = block.end_offset();
                        bytes += block.events.as_bytes().len();
                        read.blocks.push(block);
                    }
                    None => read.damage += self.report_damage(position),
                },
                Some(Found::Damage { position }) => read.damage += self.report_damage(position),
                None => {
                    read.damage += self.report_damage(scanner.position());
                    break;
                }
            }
        }
        read.exhausted = next >= end || bytes < bytes_max;
        Ok(read)
    }

    /// Logs damage at a position, once. The number of findings that are new: 1 or 0.
    pub(super) fn report_damage(&self, position: u64) -> u64 {
        if !self.damage.lock().insert(position) {
            return 0;
        }
        tracing::error!(
            file = %self.path.display(),
            position,
            "a block of the event log is corrupted: its events are skipped and never served; check the disk"
        );
        1
    }
}
