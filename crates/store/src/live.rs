//! Push of readings and events to whoever follows them.
//!
//! Workers never wait here. Without subscribers they do nothing extra; with some, the worker asks once for each event
//! who wants it (one hash look-up for subscriptions of exact devices, however many there are, plus one match for each
//! subscription with patterns) and copies only what somebody wants. Each subscriber has a queue bounded in bytes; when it
//! is full the oldest goes, and the subscriber is told how much it missed.
//!
//! Where workers and subscribers are different processes, a relay stands between their hubs: it *forwards* what others want
//! ([`LiveHub::forward`]), and hands in what came from elsewhere, which no forwarder gets again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use catchment_decode::Glob;
use catchment_types::{Event, Reading, Timestamp, Value};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use thiserror::Error;
use tokio::sync::{Notify, watch};

/// Bounds of the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveConfig {
    /// Most subscribers at once.
    pub subscribers_max: usize,
    /// Most that waits for one subscriber, in bytes.
    pub queue_bytes_max: usize,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self { subscribers_max: 20_000, queue_bytes_max: 1024 * 1024 }
    }
}

/// A value that owns its text. Serialises as the plain JSON value.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum LiveValue {
    /// A finite number.
    Number(f64),
    /// A boolean.
    Bool(bool),
    /// A text.
    Text(Arc<str>),
}

impl LiveValue {
    /// The same value, borrowed: its columns are [`Value::number`] and [`Value::text`].
    #[must_use]
    pub fn as_value(&self) -> Value<'_> {
        match self {
            Self::Number(number) => Value::Number(*number),
            Self::Bool(bool) => Value::Bool(*bool),
            Self::Text(text) => Value::Text(text),
        }
    }

    /// Whether it is this value.
    #[must_use]
    pub fn is(&self, value: Value<'_>) -> bool {
        self.as_value() == value
    }
}

impl From<Value<'_>> for LiveValue {
    fn from(value: Value<'_>) -> Self {
        match value {
            Value::Number(number) => Self::Number(number),
            Value::Bool(bool) => Self::Bool(bool),
            Value::Text(text) => Self::Text(text.into()),
        }
    }
}

/// A reading as it is pushed.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveReading {
    /// What sent it.
    pub device_id: Arc<str>,
    /// Type of the event it came in.
    pub event_type: Arc<str>,
    /// When it was measured.
    pub timestamp: Timestamp,
    /// When the gateway received the event.
    pub received_at: Timestamp,
    /// Dotted name.
    pub metric: Arc<str>,
    /// What was measured.
    pub value: LiveValue,
}

/// An event as it is pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveEvent {
    /// What sent it.
    pub device_id: Arc<str>,
    /// Its type.
    pub event_type: Arc<str>,
    /// Topic or path it came by.
    pub topic: Arc<str>,
    /// When the gateway received it.
    pub received_at: Timestamp,
    /// As the device sent it.
    pub payload: Bytes,
}

/// What a subscriber follows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Follow {
    /// Decoded readings.
    #[default]
    Readings,
    /// Events as received; the filter's metrics do not matter.
    Events,
}

/// Which readings or events a subscriber wants: those that match one pattern of each list; an empty list matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LiveFilter {
    /// What to follow.
    pub follow: Follow,
    /// Patterns of device ids.
    pub devices: Vec<Glob>,
    /// Patterns of metric names.
    pub metrics: Vec<Glob>,
    /// Patterns of event types.
    pub types: Vec<Glob>,
}

fn any_matches(globs: &[Glob], text: &str) -> bool {
    globs.is_empty() || globs.iter().any(|glob| glob.matches(text))
}

/// What a subscriber receives.
#[derive(Debug, Clone, PartialEq)]
pub enum LiveMessage {
    /// Readings, in the order of the log for each device.
    Readings(Arc<[LiveReading]>),
    /// Events, in the order of the log for each device.
    Events(Arc<[LiveEvent]>),
    /// So many readings or events were dropped here because the subscriber was too slow; at least so many when a
    /// connection between processes broke.
    Lagged(u64),
}

