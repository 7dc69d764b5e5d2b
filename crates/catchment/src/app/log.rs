//! Opens the engine of the log, and joins those who work on its partitions.

use std::sync::Arc;

use anyhow::bail;
use catchment_eventlog::embedded::EmbeddedLog;
use catchment_eventlog::readings::PublishReadings;
use catchment_eventlog::{ConsumerGroup, EventLog, SoleMember};

use crate::engines::Engine;
use crate::settings::{ProcessRole, Settings};

/// Folder of claims, in the data folder, where no other process works on the log's partitions.
const CLAIMS: &str = "claims";

/// The log; what tells it from all others, because offsets of one mean nothing in another; and who works on its partitions:
/// with `shared_history` all processes that bring events into it, else this one alone. A process that has not the role
/// of a distributor works on none, and joins nobody.
///
/// # Errors
/// The engine does not open; says what to do.
pub(crate) async fn open(
    engine: &Engine,
    settings: &Settings,
    shared_history: bool,
) -> anyhow::Result<(Arc<dyn EventLog>, String, Arc<dyn ConsumerGroup>)> {
    let config = settings.log.clone();
    let distributes = settings.roles.contains(&ProcessRole::Distributor);
    let alone = |partitions| {
        let partitions = if distributes { partitions } else { 0 };
        Arc::new(SoleMember::new(settings.data.join(CLAIMS), partitions))
    };
    match engine {
        Engine::Embedded(path) => {
            let path = path.clone();
            let log = tokio::task::spawn_blocking(move || EmbeddedLog::open(&path, config)).await??;
            let group = alone(log.partitions());
            Ok((log, "embedded".to_owned(), group))
        }
        #[cfg(feature = "kafka")]
        Engine::Kafka(target) => {
            let log = catchment_eventlog::kafka::KafkaLog::open((**target).clone(), config).await?;
            let identity = format!("kafka cluster {} topic {}", log.cluster(), target.topic);
            let group: Arc<dyn ConsumerGroup> = match shared_history && distributes {
                true => log.join((**target).clone()).await?,
                false => alone(log.partitions()),
            };
            Ok((log, identity, group))
        }
        other => bail!("{other} is no event log of this build"),
    }
}

/// Where decoded rows are published besides, if that was asked for and this process decodes.
///
/// # Errors
/// The log is none that has topics, or its brokers refuse.
pub(super) async fn publisher(
    engine: &Engine,
    settings: &Settings,
    partitions: u32,
) -> anyhow::Result<Option<Arc<dyn PublishReadings>>> {
    match engine {
        #[cfg(feature = "kafka")]
        Engine::Kafka(target)
            if target.config.publish_readings && settings.has_role(ProcessRole::Distributor) =>
        {
            let readings = catchment_eventlog::kafka::KafkaReadings::open((**target).clone(), partitions);
            Ok(Some(readings.await?))
        }
        Engine::Embedded(_) if settings.engines.kafka.publish_readings => {
            bail!("--publish-readings is to topics of Kafka: it needs --log kafka://…")
        }
        _ => Ok(None),
    }
}
