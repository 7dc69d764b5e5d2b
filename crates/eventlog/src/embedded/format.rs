//! The format of a block: the unit of compression and checksums. A segment is blocks one after the other.
//!
//! A block starts at a multiple of [`ALIGNMENT`] bytes with a header of [`HEADER_BYTES`], little endian:
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic `CTB` and the format's version |
//! | 4 | 4 | nonce of the segment |
//! | 8 | 8 | offset of the first event |
//! | 16 | 8 | when it was written, µs since the epoch |
//! | 24 | 4 | number of events, at least 1 |
//! | 28 | 4 | bytes of the encoded events |
//! | 32 | 4 | bytes as stored after this header |
//! | 36 | 1, 3 | codec: 0 as they are, 1 LZ4 block; zeros |
//! | 40 | 4 | CRC-32C of the stored bytes |
//! | 44 | 4 | CRC-32C of the header up to here |
//!
//! The nonce is fresh each time a segment file is put to use, so what an earlier life of a recycled file left behind
//! never passes for a block. The header has a checksum of its own: damage to the data of a block still leaves known
//! where the next one is.

use bytes::Bytes;
use catchment_types::{EventBatch, Offset, Timestamp};
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress, get_maximum_output_size};

use super::config::Compression;
use crate::EventBlock;

/// Bytes of a block's header.
pub(super) const HEADER_BYTES: usize = 48;
/// Blocks start at multiples of this.
pub(super) const ALIGNMENT: usize = 8;
/// Encoded events that share a block, in bytes; only a single submission may be larger.
pub(super) const BLOCK_BYTES_MAX: usize = 1 << 20;

const MAGIC: [u8; 4] = *b"CTB\x01";
const CODEC_RAW: u8 = 0;
const CODEC_LZ4: u8 = 1;
/// From this size on, LZ4 needs its table of 32-bit entries; below, the small one stays in the first-level cache.
const SMALL_TABLE_BYTES_MAX: usize = 0xffff;

/// A block's header, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) first_offset: Offset,
    pub(super) written_at: Timestamp,
    pub(super) count: u32,
    pub(super) raw_bytes: u32,
    pub(super) stored_bytes: u32,
    codec: u8,
    data_crc: u32,
}

impl Header {
    /// Reads a header; nothing if these bytes are not a whole one of the segment with this nonce.
    pub(super) fn parse(bytes: &[u8], nonce: u32) -> Option<Self> {
        let bytes = bytes.first_chunk::<HEADER_BYTES>()?;
        if bytes[..4] != MAGIC
            || u32_at(bytes, 4) != nonce
            || u32_at(bytes, 44) != crc32c::crc32c(&bytes[..44])
        {
            return None;
        }
        let header = Self {
            first_offset: u64_at(bytes, 8),
            written_at: Timestamp(u64_at(bytes, 16).cast_signed()),
            count: u32_at(bytes, 24),
            raw_bytes: u32_at(bytes, 28),
            stored_bytes: u32_at(bytes, 32),
            codec: bytes[36],
            data_crc: u32_at(bytes, 40),
        };
        (header.count > 0 && header.codec <= CODEC_LZ4).then_some(header)
    }

    /// The offset after the last event.
    pub(super) fn end_offset(&self) -> Offset {
        self.first_offset.saturating_add(Offset::from(self.count))
    }

    /// Bytes from the start of this block to the start of the next.
    pub(super) fn span(&self) -> u64 {
        (HEADER_BYTES as u64 + u64::from(self.stored_bytes)).next_multiple_of(ALIGNMENT as u64)
    }

    /// Whether these stored bytes are the ones that were written.
    pub(super) fn matches(&self, stored: &[u8]) -> bool {
        crc32c::crc32c(stored) == self.data_crc
    }

    /// The events of a block whose stored bytes match. Nothing if they do not decompress to what the header says,
    /// which only a wrong writer could bring about.
    pub(super) fn open(&self, stored: &[u8]) -> Option<EventBlock> {
        let raw_bytes = self.raw_bytes as usize;
        let raw = match self.codec {
            CODEC_RAW => Bytes::copy_from_slice(stored),
            _ => Bytes::from(decompress(stored, raw_bytes).ok()?),
        };
        (raw.len() == raw_bytes).then(|| EventBlock {
            first_offset: self.first_offset,
            events: EventBatch::from_encoded(raw, self.count),
        })
    }
}

