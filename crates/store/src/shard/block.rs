//! A block of the log, as the columns of a shard refer to it.

use arrow::array::builder::GenericByteViewBuilder;
use arrow::array::types::ByteViewType;
use arrow::buffer::Buffer;
use bytes::Bytes;

/// Smaller blocks are copied: a column should not hold a buffer for each event of a slow partition.
const SHARED_BYTES_MIN: usize = 16 * 1024;
/// Up to this length a view holds the value itself.
pub(super) const INLINE_BYTES_MAX: usize = 12;

/// A block of the log, from which columns take views.
#[derive(Debug)]
pub(super) struct Block<'a> {
    bytes: &'a Bytes,
    /// The same bytes, if they are to be shared.
    shared: Option<Buffer>,
}

impl<'a> Block<'a> {
    pub(super) fn new(bytes: &'a Bytes) -> Self {
        // A view's offset has 32 bits.
        let shared = (SHARED_BYTES_MIN..u32::MAX as usize).contains(&bytes.len());
        Self { bytes, shared: shared.then(|| Buffer::from(bytes.clone())) }
    }

    /// Memory that the rows of the block keep from being freed, in bytes, if it is shared.
    pub(super) fn shared_bytes(&self) -> Option<usize> {
        self.shared.as_ref().map(Buffer::len)
    }

    /// Where in the block a part of it begins.
    fn offset_of(&self, part: &[u8]) -> Option<usize> {
        let offset = (part.as_ptr() as usize).checked_sub(self.bytes.as_ptr() as usize)?;
        (offset + part.len() <= self.bytes.len()).then_some(offset)
    }
}

/// A column of texts or bytes under construction, that can refer to the log's blocks.
pub(super) struct ViewColumn<T: ByteViewType + ?Sized> {
    pub(super) builder: GenericByteViewBuilder<T>,
    /// The number that the current block has in this column, once it is used.
    block: Option<u32>,
}

impl<T: ByteViewType + ?Sized> ViewColumn<T> {
    pub(super) fn with_capacity(rows: usize) -> Self {
        Self { builder: GenericByteViewBuilder::with_capacity(rows), block: None }
    }

    /// Forgets the current block.
    pub(super) fn begin_block(&mut self) {
        self.block = None;
    }

    /// Appends a part of the block, as a view into it if the block is shared.
    pub(super) fn append_from(&mut self, block: &Block<'_>, value: &T::Native) {
        let bytes: &[u8] = value.as_ref();
        if let Some(shared) = &block.shared
            && bytes.len() > INLINE_BYTES_MAX
            && let Some(offset) = block.offset_of(bytes)
        {
            let index = *self.block.get_or_insert_with(|| self.builder.append_block(shared.clone()));
            // Both fit: the block is shorter than 4 GiB.
            if self.builder.try_append_view(index, offset as u32, bytes.len() as u32).is_ok() {
                return;
            }
        }
        self.builder.append_value(value);
    }
}
