//! The journal: records go into a buffer, one thread writes what has gathered and syncs once for all of it.
//!
//! ```text
//! DIR/0000000000000007.journal    what the files up to 7 added up to, or records   (see `segment`, `record`)
//! DIR/0000000000000008.journal    the last one is written to
//! DIR/….new                       being written anew; of no meaning
//! ```
//!
//! When much of the closed files is over, a thread of its own adds them up and writes them anew as one, which takes the
//! place of the last of them: the journal's size follows what is kept. Who appends never waits. Who needs to know that a
//! record is durable asks for a [`Journal::barrier`]; records that nobody waits for are written after a moment.
//!
//! Without room on disk nothing is lost and nothing confirmed: the thread tries again until there is room, and meanwhile
//! [`Journal::is_stuck`] tells to take no more. Any other error of the device ends the journal: all barriers fail.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use catchment_eventlog::SyncPolicy;
use catchment_eventlog::{LogError, Pending};
use catchment_types::Offset;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use super::compact::{Compaction, file_name, files};
use super::image::Image;
use super::record::Record;
use super::segment::{self, HEAD_BYTES};
use super::{KeepError, KeepMetrics};
use crate::mqtt::signal::{DELIVER, Signal};

/// How long a record that nobody waits for stays in memory.
const LINGER: Duration = Duration::from_millis(50);
/// More than this is written at once, whether somebody waits or not.
const EAGER_BYTES: usize = 1 << 20;
/// Rest between attempts to write to a full disk.
const FULL_REST: Duration = Duration::from_millis(200);

/// What the journal is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JournalConfig {
    pub(crate) sync: SyncPolicy,
    /// A file of this size is closed.
    pub(crate) segment_bytes: u64,
    /// Bytes that may wait for the disk before publishers have to.
    pub(crate) queue_bytes_max: usize,
}

/// An open journal. Dropping it writes what waits.
#[derive(Debug)]
pub(crate) struct Journal {
    shared: Arc<Shared>,
    queue_bytes_max: usize,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    open: Mutex<Open>,
    wake: Condvar,
    /// All records up to this position are durable.
    durable: AtomicU64,
    queued_bytes: AtomicUsize,
    stuck: AtomicBool,
    room: Notify,
}

/// What has gathered.
#[derive(Debug, Default)]
struct Open {
    bytes: Vec<u8>,
    /// The position after the last record.
    appended: u64,
    first_at: Option<Instant>,
    barriers: VecDeque<(u64, oneshot::Sender<Result<Offset, LogError>>)>,
    signals: Vec<Arc<Signal>>,
    closed: bool,
    failed: Option<LogError>,
}

impl Journal {
    /// Opens the journal in a folder, made if there is none, and reads what it holds. Blocks the thread.
    pub(crate) fn open(
        dir: &Path,
        config: JournalConfig,
        metrics: KeepMetrics,
    ) -> Result<(Self, Image), KeepError> {
        let fault = |action| move |source| KeepError { action, path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(fault("make the folder"))?;
        super::compact::remove_drafts(dir).map_err(fault("clean the folder"))?;
        let mut image = Image::default();
        let numbers = files(dir).map_err(fault("list the folder"))?;
        let mut sealed = Vec::new();
        let mut last = None;
        for &number in &numbers {
            let path = dir.join(file_name(number));
            let scan = read_into(&path, &mut image, &metrics)?;
            let bytes = scan.map_or(0, |scan| scan.end as u64);
            sealed.push((number, bytes));
            last = scan;
        }
        let (file, number, nonce, length) = match (last, sealed.last()) {
            (Some(scan), Some(&(number, bytes))) if bytes < config.segment_bytes => {
                let path = dir.join(file_name(number));
                let cut = || {
                    let file = OpenOptions::new().write(true).open(&path)?;
                    file.set_len(bytes)?;
                    file.sync_all()?;
                    io::Result::Ok(file)
                };
                let file = cut().map_err(|source| KeepError { action: "cut the end of", path, source })?;
                sealed.pop();
                (file, number, scan.nonce, bytes)
            }
            _ => {
                let number = numbers.last().map_or(1, |last| last + 1);
                let (file, nonce) = create(dir, number).map_err(fault("make a file in"))?;
                (file, number, nonce, HEAD_BYTES as u64)
            }
        };
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            shared: Arc::clone(&shared),
            config,
            metrics,
            dir: dir.to_owned(),
            file,
            number,
            nonce,
            length,
            sync_due: None,
            compaction: Compaction::new(sealed),
        };
        let thread = std::thread::Builder::new().name("sessions".to_owned());
        let writer = thread.spawn(move || writer.run()).map_err(fault("start the writer of"))?;
        Ok((Self { shared, queue_bytes_max: config.queue_bytes_max, writer: Some(writer) }, image))
    }

