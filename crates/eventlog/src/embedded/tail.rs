//! The most recent blocks in memory, so that readers near the end never touch the disk.

use std::collections::VecDeque;

use catchment_types::Offset;

use crate::EventBlock;

/// Memory of a block besides its events, roughly.
const OVERHEAD_BYTES: usize = 96;

/// Recent blocks in order, bounded in bytes.
#[derive(Debug)]
pub(super) struct Tail {
    blocks: VecDeque<EventBlock>,
    bytes: usize,
    bytes_max: usize,
}

impl Tail {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { blocks: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Appends a block, lets the oldest go.
    pub(super) fn push(&mut self, block: EventBlock) {
        self.bytes += cost(&block);
        self.blocks.push_back(block);
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.blocks.pop_front()
        {
            self.bytes -= cost(&oldest);
        }
    }

    /// Blocks from `from` on, about `bytes_max` of them, at least one; empty if `from` is not in memory any more, or
    /// not yet.
    pub(super) fn read(&self, from: Offset, bytes_max: usize) -> Vec<EventBlock> {
        if self.blocks.front().is_none_or(|oldest| from < oldest.first_offset) {
            return Vec::new();
        }
        let first = self.blocks.partition_point(|block| block.end_offset() <= from);
        let mut bytes = 0;
        let blocks = self.blocks.range(first..).take_while(|block| {
            let enough = bytes > 0 && bytes >= bytes_max;
            bytes += block.events.as_bytes().len();
            !enough
        });
        blocks.cloned().collect()
    }
}

fn cost(block: &EventBlock) -> usize {
    block.events.as_bytes().len() + OVERHEAD_BYTES
}
