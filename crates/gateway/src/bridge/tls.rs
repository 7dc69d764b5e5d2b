//! TLS to another broker: by whom its certificate is verified, and which one we show.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::config::BridgeConfig;

/// What a handshake needs, and the name that the broker's certificate must have. Reads the files anew each time: certificates are
/// replaced while we run.
///
/// # Errors
/// Which file is not good, and why.
pub(super) fn client_config(
    config: &BridgeConfig,
) -> Result<(Arc<ClientConfig>, ServerName<'static>), String> {
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    match &config.ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| format!("{} is not good: {error}", path.display()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err("there is no CA to verify the broker by; name a PEM file with ca".to_owned());
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let made = match (&config.certificate, &config.key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate)?;
            let pair = PrivateKeyDer::from_pem_slice(&read(key)?)
                .map_err(|error| format!("{} holds no private key in PEM form: {error}", key.display()))?;
            builder.with_client_auth_cert(chain, pair).map_err(|error| {
                format!("{} and {} do not go together: {error}", certificate.display(), key.display())
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    let host = config.server_name.as_deref().unwrap_or(&config.url.host);
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host:?} is no name that a certificate could have; set server_name"))?;
    Ok((Arc::new(made), name))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{} holds no certificate in PEM form", path.display())),
        Err(error) => Err(format!("{} is not good: {error}", path.display())),
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}
