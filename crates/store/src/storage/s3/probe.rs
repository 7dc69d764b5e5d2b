//! Whether a bucket is fit for tables: what an operator asks before anything depends on it.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{S3Place, S3Store};
use crate::storage::{Creation, Storage, StorageError};

/// What a bucket does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The median time of a small request.
    pub latency: Duration,
    /// Whether an object that is to be made only if it is not there is refused the second time.
    pub is_conditional: bool,
}

/// Makes a small object, reads it, makes it again and deletes it. Blocks.
///
/// # Errors
/// S3 does not answer, or refuses one of that.
pub fn probe(place: &S3Place) -> Result<Probe, StorageError> {
    let store = S3Store::open(place)?;
    let path = format!("catchment-check-{:016x}", rand::random::<u64>());
    let result = try_out(&store, &path);
    let deleted = store.delete(&path);
    let probe = result?;
    deleted?;
    Ok(probe)
}

fn try_out(store: &S3Store, path: &str) -> Result<Probe, StorageError> {
    let mut times = Vec::new();
    let mut create = || {
        let started = Instant::now();
        let created = store.create(path, Bytes::from_static(b"catchment check\n"))?;
        times.push(started.elapsed());
        match created {
            Creation::Unknown(error) => Err(error),
            created => Ok(created),
        }
    };
    let _ = create()?;
    let is_conditional = matches!(create()?, Creation::Exists);
    let started = Instant::now();
    store.read(path)?;
    times.push(started.elapsed());
    times.sort_unstable();
    Ok(Probe { latency: times[times.len() / 2], is_conditional })
}
