//! One TLS handshake, and how it came out in a word.

use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, Error};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::PeerCertificate;
use super::config::{ClientCertificates, Protocol};
use super::leash::Leashed;
use super::tls::Tls;

/// A connection after its handshake.
pub(super) struct Secured {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) certificate: Option<Arc<PeerCertificate>>,
    pub(super) leash: Option<Leashed>,
}

impl Tls {
    /// Shakes hands. The time that it may take is the caller's business.
    ///
    /// # Errors
    /// Why not, in a word for metrics; the client was sent an alert where the protocol has one.
    pub(super) async fn handshake(
        &self,
        stream: TcpStream,
        mode: ClientCertificates,
        protocol: Protocol,
    ) -> Result<Secured, &'static str> {
        let secured = self.shake(stream, mode, protocol).await;
        self.metrics.handshake(protocol, secured.as_ref().map_or_else(|reason| *reason, |_| "ok"));
        secured
    }

    async fn shake(
        &self,
        stream: TcpStream,
        mode: ClientCertificates,
        protocol: Protocol,
    ) -> Result<Secured, &'static str> {
        let material = self.material();
        let config = material.server_config(mode, protocol).ok_or("no_client_ca")?;
        let accepted = self.threads.run(TlsAcceptor::from(config).accept(stream)).await;
        let stream = accepted.flatten().map_err(|error| outcome(&error))?;
        let connection = stream.get_ref().1;
        let certificate = material.peer(connection).map_err(|error| reason(&error))?.map(Arc::new);
        let chain = connection.peer_certificates().filter(|_| certificate.is_some());
        let leash = chain.map(|chain| self.leashes.hold(chain));
        Ok(Secured { stream, certificate, leash })
    }
}

fn outcome(error: &io::Error) -> &'static str {
    match error.get_ref().and_then(|source| source.downcast_ref::<Error>()) {
        Some(error) => reason(error),
        None => "gone",
    }
}

fn reason(error: &Error) -> &'static str {
    match error {
        Error::NoCertificatesPresented => "no_certificate",
        Error::InvalidCertificate(error) => match error {
            CertificateError::Revoked => "revoked",
            CertificateError::UnknownRevocationStatus => "no_crl",
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate_expired",
            CertificateError::UnknownIssuer => "unknown_ca",
            _ => "bad_certificate",
        },
        Error::PeerIncompatible(_) => "incompatible",
        Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::BadCertificate) => {
            "refused_by_client"
        }
        Error::AlertReceived(_) => "alert",
        Error::InvalidMessage(_) => "not_tls",
        _ => "failed",
    }
}
