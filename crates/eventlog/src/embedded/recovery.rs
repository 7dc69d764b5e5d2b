//! Opening a partition: finds where to go on.
//!
//! Only the last segment is read whole: the ones before were durable before it was begun. Their damage, if any, is
//! found when they are read.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use catchment_types::Offset;

use super::device::Device;
use super::error::{OpenError, While};
use super::folder::Folder;
use super::format::{HEADER_BYTES, Header};
use super::scan::{Found, Scanner};
use super::segment::Segment;

/// A partition as found on disk.
pub(super) struct Recovered {
    pub(super) folder: Folder,
    /// In order; the last is `active`.
    pub(super) segments: Vec<Arc<Segment>>,
    /// The segment to write on.
    pub(super) active: Arc<Segment>,
    /// Where in it to write on.
    pub(super) position: u64,
    /// Offset of the next event.
    pub(super) next_offset: Offset,
    /// Corrupted places in it.
    pub(super) damage: u64,
}

/// Reads the folder of a partition, cuts a torn tail off.
pub(super) fn recover(
    path: PathBuf,
    segment_bytes: u64,
    device: &dyn Device,
) -> Result<Recovered, OpenError> {
    let (mut folder, mut sealed) = Folder::open(path, segment_bytes)?;
    let active = match sealed.pop() {
        Some(last) => Arc::new(last),
        None => Arc::new(folder.create(0).while_trying("create a segment in", folder.path())?),
    };
    for segment in &sealed {
        segment.load_started_at().while_trying("read", segment.path())?;
        segment.set_written(segment.allocated());
    }
    let segments = sealed.into_iter().map(Arc::new).chain([active.clone()]).collect();
    let next_offset = active.base();
    let mut recovered = Recovered { folder, segments, active, position: 0, next_offset, damage: 0 };
    recovered.scan().while_trying("read", recovered.active.path())?;
    recovered.cut(device).while_trying("cut the torn tail of", recovered.active.path())?;
    recovered.active.set_written(recovered.position);
    Ok(recovered)
}

impl Recovered {
    /// Finds the end of the active segment.
    fn scan(&mut self) -> io::Result<()> {
        let mut scanner = Scanner::new(&self.active, 0, self.active.allocated());
        while let Some(found) = scanner.next(0)? {
            match found {
                Found::Block { header, .. } => self.next_offset = header.end_offset(),
                Found::Damage { position } => self.damage += self.active.report_damage(position),
            }
        }
        self.position = scanner.position();
        Ok(())
    }

    /// Blanks the header after the last valid block, so that what a torn write left is not looked at again.
    fn cut(&self, device: &dyn Device) -> io::Result<()> {
        let last = &self.active;
        let room = last.allocated().saturating_sub(self.position).min(HEADER_BYTES as u64) as usize;
        let mut bytes = [0; HEADER_BYTES];
        last.file().read_exact_at(&mut bytes[..room], self.position)?;
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        if Header::parse(&bytes, last.nonce()).is_some() {
            tracing::warn!(
                file = %last.path().display(),
                position = self.position,
                "the last write to the event log was torn, as by loss of power: cut off; nothing in it was acknowledged"
            );
        }
        device.write(last.file(), &[0; HEADER_BYTES][..room], self.position)?;
        device.sync(last.file())
    }
}
