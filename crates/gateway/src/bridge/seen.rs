//! Which messages of QoS 1 a bridge has in the log, by packet identifier, so that one that the broker sends again after a
//! broken connection is not taken twice.
//!
//! Only a message marked as a duplicate, in a session that the broker has kept, is compared, and only with what earlier
//! connections have made durable under its identifier. The broker cannot give an identifier to another message before it has our
//! acknowledgement; so what we had not acknowledged yet is told for certain. Of what we had, the acknowledgement may have been lost
//! on its way, and then the fingerprint decides: two messages of the same topic and payload, one after the other under
//! the same identifier around the loss, count as one.

use std::collections::HashMap;

use catchment_types::Timestamp;
use foldhash::fast::RandomState;

/// 32 bits of checksum of topic and payload, 32 of their lengths.
pub(crate) fn fingerprint(topic: &[u8], payload: &[u8]) -> u64 {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(topic), payload);
    let length = (payload.len() as u32) ^ (topic.len() as u32).rotate_left(16);
    u64::from(length) << 32 | u64::from(checksum)
}

type Map<V> = HashMap<u16, V, RandomState>;

/// At most one entry for each of the 65,535 identifiers, twice.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Durable, of earlier connections.
    before: Map<u64>,
    /// Of this connection.
    now: Map<u64>,
}

impl Seen {
    /// What the log told at the start.
    pub(super) fn recalled(recalled: Recalled) -> Self {
        Self {
            before: recalled.0.into_iter().map(|(id, (seen, _))| (id, seen)).collect(),
            now: Map::default(),
        }
    }

    /// Whether a message marked as a duplicate is in the log already.
    pub(crate) fn has(&self, packet_id: u16, fingerprint: u64) -> bool {
        self.before.get(&packet_id) == Some(&fingerprint)
    }

    /// A message is taken in.
    pub(crate) fn note(&mut self, packet_id: u16, fingerprint: u64) {
        self.before.remove(&packet_id);
        self.now.insert(packet_id, fingerprint);
    }

    /// The connection has ended; `durable`: everything that it brought is in the log. Otherwise what is sent again is taken again.
    pub(crate) fn end(&mut self, durable: bool) {
        let now = std::mem::take(&mut self.now);
        if durable {
            self.before.extend(now);
        }
    }

    /// The broker knows nothing of the session: identifiers begin anew.
    pub(crate) fn forget(&mut self) {
        self.before.clear();
        self.now.clear();
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
        seen.end(false);
        assert!(!seen.has(1, 10) && !seen.has(1, 11));
        seen.note(3, 12);
        seen.end(true);
        seen.forget();
        assert!(!seen.has(3, 12));
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
