//! TLS as a client: whom to trust, for requests and for WebSockets.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// CAs that may vouch for a server.
#[derive(Debug, Clone)]
pub(crate) struct Roots(Vec<CertificateDer<'static>>);

impl Roots {
    /// Those of a PEM file, or those that the system trusts.
    ///
    /// # Errors
    /// There are none.
    pub(crate) fn read(file: Option<&Path>) -> anyhow::Result<Self> {
        let roots = match file {
            Some(path) => {
                let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
                    .with_context(|| format!("{} cannot be read", path.display()))?
                    .collect();
                found.with_context(|| format!("{} is not a PEM file", path.display()))?
            }
            None => rustls_native_certs::load_native_certs().certs,
        };
        anyhow::ensure!(
            !roots.is_empty(),
            "no CA to verify the server by; name a PEM file of one: --ca FILE, or the setting `ca`"
        );
        Ok(Self(roots))
    }

    /// For requests.
    pub(crate) fn for_http(&self) -> TlsConfig {
        let roots: Vec<_> = self.0.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::new_with_certs(&roots))
            .unversioned_rustls_crypto_provider(provider())
            .build()
    }

    /// For TLS on any connection.
    ///
    /// # Errors
    /// The library has none of the versions that are wanted.
    pub(crate) fn for_tls(&self) -> Result<ClientConfig, rustls::Error> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.0.iter().cloned());
        let builder =
            ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        Ok(builder.with_root_certificates(store).with_no_client_auth())
    }

    /// Begins TLS on a connection to `host`; the handshake comes with the first bytes.
    ///
    /// # Errors
    /// The host has no name that a certificate could have.
    pub(crate) fn secure(&self, host: &str, stream: TcpStream) -> anyhow::Result<Wire> {
        let config = self.for_tls()?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned()).with_context(|| format!("{host} is no host"))?;
        let connection = ClientConnection::new(Arc::new(config), name)?;
        Ok(Wire::Tls(Box::new(StreamOwned::new(connection, stream))))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A connection, with TLS or without.
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    /// The socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
