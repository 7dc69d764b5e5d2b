//! Walks over the blocks of a segment and tells apart blocks, damage and the end.
//!
//! Damage is a place without a valid block that has a valid block somewhere after it. A place with nothing valid
//! after it is the end: room never written, blocks of an earlier life of the file, or the torn tail of a write that
//! the machine did not survive. Should only a later block of one torn group have reached the disk, what is missing
//! before it is taken for damage, though it was never acknowledged: better told than lost without a word.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use catchment_types::Offset;

use super::format::{ALIGNMENT, HEADER_BYTES, Header, may_be_header};
use super::segment::Segment;

/// Bytes read at once.
const WINDOW_BYTES: usize = 256 << 10;

/// What lies at a position.
pub(super) enum Found<'a> {
    /// A valid block.
    Block {
        /// Where it starts.
        position: u64,
        /// Its header.
        header: Header,
        /// The bytes after the header, checked.
        stored: &'a [u8],
    },
    /// Bytes that should be a block and are not; valid blocks follow.
    Damage {
        /// Where it starts.
        position: u64,
    },
}

/// A walk over one segment, up to a position that is given.
pub(super) struct Scanner<'a> {
    segment: &'a Segment,
    window: Window<'a>,
    position: u64,
    /// Offsets only grow: a block with a lower one is a leftover.
    offset_min: Offset,
}

impl<'a> Scanner<'a> {
    /// Starts at `position`, which must be where a block starts.
    pub(super) fn new(segment: &'a Segment, position: u64, limit: u64) -> Self {
        let window = Window { file: segment.file(), limit, start: 0, bytes: Vec::new() };
        Self { segment, window, position, offset_min: segment.base() }
    }

    /// Where the walk stands: after the last block found.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next block that ends after `from`, or damage before it. Blocks before `from` are passed without a look at
    /// their data.
    pub(super) fn next(&mut self, from: Offset) -> io::Result<Option<Found<'_>>> {
        loop {
            let position = self.position;
            let header = self.header_at(position)?;
            if let Some(header) = header {
                let wanted = header.end_offset() > from;
                if !wanted || self.data_is_valid(position, &header)? {
                    self.segment.note(&header, position);
                    self.position += header.span();
                    self.offset_min = header.end_offset();
                    if !wanted {
                        continue;
                    }
                    let stored = self.window.stored(position, &header)?.unwrap_or_default();
                    return Ok(Some(Found::Block { position, header, stored }));
                }
            }
            let search_from = position + header.map_or(ALIGNMENT as u64, |header| header.span());
            return Ok(self.find_block(search_from)?.map(|next| {
                self.position = next;
                Found::Damage { position }
            }));
        }
    }

    fn header_at(&mut self, position: u64) -> io::Result<Option<Header>> {
        let nonce = self.segment.nonce();
        let header = self.window.get(position, HEADER_BYTES)?.and_then(|bytes| Header::parse(bytes, nonce));
        Ok(header.filter(|header| header.first_offset >= self.offset_min))
    }

    fn data_is_valid(&mut self, position: u64, header: &Header) -> io::Result<bool> {
        Ok(self.window.stored(position, header)?.is_some_and(|stored| header.matches(stored)))
    }

    /// The position of the first valid block from `position` on.
    fn find_block(&mut self, mut position: u64) -> io::Result<Option<u64>> {
        while let Some(bytes) = self.window.rest(position)? {
            let candidate = bytes.chunks(ALIGNMENT).position(may_be_header);
            let Some(candidate) = candidate else {
                position += (bytes.len().next_multiple_of(ALIGNMENT)) as u64;
                continue;
            };
            position += (candidate * ALIGNMENT) as u64;
            match self.header_at(position)? {
                Some(header) if self.data_is_valid(position, &header)? => return Ok(Some(position)),
                Some(header) => position += header.span(),
                None => position += ALIGNMENT as u64,
            }
        }
        Ok(None)
    }
}

/// A part of a file in memory.
struct Window<'a> {
    file: &'a File,
    limit: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `length` bytes at `position`; nothing if they reach over the limit or the file's end.
    fn get(&mut self, position: u64, length: usize) -> io::Result<Option<&[u8]>> {
        let end = position.saturating_add(length as u64);
        if end > self.limit {
            return Ok(None);
        }
        if position < self.start || end > self.start + self.bytes.len() as u64 {
            self.load(position, length.max(WINDOW_BYTES))?;
        }
        let at = (position - self.start) as usize;
        Ok(self.bytes.get(at..at + length))
    }

    fn stored(&mut self, position: u64, header: &Header) -> io::Result<Option<&[u8]>> {
        self.get(position + HEADER_BYTES as u64, header.stored_bytes as usize)
    }

    /// What there is in memory from `position` on, or else read next; nothing at the limit.
    fn rest(&mut self, position: u64) -> io::Result<Option<&[u8]>> {
        if position < self.start || position >= self.start + self.bytes.len() as u64 {
            self.load(position, WINDOW_BYTES)?;
        }
        let bytes = self.bytes.get((position - self.start) as usize..);
        Ok(bytes.filter(|bytes| !bytes.is_empty()))
    }

    fn load(&mut self, position: u64, length: usize) -> io::Result<()> {
        // Whole multiples, so that a header never starts in a remainder unless the file ends there.
        let length = length.next_multiple_of(ALIGNMENT) as u64;
        let length = self.limit.saturating_sub(position).min(length) as usize;
        self.start = position;
        self.bytes.resize(length, 0);
        let mut filled = 0;
        while filled < length {
            match self.file.read_at(&mut self.bytes[filled..], position + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.bytes.clear();
                    return Err(error);
                }
            }
        }
        self.bytes.truncate(filled);
        Ok(())
    }
}
