//! What the platform says about itself: the parts that only the composition root knows come through [`Platform`].

use catchment_types::{Offset, PartitionId};
use serde::Serialize;
use utoipa::ToSchema;

/// The running platform, as far as this crate cannot see it. Called for every status request: must be cheap.
pub trait Platform: Send + Sync {
    /// Figures of this moment.
    fn status(&self) -> PlatformStatus;

    /// Why the platform should not get traffic now; empty when it is ready.
    fn not_ready(&self) -> Vec<String>;
}

/// Figures of the parts.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct PlatformStatus {
    /// Where the platform listens.
    pub listeners: Vec<Listener>,
    /// What its parts run on.
    pub engines: Vec<Engine>,
    /// Devices in.
    pub gateway: GatewayStatus,
    /// The log and its readers, by partition.
    pub partitions: Vec<PartitionStatus>,
    /// The tables on disk.
    pub history: HistoryStatus,
}

/// An open port.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Listener {
    /// `http`, `mqtt`, `postgres`.
    pub name: String,
    /// For instance `mqtt://127.0.0.1:1883`.
    pub url: String,
}

/// What a part runs on.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Engine {
    /// `log`, `history`, `snapshot`, `registry`.
    pub part: String,
    /// For instance `embedded:/var/lib/catchment/log`.
    pub url: String,
}

/// Figures of the gateway since the start.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct GatewayStatus {
    /// Open connections of devices and other MQTT clients.
    pub connections: u64,
    /// Events acknowledged.
    pub events_total: u64,
    /// Bytes of their payloads.
    pub bytes_total: u64,
    /// Messages and requests refused.
    pub refused_total: u64,
}

/// Figures of one partition.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct PartitionStatus {
    /// Its number.
    pub partition: PartitionId,
    /// The offset after the last event in the log.
    pub log_offset: Offset,
    /// The offset after the last event that was decoded.
    pub decoded_offset: Offset,
    /// The offset after the last event whose rows are in files.
    pub committed_offset: Offset,
}

/// Figures of history.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct HistoryStatus {
    /// Bytes of rows that are not in files yet.
    pub buffered_bytes: u64,
    /// What is wrong with writing files, if something is.
    pub failing: Option<String>,
}
