//! Why the embedded log does not open.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the embedded log does not open. Nothing on disk was changed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The system refused.
    #[error("the event log cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A setting out of its limits.
    #[error("log.{setting} = {value} is not possible, it must be {limits}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What was configured.
        value: u64,
        /// What is allowed.
        limits: &'static str,
    },
    /// The log was created with another number of partitions.
    #[error(
        "the event log in {path} has {existing} partitions, {configured} are configured: a log keeps its number; \
         set log.partitions = {existing}, or use a new data folder"
    )]
    Partitions {
        /// Folder of the log.
        path: PathBuf,
        /// How many it has.
        existing: u32,
        /// How many were asked for.
        configured: u32,
    },
    /// Written by another version.
    #[error(
        "the event log in {path} has format {found}, this version reads format {supported}: use the version that wrote it"
    )]
    Format {
        /// Folder of the log.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format known here.
        supported: u32,
    },
    /// The description of the log cannot be understood.
    #[error("{path} does not describe an event log: {message}; restore it from a backup of the data folder")]
    Description {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// In use.
    #[error(
        "the event log in {path} is in use by another process: stop that one, or use another data folder"
    )]
    InUse {
        /// Folder of the log.
        path: PathBuf,
    },
}

/// Tells what was tried when the system refuses.
pub(super) trait While<T> {
    fn while_trying(self, action: &'static str, path: &Path) -> Result<T, OpenError>;
}

impl<T> While<T> for io::Result<T> {
    fn while_trying(self, action: &'static str, path: &Path) -> Result<T, OpenError> {
        self.map_err(|source| OpenError::Io { action, path: path.to_owned(), source })
    }
}
