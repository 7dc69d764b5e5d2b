//! TLS: certificates and keys from PEM files to what a handshake needs, by rustls with the ring provider.
//!
//! Everything that depends on the files is one [`Material`], replaced as a whole when they change. Sessions are resumed by
//! tickets, which cost no memory here; their keys belong to the material, so that nobody resumes past a change of CAs or
//! revocation lists.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    DistinguishedName, HandshakeKind, InconsistentKeys, RootCertStore, ServerConfig, ServerConnection,
};
use thiserror::Error;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;

use super::certificate::{PeerCertificate, not_after, subject};
use super::config::{ClientCa, ClientCertificates, Protocol, TlsConfig, TlsVersion};
use super::leash::Leashes;
use super::metrics::TransportMetrics;
use super::threads::HandshakeThreads;
use super::verify::{RealmVerifier, Realms, Verifier};

/// A mistake in certificates or keys.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file that is not there, or not readable.
    #[error("{path} cannot be read: {source}", path = .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system gives no threads for handshakes.
    #[error("no threads for TLS handshakes: {0}")]
    Threads(io::Error),
    /// A file without what it should hold.
    #[error("{path} holds no {what} in PEM form", path = .path.display())]
    Missing {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Something in a file that is broken.
    #[error("{path} is not good: {reason}", path = .path.display())]
    Bad {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Certificate and key are not a pair.
    #[error(
        "the key {key} does not belong to the certificate {certificate}; the first certificate in the file must be the \
         server's own",
        key = .key.display(), certificate = .certificate.display()
    )]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
    },
    /// Settings that do not go together.
    #[error("{0}")]
    Settings(&'static str),
}

/// What `catchment check` says of TLS that works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsReport {
    /// When the server's certificate ends, in seconds since 1970.
    pub server_end_s: i64,
    /// When the first CA of clients does.
    pub client_ca_end_s: Option<i64>,
    /// When the first revocation list should have been replaced.
    pub crl_end_s: Option<i64>,
}

/// What a handshake needs.
#[derive(Debug)]
pub(super) struct Material {
    configs: HashMap<(ClientCertificates, bool), Arc<ServerConfig>>,
    realms: Option<Arc<Realms>>,
    report: TlsReport,
}

/// TLS of this process.
#[derive(Debug)]
pub struct Tls {
    pub(super) config: TlsConfig,
    pub(super) metrics: TransportMetrics,
    current: RwLock<Arc<Material>>,
    pub(super) threads: HandshakeThreads,
    /// Connections of clients with certificates.
    pub(super) leashes: Arc<Leashes>,
}

impl Tls {
    /// Reads all files.
    ///
    /// # Errors
    /// The first thing that cannot work.
    pub fn load(config: TlsConfig, metrics: TransportMetrics) -> Result<Arc<Self>, TlsError> {
        let material = Material::load(&config)?;
        material.show(&metrics);
        Ok(Arc::new(Self {
            config,
            metrics,
            current: RwLock::new(Arc::new(material)),
            threads: HandshakeThreads::start().map_err(TlsError::Threads)?,
            leashes: Arc::default(),
        }))
    }

    /// Reads all files as [`Self::load`] does, only to say what they hold.
    ///
    /// # Errors
    /// The first thing that cannot work.
    pub fn check(config: &TlsConfig) -> Result<TlsReport, TlsError> {
        Material::load(config).map(|material| material.report)
    }

    /// What the files held when they were last read.
    #[must_use]
    pub fn report(&self) -> TlsReport {
        self.material().report.clone()
    }

    pub(super) fn material(&self) -> Arc<Material> {
        Arc::clone(&self.current.read())
    }

    /// Reads all files anew, and cuts connections whose certificates are no longer good. On an error everything stays as it
    /// was.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        let material = Arc::new(Material::load(&self.config)?);
        material.show(&self.metrics);
        *self.current.write() = Arc::clone(&material);
        let cut = self.leashes.cut_unless(|chain| material.realm_of(chain).is_ok());
        self.metrics.revoked.inc_by(cut);
        Ok(())
    }
}

