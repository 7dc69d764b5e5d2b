//! Where the tables of the embedded history are.

use anyhow::Context;
use catchment_store::history::Places;
use catchment_store::storage::Place;

use super::engine_of;
use crate::engines::{Engine, Seam};
use crate::folder::DataFolder;

/// History's place and the archive's, for a log of this identity.
///
/// # Errors
/// An engine that is no place for tables, or the data folder cannot be given a name.
pub(super) fn of(
    engines: &[(Seam, Engine)],
    folder: &DataFolder,
    log_identity: &str,
) -> anyhow::Result<Places> {
    let history = place(engine_of(engines, Seam::History)?)?;
    let places = Places { history, archive: archive(engines)?, log: log_identity.to_owned() };
    // Every embedded log is called the same; to who can be met in S3 or in an archive, it is that of its data folder.
    let is_met = places.archive.is_some() || matches!(places.history, Place::S3(_));
    match is_met && log_identity == "embedded" {
        true => Ok(Places { log: format!("embedded of data folder {}", folder.instance()?), ..places }),
        false => Ok(places),
    }
}

/// The archive's place, if there is one.
///
/// # Errors
/// An engine that is no place for tables.
pub(super) fn archive(engines: &[(Seam, Engine)]) -> anyhow::Result<Option<Place>> {
    match engine_of(engines, Seam::Archive)? {
        Engine::Off => Ok(None),
        engine => place(engine).map(Some),
    }
}

fn place(engine: &Engine) -> anyhow::Result<Place> {
    engine.place().with_context(|| format!("{engine} is no place for tables"))
}
