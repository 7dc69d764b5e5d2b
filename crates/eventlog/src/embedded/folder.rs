//! The files of a partition's folder: segments, and at most one spare that retention left for the next.
//!
//! Overwriting a file that was written before is several times faster to make durable than growing one, because its
//! blocks and its size are known to the file system already. So a segment that is not needed any more becomes the
//! next one.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use catchment_types::Offset;

use super::error::{OpenError, While};
use super::meta::sync_folder;
use super::segment::Segment;

const SPARE_SUFFIX: &str = ".spare";

/// A partition's folder, used by its writer only.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    spare: Option<Spare>,
}

#[derive(Debug)]
struct Spare {
    path: PathBuf,
    bytes: u64,
}

impl Folder {
    /// Opens the folder, creates it if need be. Returns the segments in order; nothing is known of them but the name
    /// and the size.
    pub(super) fn open(path: PathBuf, segment_bytes: u64) -> Result<(Self, Vec<Segment>), OpenError> {
        if !path.is_dir() {
            fs::create_dir_all(&path).while_trying("create the folder", &path)?;
            path.parent().map_or(Ok(()), sync_folder).while_trying("make durable the folder", &path)?;
        }
        let (mut segments, mut spares) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&path).while_trying("list", &path)? {
            let file_path = entry.while_trying("list", &path)?.path();
            let name = file_path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some((base, nonce)) = Segment::parse_name(name) {
                let file = open_file(&file_path, false).while_trying("open", &file_path)?;
                let bytes = file.metadata().while_trying("read", &file_path)?.len();
                segments.push(Segment::new(base, nonce, file_path, file, bytes));
            } else if name.ends_with(SPARE_SUFFIX) {
                spares.push(file_path);
            } else {
                tracing::warn!(file = %file_path.display(), "a file in the event log's folder is none of its own: left alone");
            }
        }
        segments.sort_by_key(Segment::base);
        let mut folder = Self { path, spare: None };
        for spare in spares {
            let bytes = fs::metadata(&spare).while_trying("read", &spare)?.len();
            folder.keep_or_remove(spare, bytes, segment_bytes);
        }
        Ok((folder, segments))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the spare file, 0 if there is none.
    pub(super) fn spare_bytes(&self) -> u64 {
        self.spare.as_ref().map_or(0, |spare| spare.bytes)
    }

    /// Makes the file of a new segment: the spare under a new name, or an empty one.
    pub(super) fn create(&mut self, base: Offset) -> io::Result<Segment> {
        let nonce = fresh_nonce();
        let path = self.path.join(Segment::file_name(base, nonce));
        let (file, bytes) = match &self.spare {
            Some(spare) => {
                fs::rename(&spare.path, &path)?;
                let bytes = spare.bytes;
                self.spare = None;
                (open_file(&path, false)?, bytes)
            }
            None => (open_file(&path, true)?, 0),
        };
        sync_folder(&self.path)?;
        Ok(Segment::new(base, nonce, path, file, bytes))
    }

    /// Takes a segment away that is in no list any more. Its file becomes the spare, unless there is one already, a
    /// reader still has it open, or its size is not that of a segment.
    pub(super) fn discard(&mut self, segment: Arc<Segment>, segment_bytes: u64) {
        let (path, bytes) = (segment.path().to_owned(), segment.allocated());
        if Arc::try_unwrap(segment).is_err() {
            return remove(&path);
        }
        let mut spare_path = path.clone();
        spare_path.set_extension(&SPARE_SUFFIX[1..]);
        match fs::rename(&path, &spare_path) {
            Ok(()) => self.keep_or_remove(spare_path, bytes, segment_bytes),
            Err(error) => tracing::warn!(file = %path.display(), %error, "an old segment cannot be renamed"),
        }
    }

    fn keep_or_remove(&mut self, path: PathBuf, bytes: u64, segment_bytes: u64) {
        if self.spare.is_none() && bytes <= segment_bytes {
            self.spare = Some(Spare { path, bytes });
        } else {
            remove(&path);
        }
    }
}

fn open_file(path: &Path, new: bool) -> io::Result<File> {
    File::options().read(true).write(true).create_new(new).open(path)
}

/// A file that stays is a waste, found again at the next start; not a reason to stop.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(file = %path.display(), %error, "an old segment cannot be removed");
    }
}

/// The standard library's seed for hash maps is the randomness at hand.
fn fresh_nonce() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}
