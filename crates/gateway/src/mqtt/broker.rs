//! The broker of one realm: sessions, subscriptions and retained messages, and how a message gets from one to all.
//!
//! Lock order: the map of sessions, then one session, then nothing. The subscription tree is never held while a session
//! is locked, nor the other way round.

use std::borrow::Borrow;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::keep::{Keeper, Record};
use super::peers::{Outbox, Peers};
use super::recall::SYS_LIMITS;
use super::retained::{Retained, RetainedLimits};
use super::session::{Parting, QueueLimits, Remains, Session};
use super::signal::{Signal, TAKEN_OVER};
use super::subscriptions::{Subscriptions, Wish};
use super::topics::{Filter, TopicLimits};
use super::will::Will;
use crate::config::MqttConfig;
use crate::metrics::GatewayMetrics;

/// A connection that is being taken over writes out and leaves in less than this.
const TAKE_OVER_MAX: Duration = Duration::from_secs(8);

/// What a new connection wants of its session.
#[derive(Debug)]
pub(crate) struct Attach<'a> {
    pub(crate) client_id: &'a Arc<str>,
    /// See [`Session::owner`].
    pub(crate) owner: &'a str,
    pub(crate) clean_start: bool,
    pub(crate) expiry: Duration,
    pub(crate) will: Option<Will>,
    pub(crate) signal: &'a Arc<Signal>,
}

/// A session that a connection now serves.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) session: Arc<Session>,
    /// Whether it existed before.
    pub(crate) present: bool,
    /// For which PUBREL is to be sent again.
    pub(crate) released: Vec<u16>,
    /// The will of the session that ended for this one.
    pub(crate) will: Option<Will>,
    /// Whether there was one that did.
    pub(crate) replaced: bool,
}

/// Why a connection got no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttachError {
    /// As many sessions as the configuration allows.
    TooManySessions,
    /// The connection that serves the session does not end.
    NotReleased,
    /// The session is another client's.
    Foreign,
    /// The session is to outlive the connection, and cannot be kept now.
    NotKept,
}

/// A session as the set of all finds it: by its client id, which is not written a second time.
#[derive(Debug)]
pub(super) struct ByClientId(pub(super) Arc<Session>);

impl Borrow<str> for ByClientId {
    fn borrow(&self) -> &str {
        self.0.client_id()
    }
}
impl Hash for ByClientId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.client_id().hash(state);
    }
}
impl PartialEq for ByClientId {
    fn eq(&self, other: &Self) -> bool {
        self.0.client_id() == other.0.client_id()
    }
}
impl Eq for ByClientId {}

#[derive(Debug)]
struct Timer {
    due: Instant,
    session: Weak<Session>,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}
impl Eq for Timer {}
impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

/// The broker of one realm.
#[derive(Debug)]
pub(crate) struct Broker {
    realm: Arc<str>,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) retained: Retained,
    /// The server's own figures. They count for no limit, are not kept, and nobody else can write them.
    pub(super) sys: Retained,
    pub(super) sessions: Mutex<HashSet<ByClientId, RandomState>>,
    /// When sessions without a connection have something to do, earliest first.
    timers: Mutex<BinaryHeap<Reverse<Timer>>>,
    pub(crate) keeper: Arc<Keeper>,
    pub(super) topic_limits: TopicLimits,
    pub(super) queue_limits: QueueLimits,
    sessions_max: usize,
    pub(super) metrics: GatewayMetrics,
    pub(super) peers: Peers,
}

impl Broker {
    pub(crate) fn new(
        realm: &str,
        config: &MqttConfig,
        metrics: GatewayMetrics,
        keeper: Arc<Keeper>,
        outbox: Arc<Outbox>,
    ) -> Self {
        Self {
            keeper,
            realm: realm.into(),
            subscriptions: Subscriptions::new(config.overlapping_copies, config.subscriptions_bytes_max),
            retained: Retained::new(RetainedLimits {
                messages_max: config.retained_messages_max,
                bytes_max: config.retained_bytes_max,
            }),
            sys: Retained::new(SYS_LIMITS),
            sessions: Mutex::default(),
            timers: Mutex::default(),
            topic_limits: config.topic_limits(),
            queue_limits: QueueLimits::new(config.session_queue_messages_max, config.session_queue_bytes_max),
            sessions_max: config.sessions_max,
            metrics,
            peers: Peers::new(outbox),
        }
    }

