//! Which messages of QoS 1 a bridge has in the log, by packet identifier, so that one that the broker sends again after a
//! broken connection is not taken twice.
//!
//! Only a message marked as a duplicate, in a session that the broker has kept, is compared, and only with the last messages
//! that earlier connections have made durable: only so many can be on their way. The broker cannot give an identifier to
//! another message before it has our acknowledgement; so what we had not acknowledged yet is told for certain. Of what we had, the acknowledgement may have been lost on its way, and then
//! the fingerprint decides: two messages of the same topic and payload, under the same identifier within [`MESSAGES`] around
//! the loss, count as one. Brokers that count identifiers up, as most do, never send such.

use std::collections::HashMap;

use catchment_types::Timestamp;
use foldhash::fast::RandomState;

/// 32 bits of checksum of topic and payload, 32 of their lengths.
pub(crate) fn fingerprint(topic: &[u8], payload: &[u8]) -> u64 {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(topic), payload);
    let length = (payload.len() as u32) ^ (topic.len() as u32).rotate_left(16);
    u64::from(length) << 32 | u64::from(checksum)
}

/// Messages that are remembered. Brokers hold more than one would think without an acknowledgement: mosquitto 2.0.11 was seen
/// to have 4,000 on their way after a reconnect, with a window of 500. Far below the 65,535 after which identifiers begin anew.
const MESSAGES: u64 = 16_384;

type Map<V> = HashMap<u16, V, RandomState>;

/// The last messages, at most one an identifier.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Number and fingerprint of the last message of an identifier.
    last: Map<(u64, u64)>,
    /// Number of the next message.
    next: u64,
    /// Messages below this number are durable and of earlier connections.
    before: u64,
}

impl Seen {
    /// What the log told at the start.
    pub(super) fn recalled(recalled: Recalled) -> Self {
        let mut all: Vec<_> = recalled.0.into_iter().collect();
        all.sort_unstable_by_key(|(_, (_, at))| *at);
        let mut seen = Self::default();
        all.iter().for_each(|&(id, (fingerprint, _))| seen.note(id, fingerprint));
        seen.end(true);
        seen
    }

    /// Whether a message marked as a duplicate is in the log already.
    pub(crate) fn has(&self, packet_id: u16, fingerprint: u64) -> bool {
        self.last.get(&packet_id).is_some_and(|&(number, seen)| {
            seen == fingerprint && number < self.before && self.next - number <= MESSAGES
        })
    }

    /// A message is taken in.
    pub(crate) fn note(&mut self, packet_id: u16, fingerprint: u64) {
        self.last.insert(packet_id, (self.next, fingerprint));
        self.next += 1;
    }

    /// A message was not taken after all: it comes again.
    pub(crate) fn unnote(&mut self, packet_id: u16) {
        self.last.remove(&packet_id);
    }

    /// The connection has ended; `durable`: everything that it brought is in the log. Otherwise what is sent again is taken again.
    pub(crate) fn end(&mut self, durable: bool) {
        if !durable {
            self.last.retain(|_, (number, _)| *number < self.before);
        }
        self.before = self.next;
    }

    /// The broker knows nothing of the session: identifiers begin anew.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// What the log has of a bridge, the latest of each identifier.
#[derive(Debug, Default)]
pub(crate) struct Recalled(Map<(u64, Timestamp)>);

impl Recalled {
    /// Partitions are read one after the other, so that the time tells what came last.
    pub(crate) fn note(&mut self, packet_id: u16, fingerprint: u64, at: Timestamp) {
        let latest = self.0.entry(packet_id).or_insert((fingerprint, at));
        if latest.1 <= at {
            *latest = (fingerprint, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_earlier_connection_made_durable_is_known() {
        let mut seen = Seen::default();
        seen.note(1, 10);
        assert!(!seen.has(1, 10));
        seen.end(true);
        assert!(seen.has(1, 10) && !seen.has(1, 11) && !seen.has(2, 10));
        // The identifier goes to another message, which does not become durable.
        seen.note(1, 11);
        assert!(!seen.has(1, 10) && !seen.has(1, 11));
        // What is not durable never was.
        seen.end(false);
        assert!(!seen.has(1, 10) && !seen.has(1, 11));
        seen.note(3, 12);
        seen.note(4, 13);
        seen.unnote(4);
        seen.end(true);
        assert!(seen.has(3, 12) && !seen.has(4, 13));
        seen.forget();
        assert!(!seen.has(3, 12));
    }

    #[test]
    fn what_cannot_come_again_is_forgotten() {
        let mut seen = Seen::default();
        (0..MESSAGES as u16).for_each(|id| seen.note(id, id.into()));
        seen.end(true);
        assert!(seen.has(0, 0));
        seen.note(60_000, 1);
        assert!(!seen.has(0, 0) && seen.has(1, 1) && !seen.has(60_000, 1));
    }

    #[test]
    fn the_latest_of_an_identifier_counts() {
        let mut recalled = Recalled::default();
        for (fingerprint, at) in [(1, 5), (2, 9), (3, 7)] {
            recalled.note(4, fingerprint, Timestamp(at));
        }
        let seen = Seen::recalled(recalled);
        assert!(seen.has(4, 2) && !seen.has(4, 3));
    }

    #[test]
    fn fingerprints_tell_topic_from_payload() {
        assert_ne!(fingerprint(b"ab", b"c"), fingerprint(b"a", b"bc"));
        assert_eq!(fingerprint(b"a", b"b"), fingerprint(b"a", b"b"));
    }
}
