//! What a query sees: every row once, wherever it is at that moment.
//!
//! A row is in a shard's buffer, then in `flushing`, then in a file, then in a file of the archive. It moves under the write lock, and a query takes its
//! snapshot under the read lock; so no query misses a row or sees it twice. Shards are locked within, never the other way round.

use std::sync::Arc;

use arrow::array::RecordBatch;
use catchment_types::{DEFAULT_REALM, Offset, PartitionId, partition_of};
use parking_lot::RwLock;

use super::data_file::{DataFile, FileList};
use super::table::Part;
use crate::shard::Shard;
use crate::tables::TableId;

/// The rows of all tables, in memory and on disk.
pub(super) struct View {
    shards: Vec<Arc<Shard>>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    flushing: [Flushing; TableId::COUNT],
    files: [[FileList; TableId::COUNT]; Part::COUNT],
}

/// Rows of one table on their way into files, with the partition they are of.
type Flushing = Vec<(PartitionId, RecordBatch)>;

/// One table at one moment.
pub(super) struct TableSnapshot {
    /// Rows that are not in files yet.
    pub(super) memory: Vec<RecordBatch>,
    /// Files of history.
    pub(super) files: FileList,
    /// Files of the archive.
    pub(super) archived: FileList,
}

impl View {
    pub(super) fn new(shards: Vec<Arc<Shard>>) -> Self {
        Self { shards, state: RwLock::default() }
    }

    pub(super) fn shards(&self) -> &[Arc<Shard>] {
        &self.shards
    }

    /// What rows take in memory, bytes, those that are being flushed included.
    pub(super) fn held_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.held_bytes()).sum()
    }

    pub(super) fn buffered_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.buffered_bytes()).sum()
    }

    /// `device_id`: leaves out rows in memory that cannot be of this device, those of other partitions.
    pub(super) fn snapshot(&self, table: TableId, device_id: Option<&str>) -> TableSnapshot {
        let only = device_id.map(|device| partition_of(DEFAULT_REALM, device, self.shards.len() as u32));
        let is_wanted = |partition| only.is_none_or(|only| partition == only);
        let state = self.state.read();
        let flushing = state.flushing[table.index()].iter().filter(|(partition, _)| is_wanted(*partition));
        let mut memory: Vec<_> = flushing.map(|(_, rows)| rows.clone()).collect();
        for shard in self.shards.iter().filter(|shard| is_wanted(shard.partition())) {
            let rows = shard.rows_for(table, device_id);
            memory.extend(rows.into_iter().filter(|rows| rows.num_rows() > 0));
        }
        let files = |part: Part| Arc::clone(&state.files[part.index()][table.index()]);
        TableSnapshot { memory, files: files(Part::Hot), archived: files(Part::Archived) }
    }

    /// Files of history.
    pub(super) fn files(&self, table: TableId) -> FileList {
        self.files_in(Part::Hot, table)
    }

    pub(super) fn files_in(&self, part: Part, table: TableId) -> FileList {
        Arc::clone(&self.state.read().files[part.index()][table.index()])
    }

    /// Takes the shards' rows for a flush; returns the offset each shard got to. What was taken before must be in files.
    pub(super) fn rotate(&self) -> Vec<Offset> {
        let mut state = self.state.write();
        self.shards
            .iter()
            .map(|shard| {
                let taken = shard.take_rows();
                for (flushing, rows) in state.flushing.iter_mut().zip(taken.tables) {
                    let rows = rows.into_iter().filter(|rows| rows.num_rows() > 0);
                    flushing.extend(rows.map(|rows| (shard.partition(), rows)));
                }
                taken.next_offset
            })
            .collect()
    }

    pub(super) fn flushing(&self, table: TableId) -> Vec<RecordBatch> {
        self.state.read().flushing[table.index()].iter().map(|(_, rows)| rows.clone()).collect()
    }

    /// A flush committed: the table's files are these now, and they have the rows that were flushing. Gives those back:
    /// to free so much memory takes time, which nobody should wait for.
    #[must_use]
    pub(super) fn flushed(&self, table: TableId, files: Vec<Arc<DataFile>>) -> Flushing {
        let mut state = self.state.write();
        replace(&mut state.files[Part::Hot.index()][table.index()], &[], files);
        std::mem::take(&mut state.flushing[table.index()])
    }

    /// What was taken of a table by [`Self::rotate`] is in files, and its memory free.
    pub(super) fn freed(&self, table: TableId) {
        self.shards.iter().for_each(|shard| shard.rows_written(table));
    }

    /// Files took the place of others, or of nothing.
    pub(super) fn replaced(
        &self,
        part: Part,
        table: TableId,
        old: &[Arc<DataFile>],
        new: Vec<Arc<DataFile>>,
    ) {
        replace(&mut self.state.write().files[part.index()][table.index()], old, new);
    }

    /// A file of the archive took the place of files of history.
    pub(super) fn archived(&self, table: TableId, old: &[Arc<DataFile>], new: Arc<DataFile>) {
        let mut state = self.state.write();
        replace(&mut state.files[Part::Hot.index()][table.index()], old, Vec::new());
        replace(&mut state.files[Part::Archived.index()][table.index()], &[], vec![new]);
    }
}

/// Idempotent: a file that is there already is not added again.
fn replace(files: &mut FileList, old: &[Arc<DataFile>], new: Vec<Arc<DataFile>>) {
    let files = Arc::make_mut(files);
    files.retain(|file| !old.iter().chain(&new).any(|other| other.path == file.path));
    files.extend(new);
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
}
