//! Writing the closed files of a journal anew, without what is over.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::thread::JoinHandle;

use super::image::Image;
use super::journal::read_into;
use super::segment::{self, HEAD_BYTES};
use super::{KeepError, KeepMetrics};

/// Closed files beyond the first that are left as they are, however small.
const FILES_MIN: usize = 4;
/// Records are written out in pieces of about this size.
const PIECE_BYTES: usize = 1 << 20;

/// The name of a file of the journal.
pub(super) fn file_name(number: u64) -> String {
    format!("{number:016}.journal")
}

/// The numbers of the journal's files, in order.
pub(super) fn files(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".journal")).map(str::parse::<u64>);
        numbers.extend(number.and_then(Result::ok));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Removes what a crash has left of writing anew.
pub(super) fn remove_drafts(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Which files are closed, and the thread that writes them anew.
#[derive(Debug)]
pub(super) struct Compaction {
    /// Number and bytes, in order; the first may be one that was written anew.
    sealed: Vec<(u64, u64)>,
    running: Option<JoinHandle<Option<u64>>>,
    /// The highest number that the thread takes in.
    upto: u64,
}

impl Compaction {
    pub(super) fn new(sealed: Vec<(u64, u64)>) -> Self {
        Self { sealed, running: None, upto: 0 }
    }

    /// A file was closed. Begins when what came since the last time is more than what that left.
    pub(super) fn sealed(&mut self, number: u64, bytes: u64, dir: &Path, metrics: &KeepMetrics) {
        self.sealed.push((number, bytes));
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        self.reap();
        metrics.disk_bytes.set(self.sealed.iter().map(|(_, bytes)| bytes.cast_signed()).sum());
        let Some((&(_, kept), since)) = self.sealed.split_first() else { return };
        if since.len() < FILES_MIN || since.iter().map(|(_, bytes)| bytes).sum::<u64>() < kept {
            return;
        }
        let numbers: Vec<u64> = self.sealed.iter().map(|(number, _)| *number).collect();
        self.upto = number;
        let (dir, metrics) = (dir.to_owned(), metrics.clone());
        let thread = std::thread::Builder::new().name("sessions-anew".to_owned());
        let started = thread.spawn(move || match compact(&dir, &numbers, &metrics) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                tracing::warn!(%error, "the journal of sessions could not be written anew and stays large for now");
                None
            }
        });
        match started {
            Ok(running) => self.running = Some(running),
            Err(error) => tracing::warn!(%error, "no thread to write the journal of sessions anew"),
        }
    }

    fn reap(&mut self) {
        // A thread that panicked has said so; its files are as they were.
        if let Some(Ok(Some(bytes))) = self.running.take().map(JoinHandle::join) {
            self.sealed.retain(|(number, _)| *number > self.upto);
            self.sealed.insert(0, (self.upto, bytes));
        }
    }

    /// Waits for the thread.
    pub(super) fn finish(mut self) {
        self.reap();
    }
}

/// Writes files anew as one, which takes the place of the last of them. Gives its size.
pub(super) fn compact(dir: &Path, numbers: &[u64], metrics: &KeepMetrics) -> Result<u64, KeepError> {
    let Some((&last, before)) = numbers.split_last() else { return Ok(0) };
    let mut image = Image::default();
    // The snapshot that the first may be begins by forgetting what is before it.
    for &number in numbers {
        read_into(&dir.join(file_name(number)), &mut image, metrics)?;
    }
    let path = dir.join(file_name(last));
    let draft = path.with_extension("new");
    let fault = |source| KeepError { action: "write", path: draft.clone(), source };
    let bytes = write(&image, &draft).map_err(fault)?;
    let replace = || {
        fs::rename(&draft, &path)?;
        File::open(dir)?.sync_all()?;
        before.iter().try_for_each(|&number| fs::remove_file(dir.join(file_name(number))))
    };
    replace().map_err(fault)?;
    metrics.compactions.inc();
    Ok(bytes)
}

fn write(image: &Image, path: &Path) -> io::Result<u64> {
    let nonce = rand::random();
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&segment::head(nonce))?;
    let (mut piece, mut written) = (Vec::new(), HEAD_BYTES as u64);
    let mut outcome = Ok(());
    let mut flush = |piece: &mut Vec<u8>| {
        segment::seal(piece, nonce);
        written += piece.len() as u64;
        let result = file.write_all(piece);
        piece.clear();
        result
    };
    image.records(|record| {
        segment::push(&mut piece, |into| record.encode(into));
        if piece.len() >= PIECE_BYTES && outcome.is_ok() {
            outcome = flush(&mut piece);
        }
    });
    outcome.and_then(|()| flush(&mut piece))?;
    file.into_inner()?.sync_all()?;
    Ok(written)
}