impl LiveMessage {
    fn len(&self) -> u64 {
        match self {
            Self::Readings(readings) => readings.len() as u64,
            Self::Events(events) => events.len() as u64,
            Self::Lagged(count) => *count,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Readings(readings) => readings.iter().map(reading_bytes).sum(),
            Self::Events(events) => events
                .iter()
                .map(|event| size_of::<LiveEvent>() + event.topic.len() + event.payload.len())
                .sum(),
            Self::Lagged(_) => 0,
        }
    }
}

fn reading_bytes(reading: &LiveReading) -> usize {
    let text = if let LiveValue::Text(text) = &reading.value { text.len() } else { 0 };
    size_of::<LiveReading>() + text
}

/// The hub has as many subscribers as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("there are {subscribers_max} live subscriptions already: close some, or raise the limit")]
pub struct TooManySubscribers {
    /// The limit.
    pub subscribers_max: usize,
}

/// Where workers publish and subscribers listen.
#[derive(Debug, Default)]
pub struct LiveHub {
    config: LiveConfig,
    table: RwLock<Arc<Table>>,
    subscribers: AtomicUsize,
    /// Those of them that forward to other processes.
    forwarders: AtomicUsize,
    /// Counts changes of who wants what.
    changes: watch::Sender<u64>,
    next_id: AtomicU64,
    closed: AtomicBool,
}

/// The subscribers, by how they are found.
#[derive(Debug, Clone, Default)]
struct Table {
    by_device: HashMap<Box<str>, Vec<Arc<Subscriber>>>,
    by_pattern: Vec<Arc<Subscriber>>,
}

#[derive(Debug)]
struct Subscriber {
    id: u64,
    filter: LiveFilter,
    /// Whether it is the way to other processes.
    forwards: bool,
    mailbox: Arc<Mailbox>,
}

/// Where a subscriber's messages wait, whatever its filter.
#[derive(Debug, Default)]
struct Mailbox {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<LiveMessage>,
    bytes: usize,
    dropped: u64,
    closed: bool,
}

impl Subscriber {
    /// The devices by which the table finds it, or nothing if it has patterns.
    fn exact_devices(&self) -> Option<Vec<&str>> {
        let devices: Option<Vec<_>> = self.filter.devices.iter().map(Glob::as_exact).collect();
        devices.filter(|devices| !devices.is_empty()).map(|mut devices| {
            devices.sort_unstable();
            devices.dedup();
            devices
        })
    }
}

impl Mailbox {
    fn push(&self, message: LiveMessage, bytes_max: usize) {
        let bytes = message.bytes();
        let mut queue = self.queue.lock();
        if queue.closed {
            return;
        }
        while queue.bytes + bytes > bytes_max {
            let Some(oldest) = queue.messages.pop_front() else { break };
            queue.bytes -= oldest.bytes();
            queue.dropped += oldest.len();
        }
        queue.bytes += bytes;
        queue.messages.push_back(message);
        drop(queue);
        self.wake.notify_one();
    }

    fn lag(&self, count: u64) {
        self.queue.lock().dropped += count;
        self.wake.notify_one();
    }

    fn close(&self) {
        self.queue.lock().closed = true;
        self.wake.notify_one();
    }
}

impl Table {
    fn insert(&mut self, subscriber: &Arc<Subscriber>) {
        match subscriber.exact_devices() {
            Some(devices) => {
                for device in devices {
                    self.by_device.entry(device.into()).or_default().push(Arc::clone(subscriber));
                }
            }
            None => self.by_pattern.push(Arc::clone(subscriber)),
        }
    }

    fn remove(&mut self, subscriber: &Subscriber) {
        match subscriber.exact_devices() {
            Some(devices) => {
                for device in devices {
                    if let Some(list) = self.by_device.get_mut(device) {
                        list.retain(|other| other.id != subscriber.id);
                        if list.is_empty() {
                            self.by_device.remove(device);
                        }
                    }
                }
            }
            None => self.by_pattern.retain(|other| other.id != subscriber.id),
        }
    }

