//! What an operator can set about transport: the sections `[tls]` and `[network]`, and further `[[listeners]]`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::network::Network;

/// Certificates of the server and of clients: section `[tls]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file: the server's certificate, then those that lead to its CA. Empty: no TLS.
    pub certificate: PathBuf,
    /// PEM file: the key of the certificate (PKCS #8, PKCS #1 or SEC1, not encrypted).
    pub key: PathBuf,
    /// Lowest version that is spoken.
    pub version_min: TlsVersion,
    /// Whether clients are asked for certificates, on listeners that say nothing else.
    pub client_certificates: ClientCertificates,
    /// What of a client's certificate is the id of its device.
    pub identity: CertificateIdentity,
    /// Seconds between looks at the files; what has changed is read anew. 0: only on SIGHUP.
    pub reload_s: u64,
    /// Whose certificates are taken from clients.
    pub client_ca: Vec<ClientCa>,
}

/// A CA of clients, and the realm of those who come with its certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCa {
    /// Their realm.
    #[serde(default = "main_realm")]
    pub realm: String,
    /// PEM file with one or more CA certificates.
    pub file: PathBuf,
    /// PEM files of revocation lists. With any, each CA on the way to a client needs one.
    #[serde(default)]
    pub crl: Vec<PathBuf>,
}

fn main_realm() -> String {
    catchment_types::DEFAULT_REALM.to_owned()
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// RFC 8446.
    #[serde(rename = "1.3")]
    V1_3,
}

/// Whether clients show certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// They are not asked.
    #[default]
    Off,
    /// They are asked; who shows one shows a good one.
    Optional,
    /// Nobody comes in without.
    Required,
}

/// What of a verified certificate is the device's id. Such a client needs no password, and speaks as that device only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateIdentity {
    /// Nothing: a password or token is needed all the same.
    None,
    /// The subject's common name.
    #[default]
    Cn,
    /// The first DNS name among the alternative names.
    SanDns,
    /// The first URI among them.
    SanUri,
}

/// Limits of connections: section `[network]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Connections of MQTT and HTTP from one address; an IPv6 /64 counts as one. Loopback is not limited. 0: no limit.
    pub connections_per_address_max: usize,
    /// HTTP connections at one time. (Those of MQTT: `gateway.mqtt.connections_max`.)
    pub http_connections_max: usize,
    /// Connections at one time whose client has not been let in yet; over it, the slowest of them ends.
    pub opening_max: usize,
    /// Seconds for a PROXY header and a TLS handshake together, and for the first HTTP request.
    pub opening_s_max: u64,
}

/// A further listener: one of `[[listeners]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// What is spoken.
    pub protocol: Protocol,
    /// Where.
    pub address: SocketAddr,
    /// Networks of balancers. With any, every connection must come from one of them and begin with a PROXY header,
    /// version 1 or 2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxy_protocol_from: Vec<Network>,
    /// Whether clients show certificates, where that differs from `tls.client_certificates`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificates: Option<ClientCertificates>,
}

impl ListenerConfig {
    /// A listener that needs no more than an address.
    #[must_use]
    pub const fn new(protocol: Protocol, address: SocketAddr) -> Self {
        Self { protocol, address, proxy_protocol_from: Vec::new(), client_certificates: None }
    }
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// MQTT over TCP.
    Mqtt,
    /// MQTT over TLS.
    Mqtts,
    /// HTTP, WebSocket and MQTT over WebSocket.
    Http,
    /// The same over TLS.
    Https,
    /// The PostgreSQL protocol, in which clients ask for TLS.
    Pg,
}

impl Protocol {
    /// Its name in settings, flags and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Http => "http",
            Self::Https => "https",
            Self::Pg => "pg",
        }
    }

    /// Whether connections begin with a TLS handshake.
    #[must_use]
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Mqtts | Self::Https)
    }
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            version_min: TlsVersion::default(),
            client_certificates: ClientCertificates::default(),
            identity: CertificateIdentity::default(),
            reload_s: 10,
            client_ca: Vec::new(),
        }
    }
}

impl TlsConfig {
    /// Whether there is a certificate to serve with.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.certificate.as_os_str().is_empty()
    }

    /// All files, as named.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let of_clients = self
            .client_ca
            .iter()
            .flat_map(|ca| std::iter::once(&ca.file).chain(&ca.crl))
            .map(PathBuf::as_path);
        [self.certificate.as_path(), self.key.as_path()].into_iter().chain(of_clients)
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            connections_per_address_max: 1024,
            http_connections_max: 10_000,
            opening_max: 4096,
            opening_s_max: 10,
        }
    }
}

/// A limit that lets nothing through, or everything.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("network.{field} is {value}; it must be from {min} to {max}")]
pub struct BadLimit {
    field: &'static str,
    value: u64,
    min: u64,
    max: u64,
}

impl NetworkConfig {
    /// Checks everything that serde cannot.
    ///
    /// # Errors
    /// Names the field and what it may be.
    pub fn check(&self) -> Result<(), BadLimit> {
        let fields = [
            ("http_connections_max", self.http_connections_max as u64, 1, 10_000_000),
            ("opening_max", self.opening_max as u64, 16, 1_000_000),
            ("opening_s_max", self.opening_s_max, 1, 3600),
        ];
        match fields.into_iter().find(|(_, value, min, max)| !(min..=max).contains(&value)) {
            Some((field, value, min, max)) => Err(BadLimit { field, value, min, max }),
            None => Ok(()),
        }
    }
}
