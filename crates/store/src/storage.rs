//! Where tables are kept: a local folder, or a prefix of a bucket in S3. The one seam between history and what stores it.
//!
//! A path is relative to the place, has `/` between its parts, and names a file that exists whole or not at all. What a method
//! has said it did is durable. All methods block: they are called on threads that may wait, never on a runtime's.
//!
//! - [`local`]: a folder; what is new gets its name by link or rename, and is synced with the folder it is in.
//! - [`s3`]: one object a file; commits go by conditional puts (`If-None-Match: *`).
//! - `conformance`: what every place must do.

#[cfg(test)]
mod conformance;
mod durable;
pub mod local;
pub mod s3;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use object_store::ObjectStore;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ArrowReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use thiserror::Error;

use local::LocalFolder;
use s3::{S3Place, S3Store};

/// Names a place for tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A local folder, which is made when it is not there.
    Folder(PathBuf),
    /// A prefix of a bucket.
    S3(S3Place),
}

impl Place {
    /// Gets at the place. S3 is not asked anything yet.
    ///
    /// # Errors
    /// The folder cannot be made, or what is said of S3 is not enough to ask it.
    pub fn open(&self) -> Result<Arc<dyn Storage>, StorageError> {
        Ok(match self {
            Self::Folder(path) => Arc::new(LocalFolder::open(path)?),
            Self::S3(place) => Arc::new(S3Store::open(place)?),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::S3(place) => place.fmt(f),
        }
    }
}

/// Files of a place.
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// How people know a file: its path on disk, or its URL.
    fn shown(&self, path: &str) -> PathBuf;

    /// Whether processes on other machines can get at it, so that no lock of a data folder tells them apart.
    fn is_shared(&self) -> bool;

    /// Makes a folder, where there are such.
    ///
    /// # Errors
    /// The place refuses.
    fn make_folder(&self, folder: &str) -> Result<(), StorageError>;

    /// Makes a small file unless there is one of that name.
    ///
    /// # Errors
    /// The place refuses; there is no such file then, or another's.
    fn create(&self, path: &str, bytes: Bytes) -> Result<Creation, StorageError>;

    /// Makes a small file, or puts it in the place of the one of that name.
    ///
    /// # Errors
    /// The place refuses. Which of both is there is open then.
    fn replace(&self, path: &str, bytes: Bytes) -> Result<(), StorageError>;

    /// What a small file holds, if there is one.
    ///
    /// # Errors
    /// The place refuses.
    fn read(&self, path: &str) -> Result<Option<Bytes>, StorageError>;

    /// What several small files hold, in the order of the paths.
    ///
    /// # Errors
    /// The place refuses.
    fn read_all(&self, paths: &[String]) -> Result<Vec<Option<Bytes>>, StorageError> {
        paths.iter().map(|path| self.read(path)).collect()
    }

    /// All files below a folder, relative to it, in no order.
    ///
    /// # Errors
    /// The place refuses.
    fn list(&self, folder: &str) -> Result<Vec<String>, StorageError>;

    /// Deletes a file, and its folder if that is empty then. To delete what is not there is no error.
    ///
    /// # Errors
    /// The place refuses.
    fn delete(&self, path: &str) -> Result<(), StorageError>;

    /// Starts a file of any size, of a name that is not in use.
    ///
    /// # Errors
    /// The place refuses.
    fn write(&self, path: &str) -> Result<Box<dyn FileSink>, StorageError>;

    /// As [`Self::write`], for a file that takes the place of the one of that name once it is finished.
    ///
    /// # Errors
    /// The place refuses.
    fn rewrite(&self, path: &str) -> Result<Box<dyn FileSink>, StorageError>;

    /// Reads a Parquet file from its beginning to its end, if there is one.
    ///
    /// # Errors
    /// The place refuses, or the file is no Parquet file of these columns.
    fn read_rows(&self, path: &str, wanted: Wanted<'_>) -> Result<Option<ParquetRows>, ParquetError>;

    /// The place as plans of DataFusion read it.
    fn object_store(&self) -> Arc<dyn ObjectStore>;

    /// The folder, when it is a local one.
    fn local_folder(&self) -> Option<&Arc<PathBuf>> {
        None
    }
}

/// What became of a file that was to be made unless there was one.
#[derive(Debug)]
#[must_use]
pub enum Creation {
    /// It is there.
    Done,
    /// There was one already. After an [`Creation::Unknown`] it may be our own: what it holds tells.
    Exists,
    /// It may be there, or come to be there, or not: to make the same again finds out.
    Unknown(StorageError),
}

/// A file that is being written. It is deleted again, or never appears, unless [`FileSink::finish`] succeeds.
pub trait FileSink: Write + Send {
    /// Makes it durable; gives its size in bytes.
    ///
    /// # Errors
    /// The place refuses.
    fn finish(self: Box<Self>) -> Result<u64, StorageError>;
}

/// What is wanted of a Parquet file.
pub struct Wanted<'a> {
    /// Its columns, with the types that they are to have.
    pub schema: SchemaRef,
    /// Those to be read; all when empty.
    pub columns: &'a [&'a str],
    /// Rows at a time.
    pub batch_rows: usize,
}

impl Wanted<'_> {
    fn configure<T>(&self, builder: ArrowReaderBuilder<T>) -> ArrowReaderBuilder<T> {
        let builder = builder.with_batch_size(self.batch_rows);
        if self.columns.is_empty() {
            return builder;
        }
        let mask = ProjectionMask::columns(builder.parquet_schema(), self.columns.iter().copied());
        builder.with_projection(mask)
    }
}

/// The rows of a Parquet file.
pub struct ParquetRows {
    /// What its footer says.
    pub metadata: Arc<ParquetMetaData>,
    /// Its rows, in its order.
    pub rows: Box<dyn Iterator<Item = Result<RecordBatch, ParquetError>>>,
}

/// Why a place refuses.
#[derive(Debug, Error)]
#[error("cannot {what} {}: {source}", .path.display())]
pub struct StorageError {
    /// What was tried.
    pub what: &'static str,
    /// The file or folder, as people know it.
    pub path: PathBuf,
    /// What the system, or S3, said.
    pub source: io::Error,
}

impl StorageError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { what, path: path.to_path_buf(), source }
    }
}

impl From<StorageError> for ParquetError {
    fn from(error: StorageError) -> Self {
        Self::External(Box::new(error))
    }
}