    /// All subscribers; those of several devices come several times.
    fn all(&self) -> impl Iterator<Item = &Arc<Subscriber>> {
        self.by_device.values().flatten().chain(&self.by_pattern)
    }
}

impl LiveHub {
    /// A hub without subscribers.
    #[must_use]
    pub fn new(config: LiveConfig) -> Arc<Self> {
        Arc::new(Self { config, ..Self::default() })
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn has_subscribers(&self) -> bool {
        self.subscribers.load(Ordering::Relaxed) > 0
    }

    /// How many listen in this process.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.subscribers.load(Ordering::Relaxed).saturating_sub(self.forwarders.load(Ordering::Relaxed))
    }

    /// Follows what the filter says, from now on, until the subscription is dropped.
    ///
    /// # Errors
    /// When there are too many subscribers.
    pub fn subscribe(self: &Arc<Self>, filter: LiveFilter) -> Result<LiveSubscription, TooManySubscribers> {
        self.add(filter, false)
    }

    /// Follows for other processes what they want: gets what workers of this process publish, and nothing that came from
    /// elsewhere.
    ///
    /// # Errors
    /// When there are too many subscribers.
    pub fn forward(self: &Arc<Self>, filter: LiveFilter) -> Result<LiveSubscription, TooManySubscribers> {
        self.add(filter, true)
    }

    fn add(
        self: &Arc<Self>,
        filter: LiveFilter,
        forwards: bool,
    ) -> Result<LiveSubscription, TooManySubscribers> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let subscriber = Arc::new(Subscriber { id, filter, forwards, mailbox: Arc::default() });
        let mut table = self.table.write();
        let subscribers_max = self.config.subscribers_max;
        if self.subscribers.load(Ordering::Relaxed) >= subscribers_max {
            return Err(TooManySubscribers { subscribers_max });
        }
        self.subscribers.fetch_add(1, Ordering::Relaxed);
        self.forwarders.fetch_add(usize::from(forwards), Ordering::Relaxed);
        if self.closed.load(Ordering::Relaxed) {
            subscriber.mailbox.close();
        }
        // Copies the table only while a worker holds it, which is for one block of events.
        Arc::make_mut(&mut *table).insert(&subscriber);
        drop(table);
        self.changed(&subscriber);
        Ok(LiveSubscription { hub: Arc::clone(self), subscriber })
    }

    fn remove(&self, subscriber: &Subscriber) {
        let mut table = self.table.write();
        Arc::make_mut(&mut *table).remove(subscriber);
        self.subscribers.fetch_sub(1, Ordering::Relaxed);
        self.forwarders.fetch_sub(usize::from(subscriber.forwards), Ordering::Relaxed);
        drop(table);
        self.changed(subscriber);
    }

    fn changed(&self, subscriber: &Subscriber) {
        if !subscriber.forwards {
            self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
        }
    }

    /// Changes when subscribers of this process come or go.
    #[must_use]
    pub fn subscribe_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What the subscribers of this process want.
    #[must_use]
    pub fn filters(&self) -> Vec<LiveFilter> {
        let table = Arc::clone(&self.table.read());
        let mut own: Vec<_> = table.all().filter(|subscriber| !subscriber.forwards).collect();
        own.sort_unstable_by_key(|subscriber| subscriber.id);
        own.dedup_by_key(|subscriber| subscriber.id);
        own.into_iter().map(|subscriber| subscriber.filter.clone()).collect()
    }

    /// Tells the subscribers of this process that so many readings, or events, did not come.
    pub fn lag(&self, follow: Follow, count: u64) {
        let table = Arc::clone(&self.table.read());
        let mut own: Vec<_> = table.all().filter(|to| !to.forwards && to.filter.follow == follow).collect();
        own.sort_unstable_by_key(|subscriber| subscriber.id);
        own.dedup_by_key(|subscriber| subscriber.id);
        own.into_iter().for_each(|subscriber| subscriber.mailbox.lag(count));
    }

    /// Starts gathering what subscribers want, or nothing if there are none.
    #[must_use]
    pub fn batch(&self) -> Option<LiveBatch> {
        self.has_subscribers().then(|| self.new_batch(false))
    }

    /// The same for what came from another process, which is not forwarded again.
    #[must_use]
    pub fn batch_from_elsewhere(&self) -> Option<LiveBatch> {
        (self.subscribers() > 0).then(|| self.new_batch(true))
    }

    fn new_batch(&self, from_elsewhere: bool) -> LiveBatch {
        LiveBatch {
            table: Arc::clone(&self.table.read()),
            from_elsewhere,
            readings: Vec::new(),
            events: Vec::new(),
            outgoing: Vec::new(),
            outgoing_by_id: HashMap::new(),
            matched: Vec::new(),
            event_type: None,
        }
    }

    /// Hands what was gathered to the subscribers. Never waits.
    pub fn publish(&self, batch: LiveBatch) {
        let readings: Arc<[LiveReading]> = batch.readings.into();
        let events: Arc<[LiveEvent]> = batch.events.into();
        for Outgoing { subscriber, wanted } in batch.outgoing {
            let message = match subscriber.filter.follow {
                _ if wanted.is_empty() => continue,
                Follow::Readings => LiveMessage::Readings(pick(&readings, &wanted)),
                Follow::Events => LiveMessage::Events(pick(&events, &wanted)),
            };
            subscriber.mailbox.push(message, self.config.queue_bytes_max);
        }
    }

    /// Ends all subscriptions, once they have received what waits for them.
    pub fn close(&self) {
        let table = self.table.write();
        self.closed.store(true, Ordering::Relaxed);
        table.all().for_each(|subscriber| subscriber.mailbox.close());
    }
}

