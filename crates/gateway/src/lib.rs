//! Devices in: the MQTT broker, HTTP ingest, and bridges to other brokers.
//!
//! The gateway turns publishes and requests into events, hands them to the event log, and acknowledges them once the log
//! says that they are durable: a PUBACK, PUBREC or 200 means "in the log", and nothing less does. It knows the log and
//! [`Admission`], and nothing of what is behind them.
//!
//! Start at [`Gateway`]. `mqtt/handshake.rs` is the life of a connection, `mqtt/connection.rs` its loop,
//! `mqtt/inbound.rs` the hot path, `http/mod.rs` HTTP ingest, `bridge/mod.rs` what bridges promise.

mod admission;
pub mod bridge;
mod config;
#[doc(hidden)]
pub mod fuzzing;
mod gateway;
mod http;
mod ingest;
mod marks;
mod metrics;
mod mqtt;
mod route;
pub mod transport;
mod ws;

pub use admission::{
    Acl, AclRule, Action, Admission, AdmitAll, BadAclRule, ClientLimits, Credentials, Denied, Effect, Meter,
    Principal, Purpose, RateLimits, Role, Subject,
};
pub use config::{
    ConfigError, GatewayConfig, HttpConfig, MqttConfig, OverLimit, UnroutedAction, UnroutedConfig,
};
pub use gateway::{Gateway, NotATopic, OpenError};
pub use marks::SourceMarks;
pub use metrics::GatewayMetrics;
pub use mqtt::{KeepError, Learned, PeerMessage, QoS, RetainedChange, SessionStore};
pub use route::{BadRoute, RouteRule, RouteStore, RouteStoreError};
