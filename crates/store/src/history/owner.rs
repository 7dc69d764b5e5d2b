//! Whose a place is: the event log whose offsets its tables have.
//!
//! `{place}/log.engine` names that log. A local data folder tells it by itself (and one process has it); a place that anybody
//! can name must not be gone on with from another log, whose events with these offsets are others.

use bytes::Bytes;

use super::error::StoreError;
use crate::storage::{Creation, Storage};

const NAME: &str = "log.engine";

/// Refuses a place of another log; makes a new one that of this log.
///
/// # Errors
/// [`StoreError::OtherLog`]; [`StoreError::NotConditional`] when the place does not do what commits rely on.
pub(crate) fn belongs_to(storage: &dyn Storage, log: &str) -> Result<(), StoreError> {
    let bytes = Bytes::from(format!("{log}\n"));
    let found = storage.read(NAME)?;
    let is_known = found.is_some();
    if let Some(found) = found {
        same(storage, &found, log)?;
    }
    // Of a new place: it is ours with the first, if nobody else was faster.
    for is_there in [is_known, true] {
        match storage.create(NAME, bytes.clone())? {
            Creation::Done if is_there => {
                return Err(StoreError::NotConditional { path: storage.shown(NAME) });
            }
            Creation::Done => {}
            Creation::Exists => return same(storage, &storage.read(NAME)?.unwrap_or_default(), log),
            Creation::Unknown(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn same(storage: &dyn Storage, found: &[u8], log: &str) -> Result<(), StoreError> {
    let found = String::from_utf8_lossy(found).trim().to_owned();
    match found == log {
        true => Ok(()),
        false => Err(StoreError::OtherLog { path: storage.shown(NAME), found, log: log.to_owned() }),
    }
}
