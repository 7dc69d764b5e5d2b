//! Bridges: connections that we open to other brokers, to take in what is published there, and to publish there.
//!
//! A bridge is one connection, which lives again whenever it ends, after a pause that doubles up to a limit and of which a random
//! part is waited. It speaks MQTT as a client with a session that the broker keeps (fixed client id, no clean start), and
//! is served by the loop that serves our own clients (`mqtt/far.rs`). What that means:
//!
//! - *In.* A message is acknowledged (PUBACK, PUBREC) once its event is durable in the log. What the broker had sent without being
//!   acknowledged comes again with the next connection: at least once, as long as the broker keeps the session. While the log
//!   is slow the socket is not read.
//! - *Twice?* QoS 2: once, over broken connections and `kill -9`, as long as the broker keeps the session: its packet
//!   identifiers are in the session journal, with where to find their events. QoS 1: what is sent again is told by its DUP flag, packet
//!   identifier and content, which events carry as a mark in the log; see `seen` on what that can tell. QoS 0: at most once.
//! - *Out.* A local session, kept like those of clients, holds the filters of the rules and queues what is published, bounded, while
//!   the broker is away. It is sent in order, and again until it is acknowledged. Messages of QoS 0 are not queued for a broker
//!   that is away.
//! - *Loops.* What came by a bridge does not go out by it. The broker is asked not to send us what we published (5.0,
//!   no-local); where it cannot be asked, filters that overlap are refused. What comes back by other ways is known by a user
//!   property (`stamp`), which 3.1.1 does not have.

mod address;
mod config;
mod connect;
mod metrics;
mod outlet;
mod rules;
mod run;
mod seen;
mod stamp;
mod tls;

pub use address::{Address, BadAddress};
pub use config::{BadBridge, BridgeConfig, BridgeVersion, InRule, OutRule, Secret, bridges, check_bridges};
pub use metrics::BridgeMetrics;
pub(crate) use metrics::OneBridge;
pub(crate) use outlet::{Outbound, Outlet};
pub(crate) use rules::Rules;
pub(crate) use run::start;
pub use run::{BridgeError, check_files, default_client_id};
pub(crate) use seen::{Recalled, Seen, fingerprint};
pub(crate) use stamp::Stamp;
