//! What can go wrong with history.

use std::path::PathBuf;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use parquet::errors::ParquetError;
use thiserror::Error;

use super::engine::ClaimError;
use crate::clickhouse::ClickHouseError;
use crate::delta::DeltaError;

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
    /// The file system refused.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
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
