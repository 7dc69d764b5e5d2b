//! Settings: one struct, made of each part's own.
//!
//! Layers, the later the stronger: built-in defaults, the file, environment variables `CATCHMENT_…` (two underscores
//! between section and key: `CATCHMENT_HISTORY__FLUSH_INTERVAL_MS`), flags. Each layer is checked by itself first, so that
//! a mistake is reported where it was made.

mod budget;
mod layers;
mod roles;
mod sources;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use catchment_eventlog::embedded::LogConfig;
use catchment_eventlog::kafka::source::SourceTarget;
use catchment_gateway::GatewayConfig;
use catchment_gateway::bridge::{self, BridgeConfig};
use catchment_gateway::transport::{ListenerConfig, NetworkConfig, Protocol, TlsConfig};
use catchment_serve::ServeConfig;
use catchment_serve::pg::PgConfig;
use catchment_store::history::HistoryConfig;
use serde::{Deserialize, Serialize};

use crate::admission::AdmissionConfig;
use crate::engines::EngineUrls;
use crate::logging::LogFormat;

pub(crate) use self::budget::MEMORY_BYTES_MIN;
pub(crate) use self::layers::{Overrides, load};
pub(crate) use self::roles::ProcessRole;
pub(crate) use self::sources::Source;

/// Everything that can be chosen.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// The data folder.
    pub(crate) data: PathBuf,
    /// Where HTTP listens.
    pub(crate) http: SocketAddr,
    /// Where MQTT listens.
    pub(crate) mqtt: SocketAddr,
    /// Where the PostgreSQL protocol listens.
    pub(crate) pg: SocketAddr,
    /// Where MQTT over TLS listens, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mqtts: Option<SocketAddr>,
    /// Where HTTP over TLS listens, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) https: Option<SocketAddr>,
    /// What this process does.
    #[serde(deserialize_with = "roles::roles")]
    pub(crate) roles: Vec<ProcessRole>,
    /// The memory that all parts share, in bytes; see [`budget`] for the shares.
    pub(crate) memory_bytes_max: u64,
    /// Milliseconds that an orderly stop may take.
    pub(crate) stop_ms_max: u64,
    /// How log lines look.
    pub(crate) log_format: LogFormat,
    /// What is logged.
    pub(crate) log_level: String,
    /// Engines by URL.
    pub(crate) engines: EngineUrls,
    /// Certificates.
    pub(crate) tls: TlsConfig,
    /// Limits of connections.
    pub(crate) network: NetworkConfig,
    /// Further listeners, or those that need more than an address.
    pub(crate) listeners: Vec<ListenerConfig>,
    /// Whose messages are taken in: other brokers, by address and filter, and topics of Kafka.
    #[serde(deserialize_with = "sources::sources", skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<Source>,
    /// Other brokers, with everything that can be said about them.
    #[serde(deserialize_with = "bridge::bridges", skip_serializing_if = "Vec::is_empty")]
    pub(crate) bridges: Vec<BridgeConfig>,
    /// Devices in.
    pub(crate) gateway: GatewayConfig,
    /// Who comes in.
    pub(crate) admission: AdmissionConfig,
    /// The embedded event log.
    pub(crate) log: LogConfig,
    /// The embedded history.
    pub(crate) history: HistoryConfig,
    /// REST, WebSocket, SQL.
    pub(crate) serve: ServeConfig,
    /// The PostgreSQL protocol.
    pub(crate) postgres: PgConfig,
}

impl Default for Settings {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            data: PathBuf::from("catchment-data"),
            http: loopback(8080),
            mqtt: loopback(1883),
            pg: loopback(5433),
            mqtts: None,
            https: None,
            roles: ProcessRole::ALL.to_vec(),
            memory_bytes_max: budget::MEMORY_BYTES_DEFAULT,
            stop_ms_max: 10_000,
            log_format: LogFormat::Auto,
            log_level: "info".to_owned(),
            engines: EngineUrls::default(),
            tls: TlsConfig::default(),
            network: NetworkConfig::default(),
            listeners: Vec::new(),
            sources: Vec::new(),
            bridges: Vec::new(),
            gateway: GatewayConfig::default(),
            admission: AdmissionConfig::default(),
            log: LogConfig::default(),
            history: HistoryConfig::default(),
            serve: ServeConfig::default(),
            postgres: PgConfig::default(),
        }
    }
}

