//! Tables in a local folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;

use super::durable::{rename_no_replace, sync_folder, write_file};
use super::{Creation, FileSink, ParquetRows, Storage, StorageError, Wanted};

/// A local folder. One process owns it.
#[derive(Debug)]
pub struct LocalFolder {
    folder: Arc<PathBuf>,
    store: Arc<dyn ObjectStore>,
}

impl LocalFolder {
    /// Makes the folder if there is none.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(folder: &Path) -> Result<Self, StorageError> {
        fs::create_dir_all(folder).map_err(StorageError::io("create", folder))?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|error| StorageError::io("open", folder)(error.into()))?;
        Ok(Self { folder: Arc::new(folder.to_path_buf()), store: Arc::new(store) })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// The folder that a file is in.
    fn parent<'a>(&'a self, path: &'a Path) -> &'a Path {
        path.parent().unwrap_or(&self.folder)
    }

    /// Writes a file beside the one that it is to become.
    fn write_draft(&self, path: &Path, bytes: &[u8]) -> Result<PathBuf, StorageError> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let draft = path.with_file_name(format!(".{name}.tmp"));
        write_file(&draft, bytes)?;
        Ok(draft)
    }
}

impl Storage for LocalFolder {
    fn shown(&self, path: &str) -> PathBuf {
        self.at(path)
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn make_folder(&self, folder: &str) -> Result<(), StorageError> {
        let folder = self.at(folder);
        fs::create_dir_all(&folder).map_err(StorageError::io("create", &folder))?;
        sync_folder(self.parent(&folder))
    }

    fn create(&self, path: &str, bytes: Bytes) -> Result<Creation, StorageError> {
        let path = self.at(path);
        let draft = self.write_draft(&path, &bytes)?;
        let is_new = rename_no_replace(&draft, &path)?;
        // From here on it counts for whoever looks, but may be gone after a power cut.
        Ok(match sync_folder(self.parent(&path)) {
            Ok(()) if is_new => Creation::Done,
            Ok(()) => Creation::Exists,
            Err(error) => Creation::Unknown(error),
        })
    }

    fn replace(&self, path: &str, bytes: Bytes) -> Result<(), StorageError> {
        let path = self.at(path);
        let draft = self.write_draft(&path, &bytes)?;
        fs::rename(&draft, &path).map_err(StorageError::io("create", &path))?;
        sync_folder(self.parent(&path))
    }

    fn read(&self, path: &str) -> Result<Option<Bytes>, StorageError> {
        let path = self.at(path);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::io("read", &path)(error)),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        let mut files = Vec::new();
        list_into(&self.at(folder), "", &mut files)?;
        Ok(files)
    }

    fn delete(&self, path: &str) -> Result<(), StorageError> {
        let path = self.at(path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StorageError::io("delete", &path)(error))
            }
            _ => {
                // Only when it is empty now.
                let _ = fs::remove_dir(self.parent(&path));
                Ok(())
            }
        }
    }

    fn write(&self, path: &str) -> Result<Box<dyn FileSink>, StorageError> {
        let path = self.at(path);
        let parent = self.parent(&path);
        match fs::create_dir(parent) {
            Ok(()) => sync_folder(self.parent(parent))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StorageError::io("create", parent)(error)),
        }
        let file = File::create_new(&path).map_err(StorageError::io("create", &path))?;
        Ok(Box::new(LocalSink { file, path, becomes: None, keep: false }))
    }

    fn rewrite(&self, path: &str) -> Result<Box<dyn FileSink>, StorageError> {
        let becomes = self.at(path);
        let path = becomes.with_extension("parquet.new");
        let file = File::create(&path).map_err(StorageError::io("create", &path))?;
        Ok(Box::new(LocalSink { file, path, becomes: Some(becomes), keep: false }))
    }

    fn read_rows(&self, path: &str, wanted: Wanted<'_>) -> Result<Option<ParquetRows>, ParquetError> {
        let path = self.at(path);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StorageError::io("open", &path)(error).into()),
        };
        let options = ArrowReaderOptions::new().with_schema(Arc::clone(&wanted.schema));
        let builder = wanted.configure(ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)?);
        let metadata = Arc::clone(builder.metadata());
        let rows = builder.build()?.map(|rows| rows.map_err(ParquetError::from));
        Ok(Some(ParquetRows { metadata, rows: Box::new(rows) }))
    }

    fn object_store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    fn local_folder(&self) -> Option<&Arc<PathBuf>> {
        Some(&self.folder)
    }
}

/// Adds all files below `folder`, whose path is `prefix`.
fn list_into(folder: &Path, prefix: &str, files: &mut Vec<String>) -> Result<(), StorageError> {
    for entry in fs::read_dir(folder).map_err(StorageError::io("list", folder))? {
        let entry = entry.map_err(StorageError::io("list", folder))?;
        // A name that is no text is none of ours.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        match entry.file_type().map_err(StorageError::io("list", folder))?.is_dir() {
            true => list_into(&entry.path(), &format!("{path}/"), files)?,
            false => files.push(path),
        }
    }
    Ok(())
}

/// A file while it is written.
struct LocalSink {
    file: File,
    path: PathBuf,
    /// The name that it has once it is finished, if another.
    becomes: Option<PathBuf>,
    keep: bool,
}

impl Write for LocalSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl FileSink for LocalSink {
    fn finish(mut self: Box<Self>) -> Result<u64, StorageError> {
        self.file.sync_all().map_err(StorageError::io("sync", &self.path))?;
        if let Some(becomes) = &self.becomes {
            fs::rename(&self.path, becomes).map_err(StorageError::io("rename", &self.path))?;
        }
        if let Some(parent) = self.path.parent() {
            sync_folder(parent)?;
        }
        let bytes = self.file.metadata().map_err(StorageError::io("measure", &self.path))?.len();
        self.keep = true;
        Ok(bytes)
    }
}

impl Drop for LocalSink {
    fn drop(&mut self) {
        if !self.keep {
            // Best effort: a file that no commit names is deleted at the next start at the latest.
            let _ = fs::remove_file(&self.path);
        }
    }
}
