//! Marks of events: how the gateway finds again, after a restart, what it had in the log already.
//!
//! An event of a request with an `Idempotency-Key`, or of a QoS 1 message that came by a bridge, carries a mark, written with
//! it in the same append: it is as durable as the event, and there if and only if the event is. On a start the newest events
//! of each partition are read once for their marks. A mark has 128 bits, from the highest. Of a request whose body was there
//! as a whole before anything of it was appended:
//!
//! | bits | what |
//! | --- | --- |
//! | 1 | 1 |
//! | 63 | hash of who, topic and key |
//! | 64 | hash of content type and body |
//!
//! Of a request that is taken in line by line, so that nobody knows yet what follows:
//!
//! | bits | what |
//! | --- | --- |
//! | 2 | 01 |
//! | 1 | 1: no event of the request follows |
//! | 61 | hash of who, topic and key: the lower bits of that above |
//! | 32 | how many events of the request there are up to here |
//! | 32 | hash of content type and body up to here |
//!
//! Of a message that came by a bridge:
//!
//! | bits | what |
//! | --- | --- |
//! | 3 | 001 |
//! | 45 | hash of the bridge's session |
//! | 16 | packet identifier |
//! | 64 | fingerprint of topic and payload |
//!
//! Of a record of another system's log, which a source takes in:
//!
//! | bits | what |
//! | --- | --- |
//! | 4 | 0001 |
//! | 44 | hash of the source |
//! | 16 | partition there |
//! | 40 | offset there, its lower bits |
//! | 24 | fingerprint, its lower bits: a topic that is made anew counts its offsets anew |

use std::time::Duration;

use catchment_eventlog::{EventLog, LogError};
use catchment_types::Timestamp;
use sha2::{Digest, Sha256};

/// Events of a partition that are read for their marks on a start.
pub(crate) const RECALLED_EVENTS: u64 = 250_000;
const READ_BYTES: usize = 4 << 20;
const OF_WHOLE: u128 = 1 << 127;
const OF_LINES: u128 = 1 << 126;
const IS_LAST: u128 = 1 << 125;
const OF_BRIDGE: u128 = 1 << 125;
const OF_RECORD: u128 = 1 << 124;
/// Bits of the hash of a source.
const SOURCE_BITS: u64 = (1 << 44) - 1;
/// Bits of a record's offset.
const OFFSET_BITS: u64 = (1 << 40) - 1;
/// Bits of a record's fingerprint.
const FINGERPRINT_BITS: u32 = (1 << 24) - 1;
/// Bits of the hash of a bridge's session.
pub(crate) const LINK_BITS: u64 = (1 << 45) - 1;
/// The bits of a key that all marks have.
const KEY: u64 = (1 << 61) - 1;

/// What a mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// An event of a request with this body.
    Whole {
        /// Hash of who, topic and key.
        key: u64,
        /// Hash of content type and body.
        body: u64,
    },
    /// An event of a request that is taken in line by line.
    Line {
        /// Hash of who, topic and key.
        key: u64,
        /// The request up to this event.
        upto: Upto,
    },
    /// A message that came by a bridge.
    Bridged {
        /// Hash of the bridge's session.
        link: u64,
        /// The packet identifier that it had there.
        packet_id: u16,
        /// Of topic and payload.
        fingerprint: u64,
    },
    /// A record that a source took in.
    Record {
        /// Hash of the source.
        source: u64,
        /// Its partition there.
        partition: u16,
        /// Lower bits of its offset there.
        offset: u64,
        /// Lower bits of a fingerprint of its content.
        fingerprint: u32,
    },
}

/// A request that is taken in line by line, up to one of its events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Upto {
    /// Events up to here, this one too.
    pub(crate) events: u32,
    /// Hash of content type and body up to here.
    pub(crate) prefix: u32,
    /// Whether no event follows.
    pub(crate) is_last: bool,
}

impl Mark {
    /// The key of a request, of a hash.
    pub(crate) fn key(hash: u64) -> u64 {
        hash & KEY
    }

    /// As the event has it.
    pub(crate) fn encode(self) -> u128 {
        match self {
            Self::Whole { key, body } => OF_WHOLE | u128::from(key & KEY) << 64 | u128::from(body),
            Self::Line { key, upto: Upto { events, prefix, is_last } } => {
                let last = if is_last { IS_LAST } else { 0 };
                let place = u128::from(events) << 32 | u128::from(prefix);
                OF_LINES | last | u128::from(key & KEY) << 64 | place
            }
            Self::Bridged { link, packet_id, fingerprint } => {
                OF_BRIDGE
                    | u128::from(link & LINK_BITS) << 80
                    | u128::from(packet_id) << 64
                    | u128::from(fingerprint)
            }
            Self::Record { source, partition, offset, fingerprint } => {
                OF_RECORD
                    | u128::from(source & SOURCE_BITS) << 80
                    | u128::from(partition) << 64
                    | u128::from(offset & OFFSET_BITS) << 24
                    | u128::from(fingerprint & FINGERPRINT_BITS)
            }
        }
    }