    pub(crate) fn realm(&self) -> &Arc<str> {
        &self.realm
    }

    /// Gives a connection its session: the one that is kept, or a new one. Whoever serves it is asked to leave and
    /// waited for, so that what it has on its way to the log is settled first.
    pub(crate) async fn attach(&self, request: Attach<'_>) -> Result<Attached, AttachError> {
        let deadline = tokio::time::Instant::now() + TAKE_OVER_MAX;
        loop {
            let occupied = match self.try_attach(&request)? {
                Ok(attached) => return self.attached(attached).await,
                Err(occupied) => occupied,
            };
            let waited = tokio::time::timeout_at(deadline, occupied.wait_detached()).await;
            waited.map_err(|_| AttachError::NotReleased)?;
        }
    }

    fn try_attach(&self, request: &Attach<'_>) -> Result<Result<Attached, Arc<Session>>, AttachError> {
        let mut sessions = self.sessions.lock();
        let old = sessions.get(&**request.client_id).map(|ByClientId(session)| Arc::clone(session));
        if old.as_ref().is_some_and(|session| session.owner() != request.owner) {
            return Err(AttachError::Foreign);
        }
        if let Some(session) = &old
            && let Some(link) = session.link()
        {
            link.raise(TAKEN_OVER);
            return Ok(Err(Arc::clone(session)));
        }
        let kept = old.as_ref().filter(|_| !request.clean_start);
        let session = match (kept, &old) {
            (Some(session), _) => Arc::clone(session),
            (None, None) if sessions.len() >= self.sessions_max => return Err(AttachError::TooManySessions),
            (None, _) if !request.expiry.is_zero() && self.keeper.is_stuck() => {
                return Err(AttachError::NotKept);
            }
            (None, _) => {
                let session = self.new_session(request);
                sessions.replace(ByClientId(Arc::clone(&session)));
                session
            }
        };
        let released = session.attach(Arc::clone(request.signal), request.expiry, request.will.clone());
        self.metrics.sessions.set(i64::try_from(sessions.len()).unwrap_or(i64::MAX));
        drop(sessions);
        let present = kept.is_some();
        let replaced = old.is_some() && !present;
        let will = old.filter(|_| !present).and_then(|old| self.end(&old));
        Ok(Ok(Attached { session, present, released, will, replaced }))
    }

    /// A connection leaves its session; see [`Session::detach`]. Gives the will to publish now.
    pub(crate) fn detach(
        &self,
        session: &Arc<Session>,
        signal: &Arc<Signal>,
        with_will: bool,
        expiry: Option<Duration>,
        unproven: &[u16],
    ) -> Option<Will> {
        let mut sessions = self.sessions.lock();
        match session.detach(signal, with_will, expiry, unproven, Instant::now())? {
            Parting { will, due: Some(due) } => {
                drop(sessions);
                self.schedule(session, due);
                will
            }
            Parting { will, due: None } => {
                sessions.remove(session.client_id());
                self.metrics.sessions.set(i64::try_from(sessions.len()).unwrap_or(i64::MAX));
                drop(sessions);
                self.end(session);
                will
            }
        }
    }

    /// Limits of topics and filters.
    pub(crate) fn topic_limits(&self) -> TopicLimits {
        self.topic_limits
    }

    /// Ends sessions whose client ids say that nobody comes for them any more; how many.
    pub(crate) fn end_sessions(&self, is_over: impl Fn(&str) -> bool) -> usize {
        let mut sessions = self.sessions.lock();
        let over: Vec<_> = sessions.extract_if(|ByClientId(session)| is_over(session.client_id())).collect();
        self.metrics.sessions.set(i64::try_from(sessions.len()).unwrap_or(i64::MAX));
        drop(sessions);
        for ByClientId(session) in &over {
            self.end(session);
        }
        over.len()
    }

    /// Ends a session that is no longer in the map.
    pub(super) fn end(&self, session: &Session) -> Option<Will> {
        let Remains { filters, will, shared } = session.end();
        for filter in filters.iter().filter_map(|filter| self.topic_limits.filter(filter)) {
            self.subscriptions.remove(filter, session.id());
        }
        self.metrics.subscriptions.set(i64::try_from(self.subscriptions.of_clients()).unwrap_or(i64::MAX));
        shared.into_iter().for_each(|delivery| self.pass_on(delivery));
        will
    }