    /// Appends a record. Gives the position after it.
    pub(crate) fn append(&self, record: &Record<'_>) -> u64 {
        let open = &mut *self.shared.open.lock();
        if open.failed.is_some() {
            // Every barrier tells so.
            return open.appended;
        }
        let before = open.bytes.len();
        segment::push(&mut open.bytes, |into| record.encode(into));
        let length = open.bytes.len() - before;
        open.appended += length as u64;
        self.shared.queued_bytes.fetch_add(length, Ordering::Relaxed);
        if open.first_at.is_none() {
            open.first_at = Some(Instant::now());
            self.shared.wake.notify_one();
        } else if before < EAGER_BYTES && open.bytes.len() >= EAGER_BYTES {
            self.shared.wake.notify_one();
        }
        open.appended
    }

    /// Resolves when everything that was appended so far is durable; none: it is.
    pub(crate) fn barrier(&self) -> Option<Pending> {
        let open = &mut *self.shared.open.lock();
        let (done, pending) = Pending::new();
        if let Some(error) = &open.failed {
            // The other end is in our hand.
            let _ = done.send(Err(error.clone()));
            return Some(pending);
        }
        if self.shared.durable.load(Ordering::Acquire) >= open.appended {
            return None;
        }
        open.barriers.push_back((open.appended, done));
        self.shared.wake.notify_one();
        Some(pending)
    }

    /// Whether the record that ends at `position` is durable; when it is not, `signal` is raised once more is.
    pub(crate) fn is_durable(&self, position: u64, signal: Option<&Arc<Signal>>) -> bool {
        if self.shared.durable.load(Ordering::Acquire) >= position {
            return true;
        }
        let open = &mut *self.shared.open.lock();
        if self.shared.durable.load(Ordering::Acquire) >= position {
            return true;
        }
        self.raise_when_written(open, signal);
        false
    }

    /// Whether more waits for the disk than may; when it does, `signal` is raised once more is written.
    pub(crate) fn is_crowded(&self, signal: Option<&Arc<Signal>>) -> bool {
        if !self.has_crowd() {
            return false;
        }
        let open = &mut *self.shared.open.lock();
        let crowded = self.has_crowd() && open.failed.is_none();
        if crowded {
            self.raise_when_written(open, signal);
        }
        crowded
    }

    fn raise_when_written(&self, open: &mut Open, signal: Option<&Arc<Signal>>) {
        if let Some(signal) = signal
            && !open.signals.last().is_some_and(|last| Arc::ptr_eq(last, signal))
        {
            open.signals.push(Arc::clone(signal));
        }
        self.shared.wake.notify_one();
    }

    fn has_crowd(&self) -> bool {
        self.shared.queued_bytes.load(Ordering::Relaxed) > self.queue_bytes_max
    }

    /// Whether there is no room on disk.
    pub(crate) fn is_stuck(&self) -> bool {
        self.shared.stuck.load(Ordering::Relaxed)
    }

    /// Waits while more waits for the disk than may, unless there is no room there at all.
    pub(crate) async fn room(&self) {
        loop {
            let room = self.shared.room.notified();
            if !self.has_crowd() || self.is_stuck() {
                return;
            }
            room.await;
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.open.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so already.
            let _ = writer.join();
        }
    }
}

/// Reads a file into an image and reports what is wrong with it.
pub(super) fn read_into(
    path: &Path,
    image: &mut Image,
    metrics: &KeepMetrics,
) -> Result<Option<segment::Scan>, KeepError> {
    let bytes =
        fs::read(path).map_err(|source| KeepError { action: "read", path: path.to_owned(), source })?;
    let mut unknown = 0;
    let scan = segment::scan(&bytes, |record| unknown += u64::from(!image.take(record)));
    let damaged = unknown + scan.map_or(u64::from(!bytes.is_empty()), |scan| scan.damaged);
    if damaged > 0 {
        metrics.damaged.inc_by(damaged);
        tracing::error!(
            file = %path.display(), damaged,
            "records of sessions are damaged and left out; the others are served. Is the disk sound?"
        );
    }
    Ok(scan)
}

/// A new file with its head.
pub(super) fn create(dir: &Path, number: u64) -> io::Result<(File, u32)> {
    let nonce = rand::random();
    let mut file = File::create(dir.join(file_name(number)))?;
    file.write_all(&segment::head(nonce))?;
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    Ok((file, nonce))
}

