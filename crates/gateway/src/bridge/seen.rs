//! Which messages of QoS 1 a bridge has in the log, by packet identifier, so that one that the broker sends again after a
//! broken connection is not taken twice.
//!
//! Only a message marked as a duplicate, in a session that the broker has kept, is compared, and only with the last messages
//! that earlier connections have made durable: acknowledgements go out in order and only so many messages may be without one, so that nothing older
//! can come again. The broker cannot give an identifier to another message before it has our acknowledgement; so what we had
//! not acknowledged yet is told for certain. Of what we had, the acknowledgement may have been lost on its way, and then
//! the fingerprint decides: two messages of the same topic and payload, under the same identifier within [`MESSAGES`] around
//! the loss, count as one. Brokers that count identifiers up, as most do, never send such.

use std::collections::{HashMap, VecDeque};

use catchment_types::Timestamp;
use foldhash::fast::RandomState;

/// 32 bits of checksum of topic and payload, 32 of their lengths.
pub(crate) fn fingerprint(topic: &[u8], payload: &[u8]) -> u64 {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(topic), payload);
    let length = (payload.len() as u32) ^ (topic.len() as u32).rotate_left(16);
    u64::from(length) << 32 | u64::from(checksum)
}

/// Messages that are remembered: twice what may be unacknowledged by default, since a connection may end before all of it
/// has come again.
const MESSAGES: usize = 2048;

/// The last messages, in order.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    last: VecDeque<(u16, u64)>,
    /// How many of them, from the front, are durable and of earlier connections.
    before: usize,
}

impl Seen {
    /// What the log told at the start.
    pub(super) fn recalled(recalled: Recalled) -> Self {
        let mut all: Vec<_> = recalled.0.into_iter().collect();
        all.sort_unstable_by_key(|(_, (_, at))| *at);
        let oldest = all.len().saturating_sub(MESSAGES);
        let last: VecDeque<_> = all[oldest..].iter().map(|&(id, (seen, _))| (id, seen)).collect();
        Self { before: last.len(), last }
    }

    /// Whether a message marked as a duplicate is in the log already.
    pub(crate) fn has(&self, packet_id: u16, fingerprint: u64) -> bool {
        let at = self.last.iter().rposition(|&(id, _)| id == packet_id);
        at.is_some_and(|at| at < self.before && self.last[at].1 == fingerprint)
    }

    /// A message is taken in.
    pub(crate) fn note(&mut self, packet_id: u16, fingerprint: u64) {
        if self.last.len() == MESSAGES {
            self.last.pop_front();
            self.before = self.before.saturating_sub(1);
        }
        self.last.push_back((packet_id, fingerprint));
    }

    /// The last message was not taken after all: it comes again.
    pub(crate) fn unnote(&mut self) {
        self.last.pop_back();
        self.before = self.before.min(self.last.len());
    }

    /// The connection has ended; `durable`: everything that it brought is in the log. Otherwise what is sent again is taken again.
    pub(crate) fn end(&mut self, durable: bool) {
        if durable {
            self.before = self.last.len();
        } else {
            self.last.truncate(self.before);
        }
    }

    /// The broker knows nothing of the session: identifiers begin anew.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// What the log has of a bridge, the latest of each identifier.
#[derive(Debug, Default)]
pub(crate) struct Recalled(HashMap<u16, (u64, Timestamp), RandomState>);

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
        assert!(seen.has(1, 10) && !seen.has(1, 11));
        seen.note(3, 12);
        seen.note(4, 13);
        seen.unnote();
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
        seen.note(5000, 1);
        assert!(!seen.has(0, 0) && seen.has(1, 1) && !seen.has(5000, 1));
        (0..MESSAGES as u16).for_each(|id| seen.note(6000 + id, 1));
        assert_eq!((seen.before, seen.last.len()), (0, MESSAGES));
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