impl Material {
    fn load(config: &TlsConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        if !config.is_on() || config.key.as_os_str().is_empty() {
            return Err(TlsError::Settings("tls.certificate and tls.key must both name a file"));
        }
        if config.client_certificates != ClientCertificates::Off && config.client_ca.is_empty() {
            return Err(TlsError::Settings(
                "tls.client_certificates asks for certificates, but no [[tls.client_ca]] says whose are good",
            ));
        }
        let chain = certificates(&config.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&config.key)?).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsError::Missing { path: config.key.clone(), what: "private key" },
            error => bad(&config.key)(error),
        })?;
        let server_end_s = not_after(&chain[0]).ok_or_else(|| bad(&config.certificate)("not X.509"))?;
        let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsError::Mismatch { certificate: config.certificate.clone(), key: config.key.clone() }
            }
            error => bad(&config.key)(error),
        })?;
        let mut report = TlsReport { server_end_s, client_ca_end_s: None, crl_end_s: None };
        let realms = match config.client_ca.is_empty() {
            true => None,
            false => Some(Arc::new(read_realms(&config.client_ca, &provider, &mut report)?)),
        };
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        let tickets = ring::Ticketer::new().map_err(|error| bad(&config.key)(error))?;
        let versions: &[_] = match config.version_min {
            TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::V1_3 => &[&rustls::version::TLS13],
        };
        let mut configs = HashMap::new();
        for mode in [ClientCertificates::Off, ClientCertificates::Optional, ClientCertificates::Required] {
            let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(versions)
                .map_err(bad(&config.certificate))?;
            let builder = match (mode, &realms) {
                (ClientCertificates::Off, _) => builder.with_no_client_auth(),
                // Checked when the listener is made.
                (_, None) => continue,
                (mode, Some(realms)) => builder.with_client_cert_verifier(Arc::new(Verifier {
                    realms: Arc::clone(realms),
                    mandatory: mode == ClientCertificates::Required,
                })),
            };
            let mut made = builder.with_cert_resolver(Arc::clone(&resolver) as _);
            made.session_storage = Arc::new(NoServerSessionStorage {});
            made.ticketer = Arc::clone(&tickets);
            made.send_tls13_tickets = 1;
            let mut for_http = made.clone();
            for_http.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            configs.insert((mode, false), Arc::new(made));
            configs.insert((mode, true), Arc::new(for_http));
        }
        Ok(Self { configs, realms, report })
    }

    /// What a listener's handshakes need; none without a CA where certificates are asked for.
    pub(super) fn server_config(
        &self,
        mode: ClientCertificates,
        protocol: Protocol,
    ) -> Option<Arc<ServerConfig>> {
        self.configs.get(&(mode, protocol == Protocol::Https)).cloned()
    }

    /// Who the client is, by its certificate. One of a session that was resumed is verified again: time has gone by.
    pub(super) fn peer(
        &self,
        connection: &ServerConnection,
    ) -> Result<Option<PeerCertificate>, rustls::Error> {
        let (Some(chain), Some(realms)) = (connection.peer_certificates(), &self.realms) else {
            return Ok(None);
        };
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let realm = match realms.only() {
            // The handshake has just verified it.
            Some(realm) if !resumed => realm,
            _ => realms.realm_of(chain)?,
        };
        let own = chain.first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let encoding = rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding);
        PeerCertificate::read(realm, own).ok_or(encoding).map(Some)
    }

    /// The realm of a certificate that is good now.
    pub(super) fn realm_of(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<str>, rustls::Error> {
        self.realms.as_ref().ok_or(rustls::Error::NoCertificatesPresented)?.realm_of(chain)
    }

    fn show(&self, metrics: &TransportMetrics) {
        metrics.set_expiry("server", self.report.server_end_s);
        let others = [("client_ca", self.report.client_ca_end_s), ("crl", self.report.crl_end_s)];
        for (of, end) in others {
            if let Some(end) = end {
                metrics.set_expiry(of, end);
            }
        }
    }
}

fn read_realms(
    authorities: &[ClientCa],
    provider: &Arc<CryptoProvider>,
    report: &mut TlsReport,
) -> Result<Realms, TlsError> {
    let earliest = |so_far: Option<i64>, end: Option<i64>| so_far.into_iter().chain(end).min();
    let (mut realms, mut subjects) = (Vec::new(), Vec::new());
    for authority in authorities {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&authority.file)? {
            report.client_ca_end_s = earliest(report.client_ca_end_s, not_after(&certificate));
            subjects.extend(subject(&certificate).map(DistinguishedName::from));
            roots.add(certificate).map_err(bad(&authority.file))?;
        }
        let mut lists = Vec::new();
        for path in &authority.crl {
            for list in revocation_lists(path)? {
                let next = CertificateList::from_der(&list).map_err(bad(path))?.tbs_cert_list.next_update;
                let next = next.and_then(|next| i64::try_from(next.to_unix_duration().as_secs()).ok());
                report.crl_end_s = earliest(report.crl_end_s, next);
                lists.push(list);
            }
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .with_crls(lists)
            .build()
            .map_err(bad(&authority.file))?;
        realms.push(RealmVerifier { realm: authority.realm.as_str().into(), verifier });
    }
    Ok(Realms::new(realms, subjects, Arc::clone(provider)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    not_empty(found.map_err(bad(path))?, path, "certificate")
}

fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&read(path)?).collect();
    not_empty(found.map_err(bad(path))?, path, "revocation list (X509 CRL)")
}

fn not_empty<T>(found: Vec<T>, path: &Path, what: &'static str) -> Result<Vec<T>, TlsError> {
    if found.is_empty() { Err(TlsError::Missing { path: path.to_owned(), what }) } else { Ok(found) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn bad<E: ToString>(path: &Path) -> impl Fn(E) -> TlsError {
    let path = path.to_owned();
    move |error| TlsError::Bad { path: path.clone(), reason: error.to_string() }
}
