//! What can go wrong with history.

use std::path::PathBuf;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use parquet::errors::ParquetError;
use thiserror::Error;

use super::engine::ClaimError;
use crate::clickhouse::ClickHouseError;
use crate::delta::DeltaError;
use crate::storage::StorageError;

/// Why history cannot be opened, written or read.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A table's transaction log.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// The server that has the tables.
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
    /// How far history is could not be told.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A data file.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why; a full disk is told here.
        source: ParquetError,
    },
    /// Where the tables are.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The tables go on from offsets of another event log.
    #[error(
        "{path} belongs to another event log ({found}, not {log}): what is between their offsets would be lost or doubled; \
         choose that log, or name another folder or prefix"
    )]
    OtherLog {
        /// The file that tells whose it is.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who we are.
        log: String,
    },
    /// A store on which commits are not safe.
    #[error(
        "{path} was written twice although it was to be written only if it is not there: the store ignores `If-None-Match`, \
         so that commits on it are not safe; use one that knows conditional puts"
    )]
    NotConditional {
        /// The file.
        path: PathBuf,
    },
    /// Rows that do not fit together.
    #[error("rows of {table} cannot be arranged: {source}")]
    Rows {
        /// The table.
        table: &'static str,
        /// Why.
        source: ArrowError,
    },
    /// Reading files back, for a merge or at start.
    #[error("cannot read history: {0}")]
    Read(#[from] DataFusionError),
    /// The data folder was written with more partitions than the log has now.
    #[error(
        "{path} has rows of partition {partition}, but the log has only {partitions}; the number cannot be lowered"
    )]
    Partitions {
        /// The table's folder.
        path: PathBuf,
        /// A partition in it.
        partition: u32,
        /// How many there are.
        partitions: usize,
    },
    /// A worker thread ended early.
    #[error("history's {what} was interrupted: {message}")]
    Interrupted {
        /// Which work.
        what: &'static str,
        /// How.
        message: String,
    },
}

impl StoreError {
    /// Whether the store does not answer at all, and may later.
    #[must_use]
    pub fn is_away(&self) -> bool {
        match self {
            Self::Storage(error) | Self::Delta(DeltaError::Storage(error)) => {
                error.source.kind() == std::io::ErrorKind::NotConnected
            }
            _ => false,
        }
    }
}
