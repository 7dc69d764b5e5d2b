//! A small, single-writer implementation of the Delta transaction protocol.
//!
//! # Format
//! A table is a folder of Parquet files and a folder `_delta_log` that says which of them count. Commit `N` is the file
//! `{N:020}.json`, one action a line; it exists whole or not at all. Every so often a checkpoint
//! `{N:020}.checkpoint.parquet` holds the sum of all commits up to `N`, so that older commits can go. The protocol is
//! <https://github.com/delta-io/delta/blob/master/PROTOCOL.md>; we write reader version 1 and writer version 2, which
//! every Delta reader knows: no deletion vectors, no column mapping.
//!
//! # Constraints
//! One process owns the table, and in it one [`DeltaLog`]. In a local folder the data folder's lock sees to that. Elsewhere
//! whoever opens the table takes it over with a commit of its own ([`DeltaLog::take_over`]): the process that had it before
//! finds that commit where its next one was to be. Somebody else's commit is found, reported as [`DeltaError::Conflict`], and
//! never overwritten; nothing is written after that.
//!
//! - [`actions`]: the lines of a commit.
//! - [`log`]: loading and committing.
//! - `checkpoint`: checkpoints and the removal of commits they replace.

pub mod actions;
mod checkpoint;
pub mod log;

use std::path::PathBuf;

use thiserror::Error;

pub use log::{DeltaLog, TableDefinition};

use crate::storage::StorageError;

/// Why a table's log cannot be read or written.
#[derive(Debug, Error)]
pub enum DeltaError {
    /// Where the table is refused.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A commit or checkpoint that is not one.
    #[error(
        "{path} is damaged: {message}; restore the table's folder from a backup, or move it away to start anew"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The table was upgraded by another program to a protocol we do not write.
    #[error(
        "the table {path} needs Delta reader version {reader} and writer version {writer}; Catchment writes 1 and 2"
    )]
    Protocol {
        /// The table's folder.
        path: PathBuf,
        /// `minReaderVersion`.
        reader: i32,
        /// `minWriterVersion`.
        writer: i32,
    },
    /// The table's columns or partition columns are others than ours.
    #[error(
        "the table {path} has other columns than this version of Catchment writes; move it away to start anew"
    )]
    Schema {
        /// The table's folder.
        path: PathBuf,
    },
    /// Another process committed to the table.
    #[error(
        "another program committed version {version} to the table {path}; stop it, then restart Catchment"
    )]
    Conflict {
        /// The table's folder.
        path: PathBuf,
        /// The version that was to be ours.
        version: u64,
    },
}

impl DeltaError {
    fn damaged(path: PathBuf, message: impl ToString) -> Self {
        Self::Damaged { path, message: message.to_string() }
    }
}
