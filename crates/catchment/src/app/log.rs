//! Opens the engine of the log.

use std::sync::Arc;

use anyhow::bail;
use catchment_eventlog::EventLog;
use catchment_eventlog::embedded::EmbeddedLog;

use crate::engines::Engine;
use crate::settings::Settings;

/// The log, and what tells it from all others: offsets of one mean nothing in another.
///
/// # Errors
/// The engine does not open; says what to do.
pub(super) async fn open(
    engine: &Engine,
    settings: &Settings,
) -> anyhow::Result<(Arc<dyn EventLog>, String)> {
    let config = settings.log.clone();
    match engine {
        Engine::Embedded(path) => {
            let path = path.clone();
            let log = tokio::task::spawn_blocking(move || EmbeddedLog::open(&path, config)).await??;
            Ok((log, "embedded".to_owned()))
        }
        #[cfg(feature = "kafka")]
        Engine::Kafka(target) => {
            let log = catchment_eventlog::kafka::KafkaLog::open((**target).clone(), config).await?;
            let identity = format!("kafka cluster {} topic {}", log.cluster(), target.topic);
            Ok((log, identity))
        }
        other => bail!("{other} is no event log of this build"),
    }
}