/// The thread that owns the last file.
struct Writer {
    shared: Arc<Shared>,
    config: JournalConfig,
    metrics: KeepMetrics,
    dir: PathBuf,
    file: File,
    number: u64,
    nonce: u32,
    length: u64,
    /// For [`SyncPolicy::IntervalMs`].
    sync_due: Option<Instant>,
    compaction: Compaction,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let (position, closed) = self.take(&mut batch);
            if let Err(error) = self.write(&mut batch) {
                return self.fail(&error);
            }
            self.complete(position, batch.len());
            batch.clear();
            batch.shrink_to(4 * EAGER_BYTES);
            if self.length >= self.config.segment_bytes
                && let Err(error) = self.roll()
            {
                tracing::warn!(%error, "the journal of sessions cannot go on in a new file yet");
            }
            if closed {
                return self.compaction.finish();
            }
        }
    }

    /// Waits for records and takes them.
    fn take(&mut self, batch: &mut Vec<u8>) -> (u64, bool) {
        let shared = Arc::clone(&self.shared);
        let mut open = shared.open.lock();
        loop {
            let due = open.first_at.map(|at| at + LINGER);
            let now = Instant::now();
            let awaited = !open.barriers.is_empty() || !open.signals.is_empty();
            let ripe = awaited || open.bytes.len() >= EAGER_BYTES || due.is_some_and(|due| due <= now);
            if open.closed || (ripe && !open.bytes.is_empty()) || self.sync_due.is_some_and(|due| due <= now)
            {
                break;
            }
            match [due, self.sync_due].into_iter().flatten().min() {
                Some(due) => drop(shared.wake.wait_until(&mut open, due)),
                None => shared.wake.wait(&mut open),
            }
        }
        std::mem::swap(&mut open.bytes, batch);
        open.first_at = None;
        (open.appended, open.closed)
    }

    /// Writes a batch, however long it takes until there is room, and makes it durable as configured.
    fn write(&mut self, batch: &mut [u8]) -> io::Result<()> {
        segment::seal(batch, self.nonce);
        loop {
            let written = self.file.write_all_at(batch, self.length).and_then(|()| self.sync());
            match written {
                Ok(()) => break,
                Err(error) if !is_full(&error) || self.shared.open.lock().closed => return Err(error),
                Err(error) => {
                    if !self.shared.stuck.swap(true, Ordering::Relaxed) {
                        tracing::error!(%error, "no room on disk for sessions: messages for them are refused until there is");
                        self.shared.room.notify_waiters();
                    }
                    // Leaves the others what little was taken.
                    self.file.set_len(self.length)?;
                    std::thread::sleep(FULL_REST);
                }
            }
        }
        if self.shared.stuck.swap(false, Ordering::Relaxed) {
            tracing::info!("there is room on disk for sessions again");
        }
        self.length += batch.len() as u64;
        self.metrics.written_bytes.inc_by(batch.len() as u64);
        self.metrics.commits.inc();
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        match self.config.sync {
            SyncPolicy::Fsync => self.file.sync_data(),
            SyncPolicy::Never => Ok(()),
            SyncPolicy::IntervalMs(ms) => {
                let now = Instant::now();
                let due = *self.sync_due.get_or_insert(now + Duration::from_millis(ms.into()));
                if due <= now {
                    self.file.sync_data()?;
                    self.sync_due = None;
                }
                Ok(())
            }
        }
    }

    /// Tells everybody who waits for what is durable now.
    fn complete(&self, position: u64, bytes: usize) {
        let (done, signals) = {
            let open = &mut *self.shared.open.lock();
            self.shared.durable.store(position, Ordering::Release);
            let count = open.barriers.partition_point(|(at, _)| *at <= position);
            (open.barriers.drain(..count).collect::<Vec<_>>(), std::mem::take(&mut open.signals))
        };
        self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        for (_, barrier) in done {
            // Who waited may have gone.
            let _ = barrier.send(Ok(0));
        }
        signals.iter().for_each(|signal| signal.raise(DELIVER));
        self.shared.room.notify_waiters();
    }

    /// Goes on in a new file; what is closed may be written anew.
    fn roll(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        self.sync_due = None;
        let (file, nonce) = create(&self.dir, self.number + 1)?;
        self.compaction.sealed(self.number, self.length, &self.dir, &self.metrics);
        (self.file, self.nonce, self.length) = (file, nonce, HEAD_BYTES as u64);
        self.number += 1;
        Ok(())
    }

    fn fail(&self, error: &io::Error) {
        let path = self.dir.join(file_name(self.number));
        tracing::error!(
            file = %path.display(), %error,
            "the journal of sessions failed: nothing more is acknowledged that has to be kept, until a restart"
        );
        let error = LogError::Failed { path, message: error.to_string() };
        let open = &mut *self.shared.open.lock();
        open.failed = Some(error.clone());
        open.bytes = Vec::new();
        for (_, barrier) in open.barriers.drain(..) {
            // Who waited may have gone.
            let _ = barrier.send(Err(error.clone()));
        }
        self.shared.stuck.store(true, Ordering::Relaxed);
        self.shared.room.notify_waiters();
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
