//! From publishes and requests to the log: events are encoded straight into one batch per partition, which is submitted
//! once. Shared by MQTT and HTTP.

use catchment_eventlog::{EventLog, LogError, Pending};
use catchment_types::{DEFAULT_REALM, Event, EventBatchBuilder, EventTooLarge, PartitionId};

/// Whether what devices of a realm send becomes events. Tables and latest values are not yet apart by realm: until they are,
/// other realms than the main one are topic spaces only, and nothing of theirs can be seen in another.
pub(crate) fn is_kept(realm: &str) -> bool {
    realm == DEFAULT_REALM
}

/// Batches under construction, one a partition. Kept with read buffers, so that their memory is used again.
#[derive(Debug)]
pub(crate) struct Batches {
    builders: Vec<EventBatchBuilder>,
    /// Partitions that have events, in order of their first.
    touched: Vec<PartitionId>,
    /// See [`Batches::expect`].
    bytes_max: usize,
}

impl Batches {
    pub(crate) fn new(partitions: u32) -> Self {
        Self {
            builders: std::iter::repeat_with(EventBatchBuilder::default)
                .take(usize::try_from(partitions.max(1)).unwrap_or(1))
                .collect(),
            touched: Vec::new(),
            bytes_max: 0,
        }
    }

    /// Says how large the input is that is about to be taken in: what batches make room for stays below that, and a little more
    /// for what is encoded beside payloads.
    pub(crate) fn expect(&mut self, input_bytes: usize) {
        self.bytes_max = input_bytes + input_bytes / 8;
    }

    /// Adds an event to a partition's batch. Gives the place of that batch among those submitted.
    #[inline]
    pub(crate) fn push(&mut self, partition: PartitionId, event: &Event<'_>) -> Result<usize, EventTooLarge> {
        let builder = &mut self.builders[partition as usize];
        if builder.is_empty() {
            builder.expect(self.bytes_max);
        }
        builder.push(event)?;
        if let Some(place) = self.touched.iter().position(|&touched| touched == partition) {
            return Ok(place);
        }
        self.touched.push(partition);
        Ok(self.touched.len() - 1)
    }

    /// Encoded bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.touched.iter().map(|&partition| self.builders[partition as usize].bytes_len()).sum()
    }

    /// Submits all batches and gives each one's outcome, in the order of their places. Waits while the log's queues are
    /// full.
    pub(crate) async fn submit(
        &mut self,
        log: &dyn EventLog,
        mut each: impl FnMut(Result<Pending, LogError>),
    ) {
        for partition in self.touched.drain(..) {
            let batch = self.builders[partition as usize].take();
            each(log.submit(partition, batch).await);
        }
    }
}
