//! Read buffers and batches that connections borrow while they have work, so that idle ones hold neither.

use parking_lot::Mutex;

use crate::ingest::Batches;

/// Bytes that are read at once.
pub(crate) const READ_BYTES: usize = 64 << 10;
/// Spare workspaces that are kept. More are made when more connections read at one moment, and dropped after.
const SPARES_MAX: usize = 64;

/// What a connection needs while it takes input in.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) buffer: Box<[u8]>,
    pub(crate) batches: Batches,
}

/// Spare workspaces.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Boxed, since they are handed from future to future, which would have room for a whole one each.
    #[expect(clippy::vec_box)]
    spares: Mutex<Vec<Box<Workspace>>>,
    partitions: u32,
}

impl Pool {
    pub(crate) fn new(partitions: u32) -> Self {
        Self { spares: Mutex::default(), partitions }
    }

    /// Borrows a workspace; its batches are empty.
    pub(crate) fn take(&self) -> Box<Workspace> {
        let spare = self.spares.lock().pop();
        spare.unwrap_or_else(|| {
            Box::new(Workspace {
                buffer: vec![0; READ_BYTES].into_boxed_slice(),
                batches: Batches::new(self.partitions),
            })
        })
    }

    /// Gives a workspace back, its batches submitted.
    pub(crate) fn give(&self, workspace: Box<Workspace>) {
        let mut spares = self.spares.lock();
        if spares.len() < SPARES_MAX {
            spares.push(workspace);
        }
    }
}