    /// What an event's mark says; nothing if it has none, or one of a later version.
    pub(crate) fn decode(mark: u128) -> Option<Self> {
        let key = (mark >> 64) as u64 & KEY;
        if mark & OF_WHOLE != 0 {
            return Some(Self::Whole { key, body: mark as u64 });
        }
        if mark & OF_LINES != 0 {
            let upto =
                Upto { events: (mark >> 32) as u32, prefix: mark as u32, is_last: mark & IS_LAST != 0 };
            return Some(Self::Line { key, upto });
        }
        let (whose, number, rest) = ((mark >> 80) as u64, (mark >> 64) as u16, mark as u64);
        if mark & OF_BRIDGE != 0 {
            return Some(Self::Bridged { link: whose & LINK_BITS, packet_id: number, fingerprint: rest });
        }
        (mark & OF_RECORD != 0).then_some(Self::Record {
            source: whose & SOURCE_BITS,
            partition: number,
            offset: rest >> 24,
            fingerprint: rest as u32 & FINGERPRINT_BITS,
        })
    }
}

/// Marks of the records of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceMarks {
    source: u64,
}

impl SourceMarks {
    /// Of a source that is known by this name wherever and whenever it is read.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { source: hash(&[name.as_bytes()]) & SOURCE_BITS }
    }

    /// The mark of a record; 0, which is none, where its partition has a number of more than 16 bits.
    #[must_use]
    pub fn mark(self, partition: u32, offset: u64, fingerprint: u32) -> u128 {
        let mark = |partition| Mark::Record { source: self.source, partition, offset, fingerprint }.encode();
        u16::try_from(partition).map_or(0, mark)
    }

    /// Partition and offset (its lower 40 bits) of the record that a mark is of, if it is of this source.
    #[must_use]
    pub fn record(self, mark: u128) -> Option<(u32, u64)> {
        match Mark::decode(mark)? {
            Mark::Record { source, partition, offset, .. } if source == self.source => {
                Some((partition.into(), offset))
            }
            _ => None,
        }
    }
}

/// A stable hash of several parts, none of which can pass for two others.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let digest = hasher.finalize();
    digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Reads the newest events of all partitions, and hands on the marks that they have, in order within a partition: those of
/// requests not older than `window`, and all of bridges, each with the time that its event was received at.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn recall(
    log: &dyn EventLog,
    window: Duration,
    mut each: impl FnMut(Mark, Timestamp),
) -> Result<(), LogError> {
    let window_us = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
    let oldest = Timestamp(Timestamp::now().as_micros().saturating_sub(window_us));
    for partition in 0..log.partitions() {
        let range = log.range(partition);
        let mut from = range.start.max(range.end.saturating_sub(RECALLED_EVENTS));
        while from < range.end {
            let read = log.read(partition, from, READ_BYTES).await?;
            for event in read.blocks.iter().flat_map(|block| &block.events) {
                let Some(mark) = Mark::decode(event.mark) else { continue };
                // A bridge may have been away for longer than any request is sent again.
                if event.received_at >= oldest || matches!(mark, Mark::Bridged { .. }) {
                    each(mark, event.received_at);
                }
            }
            // A read always gets further; if one did not, there would be no end.
            from = read.next.max(from + 1);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_say_what_they_were_made_of() {
        let upto = |is_last| Upto { events: 70_000, prefix: 0xdead_beef, is_last };
        let key = Mark::key(u64::MAX);
        for mark in [
            Mark::Whole { key, body: 7 },
            Mark::Line { key: 5, upto: upto(false) },
            Mark::Line { key, upto: upto(true) },
            Mark::Bridged { link: LINK_BITS, packet_id: 65_535, fingerprint: u64::MAX },
            Mark::Bridged { link: 0, packet_id: 1, fingerprint: 0 },
            Mark::Record {
                source: SOURCE_BITS,
                partition: 65_535,
                offset: OFFSET_BITS,
                fingerprint: FINGERPRINT_BITS,
            },
        ] {
            assert_eq!(Mark::decode(mark.encode()), Some(mark));
        }
        assert_eq!(Mark::decode(0), None);
        let (ours, others) = (SourceMarks::new("kafka://h/t"), SourceMarks::new("kafka://h/u"));
        let mark = ours.mark(3, 1 << 30, 7);
        assert_eq!((ours.record(mark), others.record(mark)), (Some((3, 1 << 30)), None));
        assert_ne!(mark, ours.mark(3, 1 << 30, 8));
        assert_eq!(ours.mark(65_536, 7, 0), 0);
        // As version 0.1 wrote it, with two more bits of the key.
        let old = 1 << 127 | u128::from(u64::MAX >> 1) << 64 | 9;
        assert_eq!(Mark::decode(old), Some(Mark::Whole { key: KEY, body: 9 }));
    }
}
