//! Marks of events: how the gateway finds again, after a restart, what it had in the log already.
//!
//! An event of a request with an `Idempotency-Key`, or of a QoS 1 message that came by a bridge, carries a mark, written with
//! it in the same append: it is as durable as the event, and there if and only if the event is. On a start the newest events
//! of each partition are read once for their marks. A mark has 128 bits:
//!
//! | bits | of a request | bits | of a bridge |
//! | --- | --- | --- | --- |
//! | 1 | 1 | 2 | 01 |
//! | 63 | hash of who, topic and key | 46 | hash of the bridge's session |
//! | | | 16 | packet identifier |
//! | 64 | hash of content type and body | 64 | fingerprint of topic and payload |

use std::time::Duration;

use catchment_eventlog::{EventLog, LogError};
use catchment_types::Timestamp;
use sha2::{Digest, Sha256};

/// Events of a partition that are read for their marks on a start.
pub(crate) const RECALLED_EVENTS: u64 = 250_000;
const READ_BYTES: usize = 4 << 20;
const OF_REQUEST: u128 = 1 << 127;
const OF_BRIDGE: u128 = 1 << 126;
/// Bits of the hash of a bridge's session.
pub(crate) const LINK_BITS: u64 = (1 << 46) - 1;

/// The mark of a request's events. Of `key` the lower 63 bits count.
pub(crate) fn of_request(key: u64, body: u64) -> u128 {
    OF_REQUEST | u128::from(key) << 64 | u128::from(body)
}

/// Key and body of a request's mark.
pub(crate) fn request_key(mark: u128) -> Option<(u64, u64)> {
    (mark & OF_REQUEST != 0).then_some((((mark & !OF_REQUEST) >> 64) as u64, mark as u64))
}

/// The mark of a message that came by a bridge. Of `link` the lower 46 bits count.
pub(crate) fn of_bridged(link: u64, packet_id: u16, fingerprint: u64) -> u128 {
    OF_BRIDGE | u128::from(link & LINK_BITS) << 80 | u128::from(packet_id) << 64 | u128::from(fingerprint)
}

/// Session, packet identifier and fingerprint of a bridge's mark.
pub(crate) fn bridged(mark: u128) -> Option<(u64, u16, u64)> {
    let link = ((mark & !OF_BRIDGE) >> 80) as u64;
    (mark >> 126 == 1).then_some((link, (mark >> 64) as u16, mark as u64))
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
    mut each: impl FnMut(u128, Timestamp),
) -> Result<(), LogError> {
    let window_us = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
    let oldest = Timestamp(Timestamp::now().as_micros().saturating_sub(window_us));
    for partition in 0..log.partitions() {
        let range = log.range(partition);
        let mut from = range.start.max(range.end.saturating_sub(RECALLED_EVENTS));
        while from < range.end {
            let read = log.read(partition, from, READ_BYTES).await?;
            for event in read.blocks.iter().flat_map(|block| &block.events) {
                // A bridge may have been away for longer than any request is sent again.
                if event.mark != 0 && (event.received_at >= oldest || event.mark & OF_REQUEST == 0) {
                    each(event.mark, event.received_at);
                }
            }
            // A read always gets further; if one did not, there would be no end.
            from = read.next.max(from + 1);
        }
    }
    Ok(())
}