/// What one subscriber wants of a batch: shared if it is all, else its own copy, so that a queue holds no more than what
/// was asked for.
fn pick<T: Clone>(all: &Arc<[T]>, wanted: &[u32]) -> Arc<[T]> {
    match wanted.len() == all.len() {
        true => Arc::clone(all),
        false => wanted.iter().map(|&at| all[at as usize].clone()).collect(),
    }
}

/// What subscribers want of one block of events, gathered by a worker.
#[derive(Debug)]
pub struct LiveBatch {
    table: Arc<Table>,
    from_elsewhere: bool,
    readings: Vec<LiveReading>,
    events: Vec<LiveEvent>,
    outgoing: Vec<Outgoing>,
    outgoing_by_id: HashMap<u64, usize>,
    /// Positions in `outgoing` of those who want readings of the current event.
    matched: Vec<usize>,
    /// The last event's type: most follow one another with the same.
    event_type: Option<Arc<str>>,
}

#[derive(Debug)]
struct Outgoing {
    subscriber: Arc<Subscriber>,
    wanted: Vec<u32>,
}

impl LiveBatch {
    /// Begins an event; says whether anybody may want its readings.
    pub(crate) fn begin(&mut self, event: &Event<'_>) -> bool {
        self.begin_for(event, &[Follow::Readings, Follow::Events])
    }

    /// The same where only readings, or only the event, are known.
    pub(crate) fn begin_for(&mut self, event: &Event<'_>, known: &[Follow]) -> bool {
        self.matched.clear();
        let mut pushed_event = false;
        let table = Arc::clone(&self.table);
        let exact = table.by_device.get(event.device_id).into_iter().flatten();
        let by_pattern = table
            .by_pattern
            .iter()
            .filter(|subscriber| any_matches(&subscriber.filter.devices, event.device_id));
        for subscriber in exact.chain(by_pattern) {
            if !any_matches(&subscriber.filter.types, event.event_type)
                || !known.contains(&subscriber.filter.follow)
                || self.from_elsewhere && subscriber.forwards
            {
                continue;
            }
            let at = self.outgoing_of(subscriber);
            match subscriber.filter.follow {
                Follow::Readings => self.matched.push(at),
                Follow::Events => {
                    if !pushed_event {
                        let event = self.own(event);
                        self.events.push(event);
                        pushed_event = true;
                    }
                    self.outgoing[at].wanted.push((self.events.len() - 1) as u32);
                }
            }
        }
        !self.matched.is_empty()
    }

