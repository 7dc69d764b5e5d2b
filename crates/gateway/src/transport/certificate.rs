//! What a verified certificate says of its client.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_cert::Certificate;
use x509_cert::der::oid::db::rfc4519::CN;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;

use super::config::CertificateIdentity;

/// A client's certificate, after it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The realm of the CA that vouches for it.
    pub realm: Arc<str>,
    /// The subject's common name, the last where there are several.
    pub common_name: Option<String>,
    /// DNS names among the alternative names.
    pub san_dns: Vec<String>,
    /// URIs among them.
    pub san_uri: Vec<String>,
    /// E-mail addresses among them.
    pub san_email: Vec<String>,
    /// Serial number, in hexadecimal.
    pub serial: String,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
}

impl PeerCertificate {
    /// Reads a certificate that was verified by a CA of `realm`. Nothing when its fields cannot be read, however well it is
    /// signed.
    pub(super) fn read(realm: Arc<str>, der: &CertificateDer<'_>) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        let tbs = &certificate.tbs_certificate;
        let mut peer = Self {
            realm,
            common_name: common_name(&tbs.subject),
            san_dns: Vec::new(),
            san_uri: Vec::new(),
            san_email: Vec::new(),
            serial: hex(tbs.serial_number.as_bytes()),
            fingerprint: hex(&Sha256::digest(der)),
        };
        if let Some((_, names)) = tbs.get::<SubjectAltName>().ok()? {
            for name in names.0 {
                match name {
                    GeneralName::DnsName(name) => peer.san_dns.push(name.as_str().to_owned()),
                    GeneralName::UniformResourceIdentifier(uri) => peer.san_uri.push(uri.as_str().to_owned()),
                    GeneralName::Rfc822Name(address) => peer.san_email.push(address.as_str().to_owned()),
                    _ => {}
                }
            }
        }
        Some(peer)
    }

    /// The device's id by this rule, if the certificate has what the rule asks for.
    #[must_use]
    pub fn device_id(&self, rule: CertificateIdentity) -> Option<&str> {
        match rule {
            CertificateIdentity::None => None,
            CertificateIdentity::Cn => self.common_name.as_deref(),
            CertificateIdentity::SanDns => self.san_dns.first().map(String::as_str),
            CertificateIdentity::SanUri => self.san_uri.first().map(String::as_str),
        }
    }
}

/// The end of a certificate's validity, in seconds since 1970.
pub(super) fn not_after(der: &CertificateDer<'_>) -> Option<i64> {
    let certificate = Certificate::from_der(der).ok()?;
    let end = certificate.tbs_certificate.validity.not_after.to_unix_duration();
    i64::try_from(end.as_secs()).ok()
}

/// A certificate's subject as DER, which servers send to say whose certificates they take.
pub(super) fn subject(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    Certificate::from_der(der).ok()?.tbs_certificate.subject.to_der().ok()
}

fn common_name(subject: &Name) -> Option<String> {
    let mut values = subject.0.iter().flat_map(|rdn| rdn.0.iter()).filter(|part| part.oid == CN);
    // The most specific comes last. Every kind of text but BMPString and UniversalString is UTF-8, or ASCII within it.
    let value = values.next_back()?.value.value();
    std::str::from_utf8(value).ok().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
