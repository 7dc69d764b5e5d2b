//! Writing small files so that they exist whole or not at all, whatever is killed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::StorageError;

/// Makes names created in or removed from `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StorageError::io("sync", folder))
}

/// Writes `bytes` to `path` and makes them durable. The name itself is not, until [`sync_folder`].
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| {
        // Leave no room taken on a full disk.
        let _ = fs::remove_file(path);
        StorageError { what: "write", path: path.to_path_buf(), source }
    })
}

/// Gives the file `from` the name `to`, unless that exists: `false` then. `from` is gone afterwards.
pub(super) fn rename_no_replace(from: &Path, to: &Path) -> Result<bool, StorageError> {
    let linked = match fs::hard_link(from, to) {
        // File systems without hard links (FAT, some shares): only one process owns the folder, so looking first will do.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) =>
        {
            match to.try_exists() {
                Ok(true) => Err(io::ErrorKind::AlreadyExists.into()),
                Ok(false) => fs::rename(from, to),
                Err(error) => Err(error),
            }
        }
        other => other,
    };
    let _ = fs::remove_file(from);
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(StorageError { what: "create", path: to.to_path_buf(), source }),
    }
}
