//! Decoded rows on their way to others, which have them before the store does: what is in history was published.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use catchment_decode::{ReadingSink, WorkerDecoders};
use catchment_eventlog::readings::{PublishReadings, ReadingsBatch};
use catchment_eventlog::{EventBlock, LogError};
use catchment_types::{Event, Offset, PartitionId, Reading, RejectReason};

use crate::worker::{RETRY_MAX, RETRY_MIN};

/// Publishes what blocks of one partition decode to. Each block is decoded once more for it.
pub(crate) struct Publisher {
    to: Arc<dyn PublishReadings>,
    partition: PartitionId,
    batch: ReadingsBatch,
}

impl Publisher {
    pub(crate) fn new(to: Arc<dyn PublishReadings>, partition: PartitionId) -> Self {
        Self { to, partition, batch: ReadingsBatch::default() }
    }

    /// Publishes the rows of a block's events from `from` on, below `until`; waits until that is done, however often it has
    /// to be tried.
    pub(crate) async fn publish(
        &mut self,
        block: &EventBlock,
        from: Offset,
        until: Offset,
        decoders: &mut WorkerDecoders,
    ) {
        self.batch.clear();
        let events = (block.first_offset..until).zip(&block.events);
        for (offset, event) in events.skip_while(|&(offset, _)| offset < from) {
            let decoder = decoders.get(event.event_type);
            decoder.decode(
                &event,
                &mut Rows {
                    batch: &mut self.batch,
                    partition: self.partition,
                    offset,
                    event: &event,
                    detail: String::new(),
                },
            );
        }
        let mut retry = RETRY_MIN;
        while !self.batch.is_empty() {
            match self.to.publish(self.partition, &self.batch).await {
                // With a log that was closed this process ends; the next one publishes what it reads again.
                Ok(()) | Err(LogError::Closed) => return,
                Err(error) => {
                    tracing::error!(partition = self.partition, %error, retry_in = ?retry, "readings could not be published");
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }
}

/// Takes what the decoder finds in one event.
struct Rows<'a> {
    batch: &'a mut ReadingsBatch,
    partition: PartitionId,
    offset: Offset,
    event: &'a Event<'a>,
    detail: String,
}

impl ReadingSink for Rows<'_> {
    fn reading(&mut self, reading: Reading<'_>) -> Result<(), RejectReason> {
        self.batch.reading(self.partition, self.offset, self.event, &reading);
        Ok(())
    }

    fn reject(&mut self, reason: RejectReason, detail: fmt::Arguments<'_>) {
        self.detail.clear();
        // Writing to a String cannot fail.
        let _ = self.detail.write_fmt(detail);
        self.batch.reject(self.partition, self.offset, self.event, reason, &self.detail);
    }
}
