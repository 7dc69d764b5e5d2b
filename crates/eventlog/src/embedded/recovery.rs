//! Opening a partition: finds where to go on.
//!
//! Only the last segment is read whole: the ones before were durable before it was begun. Their damage, if any, is
//! found when they are read.

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
    /// At least one; the last is written on.
    pub(super) segments: Vec<Arc<Segment>>,
    /// Where in the last segment to write on.
    pub(super) position: u64,
    /// Offset of the next event.
    pub(super) next_offset: Offset,
    /// Corrupted places in the last segment.
    pub(super) damage: u64,
}

/// Reads the folder of a partition, cuts a torn tail off.
pub(super) fn recover(
    path: PathBuf,
    segment_bytes: u64,
    device: &dyn Device,
) -> Result<Recovered, OpenError> {
    let (mut folder, mut segments) = Folder::open(path, segment_bytes)?;
    if segments.is_empty() {
        let segment = folder.create(0).while_trying("create a segment in", folder.path())?;
        segments.push(segment);
    }
    let mut recovered = Recovered { folder, segments: Vec::new(), position: 0, next_offset: 0, damage: 0 };
    if let Some(last) = segments.pop() {
        for sealed in segments {
            sealed.load_started_at().while_trying("read", sealed.path())?;
            sealed.set_written(sealed.allocated());
            recovered.segments.push(Arc::new(sealed));
        }
        recovered.scan_last(&last).while_trying("read", last.path())?;
        recovered.cut(&last, device).while_trying("cut the torn tail of", last.path())?;
        last.set_written(recovered.position);
        recovered.segments.push(Arc::new(last));
    }
    Ok(recovered)
}

impl Recovered {
    fn scan_last(&mut self, last: &Segment) -> std::io::Result<()> {
        self.next_offset = last.base();
        let mut scanner = Scanner::new(last, 0, last.allocated());
        while let Some(found) = scanner.next(0)? {
            match found {
                Found::Block { header, .. } => self.next_offset = header.end_offset(),
                Found::Damage { position } => self.damage += last.report_damage(position),
            }
        }
        self.position = scanner.position();
        Ok(())
    }

    /// Blanks the header after the last valid block, so that what a torn write left is not looked at again.
    fn cut(&self, last: &Segment, device: &dyn Device) -> std::io::Result<()> {
        use std::os::unix::fs::FileExt;

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
