//! The data folder: one process at a time, and the file with the administrator's token.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

const LOCK: &str = "LOCK";
const ADMIN_TOKEN: &str = "admin.token";
const INSTANCE: &str = "instance";
const LOG_IDENTITY: &str = "log.engine";
/// What a folder without that file has had.
const LOG_DEFAULT: &str = "embedded";

/// A data folder that this process owns until the value is dropped.
#[derive(Debug)]
pub(crate) struct DataFolder {
    path: PathBuf,
    /// The lock ends with the file's handle, however the process ends.
    _lock: File,
}

impl DataFolder {
    /// Makes the folder if there is none, and takes possession of it.
    ///
    /// # Errors
    /// When it cannot be made or written to, or another process has it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("the data folder {} cannot be made", path.display()))?;
        let lock_path = path.join(LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .with_context(|| format!("the data folder {} is not writable", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Only to say who it is; the lock itself is the system's.
                let _ = lock.read_to_string(&mut owner);
                let owner = owner.trim();
                bail!(
                    "the data folder {} is in use by {}; stop that process or name another folder with --data",
                    path.display(),
                    if owner.is_empty() { "another process".to_owned() } else { format!("process {owner}") }
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("{} cannot be locked", lock_path.display()));
            }
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .with_context(|| format!("{} cannot be written", lock_path.display()))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The name of this folder, by which other brokers know our sessions again; made when it is first asked for.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(crate) fn instance(&self) -> anyhow::Result<String> {
        if let Some(instance) = read_instance(&self.path)? {
            return Ok(instance);
        }
        let instance = format!("{:016x}", rand::random::<u64>());
        let (path, draft) = (self.path.join(INSTANCE), self.path.join(format!("{INSTANCE}.new")));
        let write = || {
            let mut file = File::create(&draft)?;
            writeln!(file, "{instance}")?;
            file.sync_all()?;
            std::fs::rename(&draft, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(instance)
    }

    /// Refuses another log than the one whose offsets the folder's history has; without history it takes any.
    ///
    /// # Errors
    /// When it is another, or the file that tells cannot be written.
    pub(crate) fn belongs_to_log(&self, identity: &str, has_history: bool) -> anyhow::Result<()> {
        let path = self.path.join(LOG_IDENTITY);
        let known = std::fs::read_to_string(&path).unwrap_or_else(|_| LOG_DEFAULT.to_owned());
        let known = known.trim();
        if known == identity {
            return Ok(());
        }
        if has_history {
            bail!(
                "the history in {} goes on from offsets of another event log ({known}, not {identity}): what is between them \
                 would be lost or doubled; choose that log again with --log, or another folder with --data",
                self.path.display()
            );
        }
        std::fs::write(&path, format!("{identity}\n"))
            .with_context(|| format!("{} cannot be written", path.display()))
    }

    /// Keeps the administrator's token in a file that only the owner of the process can read.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write_admin_token(&self, token: &str) -> anyhow::Result<PathBuf> {
        let path = self.path.join(ADMIN_TOKEN);
        // Written beside and renamed: never half a token, never readable by others even for a moment.
        let draft = self.path.join(format!("{ADMIN_TOKEN}.new"));
        let _ = std::fs::remove_file(&draft);
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            writeln!(file, "{token}")?;
            file.sync_all()?;
            std::fs::rename(&draft, &path)
        };
        write().with_context(|| format!("the administrator's token cannot be kept in {}", path.display()))?;
        Ok(path)
    }
}

/// The name of a data folder, if it has one; see [`DataFolder::instance`].
///
/// # Errors
/// When it is there and cannot be read, or is no name.
pub(crate) fn read_instance(data: &Path) -> anyhow::Result<Option<String>> {
    let path = data.join(INSTANCE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    let instance = text.trim();
    if instance.is_empty() || !instance.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        bail!("{} does not hold a name of letters and digits", path.display());
    }
    Ok(Some(instance.to_owned()))
}

/// The administrator's token of a data folder, if it has one that this user may read.
///
/// # Errors
/// When the file is missing or not readable.
pub(crate) fn read_admin_token(data: &Path) -> anyhow::Result<String> {
    let path = data.join(ADMIN_TOKEN);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "the administrator's token cannot be read from {}; the first start of `catchment serve` makes it, and only the owner of that process may read it",
            path.display()
        )
    })?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        let first = DataFolder::open(&data).unwrap();
        let error = DataFolder::open(&data).unwrap_err().to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        drop(first);
        DataFolder::open(&data).unwrap();
    }

    #[test]
    fn the_name_of_the_folder_stays() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_instance(dir.path()).unwrap(), None);
        let folder = DataFolder::open(dir.path()).unwrap();
        let instance = folder.instance().unwrap();
        assert_eq!(
            (folder.instance().unwrap(), read_instance(dir.path()).unwrap()),
            (instance.clone(), Some(instance))
        );
        std::fs::write(dir.path().join(INSTANCE), "a b\n").unwrap();
        assert!(folder.instance().is_err());
    }

    #[test]
    fn history_keeps_to_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        folder.belongs_to_log("kafka cluster a topic t", false).unwrap();
        folder.belongs_to_log("kafka cluster a topic t", true).unwrap();
        let error = folder.belongs_to_log("embedded", true).unwrap_err().to_string();
        assert!(error.contains("(kafka cluster a topic t, not embedded)"), "{error}");
        folder.belongs_to_log("embedded", false).unwrap();
        folder.belongs_to_log("embedded", true).unwrap();
    }

    #[test]
    fn the_token_is_for_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        assert!(read_admin_token(dir.path()).is_err());
        let path = folder.write_admin_token("first").unwrap();
        folder.write_admin_token("second").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_admin_token(dir.path()).unwrap(), "second");
    }
}
