//! A file on its way into S3: held until it is complete or has the size of a part, then sent part by part.

use std::io::{self, Write};
use std::mem;

use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutPayload};

use super::{S3Store, explain};
use crate::storage::{FileSink, StorageError};

/// S3 takes no smaller part but the last.
const PART_BYTES: usize = 5 << 20;

/// An object while it is written. It appears with [`FileSink::finish`] alone.
pub(super) struct Upload {
    store: S3Store,
    path: String,
    /// Not sent yet; less than a part.
    held: Vec<u8>,
    /// None while all of it is held.
    parts: Option<Box<dyn MultipartUpload>>,
    bytes: u64,
}

impl Upload {
    pub(super) fn new(store: S3Store, path: &str) -> Self {
        Self { store, path: path.to_owned(), held: Vec::new(), parts: None, bytes: 0 }
    }

    fn send_part(&mut self) -> object_store::Result<()> {
        if self.parts.is_none() {
            let location = Path::from(self.path.as_str());
            let begun = self.store.0.store.put_multipart_opts(&location, PutMultipartOptions::default());
            self.parts = Some(self.store.run(begun)?);
        }
        if let Some(parts) = &mut self.parts {
            let part = parts.put_part(PutPayload::from(mem::take(&mut self.held)));
            self.store.run(part)?;
        }
        Ok(())
    }

    fn complete(&mut self) -> object_store::Result<()> {
        if self.parts.is_none() {
            let location = Path::from(self.path.as_str());
            let whole = PutPayload::from(mem::take(&mut self.held));
            return self.store.run(self.store.0.store.put(&location, whole)).map(|_| ());
        }
        if !self.held.is_empty() {
            self.send_part()?;
        }
        if let Some(parts) = &mut self.parts {
            self.store.run(parts.complete())?;
        }
        self.parts = None;
        Ok(())
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART_BYTES - self.held.len());
        self.held.extend_from_slice(&bytes[..taken]);
        self.bytes += taken as u64;
        if self.held.len() == PART_BYTES {
            self.send_part().map_err(explain)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl FileSink for Upload {
    fn finish(mut self: Box<Self>) -> Result<u64, StorageError> {
        self.complete().map_err(self.store.error("write", &self.path))?;
        Ok(self.bytes)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(mut parts) = self.parts.take() {
            // Best effort: parts that are left are the bucket's rule for incomplete uploads to delete.
            let _ = self.store.run(parts.abort());
        }
    }
}
