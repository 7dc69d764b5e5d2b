//! How clients reach the gateway: listeners, TLS, the PROXY protocol, and limits before anybody has said who they are.
//!
//! ```text
//! accept ─► PROXY header (from trusted networks) ─► place of the address ─► TLS handshake ─► protocol
//!           └────────────── all of it within `opening_s_max`, at most `opening_max` at once ─────────┘
//! ```
//!
//! A connection is *opening* until its client has proved something: a CONNECT that was admitted, a whole HTTP request. When
//! as many as may are opening, the one that has taken longest ends for the newcomer. So those who only hold sockets
//! open cost a bounded amount of memory and nobody else's place.
//!
//! `tls` reads certificates and keys, `verify` decides on clients' certificates, `reload` follows the files.

mod certificate;
mod config;
mod handshake;
mod leash;
mod limits;
mod listener;
mod metrics;
mod network;
mod proxy;
mod reload;
mod stream;
mod threads;
mod tls;
mod verify;

pub use certificate::PeerCertificate;
pub use config::{
    BadLimit, CertificateIdentity, ClientCa, ClientCertificates, ListenerConfig, NetworkConfig, Protocol,
    TlsConfig, TlsVersion,
};
pub use limits::Opening;
#[cfg(test)]
pub(crate) use listener::task;
pub use listener::{Listener, Remote, Transport};
pub use metrics::TransportMetrics;
pub use network::{BadNetwork, Network};
pub(crate) use proxy::read as read_proxy_header;
pub use stream::Stream;
pub use tls::{Tls, TlsError, TlsReport};

#[cfg(test)]
mod tests;
