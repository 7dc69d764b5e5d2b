//! The archive beside an engine of history that is a server of its own: raw data that is past its hot days moves there, and
//! queries read both as one table.
//!
//! # Layout
//! As that of the embedded history ([`super::archive`]): Delta tables of Snappy Parquet by day.
//!
//! # Each row once
//! A day leaves in steps, each of which can be gone on with by another process:
//!
//! 1. its rows below an offset of each partition, which are all in the engine, are copied to files;
//! 2. one commit has the files, with those offsets (the tag [`BEFORE`]): from now on queries read these files, and of the
//!    engine's rows of that day only those from the offsets on;
//! 3. once no query can be under way that does not know of 2, the engine is told to delete the copied rows;
//! 4. when it has none of them any more, a commit takes the tags off, and the engine may be asked for all of that day again: rows
//!    that came late are there. They are the next to leave, by the same steps.
//!
//! # Constraints
//! One process writes ([`ColdWriter`], the owner of the log's first partition); who takes that over ends what the one before was about
//! to commit. Every process reads ([`ColdReader`]), and asks the archive's log what is new.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::ops::Range;

use catchment_types::{Offset, PartitionId, Timestamp};

pub(crate) use reader::ColdReader;
pub(crate) use writer::ColdWriter;

use super::archive::TABLES;
use crate::delta::DeltaLog;
use crate::delta::actions::Add;
use crate::tables::TableId;

/// The tables that are archived.
pub(crate) const COLD_TABLES: [TableId; 2] = TABLES;

/// Tag of a file whose rows may still be in the engine, too: `partition:offset`, with commas between. They are those of the file's day
/// with lower offsets.
const BEFORE: &str = "catchment.before";

/// Rows of one day that are in the archive, and may still be in the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaving {
    /// `2026-11-23`.
    pub(crate) day: String,
    /// The day's times, microseconds, end excluded.
    pub(crate) times: Range<i64>,
    /// Of each partition, the offset before which rows are in the archive.
    pub(crate) before: Vec<(PartitionId, Offset)>,
    /// How many rows that are.
    pub(crate) rows: u64,
    /// When they were copied.
    pub(crate) since: Timestamp,
}

/// What is leaving, by a table's log; ascending by day.
fn leaving(id: TableId, log: &DeltaLog) -> Vec<Leaving> {
    let mut days = std::collections::BTreeMap::<String, Leaving>::new();
    for (add, before) in log.files().filter_map(|add| Some((add, before(add)?))) {
        let file = super::data_file::DataFile::from_add(id, add);
        let Some(times) = id.period().times(&file.period) else { continue };
        let rows = file.stats.as_ref().map_or(0, |stats| stats.rows);
        let day = days.entry(file.period.clone()).or_insert_with(|| Leaving {
            day: file.period,
            times,
            before,
            rows: 0,
            since: file.written_at,
        });
        day.rows += rows;
        day.since = day.since.max(file.written_at);
    }
    days.into_values().collect()
}

/// The offsets that a file is tagged with.
fn before(add: &Add) -> Option<Vec<(PartitionId, Offset)>> {
    let tag = add.tags.as_ref()?.get(BEFORE)?.as_deref()?;
    let one = |item: &str| {
        let (partition, offset) = item.split_once(':')?;
        Some((partition.parse().ok()?, offset.parse().ok()?))
    };
    tag.split(',').map(one).collect()
}

/// The tag that says so.
fn tag(before: &[(PartitionId, Offset)]) -> String {
    before.iter().map(|(partition, offset)| format!("{partition}:{offset}")).collect::<Vec<_>>().join(",")
}
