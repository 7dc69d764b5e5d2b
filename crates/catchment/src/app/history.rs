//! Opens the engine of history.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use async_trait::async_trait;
use catchment_eventlog::{ConsumerGroup, GroupError};
use catchment_store::clickhouse::ClickHouseHistory;
use catchment_store::history::{ClaimError, Claims, DeltaHistory, History, NoHistory, StoreError};
use catchment_store::shard::Shard;
use catchment_store::storage::Place;
use catchment_types::{Offset, PartitionId};

use super::{engine_of, places};
use crate::engines::{Engine, Seam};
use crate::folder::DataFolder;
use crate::settings::Settings;

/// Between two attempts to open a history that does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is told that one does not.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// The log that history goes on from.
pub(crate) struct Log<'a> {
    /// Tells it from all others, but for embedded ones of other data folders.
    pub(crate) identity: &'a str,
    /// Where it is kept how far history is.
    pub(crate) group: &'a Arc<dyn ConsumerGroup>,
}

/// History, over these shards; what they know of latest values is restored at once, or as partitions are taken over.
///
/// # Errors
/// The engine does not open, or has rows of another log; says what to do.
pub(crate) async fn open(
    engines: &[(Seam, Engine)],
    settings: &Settings,
    folder: &DataFolder,
    log: Log<'_>,
    shards: &Arc<[Arc<Shard>]>,
) -> anyhow::Result<Arc<dyn History>> {
    let config = settings.history.clone();
    match engine_of(engines, Seam::History)? {
        Engine::Embedded(_) | Engine::S3(_) => {
            let places = places::of(engines, folder, log.identity)?;
            let open = async || DeltaHistory::open(&places, config.clone(), shards.to_vec()).await;
            let history = when_there(open).await?;
            // In S3 it tells itself which log it is of: the data folder may be a new one.
            let has_history = matches!(places.history, Place::Folder(_))
                && (0..).zip(shards.iter()).any(|(partition, _)| history.start_offset(partition) > 0);
            folder.belongs_to_log(log.identity, has_history)?;
            let values = history.restore_snapshot().await?;
            tracing::info!(values, "the snapshot is restored");
            Ok(history)
        }
        Engine::Off => Ok(NoHistory::new(shards.len())),
        Engine::ClickHouse(target) => {
            let identity = match log.identity {
                "embedded" => {
                    let mut has_history = false;
                    for (partition, _) in (0..).zip(shards.iter()) {
                        has_history |= log.group.claimed(partition).await?.end > 0;
                    }
                    folder.belongs_to_log(log.identity, has_history)?;
                    // Embedded logs have the same offsets; others may write into the same database.
                    format!("embedded {}", folder.instance()?)
                }
                // How far history is, is kept with such a log itself, and not in this folder.
                shared => shared.to_owned(),
            };
            let claims = Arc::new(GroupClaims(Arc::clone(log.group)));
            let archive = places::archive(engines)?;
            let open = async || {
                let (shards, claims) = (Arc::clone(shards), Arc::clone(&claims) as Arc<dyn Claims>);
                ClickHouseHistory::open(target, config.clone(), shards, &identity, claims, archive.as_ref())
                    .await
            };
            Ok(when_there(open).await?)
        }
        other => bail!("{other} is no history of this build"),
    }
}

/// Opens history; waits for a store of files that does not answer yet.
async fn when_there<T>(open: impl AsyncFn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut told: Option<Instant> = None;
    loop {
        match open().await {
            Err(error) if error.is_away() => {
                if told.is_none_or(|last| last.elapsed() >= TELL_EVERY) {
                    told = Some(Instant::now());
                    tracing::warn!(%error, "where history is does not answer; waiting for it");
                }
                tokio::time::sleep(RETRY).await;
            }
            opened => return opened,
        }
    }
}

/// What the consumer group knows, as history asks for it.
#[derive(Debug)]
struct GroupClaims(Arc<dyn ConsumerGroup>);

#[async_trait]
impl Claims for GroupClaims {
    async fn claimed(&self, partition: PartitionId) -> Result<Range<Offset>, ClaimError> {
        self.0.claimed(partition).await.map_err(claim_error)
    }

    async fn claim(&self, partition: PartitionId, range: Range<Offset>) -> Result<(), ClaimError> {
        self.0.claim(partition, range).await.map_err(claim_error)
    }
}

fn claim_error(error: GroupError) -> ClaimError {
    match error {
        GroupError::Lost(partition) => ClaimError::Lost(partition),
        failed @ GroupError::Failed { .. } => ClaimError::Failed(failed.to_string()),
    }
}