/// Whether a header could start with these bytes: a quick look before [`Header::parse`] when searching.
pub(super) fn may_be_header(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Writes blocks into a buffer that it keeps, so that a group of them goes to disk in one piece.
pub(super) struct Encoder {
    compression: Compression,
    small: CompressTable,
    large: CompressTable,
    /// Longer than what is in use: growing it anew for each group would mean zeroing it each time.
    buffer: Vec<u8>,
    used: usize,
}

impl Encoder {
    pub(super) fn new(compression: Compression) -> Self {
        let (small, large) = (CompressTable::small(), CompressTable::large());
        Self { compression, small, large, buffer: Vec::new(), used: 0 }
    }

    /// Starts over with an empty group. A buffer that one huge event blew up beyond `keep_bytes` is let go.
    pub(super) fn clear(&mut self, keep_bytes: usize) {
        self.used = 0;
        if self.buffer.len() > keep_bytes {
            self.buffer = Vec::new();
        }
    }

    /// The blocks so far, as they go to disk.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.used]
    }

    /// Appends a block and returns its header. The events are fewer than 2³² and under [`super::BATCH_BYTES_MAX`].
    pub(super) fn push(&mut self, block: &EventBlock, nonce: u32, written_at: Timestamp) -> Header {
        let raw: &[u8] = block.events.as_bytes();
        let data = self.used + HEADER_BYTES;
        let room = data + get_maximum_output_size(raw.len()).max(raw.len()) + ALIGNMENT;
        if self.buffer.len() < room {
            self.buffer.resize(room.next_power_of_two(), 0);
        }
        let table = if raw.len() < SMALL_TABLE_BYTES_MAX { &mut self.small } else { &mut self.large };
        let compressed = match self.compression {
            Compression::Lz4 => compress_into_with_table(raw, &mut self.buffer[data..], table).ok(),
            Compression::None => None,
        };
        let (codec, stored_bytes) = match compressed.filter(|&bytes| bytes < raw.len()) {
            Some(bytes) => (CODEC_LZ4, bytes),
            None => {
                self.buffer[data..data + raw.len()].copy_from_slice(raw);
                (CODEC_RAW, raw.len())
            }
        };
        let header = Header {
            first_offset: block.first_offset,
            written_at,
            count: block.events.len(),
            raw_bytes: raw.len() as u32,
            stored_bytes: stored_bytes as u32,
            codec,
            data_crc: crc32c::crc32c(&self.buffer[data..data + stored_bytes]),
        };
        let at = &mut self.buffer[self.used..data];
        at.fill(0);
        at[0..4].copy_from_slice(&MAGIC);
        at[4..8].copy_from_slice(&nonce.to_le_bytes());
        at[8..16].copy_from_slice(&header.first_offset.to_le_bytes());
        at[16..24].copy_from_slice(&header.written_at.as_micros().to_le_bytes());
        at[24..28].copy_from_slice(&header.count.to_le_bytes());
        at[28..32].copy_from_slice(&header.raw_bytes.to_le_bytes());
        at[32..36].copy_from_slice(&header.stored_bytes.to_le_bytes());
        at[36] = codec;
        at[40..44].copy_from_slice(&header.data_crc.to_le_bytes());
        let header_crc = crc32c::crc32c(&at[..44]);
        at[44..48].copy_from_slice(&header_crc.to_le_bytes());

        let end = self.used + header.span() as usize;
        self.buffer[data + stored_bytes..end].fill(0);
        self.used = end;
        header
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(payload: &[u8]) -> EventBlock {
        EventBlock { first_offset: 7, events: EventBatch::from_encoded(Bytes::copy_from_slice(payload), 3) }
    }

    fn written(compression: Compression, payload: &[u8]) -> (Header, Vec<u8>) {
        let mut encoder = Encoder::new(compression);
        let header = encoder.push(&block(payload), 42, Timestamp(1));
        (header, encoder.bytes().to_vec())
    }

    #[test]
    fn blocks_come_back_with_every_codec() {
        let long = b"abc".repeat(70_000);
        for (compression, payload, codec) in [
            (Compression::Lz4, &b"abcabcabcabcabcabcabcabcabcabc"[..], CODEC_LZ4),
            (Compression::Lz4, &long, CODEC_LZ4),
            (Compression::Lz4, b"short", CODEC_RAW),
            (Compression::None, &long, CODEC_RAW),
        ] {
            let (header, bytes) = written(compression, payload);
            assert_eq!(bytes.len() as u64, header.span());
            assert_eq!((header.codec, header.end_offset()), (codec, 10));
            assert_eq!(Header::parse(&bytes, 42), Some(header));
            let stored = &bytes[HEADER_BYTES..HEADER_BYTES + header.stored_bytes as usize];
            assert!(header.matches(stored));
            assert_eq!(header.open(stored).unwrap().events.as_bytes(), payload);
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let (header, bytes) = written(Compression::Lz4, b"abcabcabcabcabcabcabcabcabcabc");
        let data_end = HEADER_BYTES + header.stored_bytes as usize;
        for bit in 0..data_end * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let header = Header::parse(&bad, 42);
            assert!(header.is_none_or(|h| !h.matches(&bad[HEADER_BYTES..data_end])), "bit {bit}");
        }
    }

    #[test]
    fn another_life_of_the_file_does_not_pass() {
        let (_, bytes) = written(Compression::None, b"x");
        assert_eq!(Header::parse(&bytes, 43), None);
    }
}
