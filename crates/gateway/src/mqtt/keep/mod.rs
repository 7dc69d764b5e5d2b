//! Sessions, their queues and retained messages, kept over restarts and `kill -9`.
//!
//! All of it lives in memory, as ever; a journal says what changed (`record`), in files of checksummed records (`segment`),
//! written by one thread with one sync for all that has gathered (`journal`). A start adds the records up (`image`) and goes
//! on from there (`restore`); so does the thread that writes old files anew (`compact`).
//!
//! Only sessions that outlive their connections are kept, and of their messages those of QoS 1 and 2. Where nothing of this
//! kind is touched, nothing is recorded and nothing is waited for. Otherwise:
//!
//! - PUBACK and PUBREC wait for the record of the queues that the message went into, and of its retained place.
//! - SUBACK, UNSUBACK, CONNACK, PUBREL and PUBCOMP wait for theirs: what they say would be forgotten otherwise.
//! - A QoS 2 message is sent to a kept session only once its record is durable. Its packet identifier follows from its number
//!   in the session, so that after a crash the same message has the same identifier.
//! - A QoS 2 message *from* a kept session that becomes an event is recorded before the event is given to the log, with where
//!   to look for it. A start that finds it not in the log gives it to the log again if somebody may have been sent it already,
//!   and else takes the record back, so that the client sends it anew.

mod compact;
pub(crate) mod fuzz;
mod image;
mod journal;
mod record;
mod restore;
mod segment;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use catchment_eventlog::Pending;
use catchment_eventlog::SyncPolicy;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use thiserror::Error;

pub(crate) use self::image::{Image, KeptSession, Link, Waiting};
use self::journal::{Journal, JournalConfig};
pub(crate) use self::record::{Origin, Proof, Queued, Record};
pub(crate) use self::restore::{restore, settle};
pub(crate) use self::wire::{Put, Take};
use super::message::SERVER;
use super::signal::Signal;
use crate::config::MqttConfig;

/// Where sessions are kept.
#[derive(Debug, Clone)]
pub struct SessionStore {
    /// A folder of its own.
    pub path: PathBuf,
    /// When something counts as durable; that of the event log is what clients expect.
    pub sync: SyncPolicy,
}

/// Why the sessions that were kept cannot be had.
#[derive(Debug, Error)]
#[error("the sessions kept in {path}: cannot {action}: {source}", path = .path.display())]
pub struct KeepError {
    pub(crate) action: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

/// Counters and gauges of what is kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeepMetrics {
    pub(crate) written_bytes: Counter,
    pub(crate) commits: Counter,
    pub(crate) compactions: Counter,
    pub(crate) damaged: Counter,
    pub(crate) disk_bytes: Gauge,
}

/// What sessions and brokers tell what is to be kept. Without a folder nothing is.
#[derive(Debug)]
pub(crate) struct Keeper {
    journal: Option<Journal>,
    next_session: AtomicU64,
    /// Bytes of messages that wait for kept sessions, each message once.
    waiting_bytes: Arc<AtomicUsize>,
    waiting_bytes_max: usize,
}

impl Keeper {
    /// Keeps nothing.
    pub(crate) fn volatile(config: &MqttConfig) -> Self {
        Self {
            journal: None,
            next_session: AtomicU64::new(SERVER + 1),
            waiting_bytes: Arc::default(),
            waiting_bytes_max: config.kept_bytes_max,
        }
    }

    /// Opens what was kept. Blocks the thread while it reads.
    pub(crate) fn open(
        store: &SessionStore,
        config: &MqttConfig,
        metrics: KeepMetrics,
    ) -> Result<(Self, Image), KeepError> {
        let journal_config = JournalConfig {
            sync: store.sync,
            segment_bytes: config.journal_segment_bytes,
            queue_bytes_max: config.journal_queue_bytes_max,
        };
        let (journal, image) = Journal::open(&store.path, journal_config, metrics)?;
        let mut keeper = Self::volatile(config);
        keeper.journal = Some(journal);
        keeper.next_session = AtomicU64::new(image.last_session.saturating_add(1));
        Ok((keeper, image))
    }

    /// Whether anything is kept at all.
    pub(crate) fn is_durable(&self) -> bool {
        self.journal.is_some()
    }

    /// An identifier that no session has had.
    pub(crate) fn next_session(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }

    /// Records a change. Gives the position for [`Keeper::is_durable_to`]; 0 when nothing is kept.
    pub(crate) fn append(&self, record: &Record<'_>) -> u64 {
        self.journal.as_ref().map_or(0, |journal| journal.append(record))
    }

    /// Resolves when all that was recorded is durable; none: it is.
    pub(crate) fn barrier(&self) -> Option<Pending> {
        self.journal.as_ref().and_then(Journal::barrier)
    }

    /// Whether a record is durable; when it is not, `signal` is raised once more is.
    pub(crate) fn is_durable_to(&self, position: u64, signal: Option<&Arc<Signal>>) -> bool {
        position == 0 || self.journal.as_ref().is_none_or(|journal| journal.is_durable(position, signal))
    }

    /// Whether too much waits for the disk; if so, `signal` is raised once less does.
    pub(crate) fn is_crowded(&self, signal: Option<&Arc<Signal>>) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.is_crowded(signal))
    }

    /// Whether nothing can be kept now.
    pub(crate) fn is_stuck(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::is_stuck)
    }

    /// Waits while too much waits for the disk.
    pub(crate) async fn room(&self) {
        if let Some(journal) = &self.journal {
            journal.room().await;
        }
    }

    /// Takes `bytes` of what may wait for all kept sessions together; the charge gives them back.
    pub(crate) fn charge(&self, bytes: usize) -> Option<Charge> {
        let add = |waiting: usize| waiting.checked_add(bytes).filter(|&sum| sum <= self.waiting_bytes_max);
        self.waiting_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Charge { total: Arc::clone(&self.waiting_bytes), bytes })
    }

    /// Bytes of messages that wait for kept sessions.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.load(Ordering::Relaxed)
    }
}

/// Bytes taken of a total.
#[derive(Debug)]
pub(crate) struct Charge {
    total: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    catchment_types::Timestamp::now().as_micros() / 1000
}
