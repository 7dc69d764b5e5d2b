//! `log.toml`: what the log in a folder is. Written once, when the log is created; locked while the log is open.
//!
//! ```toml
//! format = 1
//! partitions = 4
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::LogConfig;
use super::error::{OpenError, While};

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    format: u32,
    partitions: u32,
}

/// Holds the folder for this process until dropped.
#[derive(Debug)]
pub(super) struct FolderLock {
    _file: File,
}

/// Creates the folder if it is not there yet, checks that it is a log with the number of partitions that is asked for, and
/// locks it. Gives the number.
pub(super) fn claim(dir: &Path, config: &LogConfig) -> Result<(FolderLock, u32), OpenError> {
    let path = dir.join("log.toml");
    fs::create_dir_all(dir).while_trying("create the folder", dir)?;
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(dir, &path, config.partitions_of_new()).while_trying("create", &path)?;
            File::open(&path).while_trying("open", &path)?
        }
        Err(error) => return Err(error).while_trying("open", &path),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => return Err(error).while_trying("lock", &path),
    }
    let text = fs::read_to_string(&path).while_trying("read", &path)?;
    let meta: Meta = toml::from_str(&text)
        .map_err(|error| OpenError::Description { path: path.clone(), message: error.to_string() })?;
    if meta.format != FORMAT {
        return Err(OpenError::Format { path: dir.to_owned(), found: meta.format, supported: FORMAT });
    }
    if config.partitions != 0 && meta.partitions != config.partitions {
        let (existing, configured) = (meta.partitions, config.partitions);
        return Err(OpenError::Partitions { path: dir.to_owned(), existing, configured });
    }
    Ok((FolderLock { _file: file }, meta.partitions))
}

/// Whole or not at all: written aside, then renamed.
fn create(dir: &Path, path: &Path, partitions: u32) -> io::Result<()> {
    let text = toml::to_string(&Meta { format: FORMAT, partitions }).map_err(io::Error::other)?;
    let aside = dir.join("log.toml.new");
    let mut file = File::create(&aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    sync_folder(dir)
}

/// Makes names created, renamed or removed in a folder durable.
pub(super) fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
