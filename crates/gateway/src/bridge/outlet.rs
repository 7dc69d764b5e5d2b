//! What a bridge's local session does with the messages that go out: under which topic, and which not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::metrics::OneBridge;
use super::rules::Rules;
use super::stamp::{Stamp, has_been_at};
use crate::mqtt::{Answer, Message, QueueLimits};

/// Of one bridge. Its session holds it.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) limits: QueueLimits,
    pub(crate) metrics: Arc<OneBridge>,
    rules: Rules,
    stamp: Stamp,
    /// The other broker's instance, where it is one of Catchment.
    other: RwLock<Option<Box<str>>>,
    /// Whether the other broker retains messages at all.
    retains: AtomicBool,
}

/// How a message goes out. Used again for the next.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    pub(crate) topic: String,
    /// With those of 5.0 that say where it came through.
    pub(crate) properties: Vec<u8>,
    pub(crate) retain: bool,
}

impl Outlet {
    pub(super) fn new(limits: QueueLimits, metrics: Arc<OneBridge>, rules: Rules, stamp: Stamp) -> Self {
        Self { limits, metrics, rules, stamp, other: RwLock::new(None), retains: AtomicBool::new(true) }
    }

    /// What the other broker said of itself.
    pub(crate) fn connected_to(&self, answer: &Answer) {
        self.retains.store(answer.retains, Ordering::Relaxed);
        *self.other.write() = answer.instance.as_deref().map(Box::from);
    }

    /// Says how a message goes out. `false`, and counted: it does not, since no rule wants it any more, or since it was here before
    /// and has come back through others.
    pub(crate) fn admit(&self, message: &Message, retain: bool, outbound: &mut Outbound) -> bool {
        let Some(retains) = self.rules.translate(message.topic(), &mut outbound.topic) else {
            self.metrics.dropped("no_rule", 1);
            return false;
        };
        let properties = message.properties();
        let is_from = || self.other.read().as_ref().is_some_and(|other| has_been_at(properties, other));
        if !properties.is_empty() && (self.stamp.is_on(properties) || is_from()) {
            self.metrics.dropped("loop", 1);
            return false;
        }
        outbound.properties.clear();
        outbound.properties.extend_from_slice(properties);
        outbound.properties.extend_from_slice(self.stamp.encoded());
        outbound.retain = retain && retains && self.retains.load(Ordering::Relaxed);
        !outbound.topic.is_empty()
    }
}