    /// Ends sessions whose time is over. Gives the wills that are due.
    pub(crate) fn sweep(&self, now: Instant) -> Vec<Will> {
        let mut wills = Vec::new();
        while let Some(session) = self.next_due(now) {
            let mut sessions = self.sessions.lock();
            let due = session.due(now);
            wills.extend(due.will);
            if due.is_over {
                sessions.remove(session.client_id());
                self.metrics.sessions.set(i64::try_from(sessions.len()).unwrap_or(i64::MAX));
                drop(sessions);
                wills.extend(self.end(&session));
            } else if let Some(due) = due.next {
                drop(sessions);
                self.schedule(&session, due);
            }
        }
        wills
    }

    pub(super) fn schedule(&self, session: &Arc<Session>, due: Instant) {
        if session.needs_timer(due) {
            self.timers.lock().push(Reverse(Timer { due, session: Arc::downgrade(session) }));
        }
    }

    fn next_due(&self, now: Instant) -> Option<Arc<Session>> {
        let mut timers = self.timers.lock();
        while timers.peek().is_some_and(|Reverse(timer)| timer.due <= now) {
            if let Some(session) = timers.pop().and_then(|Reverse(timer)| timer.session.upgrade()) {
                return Some(session);
            }
        }
        None
    }

    /// Adds a subscription and queues the retained messages that go with it: at once where there is at most one, else page
    /// by page by [`Broker::recall`]. `false` when the session has as many filters as it may, or all of them take as much as
    /// they may.
    pub(crate) fn subscribe(
        &self,
        session: &Arc<Session>,
        text: &str,
        filter: Filter<'_>,
        wish: Wish,
        filters_max: usize,
        retained: impl FnOnce(bool) -> bool,
    ) -> bool {
        if !session.add_filter(text, filters_max) {
            self.metrics.subscriptions_refused.inc();
            return false;
        }
        let Ok(is_new) = self.subscriptions.insert(filter, session, wish) else {
            // It was not there before: what is there is replaced, whatever it takes.
            session.remove_filter(text);
            self.metrics.subscriptions_refused.inc();
            return false;
        };
        session.record(&Record::Subscribed { session: session.id(), filter: text, wish });
        self.metrics.subscriptions.set(i64::try_from(self.subscriptions.of_clients()).unwrap_or(i64::MAX));
        if filter.group.is_some() || !retained(is_new) {
            return true;
        }
        self.recall(session, filter.filter, wish);
        true
    }

    /// Takes a subscription away. `false` when there was none.
    pub(crate) fn unsubscribe(&self, session: &Session, text: &str, filter: Filter<'_>) -> bool {
        if !session.remove_filter(text) {
            return false;
        }
        session.record(&Record::Unsubscribed { session: session.id(), filter: text });
        let removed = self.subscriptions.remove(filter, session.id());
        self.metrics.subscriptions.set(i64::try_from(self.subscriptions.of_clients()).unwrap_or(i64::MAX));
        removed
    }

    /// Takes away the subscriptions of a session that are no longer allowed; how many.
    pub(crate) fn enforce(&self, session: &Session, may: impl Fn(&str) -> bool) -> usize {
        let filters = session.filters();
        let parsed = filters.iter().filter_map(|text| Some((text, self.topic_limits.filter(text)?)));
        let refused = parsed.filter(|(_, filter)| !may(filter.filter));
        refused.filter(|(text, filter)| self.unsubscribe(session, text, *filter)).count()
    }

    /// Whether what devices of this realm send is kept: tables are not yet apart by realm, so only the main one's is.
    pub(crate) fn keeps_events(&self) -> bool {
        crate::ingest::is_kept(&self.realm)
    }
}

/// For fuzzing.
impl Broker {
    /// Asserts that sessions are within their bounds, and that each subscription is in its session and in the tree.
    pub(crate) fn check(&self) {
        let sessions: Vec<_> =
            self.sessions.lock().iter().map(|ByClientId(session)| Arc::clone(session)).collect();
        let filters: usize = sessions.iter().map(|session| session.check()).sum();
        assert_eq!(filters, self.subscriptions.len(), "sessions and the tree have the same subscriptions");
        assert!(sessions.len() <= self.sessions_max);
        assert_eq!(filters == 0, self.subscriptions.bytes() == 0, "what nobody has takes nothing");
        let (messages, bytes) = self.retained.size();
        assert_eq!(messages == 0, bytes == 0);
    }
}