    /// Takes a reading of the current event, if anybody wants it.
    pub(crate) fn reading(
        &mut self,
        device_id: &Arc<str>,
        metric: &Arc<str>,
        event: &Event<'_>,
        reading: &Reading<'_>,
    ) {
        let at = self.readings.len() as u32;
        let mut wanted = false;
        for &matched in &self.matched {
            let Outgoing { subscriber, wanted: list } = &mut self.outgoing[matched];
            if any_matches(&subscriber.filter.metrics, metric) {
                list.push(at);
                wanted = true;
            }
        }
        if wanted {
            let reading = LiveReading {
                device_id: Arc::clone(device_id),
                event_type: self.type_of(event),
                timestamp: reading.timestamp,
                received_at: event.received_at,
                metric: Arc::clone(metric),
                value: reading.value.into(),
            };
            self.readings.push(reading);
        }
    }

    fn outgoing_of(&mut self, subscriber: &Arc<Subscriber>) -> usize {
        let outgoing = &mut self.outgoing;
        *self.outgoing_by_id.entry(subscriber.id).or_insert_with(|| {
            outgoing.push(Outgoing { subscriber: Arc::clone(subscriber), wanted: Vec::new() });
            outgoing.len() - 1
        })
    }

    fn own(&mut self, event: &Event<'_>) -> LiveEvent {
        LiveEvent {
            device_id: event.device_id.into(),
            event_type: self.type_of(event),
            topic: event.topic.into(),
            received_at: event.received_at,
            // A copy: a slice would hold the whole block of the log for as long as a queue holds the event.
            payload: Bytes::copy_from_slice(event.payload),
        }
    }

    fn type_of(&mut self, event: &Event<'_>) -> Arc<str> {
        match &self.event_type {
            Some(event_type) if **event_type == *event.event_type => Arc::clone(event_type),
            _ => Arc::clone(self.event_type.insert(event.event_type.into())),
        }
    }
}

/// One subscriber's end.
#[derive(Debug)]
pub struct LiveSubscription {
    hub: Arc<LiveHub>,
    subscriber: Arc<Subscriber>,
}

impl LiveSubscription {
    /// The next message; waits for one. Nothing after [`LiveHub::close`]. Safe to cancel.
    pub async fn recv(&mut self) -> Option<LiveMessage> {
        loop {
            {
                let mut queue = self.subscriber.mailbox.queue.lock();
                match std::mem::take(&mut queue.dropped) {
                    0 => {}
                    dropped => return Some(LiveMessage::Lagged(dropped)),
                }
                if let Some(message) = queue.messages.pop_front() {
                    queue.bytes -= message.bytes();
                    return Some(message);
                }
                if queue.closed {
                    return None;
                }
            }
            self.subscriber.mailbox.wake.notified().await;
        }
    }

    /// Follows something else from now on. What waits stays, and nothing that both filters want is lost or doubled.
    pub fn refilter(&mut self, filter: LiveFilter) {
        let Subscriber { id, forwards, ref mailbox, .. } = *self.subscriber;
        let changed = Arc::new(Subscriber { id, filter, forwards, mailbox: Arc::clone(mailbox) });
        let mut table = self.hub.table.write();
        let edited = Arc::make_mut(&mut *table);
        edited.remove(&self.subscriber);
        edited.insert(&changed);
        drop(table);
        self.subscriber = changed;
        self.hub.changed(&self.subscriber);
    }

    /// The filter it was made with.
    #[must_use]
    pub fn filter(&self) -> &LiveFilter {
        &self.subscriber.filter
    }
}

impl Drop for LiveSubscription {
    fn drop(&mut self) {
        self.hub.remove(&self.subscriber);
    }
}

#[cfg(test)]
mod tests;
