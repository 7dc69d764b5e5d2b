//! An event log in memory that keeps, holds or refuses what it is given, as the input says.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use async_trait::async_trait;
use catchment_eventlog::{EventLog, LogError, LogStats, Pending, ReadBatch};
use catchment_types::{EventBatch, Offset, PartitionId};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What becomes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Durable at once.
    #[default]
    Keep,
    /// Taken, and durable or lost later.
    Hold,
    /// Refused: no room.
    Full,
}

/// The numbers of a batch, and where to tell what became of it.
type Held = (Vec<u32>, oneshot::Sender<Result<Offset, LogError>>);

/// Numbers that payloads carry.
#[derive(Default)]
pub struct State {
    pub mode: Mode,
    pub durable: HashSet<u32>,
    /// How often each was taken.
    pub taken: HashMap<u32, u32>,
    held: Vec<Held>,
    next: Offset,
}

#[derive(Default)]
pub struct FakeLog(pub Mutex<State>);

fn full() -> LogError {
    LogError::Full { path: "memory".into() }
}

/// The number in a payload.
pub fn number(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

impl FakeLog {
    /// Makes what is held durable, or loses it.
    pub fn settle(&self, keep: bool) {
        let state = &mut *self.0.lock();
        for (numbers, sender) in std::mem::take(&mut state.held) {
            let outcome = if keep {
                state.durable.extend(numbers);
                Ok(0)
            } else {
                // What was lost may be sent again.
                numbers.iter().for_each(|number| *state.taken.entry(*number).or_default() -= 1);
                Err(full())
            };
            // Nobody may be waiting any more.
            let _ = sender.send(outcome);
        }
    }
}

#[async_trait]
impl EventLog for FakeLog {
    fn partitions(&self) -> u32 {
        2
    }

    async fn submit(&self, _: PartitionId, batch: EventBatch) -> Result<Pending, LogError> {
        let state = &mut *self.0.lock();
        if state.mode == Mode::Full {
            return Err(full());
        }
        let numbers: Vec<u32> = batch.iter().map(|event| number(event.payload)).collect();
        for &number in &numbers {
            *state.taken.entry(number).or_default() += 1;
        }
        state.next += numbers.len() as Offset;
        let (sender, pending) = Pending::new();
        match state.mode {
            Mode::Keep => {
                state.durable.extend(numbers);
                // The other end is in our hand.
                let _ = sender.send(Ok(state.next));
            }
            _ => state.held.push((numbers, sender)),
        }
        Ok(pending)
    }

    async fn read(&self, _: PartitionId, _: Offset, _: usize) -> Result<ReadBatch, LogError> {
        Err(LogError::Closed)
    }

    fn range(&self, _: PartitionId) -> Range<Offset> {
        0..self.0.lock().next
    }

    fn release(&self, _: PartitionId, _: Offset) {}

    fn stats(&self) -> LogStats {
        LogStats::default()
    }

    async fn close(&self) {}
}
