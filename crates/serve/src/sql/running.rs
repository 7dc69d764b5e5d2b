//! The queries that run now: how many may, which they are, and how one is cancelled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use catchment_types::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::SqlConfig;
use super::error::{SqlError, SqlErrorKind};

/// How much of a query's text is kept for the list, in bytes.
const TEXT_BYTES_MAX: usize = 2000;

/// A query that runs, as the list shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RunningQuery {
    /// For `DELETE /api/v1/queries/{id}`.
    pub id: u64,
    /// The text, cut at 2,000 bytes.
    pub query: String,
    /// By which way it came: `http`, `postgres`.
    pub origin: &'static str,
    /// Who asked.
    pub user: String,
    /// When it was started, RFC 3339.
    pub started_at: String,
    /// Milliseconds since then.
    pub elapsed_ms: u64,
}

struct Entry {
    query: RunningQuery,
    since: Instant,
    cancel: CancellationToken,
}

/// Admission and list of running queries.
pub(super) struct Running {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
    wait_max: Duration,
    next_id: AtomicU64,
    entries: Mutex<BTreeMap<u64, Entry>>,
}

impl Running {
    pub(super) fn new(config: &SqlConfig) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(config.concurrent_max.max(1))),
            waiting: AtomicUsize::new(0),
            waiting_max: config.waiting_max,
            wait_max: Duration::from_millis(config.wait_ms_max),
            next_id: AtomicU64::new(1),
            entries: Mutex::default(),
        })
    }

    /// Waits for a free slot, but neither in an endless queue nor for ever.
    pub(super) async fn admit(&self) -> Result<OwnedSemaphorePermit, SqlError> {
        if let Ok(permit) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(permit);
        }
        let _place = Place::take(&self.waiting, self.waiting_max)?;
        match tokio::time::timeout(self.wait_max, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(SqlError::new(SqlErrorKind::Busy, "the server is stopping")),
            Err(_) => Err(busy(
                SqlErrorKind::Busy,
                format!("no query slot became free within {} ms", self.wait_max.as_millis()),
            )),
        }
    }

    /// Enters a query into the list; it leaves when the guard is dropped.
    pub(super) fn enter(
        self: &Arc<Self>,
        text: &str,
        origin: &'static str,
        user: &str,
        permit: OwnedSemaphorePermit,
    ) -> RunningGuard {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let cancel = CancellationToken::new();
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let query = RunningQuery {
            id,
            query: text[..end].to_owned(),
            origin,
            user: user.to_owned(),
            started_at: Timestamp::now().to_string(),
            elapsed_ms: 0,
        };
        self.entries.lock().insert(id, Entry { query, since: Instant::now(), cancel: cancel.clone() });
        RunningGuard { running: Arc::clone(self), id, cancel, _permit: permit }
    }

    pub(super) fn list(&self) -> Vec<RunningQuery> {
        let entries = self.entries.lock();
        let with_elapsed = |entry: &Entry| RunningQuery {
            elapsed_ms: u64::try_from(entry.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..entry.query.clone()
        };
        entries.values().map(with_elapsed).collect()
    }

    pub(super) fn cancel(&self, id: u64) -> bool {
        let entries = self.entries.lock();
        entries.get(&id).inspect(|entry| entry.cancel.cancel()).is_some()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

fn busy(kind: SqlErrorKind, message: String) -> SqlError {
    SqlError::new(kind, message).hint("try again in a moment; GET /api/v1/queries lists what runs")
}

/// A place in the queue, given back when dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, max: usize) -> Result<Self, SqlError> {
        let place = Self(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) >= max {
            return Err(busy(SqlErrorKind::QueueFull, format!("{max} queries are waiting already")));
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A running query's place in the list and its slot.
pub(super) struct RunningGuard {
    running: Arc<Running>,
    pub(super) id: u64,
    pub(super) cancel: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.running.entries.lock().remove(&self.id);
    }
}