impl Settings {
    /// All listeners: those that have a flag (of which HTTP, MQTT and PostgreSQL always are), then the further ones.
    pub(crate) fn all_listeners(&self) -> Vec<ListenerConfig> {
        let of_flags = [
            (Protocol::Http, Some(self.http)),
            (Protocol::Mqtt, Some(self.mqtt)),
            (Protocol::Pg, Some(self.pg)),
            (Protocol::Https, self.https),
            (Protocol::Mqtts, self.mqtts),
        ];
        let listener = |(protocol, address): (Protocol, Option<SocketAddr>)| {
            Some(ListenerConfig::new(protocol, address?))
        };
        let all = of_flags.into_iter().filter_map(listener).chain(self.listeners.iter().cloned());
        all.filter(|listener| match listener.protocol {
            Protocol::Mqtt | Protocol::Mqtts => self.has_role(ProcessRole::Gateway),
            Protocol::Pg => self.has_role(ProcessRole::Api),
            // Health and figures are everybody's.
            Protocol::Http | Protocol::Https => true,
        })
        .collect()
    }

    /// All bridges: those of sources, then the others.
    pub(crate) fn all_bridges(&self) -> Vec<BridgeConfig> {
        let brokers = self.sources.iter().filter_map(|source| match source {
            Source::Broker(address) => Some(address.clone()),
            Source::Kafka(_) => None,
        });
        brokers.map(BridgeConfig::of_source).chain(self.bridges.iter().cloned()).collect()
    }

    /// The topics of Kafka among the sources.
    pub(crate) fn kafka_sources(&self) -> impl Iterator<Item = &SourceTarget> {
        self.sources.iter().filter_map(|source| match source {
            Source::Kafka(target) => Some(&**target),
            Source::Broker(_) => None,
        })
    }

    /// Whether only this machine can reach us. A balancer that speaks for others makes them reach us, wherever it is.
    pub(crate) fn loopback_only(&self) -> bool {
        let is_private = |listener: &ListenerConfig| {
            listener.address.ip().is_loopback() && listener.proxy_protocol_from.is_empty()
        };
        self.all_listeners().iter().all(is_private)
    }

    /// The time an orderly stop may take.
    pub(crate) fn stop_max(&self) -> Duration {
        Duration::from_millis(self.stop_ms_max)
    }

    /// Checks everything that can be checked without touching the machine.
    ///
    /// # Errors
    /// The first thing that cannot work.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.check_roles()?;
        anyhow::ensure!(
            self.memory_bytes_max >= MEMORY_BYTES_MIN,
            "memory_bytes_max is {}; at least {MEMORY_BYTES_MIN} (256 MiB) are needed",
            self.memory_bytes_max
        );
        self.network.check()?;
        self.check_listeners()?;
        self.gateway.check()?;
        bridge::check_bridges(&self.all_bridges(), &self.gateway.mqtt)?;
        self.admission.check()?;
        self.log.check()?;
        Ok(())
    }

    /// Checks that listeners have what they need.
    ///
    /// # Errors
    /// Names the listener and what it lacks.
    pub(crate) fn check_listeners(&self) -> anyhow::Result<()> {
        for listener in self.all_listeners() {
            anyhow::ensure!(
                !listener.protocol.is_tls() || self.tls.is_on(),
                "the listener {} {} needs a certificate: set certificate and key in [tls]",
                listener.protocol.name(),
                listener.address,
            );
        }
        anyhow::ensure!(
            !self.postgres.tls_required || self.tls.is_on(),
            "postgres.tls_required needs a certificate: set certificate and key in [tls]"
        );
        anyhow::ensure!(
            self.listeners.iter().all(|listener| listener.protocol != Protocol::Pg),
            "[[listeners]] takes the protocols mqtt, mqtts, http and https; PostgreSQL listens where `pg` says"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
