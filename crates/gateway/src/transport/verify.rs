//! Clients' certificates: which CA vouches for one, and thereby which realm its client belongs to.
//!
//! Each `[[tls.client_ca]]` has a verifier of its own (path, dates, purpose, revocation by webpki); a certificate is good if one
//! of them takes it.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// One CA's verifier.
#[derive(Debug)]
pub(super) struct RealmVerifier {
    pub(super) realm: Arc<str>,
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Realms {
    realms: Vec<RealmVerifier>,
    subjects: Vec<DistinguishedName>,
    provider: Arc<CryptoProvider>,
}

impl Realms {
    pub(super) fn new(
        realms: Vec<RealmVerifier>,
        subjects: Vec<DistinguishedName>,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self { realms, subjects, provider }
    }

    /// The realm, where there is but one.
    pub(super) fn only(&self) -> Option<Arc<str>> {
        match &self.realms[..] {
            [realm] => Some(Arc::clone(&realm.realm)),
            _ => None,
        }
    }

    /// The realm of a certificate that is good now.
    ///
    /// # Errors
    /// What is wrong with it, by the CA that knows it, if one does.
    pub(super) fn realm_of(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<str>, Error> {
        let Some((own, intermediates)) = chain.split_first() else {
            return Err(Error::NoCertificatesPresented);
        };
        self.find(own, intermediates, UnixTime::now()).map(|realm| Arc::clone(&realm.realm))
    }

    fn find(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<&RealmVerifier, Error> {
        let mut reason = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        for realm in &self.realms {
            match realm.verifier.verify_client_cert(own, intermediates, now) {
                Ok(_) => return Ok(realm),
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {}
                Err(error) => reason = error,
            }
        }
        Err(reason)
    }
}

/// The verifier of a listener.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) realms: Arc<Realms>,
    /// Nobody comes in without a certificate.
    pub(super) mandatory: bool,
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.realms.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.realms.find(end_entity, intermediates, now).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.realms.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.realms.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.realms.provider.signature_verification_algorithms.supported_schemes()
    }
}
