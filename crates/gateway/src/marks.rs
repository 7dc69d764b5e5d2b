//! Marks of events: how the gateway finds again, after a restart, what it had in the log already.
//!
//! An event of a request with an `Idempotency-Key` carries a mark, written with it in the same append: it is as durable as
//! the event, and there if and only if the event is. On a start the newest events of each partition are read once for
//! their marks. A mark has 128 bits:
//!
//! | bits | what |
//! | --- | --- |
//! | 1 | 1: of a request. Nothing else has marks yet |
//! | 63 | hash of who, topic and key |
//! | 64 | hash of content type and body |

use std::time::Duration;

use catchment_eventlog::{EventLog, LogError};
use catchment_types::Timestamp;
use sha2::{Digest, Sha256};

/// Events of a partition that are read for their marks on a start.
pub(crate) const RECALLED_EVENTS: u64 = 250_000;
const READ_BYTES: usize = 4 << 20;
const OF_REQUEST: u128 = 1 << 127;

/// The mark of a request's events. Of `key` the lower 63 bits count.
pub(crate) fn of_request(key: u64, body: u64) -> u128 {
    OF_REQUEST | u128::from(key) << 64 | u128::from(body)
}

/// Key and body of a request's mark.
pub(crate) fn request_key(mark: u128) -> Option<(u64, u64)> {
    (mark & OF_REQUEST != 0).then_some((((mark & !OF_REQUEST) >> 64) as u64, mark as u64))
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

/// Reads the newest events of all partitions that are not older than `window`, and hands on the marks that they have, in
/// order within a partition.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn recall(
    log: &dyn EventLog,
    window: Duration,
    mut each: impl FnMut(u128),
) -> Result<(), LogError> {
    let window_us = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
    let oldest = Timestamp(Timestamp::now().as_micros().saturating_sub(window_us));
    for partition in 0..log.partitions() {
        let range = log.range(partition);
        let mut from = range.start.max(range.end.saturating_sub(RECALLED_EVENTS));
        while from < range.end {
            let read = log.read(partition, from, READ_BYTES).await?;
            for event in read.blocks.iter().flat_map(|block| &block.events) {
                if event.mark != 0 && event.received_at >= oldest {
                    each(event.mark);
                }
            }
            // A read always gets further; if one did not, there would be no end.
            from = read.next.max(from + 1);
        }
    }
    Ok(())
}
